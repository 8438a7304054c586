"""What quotas leave to a person, a tenant or a key. Read from what was recorded, for pages.

Gateways decide by counters of their own, which also hold what is reserved for requests in flight, so a page may
show a little more left than the next request would find.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from zoneinfo import ZoneInfo

from portal.accounts.models import Tenant, User
from portal.keys.models import ApiKey
from portal.quotas import quota_usage
from portal.quotas.models import Quota
from portal.quotas.policy import ORDER, AppliedQuota, Policy, applying_to
from portal.quotas.quota_usage import CountedQuota
from portal.web.templatetags.formatting import person

NEAR = 80  # per cent
OWN_FIRST = ("key", "member", "user", "tenant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """One quota and what is left of it. `model` "" = all together.

    `spent`, `renews_at`: None where nothing adds up over time.

    `to` names its owner, for a request for more (see request_pages.find_request_target); "" for what operators gave a
    person everywhere.
    """

    of: str  # a policy.Scope: "tenant", "user", "member" or "key"
    owner: str
    to: str = ""
    user: int = 0  # whose it is as a member's, the id
    tenant: str = ""  # the name of the tenant that a member's or a key's quota belongs to
    model: str
    unit: str
    window: str
    amount: int
    spent: int | None = None
    renews_at: datetime | None = None
    is_default: bool = False

    @property
    def left(self) -> int:
        return max(0, self.amount - (self.spent or 0))

    @property
    def percent(self) -> int:
        """How much is used up, 0 to 100; rounded down, so 100 means that nothing is left."""
        return min(100, 100 * (self.spent or 0) // self.amount) if self.amount else 100

    @property
    def near(self) -> bool:
        """Whether a notice is due: little or nothing is left of what adds up."""
        return self.spent is not None and self.percent >= NEAR

    @property
    def level(self) -> str:
        """The tone: "fine", "watch" from four fifths, "broken" when nothing is left."""
        if self.percent >= 100:
            return "broken"
        return "watch" if self.percent >= NEAR else "fine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The rows behind the ids of bounds, by primary key: as many as these bounds name. `zone`: of a person's days."""

    zone: ZoneInfo
    tenants: Mapping[int, Tenant] = field(default_factory=dict)
    users: Mapping[int, User] = field(default_factory=dict)
    keys: Mapping[int, ApiKey] = field(default_factory=dict)

    def home(self, bound: AppliedQuota) -> Tenant | None:
        if bound.key is not None:
            return self.tenants[self.keys[bound.key].tenant_id]
        return None if bound.tenant is None else self.tenants[bound.tenant]

    def zone_of(self, bound: AppliedQuota) -> ZoneInfo:
        home = self.home(bound)
        return home.zone if home else self.zone


def allowances(
    user: User,
    zone: ZoneInfo,
    now: datetime,
    own: Iterable[Tenant] | None = None,
    usable: Iterable[ApiKey] | None = None,
) -> list[Allowance]:
    """Return every quota that bounds this person: their tenants', their own, their keys'. At most five queries.

    `own` and `usable`: the person's active tenants and keys that work, where they are known: a query less for each.
    """
    if own is None:
        own = Tenant.objects.filter(memberships__user=user, is_active=True)
    tenants = {tenant.pk: tenant for tenant in own}
    if usable is None:
        usable = ApiKey.objects.usable().filter(user=user, is_playground=False)
    keys = {key.pk: key for key in usable}
    rules = rules_for(tenants=tenants, users=[user.pk], keys=keys)
    names = Names(zone=zone, tenants=tenants, users={user.pk: user}, keys=keys)
    return read_allowances(bounds_of_person(user, names, rules), names, now)


def bounds_of_person(user: User, names: Names, rules: Policy) -> list[AppliedQuota]:
    """Return every quota that bounds this person: of the tenants and the keys in `names`, which are theirs."""
    return [
        *(bound for pk in names.tenants for bound in [*rules.member(pk, user.pk), *rules.tenant(pk)]),
        *rules.user(user.pk),
        *(bound for pk, key in names.keys.items() for bound in rules.key(pk, key.tenant_id, user.pk)),
    ]


def allowances_of_tenant(tenant: Tenant, now: datetime) -> list[Allowance]:
    """Return what the tenant has as a whole. Two queries."""
    bounds = rules_for(tenants=[tenant.pk]).tenant(tenant.pk)
    return read_allowances(bounds, Names(zone=tenant.zone, tenants={tenant.pk: tenant}), now)


def allowances_of_member(tenant: Tenant, user: User, now: datetime) -> list[Allowance]:
    """Return what the person has as a member of the tenant. Three queries at most."""
    bounds = rules_for(tenants=[tenant.pk], users=[user.pk]).member(tenant.pk, user.pk)
    return read_allowances(bounds, Names(zone=tenant.zone, tenants={tenant.pk: tenant}, users={user.pk: user}), now)


def allowances_everywhere(user: User, zone: ZoneInfo, now: datetime) -> list[Allowance]:
    """Return what operators gave the person for all tenants together, which is hidden from admins of a single tenant.

    Three queries at most.
    """
    bounds = rules_for(tenants=[], users=[user.pk]).user(user.pk)
    return read_allowances(bounds, Names(zone=zone, users={user.pk: user}), now)


def allowances_of_key(key: ApiKey, now: datetime) -> list[Allowance]:
    """Return all that bounds a call with this key. At most six queries."""
    users = {key.user.pk: key.user} if key.user else {}
    rules = rules_for(tenants=[key.tenant_id], users=users, keys=[key.pk])
    bounds = rules.call(tenant=key.tenant_id, user=key.user_id, key=key.pk)
    own_first = sorted(bounds, key=lambda bound: OWN_FIRST.index(bound.scope))
    names = Names(zone=key.tenant.zone, tenants={key.tenant_id: key.tenant}, users=users, keys={key.pk: key})
    return read_allowances(own_first, names, now)


def rules_for(*, tenants: Iterable[int], users: Iterable[int] = (), keys: Iterable[int] = ()) -> Policy:
    """Return the rules for these. One query."""
    bearing = applying_to(tenants=list(tenants), users=list(users), keys=list(keys))
    return Policy(Quota.objects.filter(bearing).select_related("model").order_by(*ORDER))


def read_allowances(bounds: Iterable[AppliedQuota], names: Names, now: datetime) -> list[Allowance]:
    """Return these with what is left, in their order but rates last. One query, and one for successors of keys."""
    bounds = list(bounds)
    return show_allowances(bounds, names, now, quota_usage.read_usage(list_counted(bounds, names, now)).by_bound)


def list_counted(bounds: Iterable[AppliedQuota], names: Names, now: datetime) -> list[CountedQuota]:
    """Return those of which usage adds up, with the first days of their windows."""
    return [
        (bound, quota_usage.window_span(bound.quota.window, names.zone_of(bound), now)[0])
        for bound in bounds
        if quota_usage.adds_up(bound.quota)
    ]


def show_allowances(
    bounds: Iterable[AppliedQuota], names: Names, now: datetime, spent: Mapping[AppliedQuota, int]
) -> list[Allowance]:
    """Return what `read_allowances` does, where it is known what was spent of those that add up."""
    found = [
        allowance(
            bound,
            names,
            spent.get(bound),
            quota_usage.window_span(bound.quota.window, names.zone_of(bound), now)[1] if bound in spent else None,
        )
        for bound in bounds
    ]
    return sorted(found, key=lambda one: one.spent is None)


def allowance(bound: AppliedQuota, names: Names, spent: int | None, renews_at: datetime | None) -> Allowance:
    quota, home = bound.quota, names.home(bound)
    if bound.key is not None:
        owner, to = names.keys[bound.key].name, f"key:{names.keys[bound.key].prefix}"
    elif bound.user is not None:
        owner, to = person(names.users[bound.user]), f"member:{home.slug}" if home else ""
    else:
        assert home is not None
        owner, to = home.name, f"tenant:{home.slug}"
    return Allowance(
        of=bound.scope,
        owner=owner,
        to=to,
        user=bound.user or 0,
        tenant=home.name if home else "",
        model=quota.model.name if quota.model else "",
        unit=quota.unit,
        window=quota.window,
        amount=quota.amount,
        spent=spent,
        renews_at=renews_at,
        is_default=bool(quota.default_for),
    )
