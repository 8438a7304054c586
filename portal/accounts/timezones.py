"""The time zone of a person."""

from zoneinfo import ZoneInfo

from django.utils import timezone

from portal.accounts.models import Tenant, User


def zone_of(user: User) -> ZoneInfo:
    """Return the zone in which this person's pages show times and count days: their first tenant's, else the site's."""
    tenant = Tenant.objects.filter(memberships__user=user, is_active=True).first()
    return tenant.zone if tenant else ZoneInfo(timezone.get_default_timezone_name())
