"""Notify people who have almost used up a quota, before requests are refused."""

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
    """Notify the people concerned, once per window, when four fifths are used and when nothing is left.

    That is the person of a personal quota, the admins for a tenant's, the responsible person (else the admins) for a
    service key's. Returns the number of alerts. To be repeated every few minutes.
    """
    field = read_field(Tenant.objects.filter(is_active=True))
    alerts = find_alerts(field, now)
    known = _already_sent([alert.ref for alert in alerts])
    new = [alert for alert in alerts if (alert.kind, alert.ref) not in known]
    recipients = Recipients(field) if new else None
    for alert in new:
        assert recipients is not None
        _notify_of_alert(alert, field, recipients.people_of(alert.bound))
    return len(new)


class Recipients:
    """The people to notify of alerts. Two queries for all of them."""

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

    def people_of(self, bound: AppliedQuota) -> list[User]:
        if bound.key is not None:
            key = self._field.keys[bound.key]
            person = key.user_id or key.responsible_id
            if person in self._people and (key.tenant_id, person) in self._members:
                return [self._people[person]]
            return self._admins[key.tenant_id]
        if bound.user is not None:
            return [self._people[bound.user]]
        assert bound.tenant is not None
        return self._admins[bound.tenant]


def _already_sent(refs: Sequence[str]) -> set[tuple[str, str]]:
    """Return kind and ref of the alerts that were sent before."""
    known: set[tuple[str, str]] = set()
    for start in range(0, len(refs), REFS):
        notices = Notice.objects.filter(kind__in=KINDS, ref__in=refs[start : start + REFS])
        known.update(notices.values_list("kind", "ref").distinct())
    return known


def _notify_of_alert(alert: QuotaAlert, field: Field, people: Iterable[User]) -> None:
    bound, quota = alert.bound, alert.bound.quota
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
        "renews_at": alert.renews_at.astimezone(field.zone_of(bound)),
    }
    more = {} if alert.is_reached else {"percent": alert.percent}
    with transaction.atomic():
        notify(people, alert.kind, alert.ref, path=path, **facts, **more)
