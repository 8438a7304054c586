"""What operators did to a model of late, as the audit log has it."""

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
    "model.retire": _("given a last day"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """`fields`: which were changed, by their names as pages tell them."""

    at: datetime
    who: str
    what: str
    fields: tuple[str, ...]


def history_of(model: ServedModel) -> list[Action]:
    """Return the latest first. One query."""
    events = AuditEvent.objects.filter(object_kind="model", object_id=str(model.pk)).order_by("-at", "-pk")[:SHOWN]
    return [
        Action(
            at=event.at,
            who=event.actor_name,
            what=str(WORDS.get(event.action, event.action)),
            fields=named(event) if event.action == "model.change" else (),
        )
        for event in events
    ]


def named(event: AuditEvent) -> tuple[str, ...]:
    labels = {field.name: str(field.verbose_name) for field in ServedModel._meta.concrete_fields}
    return tuple(labels.get(name, name) for name in event.after or {})
