"""Who changed what, when and from where: AuditEvent rows that nobody changes afterwards.

An app names the models whose rows operators decide (`watch`); from then on each save and delete of them is recorded,
whatever made it: a page, the API, Django's admin or a command. QuerySet.update() and bulk_create() go past it, as they
go past gateways. What is no row (signing in) is written with `record`.
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

# Set for as long as a request is answered, so that a row saved anywhere below knows who asked. Empty: a command.
_request: ContextVar[HttpRequest | None] = ContextVar("audited request", default=None)


@sync_and_async_middleware
def middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Let `record` know the request that is being answered."""
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
) -> AuditEvent:
    """Write one event, within the caller's transaction.

    `action` as "model.stop"; `before` and `after` hold the changed fields only, as JSON can hold them, and no secrets.
    `request` and `actor`: if not the request that is being answered, and who sent it. `via`: if by neither.
    """
    by_directory = is_by_directory()
    request = None if by_directory else request or _request.get()
    actor = actor or person(request)
    return AuditEvent.objects.create(
        actor=actor,
        actor_name=actor.get_username() if actor else ("" if request or by_directory or via else account()),
        action=action,
        object_kind=kind,
        object_id=str(target.pk),
        object_name=name_of(target)[:200],
        tenant=tenant,
        before=before,
        after=after,
        address=client_address(request) if request else None,
        via=AuditEvent.Via.DIRECTORY if by_directory else via or way(request),
    )


def name_of(row: models.Model) -> str:
    """As events call it: in no language, and so that two of the same name are told apart."""
    known = tracked().get(type(row))
    return known.name(row) if known else str(row)


def person(request: HttpRequest | None) -> User | None:
    user = getattr(request, "user", None)
    return User.objects.filter(pk=user.pk).first() if user is not None and user.is_authenticated else None


def account() -> str:
    """Return the system's name of who runs a command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def way(request: HttpRequest | None) -> str:
    if request is None:
        return AuditEvent.Via.COMMAND
    if request.path.startswith("/admin/"):
        return AuditEvent.Via.ADMIN
    return AuditEvent.Via.API if request.path.startswith("/api/") else AuditEvent.Via.PAGE


# --- changes of rows


@dataclass(frozen=True, slots=True)
class Tracked:
    kind: str
    name: Callable[[Any], str]
    secret: frozenset[str]


def track(
    model: type[models.Model],
    kind: str,
    *,
    secret: Collection[str] = (),
    silent: Collection[str] = (),
    untold: Callable[[Any], Collection[str]] = lambda _: (),
    tenant: Callable[[Any], Tenant | None] = lambda _: None,
    name: Callable[[Any], str] = str,
    verb: Callable[[Values, Values], str] = lambda before, after: "change",
    unless: Callable[[Any], bool] = lambda row: False,
) -> None:
    """From now on each save and delete of such a row becomes an event "<kind>.add", ".remove" or "<kind>.<verb>".

    `secret` fields are told as "set" or "changed", `silent` ones never, `untold(row)` ones not of this save. `name`
    calls a row the same in all languages; `verb` names a change, given the values that differ. A row of which `unless`
    is true is left to whoever saves it.
    """
    tracked()[model] = Tracked(kind, name, frozenset(secret))

    # Fetched along with the row: people read its tenant's name, and one who is followed must not cost a query more.
    pointed_at = [field.name for field in model._meta.concrete_fields if field.is_relation]

    def image(row: models.Model) -> Values:
        return {field.name: _value(row, field) for field in model._meta.concrete_fields if field.name not in silent}

    def told(row: models.Model) -> Values:
        left_out = untold(row)
        return {name: value for name, value in image(row).items() if name not in left_out}

    rows = model._base_manager.select_related(*pointed_at)

    def remember(instance: models.Model, raw: bool = False, **_: Any) -> None:
        known = None if instance._state.adding or raw else rows.filter(pk=instance.pk).first()
        instance._audited = image(known) if known else None  # type: ignore[attr-defined]

    def saved(instance: models.Model, created: bool, raw: bool = False, **more: Any) -> None:
        if raw or unless(instance):
            return
        old, new = instance.__dict__.pop("_audited", None), told(instance)
        if created or old is None:
            given = {name: value for name, value in new.items() if value not in ("", None, [])}
            record_event(f"{kind}.add", instance, kind, after=_told({}, given, secret), tenant=tenant(instance))
            return
        fields = more.get("update_fields") or new
        changed = [name for name in new if name in fields and new[name] != old[name]]
        if changed:
            before, after = ({name: values[name] for name in changed} for values in (old, new))
            record_event(
                f"{kind}.{verb(before, after)}",
                instance,
                kind,
                before=_told(after, before, secret, former=True),
                after=_told(before, after, secret),
                tenant=tenant(instance),
            )

    def removed(instance: models.Model, **_: Any) -> None:
        if unless(instance):
            return
        values = {name: value for name, value in told(instance).items() if value not in ("", None, [])}
        before = _told({}, values, secret)
        record_event(f"{kind}.remove", instance, kind, before=before, tenant=tenant(instance))

    for signal, receiver in ((pre_save, remember), (post_save, saved), (post_delete, removed)):
        signal.connect(receiver, sender=model, weak=False, dispatch_uid=f"audit {receiver.__name__} {kind}")


def tracked() -> dict[type[models.Model], Tracked]:
    known: dict[type[models.Model], Tracked] = apps.get_app_config("audit").tracked  # type: ignore[attr-defined]
    return known


def _value(row: models.Model, field: "models.Field[Any, Any]") -> Any:
    """As people read it: what a row points at by its name."""
    if field.is_relation:
        target = getattr(row, field.name)
        return None if target is None else name_of(target)
    return field.value_from_object(row)


def _told(other: Values, values: Values, secret: Collection[str], *, former: bool = False) -> Values:
    """`values` without its secrets. `other`: the same fields at the other side of the change."""

    def word(name: str) -> str:
        if not values[name]:
            return ""
        return "changed" if other.get(name) and not former else "set"

    return {name: word(name) if name in secret else value for name, value in values.items()}


# --- sessions


def record_sign_in(request: HttpRequest, user: User, **_: Any) -> None:
    record_event("session.begin", user, "user", request=request, actor=user)


def record_sign_out(request: HttpRequest, user: User | None, **_: Any) -> None:
    if user is not None:
        record_event("session.end", user, "user", request=request, actor=user)


def track_sessions() -> None:
    """Signing in and out. Failed attempts are not recorded: a stranger could fill the table; see
    `management_key_throttle`.
    """
    user_logged_in.connect(record_sign_in, dispatch_uid="audit sign-in")
    user_logged_out.connect(record_sign_out, dispatch_uid="audit sign-out")
