"""Who is near the end of a quota: for a tenant's page, and for who is to be notified (`notifications.quota_alerts`).

Whatever the number of people, the same queries are made: quotas, members, keys, what was spent of each kind.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import chain
from zoneinfo import ZoneInfo

from django.db.models import Q

from portal.accounts.models import Membership, Tenant, User
from portal.keys.models import ApiKey
from portal.quotas import quota_usage, status
from portal.quotas.models import Quota
from portal.quotas.policy import ORDER, AppliedQuota, Policy

KINDS = ("quota-near", "quota-reached")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaAlert:
    """A quota of which four fifths or more are spent in the window that began on `begin` and ends at `renews_at`."""

    bound: AppliedQuota
    spent: int
    begin: date
    renews_at: datetime

    @property
    def amount(self) -> int:
        return self.bound.quota.amount

    @property
    def percent(self) -> int:
        return min(100, 100 * self.spent // self.amount)

    @property
    def is_reached(self) -> bool:
        return self.spent >= self.amount

    @property
    def kind(self) -> str:
        """The kind of its notice."""
        return KINDS[self.is_reached]

    @property
    def ref(self) -> str:
        """The same for as long as no further notice is due: while the window runs and the amount is not changed."""
        quota = self.bound.quota
        ids = "/".join(str(number) for number in quota_usage.owner_of(self.bound))
        return f"{self.bound.scope} {ids} {quota.model_id or 0} {quota.unit} {quota.window} {self.begin} {self.amount}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """What there is to look at: some tenants with their members and keys, and the rules for all of them."""

    tenants: dict[int, Tenant]
    members: Sequence[tuple[int, int]]  # (tenant, user)
    keys: dict[int, ApiKey]
    zones: dict[int, ZoneInfo]  # in which a person's days are counted who has a quota everywhere
    rules: Policy

    def bounds(self) -> Iterable[AppliedQuota]:
        return chain(
            chain.from_iterable(self.rules.tenant(pk) for pk in self.tenants),
            chain.from_iterable(self.rules.member(tenant, user) for tenant, user in self.members),
            chain.from_iterable(self.rules.user(user) for user in self.zones),
            chain.from_iterable(self.rules.key(key.pk, key.tenant_id, key.user_id) for key in self.keys.values()),
        )

    def home_of(self, bound: AppliedQuota) -> int:
        """Return the id of the tenant that a quota belongs to; 0 of what a person has everywhere."""
        return self.keys[bound.key].tenant_id if bound.key is not None else bound.tenant or 0

    def zone_of(self, bound: AppliedQuota) -> ZoneInfo:
        if bound.key is not None:
            return self.tenants[self.keys[bound.key].tenant_id].zone
        if bound.tenant is not None:
            return self.tenants[bound.tenant].zone
        assert bound.user is not None
        return self.zones[bound.user]


def alerts_of(tenant: Tenant, now: datetime) -> list[QuotaAlert]:
    """Return those of the tenant, its members and its keys, the worst first; not what members have everywhere.

    Five queries at most.
    """
    return find_alerts(replace(read_field([tenant]), zones={}), now)


def read_allowances(alerts: Sequence[QuotaAlert], tenant: Tenant) -> list[status.Allowance]:
    """Return these as pages show quotas: for the few that fit on one. Two queries at most."""
    ids = {"user": {alert.bound.user for alert in alerts}, "key": {alert.bound.key for alert in alerts}}
    names = status.Names(
        zone=tenant.zone,
        tenants={tenant.pk: tenant},
        users=User.objects.in_bulk([pk for pk in ids["user"] if pk is not None]),
        keys=ApiKey.objects.in_bulk([pk for pk in ids["key"] if pk is not None]),
    )
    return [status.allowance(alert.bound, names, alert.spent, alert.renews_at) for alert in alerts]


def read_field(tenants: Iterable[Tenant], also: Q | None = None) -> Field:
    """Read what there is in these tenants. Three queries, and one for the tenants if they are not read yet.

    `also`: further quotas that the rules are to hold.
    """
    known = {tenant.pk: tenant for tenant in tenants}
    of_keys = Q(key__tenant__in=known)
    wanted = Q(default_for=Quota.DefaultFor.TENANT) | Q(tenant__in=known) | of_keys | Q(tenant=None, key=None)
    quotas = list(
        Quota.objects.filter(wanted if also is None else wanted | also).select_related("model").order_by(*ORDER)
    )
    members = list(
        Membership.objects.filter(tenant__in=known, user__is_active=True)
        .order_by("since", "pk")
        .values_list("tenant_id", "user_id")
    )
    zones = {user: known[tenant].zone for tenant, user in reversed(members)}
    limited = ApiKey.objects.usable().select_related("replaced_by").filter(tenant__in=known, is_playground=False)
    keys = limited.filter(Q(user=None) | Q(pk__in=[quota.key_id for quota in quotas if quota.key_id]))
    return Field(tenants=known, members=members, keys={key.pk: key for key in keys}, zones=zones, rules=Policy(quotas))


def find_alerts(field: Field, now: datetime) -> list[QuotaAlert]:
    """Return the quotas that are nearly or fully used, the worst first. One query, and one for successors of keys."""
    counted = list_counted(field, now)
    return choose_alerts(counted, field, now, quota_usage.read_usage(counted).by_bound)


def list_counted(field: Field, now: datetime) -> list[quota_usage.CountedQuota]:
    """Return the quotas that can be nearly used, with the first days of their windows: none that is blocked."""
    spans = _Spans(field, now)
    return [
        (bound, spans.of(bound)[0])
        for bound in field.bounds()
        if bound.quota.amount and quota_usage.adds_up(bound.quota)
    ]


def choose_alerts(
    counted: Iterable[quota_usage.CountedQuota], field: Field, now: datetime, spent: Mapping[AppliedQuota, int]
) -> list[QuotaAlert]:
    """Return what `find_alerts` does, where it is known what was spent of them."""
    spans = _Spans(field, now)
    found = [
        QuotaAlert(bound=bound, spent=spent[bound], begin=begin, renews_at=spans.of(bound)[1])
        for bound, begin in counted
        if 100 * spent[bound] >= status.NEAR * bound.quota.amount
    ]
    return sorted(found, key=lambda alert: -alert.spent / alert.amount)


class _Spans:
    """The windows that hold `now`, each computed once: thousands of members have the same."""

    def __init__(self, field: Field, now: datetime) -> None:
        self._field, self._now = field, now
        self._known: dict[tuple[str, ZoneInfo], tuple[date, datetime]] = {}

    def of(self, bound: AppliedQuota) -> tuple[date, datetime]:
        which = bound.quota.window, self._field.zone_of(bound)
        if which not in self._known:
            self._known[which] = quota_usage.window_span(*which, self._now)
        return self._known[which]
