"""Which quotas apply to a call. Pure: quotas that were read before come in, those that apply come out.

A call with a key is bound by all of these together, each for itself:

- its tenant: the tenant's own quotas, where it has none the default for each tenant;
- its person, wherever they work: their own quotas, which operators gave;
- its person as a member of the key's tenant: their own there, where they have none its default for each member;
- the key: its own, and of a service key where it has none the tenant's default for each service key.

Own replaces default one by one: for the same model (or all together), unit and window. So 0 by default and a number
of one's own opens to a few what is closed to all others.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from django.db.models import Q, QuerySet

from portal.quotas.models import Quota

Scope = Literal["tenant", "user", "member", "key"]
Ids = Collection[int] | QuerySet[Any]
ORDER = ("unit", "window", "model__name")  # in which pages show them
Kind = tuple[int | None, str, str]  # model, unit, window


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedQuota:
    """A quota as it applies to an owner. Usage that counts against it has all of the ids that are set.

    `quota` is a default if its `each` is set: it counts for each owner alone.
    """

    quota: Quota
    scope: Scope
    tenant: int | None = None
    user: int | None = None
    key: int | None = None


def applying_to(*, tenants: Ids, users: Ids = (), keys: Ids = ()) -> Q:
    """Return the quotas that `Policy` needs for these owners; none of other people in these tenants."""
    return (
        Q(default_for=Quota.DefaultFor.TENANT)
        | Q(tenant__in=tenants, user=None)
        | Q(key__in=keys)
        | Q(user__in=users)  # member's too
    )


class Policy:
    """`quotas` must hold all that apply to those it is asked about, see `applying_to`; others do no harm."""

    def __init__(self, quotas: Iterable[Quota]) -> None:
        self._own: dict[tuple[int | None, int | None, int | None], list[Quota]] = defaultdict(list)
        self._defaults: dict[tuple[str, int | None], list[Quota]] = defaultdict(list)
        for quota in quotas:
            if quota.default_for:
                self._defaults[quota.default_for, quota.tenant_id].append(quota)
            else:
                self._own[quota.tenant_id, quota.user_id, quota.key_id].append(quota)

    def call(self, *, tenant: int, user: int | None, key: int) -> list[AppliedQuota]:
        """Return all that binds a call with this key of the tenant's; `user` None: it is a service key."""
        return [*self.caller(tenant, user), *self.key(key, tenant, user)]

    def caller(self, tenant: int, user: int | None) -> list[AppliedQuota]:
        """Return what binds calls with all keys of a person in the tenant, or with all service keys, alike."""
        person = [] if user is None else [*self.user(user), *self.member(tenant, user)]
        return [*self.tenant(tenant), *person]

    def tenant(self, tenant: int) -> list[AppliedQuota]:
        quotas = self._prefer_own((tenant, None, None), (Quota.DefaultFor.TENANT, None))
        return [AppliedQuota(quota=quota, scope="tenant", tenant=tenant) for quota in quotas]

    def user(self, user: int) -> list[AppliedQuota]:
        """Return what operators gave the person, for all their tenants together."""
        return [AppliedQuota(quota=quota, scope="user", user=user) for quota in self._own.get((None, user, None), ())]

    def member(self, tenant: int, user: int) -> list[AppliedQuota]:
        quotas = self._prefer_own((tenant, user, None), (Quota.DefaultFor.MEMBER, tenant))
        return [AppliedQuota(quota=quota, scope="member", tenant=tenant, user=user) for quota in quotas]

    def key(self, key: int, tenant: int, user: int | None) -> list[AppliedQuota]:
        """Return what binds a key alone; `user` None: it is a service key."""
        default = (Quota.DefaultFor.SERVICE, tenant) if user is None else ("", None)
        quotas = self._prefer_own((None, None, key), default)
        return [AppliedQuota(quota=quota, scope="key", key=key) for quota in quotas]

    def _prefer_own(
        self, owner: tuple[int | None, int | None, int | None], default: tuple[str, int | None]
    ) -> Iterable[Quota]:
        """Return the owner's own, then of the default's those that no own one stands for."""
        own, defaults = self._own.get(owner, ()), self._defaults.get(default, ())
        if not own or not defaults:
            return own or defaults
        taken = {kind_of(quota) for quota in own}
        return chain(own, (quota for quota in defaults if kind_of(quota) not in taken))


def kind_of(quota: Quota) -> Kind:
    """Return what an own quota and the default that it replaces have in common."""
    return quota.model_id, quota.unit, quota.window
