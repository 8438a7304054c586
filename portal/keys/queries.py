"""Which keys a person may see, and what pages show of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.core.paginator import Page, Paginator
from django.db import models
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Lower
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import Membership, Tenant, User
from portal.accounts.permissions import administered_tenants
from portal.keys.models import ApiKey
from portal.web import sorting
from portal.web.templatetags.formatting import person

# Long enough to make a new key and change what uses the old one, holidays included.
EXPIRES_SOON = timedelta(days=14)
PER_PAGE = 50
# By what lists of keys can be sorted. Those that were never used, or never expire, come last.
SORTS: dict[str, tuple[Any, ...]] = {
    "newest": ("-created_at",),
    "name": (Lower("name"),),
    "tenant": (Lower("tenant__name"), Lower("name")),
    "responsible": (Lower("responsible__last_name"), Lower("responsible__username"), Lower("name")),
    "last-used": (F("last_used_at").desc(nulls_last=True),),
    "expires": (F("expires_at").asc(nulls_last=True),),
}


def is_usable() -> Exists:
    """Return the condition of `KeyQuerySet.usable`, to filter by or to annotate with."""
    return Exists(ApiKey.objects.usable().filter(pk=OuterRef("pk")))


class KeyState(models.TextChoices):
    WORKS = "works", _("works")
    STOPPED = "stopped", _("stopped")
    EXPIRED = "expired", _("expired")
    REVOKED = "revoked", _("revoked")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """A key as pages show it. For the state "stopped" see `KeyQuerySet.usable`."""

    prefix: str
    name: str
    purpose: str
    key_class: str
    class_name: str
    networks: tuple[str, ...]
    takes_user_headers: bool
    user_secret_mark: str  # changes with the secret that signs its end users; empty: it has none
    separates_users: bool
    loop_guard: bool
    service: str  # "" for a personal key
    responsible: str  # a name, or ""
    responsible_is_member: bool  # still a member of the tenant
    tenant: str
    tenant_slug: str
    models: tuple[str, ...] | None  # None: all that the tenant may use
    created_at: datetime
    created_by: str
    last_used_at: datetime | None
    last_used_from: str
    last_used_with: str
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_because: str
    replaces: str  # a prefix, or ""
    replaced_by: str  # a prefix, or ""
    state: KeyState
    expires_soon: bool

    @property
    def has_user_secret(self) -> bool:
        return bool(self.user_secret_mark)

    @property
    def is_canary(self) -> bool:
        """Whether Madoguchi itself uses the key, which people can only revoke."""
        return self.key_class == ApiKey.Class.CANARY

    @property
    def works(self) -> bool:
        return self.state is KeyState.WORKS


def keys_of(user: User) -> QuerySet[ApiKey]:
    """Return the personal keys of this person, without those that the playground makes for itself."""
    keys: QuerySet[ApiKey] = ApiKey.objects.filter(user=user, is_playground=False).select_related("tenant")
    return keys


def service_keys_of(tenant: Tenant) -> QuerySet[ApiKey]:
    """Return the service keys of a tenant."""
    keys: QuerySet[ApiKey] = ApiKey.objects.filter(tenant=tenant, user=None).select_related("tenant", "responsible")
    return keys


def weighted_keys() -> QuerySet[ApiKey]:
    """Return the service keys that work, which operators give weights, by tenant and name."""
    keys: QuerySet[ApiKey] = ApiKey.objects.usable().filter(user=None).exclude(key_class=ApiKey.Class.CANARY)
    return keys.select_related("tenant").order_by("tenant__slug", "service", "pk")


def manageable_by(user: User) -> QuerySet[ApiKey]:
    """Return the keys that this person may change, replace and revoke.

    These are their own, and the service keys of the tenants that they administer. Pages and API of keys begin here:
    any other key is as if it did not exist.
    """
    own = Q(user=user, is_playground=False)
    keys: QuerySet[ApiKey] = ApiKey.objects.filter(own | Q(user=None, tenant__in=administered_tenants(user)))
    return keys.select_related("tenant", "user", "responsible")


def viewable_by(user: User) -> QuerySet[ApiKey]:
    """Return the keys that this person may manage, and the service keys that they are responsible for as a member."""
    responsible = Q(user=None, responsible=user, tenant__in=Membership.objects.filter(user=user).values("tenant"))
    keys: QuerySet[ApiKey] = ApiKey.objects.filter(responsible | Q(pk__in=manageable_by(user).values("pk")))
    return keys.select_related("tenant", "user", "responsible")


def viewable_service_keys(user: User) -> QuerySet[ApiKey]:
    """Return the service keys that this person may see, of all tenants."""
    return viewable_by(user).filter(user=None)


def may_have_service_keys(user: User) -> bool:
    """Return whether this person operates, administers a tenant or is responsible for a service key.

    One query at most.
    """
    if user.is_staff:
        return True
    own = Membership.objects.filter(user=user)
    responsible_for = ApiKey.objects.filter(user=None, responsible=user, tenant=OuterRef("tenant"))
    return own.filter(Q(role=Membership.Role.ADMIN) | Exists(responsible_for)).exists()


def search_keys(keys: QuerySet[ApiKey], text: str) -> QuerySet[ApiKey]:
    """Return the keys with the text in their name, purpose, service, prefix, tenant or responsible person."""
    found = Q()
    for part in ("name", "purpose", "service", "prefix", "tenant__name", "responsible__username"):
        found |= Q(**{f"{part}__icontains": text})
    return keys.filter(found)


def usable_keys(user: User) -> QuerySet[ApiKey]:
    """Return the person's own keys that work now, newest first."""
    return keys_of(user).filter(is_usable())


def with_usable(keys: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
    """Return the same keys with `can_be_used`, which `state_of` needs."""
    return keys.annotate(can_be_used=is_usable())


def state_of(key: ApiKey) -> KeyState:
    """Return the state of a key; "revoked" or "expired" before "stopped", as they say more about the cause."""
    if key.state != "active":
        return KeyState(key.state)
    return KeyState.WORKS if key.can_be_used else KeyState.STOPPED  # type: ignore[attr-defined]


def responsible_is_member() -> Exists:
    """Return the condition that the person responsible for a key is an active member of its tenant."""
    return Exists(
        Membership.objects.filter(user=OuterRef("responsible"), tenant=OuterRef("tenant"), user__is_active=True)
    )


def key_rows(keys: QuerySet[ApiKey], now: datetime) -> list[KeyRow]:
    """Return what pages show of these keys, in their order. Two queries, no matter how many keys."""
    return rows_of(with_shown_fields(keys), now)


def rows_of(keys: Iterable[ApiKey], now: datetime) -> list[KeyRow]:
    """Return what pages show of these keys, which come from `with_shown_fields`."""
    return [_row_of(key, now) for key in keys]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPage:
    """One page of the keys that work, or of those that no longer do."""

    page: Page[ApiKey]
    keys: list[KeyRow]
    working: int  # how many there are on all pages
    ended: int  # how many there are that no longer work
    shows_ended: bool
    sort: str  # one of SORTS, or "-" and one


def sort_keys(keys: QuerySet[ApiKey], sort: str) -> QuerySet[ApiKey]:
    """Return the keys in the order of one of SORTS, or its other direction; of equal ones the newest first."""
    order = SORTS[sorting.column_of(sort)]
    return keys.order_by(*(sorting.turn_order(order) if sorting.is_turned(sort) else order), "-created_at", "-pk")


def key_page(keys: QuerySet[ApiKey], now: datetime, *, number: str | None, ended: bool, sort: str = "") -> KeyPage:
    """Return the page of this number of the keys that work, or of the others (if `ended`, or none works).

    Three queries.
    """
    usable = is_usable()
    counts = keys.aggregate(working=Count("pk", filter=usable), ended=Count("pk", filter=~usable))
    ended = ended or (counts["ended"] > 0 and not counts["working"])
    some = keys.filter(~usable if ended else usable)
    sort = sorting.choose_sort(sort, SORTS, "newest")
    paginator = Paginator(with_shown_fields(sort_keys(some, sort)), PER_PAGE)
    paginator.count = counts["ended" if ended else "working"]  # known by now
    page = paginator.get_page(number)
    return KeyPage(page=page, keys=[_row_of(key, now) for key in page], shows_ended=ended, sort=sort, **counts)


def with_shown_fields(keys: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
    """Return the same keys with all that pages and the API read of them."""
    return (
        with_usable(keys)
        .annotate(responsible_is_member=responsible_is_member())
        .select_related("tenant", "responsible", "created_by", "replaces", "replaced_by")
        .prefetch_related("allowed_models")
    )


def read_shown_fields(keys: QuerySet[ApiKey]) -> list[ApiKey]:
    """Return these keys for `rows_of`. One query; one more for the models of those that may not use every one."""
    found = list(with_shown_fields(keys).prefetch_related(None))
    models.prefetch_related_objects([key for key in found if not key.every_model], "allowed_models")
    return found


def _row_of(key: ApiKey, now: datetime) -> KeyRow:
    successor = getattr(key, "replaced_by", None)
    return KeyRow(
        prefix=key.prefix,
        name=key.name,
        purpose=key.purpose,
        key_class=key.key_class,
        class_name=str(ApiKey.Class(key.key_class).label),
        networks=tuple(key.networks),
        takes_user_headers=key.takes_user_headers,
        user_secret_mark=key.user_secret_mark,
        separates_users=key.separates_users,
        loop_guard=key.loop_guard,
        service=key.service,
        responsible=person(key.responsible) if key.responsible else "",
        responsible_is_member=key.responsible_is_member,  # type: ignore[attr-defined]
        tenant=key.tenant.name,
        tenant_slug=key.tenant.slug,
        models=None if key.every_model else tuple(model.name for model in key.allowed_models.all()),
        created_at=key.created_at,
        created_by=person(key.created_by) if key.created_by else "",
        last_used_at=key.last_used_at,
        last_used_from=key.last_used_from or "",
        last_used_with=key.last_used_with,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        revoked_because=key.revoked_because,
        replaces=key.replaces.prefix if key.replaces else "",
        replaced_by=successor.prefix if successor else "",
        state=state_of(key),
        expires_soon=key.expires_at is not None and now < key.expires_at <= now + EXPIRES_SOON,
    )
