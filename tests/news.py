"""Announcements, made in one line each."""

from datetime import timedelta
from typing import Any

from django.utils import timezone

from portal.accounts.models import Tenant
from portal.news import announcements
from portal.news.models import Announcement

HOUR = timedelta(hours=1)


def announce(
    *tenants: Tenant, level: str = "info", begins: timedelta = -HOUR, ends: timedelta = HOUR, **more: Any
) -> Announcement:
    """Return an announcement for these tenants, or for everyone. `begins`, `ends`: from now."""
    more = {"title_ja": "お知らせ"} | more
    now = timezone.now()
    row = Announcement(level=level, begins_at=now + begins, ends_at=now + ends, **more)
    return announcements.save_announcement(row, tenants)
