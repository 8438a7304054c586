"""What operators have recently done to a model, from the audit log."""

from dataclasses import dataclass
from datetime import datetime

from django.utils.translation import gettext_lazy as _

from modelregistry.models import ServedModel
from portal.audit.models import AuditEvent

SHOWN = 10
WORDS = {
    "model.add": _("registered"),
    "model.change": _("changed"),
    "model.start": _("started"),
    "model.stop": _("stopped"),
    "model.restart": _("restarted"),
    "model.retire": _("retirement planned"),
    "model.canary": _("the canary’s answers accepted"),
    "model.canary-request": _("the canary requested"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One action. `fields`: the labels of those that were changed."""

    at: datetime
    who: str
    what: str
    fields: tuple[str, ...]


def read_history(model: ServedModel) -> list[Action]:
    """Return the actions, the latest first. One query."""
    events = AuditEvent.objects.filter(object_kind="model", object_id=str(model.pk)).order_by("-at", "-pk")[:SHOWN]
    return [
        Action(
            at=event.at,
            who=event.actor_name,
            what=str(WORDS.get(event.action, event.action)),
            fields=label_changed_fields(event) if event.action == "model.change" else (),
        )
        for event in events
    ]


def label_changed_fields(event: AuditEvent) -> tuple[str, ...]:
    labels = {field.name: str(field.verbose_name) for field in ServedModel._meta.concrete_fields}
    return tuple(labels.get(name, name) for name in event.after or {})
