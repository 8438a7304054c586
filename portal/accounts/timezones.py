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
    return zone_named(tenants[0].time_zone if tenants else None)


def zone_named(name: str | None) -> ZoneInfo:
    """Return the zone of this name, of a person's first tenant; None: the site's."""
    return ZoneInfo(name or timezone.get_default_timezone_name())
