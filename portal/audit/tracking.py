"""Record who changed what, when and from where, as AuditEvent rows that are never changed afterwards.

An app names the models to record with `track`; from then on each save and delete of their rows is recorded, wherever it
comes from: a page, the API, Django's admin or a command. QuerySet.update() and bulk_create() are not recorded, nor do
gateways notice them. Events without a row (signing in) are recorded with `record_event`.
"""

import getpass
import os
from collections.abc import Awaitable, Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.apps import apps
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import models
from django.db.models.signals import post_delete, post_save, pre_save
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware

from portal.accounts.attribution import is_by_directory
from portal.accounts.models import Tenant, User
from portal.audit.models import AuditEvent
from portal.web.client_address import client_address

Values = dict[str, Any]
Response = HttpResponse | Awaitable[HttpResponse]

# Set while a request is being answered, so that each event knows who sent it. Empty in commands.
_request: ContextVar[HttpRequest | None] = ContextVar("audited request", default=None)


@sync_and_async_middleware
def middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Let `record_event` know the request that is being answered."""
    if iscoroutinefunction(get_response):

        async def answer_async(request: HttpRequest) -> HttpResponse:
            token = _request.set(request)
            try:
                response: HttpResponse = await get_response(request)
                return response
            finally:
                _request.reset(token)

        return answer_async

    def answer(request: HttpRequest) -> HttpResponse:
        token = _request.set(request)
        try:
            response: HttpResponse = get_response(request)
            return response
        finally:
            _request.reset(token)

    return answer


def record_event(
    action: str,
    target: models.Model,
    kind: str,
    *,
    before: Values | None = None,
    after: Values | None = None,
    tenant: Tenant | None = None,
    request: HttpRequest | None = None,
    actor: User | None = None,
    via: str = "",
    name: str = "",
) -> AuditEvent:
    """Write one event, within the caller's transaction.

    `action` is like "model.stop"; `before` and `after` hold only the changed fields, as values for JSON, without
    secrets. `request` and `actor` default to the request that is being answered and the person who sent it; `via` to
    the way that request came, or to a command without one; `name` to that of the target.
    """
    by_directory = is_by_directory()
    request = None if by_directory else request or _request.get()
    actor = actor or find_actor(request)
    return AuditEvent.objects.create(
        actor=actor,
        actor_name=actor.get_username() if actor else ("" if request or by_directory or via else system_account()),
        action=action,
        object_kind=kind,
        object_id=str(target.pk),
        object_name=(name or name_of(target))[:200],
        tenant=tenant,
        before=before,
        after=after,
        address=client_address(request) if request else None,
        via=AuditEvent.Via.DIRECTORY if by_directory else via or find_via(request),
    )


def name_of(row: models.Model) -> str:
    """Return the name of a row in events: independent of language, and distinct for rows of equal display names."""
    known = tracked_models().get(type(row))
    return known.name(row) if known else str(row)


def find_actor(request: HttpRequest | None) -> User | None:
    user = getattr(request, "user", None)
    return User.objects.filter(pk=user.pk).first() if user is not None and user.is_authenticated else None


def system_account() -> str:
    """Return the name of the system account that runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def find_via(request: HttpRequest | None) -> str:
    if request is None:
        return AuditEvent.Via.COMMAND
    if request.path.startswith("/admin/"):
        return AuditEvent.Via.ADMIN
    return AuditEvent.Via.API if request.path.startswith("/api/") else AuditEvent.Via.PAGE


# --- changes of rows


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedModel:
    """How saves and deletes of one model's rows become events "<kind>.add", "<kind>.remove" and "<kind>.<verb>"."""

    model: type[models.Model]
    kind: str
    name: Callable[[Any], str]  # names a row, the same in all languages
    tenant: Callable[[Any], Tenant | None]
    verb: Callable[[Values, Values], str]  # names a change, given the values that differ, before and after
    secret: frozenset[str]  # fields recorded as "set" or "changed"
    ignored: frozenset[str]  # fields never recorded
    omitted: Callable[[Any], Collection[str]]  # fields not recorded for this save of a row
    is_skipped: Callable[[Any], bool]  # whether the code that saves the row records it itself

    def connect(self) -> None:
        """Record every save and delete from now on."""
        receivers = ((pre_save, self.remember), (post_save, self.record_save), (post_delete, self.record_delete))
        for signal, receiver in receivers:
            uid = f"audit {receiver.__name__} {self.kind}"
            signal.connect(receiver, sender=self.model, weak=False, dispatch_uid=uid)

    def remember(self, instance: models.Model, raw: bool = False, **_: Any) -> None:
        """Keep the values that the row has in the database, to compare them once it is saved."""
        known = None if instance._state.adding or raw else self._rows().filter(pk=instance.pk).first()
        instance._audited = self._values(known) if known else None  # type: ignore[attr-defined]

    def record_save(self, instance: models.Model, created: bool, raw: bool = False, **more: Any) -> None:
        if raw or self.is_skipped(instance):
            return
        old, new = instance.__dict__.pop("_audited", None), self._recorded_values(instance)
        if created or old is None:
            self._record("add", instance, after=mask_secrets({}, _without_empty(new), self.secret))
            return
        fields = more.get("update_fields") or new
        changed = [name for name in new if name in fields and new[name] != old[name]]
        if changed:
            before, after = ({name: values[name] for name in changed} for values in (old, new))
            self._record(
                self.verb(before, after),
                instance,
                before=mask_secrets(after, before, self.secret, former=True),
                after=mask_secrets(before, after, self.secret),
            )

    def record_delete(self, instance: models.Model, **_: Any) -> None:
        if not self.is_skipped(instance):
            values = _without_empty(self._recorded_values(instance))
            self._record("remove", instance, before=mask_secrets({}, values, self.secret))

    def _record(
        self, verb: str, row: models.Model, *, before: Values | None = None, after: Values | None = None
    ) -> None:
        action = f"{self.kind}.{verb}"
        record_event(action, row, self.kind, before=before, after=after, tenant=self.tenant(row))

    def _rows(self) -> models.QuerySet[models.Model]:
        # With related rows, whose names are recorded: syncing a person must not cost a query more for each.
        related = [field.name for field in self.model._meta.concrete_fields if field.is_relation]
        rows: models.QuerySet[models.Model] = self.model._base_manager.select_related(*related)
        return rows

    def _values(self, row: models.Model) -> Values:
        fields = self.model._meta.concrete_fields
        return {field.name: _value(row, field) for field in fields if field.name not in self.ignored}

    def _recorded_values(self, row: models.Model) -> Values:
        omitted = self.omitted(row)
        return {name: value for name, value in self._values(row).items() if name not in omitted}


def track(
    model: type[models.Model],
    kind: str,
    *,
    secret: Collection[str] = (),
    ignored: Collection[str] = (),
    omitted: Callable[[Any], Collection[str]] = lambda row: (),
    tenant: Callable[[Any], Tenant | None] = lambda row: None,
    name: Callable[[Any], str] = str,
    verb: Callable[[Values, Values], str] = lambda before, after: "change",
    is_skipped: Callable[[Any], bool] = lambda row: False,
) -> None:
    """Record every save and delete of the model's rows from now on. See TrackedModel for the options."""
    tracked = TrackedModel(
        model=model,
        kind=kind,
        name=name,
        tenant=tenant,
        verb=verb,
        secret=frozenset(secret),
        ignored=frozenset(ignored),
        omitted=omitted,
        is_skipped=is_skipped,
    )
    tracked_models()[model] = tracked
    tracked.connect()


def tracked_models() -> dict[type[models.Model], TrackedModel]:
    config: Any = apps.get_app_config("audit")
    known: dict[type[models.Model], TrackedModel] = config.tracked_models
    return known


def _value(row: models.Model, field: "models.Field[Any, Any]") -> Any:
    """Return the value of a field; for a relation the name of the row it points at."""
    if field.is_relation:
        target = getattr(row, field.name)
        return None if target is None else name_of(target)
    return field.value_from_object(row)


def _without_empty(values: Values) -> Values:
    return {name: value for name, value in values.items() if value not in ("", None, [])}


def mask_secrets(other: Values, values: Values, secret: Collection[str], *, former: bool = False) -> Values:
    """Return `values` with "set" or "changed" for secrets. `other`: the same fields on the other side of the change."""

    def describe(name: str) -> str:
        if not values[name]:
            return ""
        return "changed" if other.get(name) and not former else "set"

    return {name: describe(name) if name in secret else value for name, value in values.items()}


# --- sessions


def record_sign_in(request: HttpRequest, user: User, **_: Any) -> None:
    record_event("session.begin", user, "user", request=request, actor=user)


def record_sign_out(request: HttpRequest, user: User | None, **_: Any) -> None:
    if user is not None:
        record_event("session.end", user, "user", request=request, actor=user)


def track_sessions() -> None:
    """Record each sign-in and sign-out.

    Failed attempts are not recorded: a stranger could fill the table; see `management_key_throttle`.
    """
    user_logged_in.connect(record_sign_in, dispatch_uid="audit sign-in")
    user_logged_out.connect(record_sign_out, dispatch_uid="audit sign-out")
