"""Notify people who are near the end of a quota, before they hit it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

from django.db import transaction
from django.urls import reverse

from portal.accounts.models import Membership, Tenant, User
from portal.notifications.models import Notice
from portal.quotas.alerts import KINDS, Field, QuotaAlert, find_alerts, read_field
from portal.quotas.policy import AppliedQuota
from portal.web.notify import notify

REFS = 500  # of one condition


def notify_near_limits(now: datetime) -> int:
    """Tell whom it concerns, once for each window: at four fifths, and when nothing is left. Gives how many.

    That is the person; the admins of what a tenant has; who answers for a service key, else the admins. To be repeated
    every few minutes.
    """
    field = read_field(Tenant.objects.filter(is_active=True))
    walls = find_alerts(field, now)
    known = _told([wall.ref for wall in walls])
    new = [wall for wall in walls if (wall.kind, wall.ref) not in known]
    readers = Readers(field) if new else None
    for wall in new:
        assert readers is not None
        _tell(wall, field, readers.of(wall.bound))
    return len(new)


class Readers:
    """Whom a wall concerns. Two queries for all of them."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._people = {
            user.pk: user
            for user in User.objects.filter(is_active=True, memberships__tenant__in=field.tenants).distinct()
        }
        self._admins: dict[int, list[User]] = defaultdict(list)
        self._members = set(field.members)
        rows = Membership.objects.filter(role=Membership.Role.ADMIN, tenant__in=field.tenants, user__is_active=True)
        for tenant, user in rows.values_list("tenant_id", "user_id"):
            self._admins[tenant].append(self._people[user])

    def of(self, bound: AppliedQuota) -> list[User]:
        if bound.key is not None:
            key = self._field.keys[bound.key]
            whose = key.user_id or key.responsible_id
            if whose in self._people and (key.tenant_id, whose) in self._members:
                return [self._people[whose]]
            return self._admins[key.tenant_id]
        if bound.user is not None:
            return [self._people[bound.user]]
        assert bound.tenant is not None
        return self._admins[bound.tenant]


def _told(refs: Sequence[str]) -> set[tuple[str, str]]:
    """(kind, ref) of those that somebody was told before."""
    known: set[tuple[str, str]] = set()
    for start in range(0, len(refs), REFS):
        told = Notice.objects.filter(kind__in=KINDS, ref__in=refs[start : start + REFS])
        known.update(told.values_list("kind", "ref").distinct())
    return known


def _tell(wall: QuotaAlert, field: Field, readers: Iterable[User]) -> None:
    bound, quota = wall.bound, wall.bound.quota
    key = field.keys[bound.key] if bound.key is not None else None
    tenant = field.tenants[bound.tenant] if bound.scope == "tenant" and bound.tenant is not None else None
    path = reverse("key", args=[key.prefix]) if key else reverse("tenant", args=[tenant.slug]) if tenant else "/"
    facts = {
        "of": "key" if key else "tenant" if tenant else "you",
        "owner": key.name if key else tenant.name if tenant else "",
        "unit": quota.unit,
        "window": quota.window,
        "model": quota.model.name if quota.model else "",
        "amount": quota.amount,
        "renews_at": wall.renews_at.astimezone(field.zone_of(bound)),
    }
    more = {} if wall.is_reached else {"percent": wall.percent}
    with transaction.atomic():
        notify(readers, wall.kind, wall.ref, path=path, **facts, **more)
