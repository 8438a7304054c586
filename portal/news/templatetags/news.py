"""The banners of current announcements, in the frame of every page."""

from typing import Any
from zoneinfo import ZoneInfo

from django import template
from django.template import Context
from django.utils import timezone

from portal.accounts.models import User
from portal.news import announcements

register = template.Library()


@register.inclusion_tag("news/_banners.html", takes_context=True)
def banners(context: Context, user: User, zone: ZoneInfo) -> dict[str, Any]:
    """Show what is announced now, its times in the person's zone. One query."""
    found = announcements.banners(user, timezone.now())
    request = context["request"]
    return {
        "banners": found,
        "zone": zone,
        "path": request.get_full_path(),
        "request": request,
        "csrf_token": context.get("csrf_token"),
    }
