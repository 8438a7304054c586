"""The audit log as people read it: which events they may see, searching them, and showing them in words."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.apps import apps
from django.db import models
from django.db.models import Q, QuerySet
from django.db.models.functions import Cast
from django.utils.dateparse import parse_datetime
from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext, pgettext_lazy

from portal.accounts.models import User
from portal.accounts.permissions import administered_tenants, may_operate
from portal.audit import tracking
from portal.audit.models import AuditEvent

Events = QuerySet[AuditEvent]

PAGE = 50
CHUNK = 1000  # events of an export that are in memory at a time
# The first word of an action: what it is about.
SUBJECTS = {
    "session": gettext_lazy("Sign-in"),
    "user": gettext_lazy("Person"),
    "membership": gettext_lazy("Membership"),
    "tenant": gettext_lazy("Tenant"),
    "key": gettext_lazy("API key"),
    "management-key": gettext_lazy("Management key"),
    "class-weight": gettext_lazy("Weight of a class"),
    "price": gettext_lazy("Price"),
    "budget": gettext_lazy("Budget"),
    "prices": gettext_lazy("Display of prices"),
    "quota": gettext_lazy("Quota"),
    "request": gettext_lazy("Quota request"),
    "model": gettext_lazy("Model"),
    "alias": gettext_lazy("Alias"),
    "access": gettext_lazy("Access to a model"),
    "host": gettext_lazy("Host"),
    "use-case": gettext_lazy("Use case"),
    "directory": gettext_lazy("Company directory"),
    "house-rules": gettext_lazy("House rules"),
    "announcement": gettext_lazy("Announcement"),
    "webhook": gettext_lazy("Webhook"),
    "seminar": gettext_lazy("Seminar"),
}
# The second: what was done to it.
VERBS = {
    "add": pgettext_lazy("audit", "created"),
    "change": pgettext_lazy("audit", "changed"),
    "remove": pgettext_lazy("audit", "deleted"),
    "begin": pgettext_lazy("audit", "signed in"),
    "end": pgettext_lazy("audit", "signed out"),
    "break-glass": pgettext_lazy("audit", "with the account for emergencies"),
    "password": pgettext_lazy("audit", "password changed"),
    "leave": pgettext_lazy("audit", "left the directory"),
    "return": pgettext_lazy("audit", "came back to the directory"),
    "on": pgettext_lazy("audit", "switched on"),
    "off": pgettext_lazy("audit", "switched off"),
    "revoke": pgettext_lazy("audit", "revoked"),
    "models": pgettext_lazy("audit", "models changed"),
    "tenants": pgettext_lazy("audit", "tenants changed"),
    "playground": pgettext_lazy("audit", "made for the playground"),
    "granted": pgettext_lazy("audit", "granted"),
    "refused": pgettext_lazy("audit", "refused"),
    "withdrawn": pgettext_lazy("audit", "withdrawn"),
    "start": pgettext_lazy("audit", "started"),
    "stop": pgettext_lazy("audit", "stopped"),
    "restart": pgettext_lazy("audit", "restarted"),
    "retire": pgettext_lazy("audit", "end of service planned"),
    "sync": pgettext_lazy("audit", "synchronised at once"),
    "force": pgettext_lazy("audit", "synchronised although most lost their access"),
    "crash": pgettext_lazy("audit", "an engine died under a request"),
    "proposed": pgettext_lazy("audit", "proposed"),
    "published": pgettext_lazy("audit", "published"),
    "returned": pgettext_lazy("audit", "returned to its author"),
    "hidden": pgettext_lazy("audit", "hidden"),
    "shown": pgettext_lazy("audit", "shown again"),
    "comment": pgettext_lazy("audit", "a comment deleted"),
    "canary": pgettext_lazy("audit", "the canary’s answers accepted"),
    "canary-request": pgettext_lazy("audit", "the canary requested"),
    "invite": pgettext_lazy("audit", "people invited"),
    "uninvite": pgettext_lazy("audit", "people taken off the list"),
    "over": pgettext_lazy("audit", "ended"),
}
# What events hold beside fields of rows.
NOTES = {
    "api_key": gettext_lazy("API key"),
    "request_id": gettext_lazy("Request ID"),
    "endpoint": gettext_lazy("path"),
    "replica": gettext_lazy("Replica"),
    "open_calls": gettext_lazy("Requests open at that engine"),
    "verdict": gettext_lazy("Cause"),
    "canary_run": gettext_lazy("canary run"),
    "version": gettext_lazy("version"),
    "company_wide": gettext_lazy("for the whole company"),
    "people": gettext_lazy("people"),
}
VERDICTS = {
    "guilty": gettext_lazy("this request, which is refused for a few minutes"),
    "suspect": gettext_lazy("possibly this request"),
}


# --- which


def visible_events(user: User) -> Events:
    """Return the events that this person may see, the newest first.

    Operators see all. Others see the events of tenants that they administer, of their own account and of their own
    keys.
    """
    events: Events = AuditEvent.objects.select_related("tenant").order_by("-at", "-pk")
    if may_operate(user):
        return events
    keys, management_keys = (_object_ids(user, model) for model in ("keys.ApiKey", "keys.ManagementKey"))
    return events.filter(
        Q(tenant__in=administered_tenants(user))
        | Q(object_kind="user", object_id=str(user.pk))
        | Q(object_kind="key", object_id__in=keys)
        | Q(object_kind="management-key", object_id__in=management_keys)
    )


def _object_ids(user: User, label: str) -> QuerySet[Any, Any]:
    """Return the ids of this person's rows, as events hold them. The model is given by name: `portal.keys` is above."""
    rows: QuerySet[Any, Any] = apps.get_model(label)._default_manager.filter(user=user).order_by()
    numbers: QuerySet[Any, Any] = rows.annotate(number=Cast("pk", models.CharField(max_length=64))).values("number")
    return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQuery:
    """A search of the audit log; empty fields match everything."""

    text: str = ""  # part of the name of the object or the actor
    who: str = ""  # the actor's user name
    what: str = ""  # a key of SUBJECTS
    tenant: str = ""  # short name
    since: Any = None  # the first day
    until: Any = None  # the last day, included
    kind: str = ""  # with `number`: of the one object whose events are wanted
    number: str = ""

    def apply(self, events: Events, zone: ZoneInfo) -> Events:
        """Return the events that match. `zone`: the time zone in which days begin."""
        if self.text:
            events = events.filter(Q(object_name__icontains=self.text) | Q(actor_name__icontains=self.text))
        if self.who:
            events = events.filter(actor_name__iexact=self.who)
        if self.what:
            events = events.filter(action__startswith=f"{self.what}.")
        if self.tenant:
            events = events.filter(tenant__slug=self.tenant)
        if self.since:
            events = events.filter(at__gte=datetime.combine(self.since, time.min, zone))
        if self.until:
            events = events.filter(at__lt=datetime.combine(self.until + timedelta(days=1), time.min, zone))
        if self.kind and self.number:
            events = events.filter(object_kind=self.kind, object_id=self.number)
        return events


def older_than(events: Events, cursor: str) -> Events:
    """Return the events after this cursor (see `cursor_of`); all of them for an invalid cursor.

    A cursor names the last event instead of counting those before it: page 2,000 costs as much as page 2.
    """
    at_text, _sign, number = cursor.rpartition("_")
    try:
        at = parse_datetime(at_text)
    except ValueError:
        return events
    if at is None or at.tzinfo is None or not 1970 < at.year < 9999 or not (number.isdecimal() and len(number) < 19):
        return events
    # The first condition is redundant, but lets the database use the index.
    return events.filter(at__lte=at).filter(Q(at__lt=at) | Q(pk__lt=int(number)))


def cursor_of(event: AuditEvent) -> str:
    return f"{event.at.isoformat()}_{event.pk}"


def read_page(events: Events, cursor: str) -> tuple[list[AuditEvent], str]:
    """Return PAGE events after the cursor, and the cursor of the last one if there are more."""
    found = list((older_than(events, cursor) if cursor else events)[: PAGE + 1])
    return found[:PAGE], cursor_of(found[PAGE - 1]) if len(found) > PAGE else ""


# --- in words


@dataclass(frozen=True, slots=True)
class Change:
    """One changed field, as text in the reader's language; "" on the side where there was no such field."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An event as pages show it."""

    event: AuditEvent
    subject: str
    verb: str
    changes: tuple[Change, ...]


def describe_event(event: AuditEvent, zone: ZoneInfo) -> AuditRow:
    """Return the event in words. `zone`: the time zone of times."""
    subject, _dot, verb = event.action.partition(".")
    return AuditRow(
        event,
        str(SUBJECTS.get(subject, subject)),
        str(VERBS.get(verb, verb)),
        tuple(describe_changes(event, zone)),
    )


def describe_changes(event: AuditEvent, zone: ZoneInfo) -> Iterator[Change]:
    before, after = event.before or {}, event.after or {}
    tracked = [
        (model, each.secret) for model, each in tracking.tracked_models().items() if each.kind == event.object_kind
    ]
    fields = {field.name: field for model, _secret in tracked for field in model._meta.concrete_fields}
    secret = {name for _model, names in tracked for name in names}
    for name in {**before, **after}:
        field = fields.get(name)
        if field is not None and field.primary_key:
            continue  # is on every event anyway
        label = str(field.verbose_name if field else NOTES.get(name, name.replace("_", " ")))
        was, became = (
            (_describe_secret(side[name]) if name in secret else _format_value(field, side[name], zone))
            if name in side
            else ""
            for side in (before, after)
        )
        yield Change(label, was, became)


def _describe_secret(word: str) -> str:
    """Return the words for what `tracking` records of a secret."""
    return {"set": _("set"), "changed": _("changed")}.get(word, "–")


def _format_value(field: "models.Field[Any, Any] | None", value: Any, zone: ZoneInfo) -> str:
    if value is None or value == "" or value == []:
        return "–"
    if isinstance(value, bool):
        return pgettext("value", "yes") if value else pgettext("value", "no")
    if isinstance(value, int):
        return number_format(value, force_grouping=True)
    if isinstance(value, list):
        return ", ".join(_format_value(None, each, zone) for each in value)
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if field is None and value in VERDICTS:
        return str(VERDICTS[value])
    if isinstance(field, models.DateTimeField) and (at := parse_datetime(value)) and at.tzinfo:
        return f"{at.astimezone(zone):%Y-%m-%d %H:%M}"
    return str(dict(field.flatchoices).get(value, value)) if field and field.choices else value


# --- as a file: codes as they are stored, the same in every language

COLUMNS = ("at", "who", "via", "address", "action", "kind", "id", "object", "tenant", "before", "after")


def export_row(event: AuditEvent) -> dict[str, Any]:
    values = (
        *(event.at.isoformat(), event.actor_name, event.via, event.address, event.action),
        *(event.object_kind, event.object_id, event.object_name),
        *(event.tenant.slug if event.tenant else None, event.before, event.after),
    )
    return dict(zip(COLUMNS, values, strict=True))


def export_rows(events: Events) -> Iterator[dict[str, Any]]:
    """Yield all events as rows of a file, a query for each CHUNK, so that a slow client keeps no query open."""
    cursor = ""
    while found := list((older_than(events, cursor) if cursor else events)[:CHUNK]):
        yield from map(export_row, found)
        cursor = cursor_of(found[-1])
