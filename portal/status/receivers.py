"""Note a model's state whenever a supervisor or an operator changes it."""

from typing import Any

from modelregistry.database_clock import read_now
from modelregistry.models import Replica, ServedModel
from portal.status import recording


def note_replica(instance: Replica, raw: bool = False, **_: Any) -> None:
    if not raw:
        _note(instance.model_id)


def note_model(instance: ServedModel, raw: bool = False, **_: Any) -> None:
    if not raw:
        _note(instance.pk)


def _note(pk: int) -> None:
    model = recording.load_model(pk)
    if model is not None:
        recording.note_state(model, read_now())
