"""The time zone of a person."""

from collections.abc import Sequence
from zoneinfo import ZoneInfo

from django.utils import timezone

from portal.accounts.models import Tenant, User


def zone_of(user: User) -> ZoneInfo:
    """Return the zone in which this person's pages show times and count days: their first tenant's, else the site's."""
    return zone_among(list(Tenant.objects.filter(memberships__user=user, is_active=True)[:1]))


def zone_among(tenants: Sequence[Tenant]) -> ZoneInfo:
    """Return the same from the person's active tenants, in their usual order, where they are known."""
    return tenants[0].zone if tenants else ZoneInfo(timezone.get_default_timezone_name())
