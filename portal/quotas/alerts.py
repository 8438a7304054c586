"""Who is near the end of a quota: for a tenant's page, and for who is to be notified (`notifications.quota_alerts`).

Whatever the number of people, the same queries are made: quotas, members, keys, what was spent of each kind.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import chain
from zoneinfo import ZoneInfo

from django.db.models import Q

from portal.accounts.models import Membership, Tenant, User
from portal.keys.models import ApiKey
from portal.quotas import quota_usage, status
from portal.quotas.models import Quota
from portal.quotas.policy import AppliedQuota, Policy

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

    def zone_of(self, bound: AppliedQuota) -> ZoneInfo:
        if bound.key is not None:
            return self.tenants[self.keys[bound.key].tenant_id].zone
        if bound.tenant is not None:
            return self.tenants[bound.tenant].zone
        assert bound.user is not None
        return self.zones[bound.user]


def alerts_of(tenant: Tenant, now: datetime) -> list[QuotaAlert]:
    """Return those of the tenant, its members and its keys, the worst first; not what members have everywhere.

    Eight queries at most.
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


def read_field(tenants: Iterable[Tenant]) -> Field:
    """Read what there is in these tenants. Four queries, and one for the tenants if they are not read yet."""
    known = {tenant.pk: tenant for tenant in tenants}
    of_keys = Q(key__tenant__in=known)
    quotas = list(
        Quota.objects.filter(
            Q(default_for=Quota.DefaultFor.TENANT) | Q(tenant__in=known) | of_keys | Q(tenant=None, key=None)
        ).select_related("model")
    )
    members = list(
        Membership.objects.filter(tenant__in=known, user__is_active=True)
        .order_by("since", "pk")
        .values_list("tenant_id", "user_id")
    )
    zones = {user: known[tenant].zone for tenant, user in reversed(members)}
    limited = ApiKey.objects.usable().filter(tenant__in=known, is_playground=False)
    keys = limited.filter(Q(user=None) | Q(pk__in=[quota.key_id for quota in quotas if quota.key_id]))
    return Field(tenants=known, members=members, keys={key.pk: key for key in keys}, zones=zones, rules=Policy(quotas))


def find_alerts(field: Field, now: datetime) -> list[QuotaAlert]:
    """Return the quotas that are nearly or fully used, the worst first.

    One query for each scope, one for successors of keys.
    """
    spans: dict[tuple[str, ZoneInfo], tuple[date, datetime]] = {}
    # What is blocked is not nearly used up.
    bounds = [bound for bound in field.bounds() if bound.quota.amount and quota_usage.adds_up(bound.quota)]
    for bound in bounds:
        which = bound.quota.window, field.zone_of(bound)
        if which not in spans:
            spans[which] = quota_usage.window_span(*which, now)
    of = [spans[bound.quota.window, field.zone_of(bound)] for bound in bounds]
    used = quota_usage.usage_since_start([(bound, begin) for bound, (begin, _) in zip(bounds, of, strict=True)])
    found = [
        QuotaAlert(bound=bound, spent=spent, begin=begin, renews_at=end)
        for bound, spent, (begin, end) in zip(bounds, used, of, strict=True)
        if 100 * spent >= status.NEAR * bound.quota.amount
    ]
    return sorted(found, key=lambda alert: -alert.spent / alert.amount)
