"""The banners of current announcements, in the frame of every page."""

from typing import Any

from django import template
from django.template import Context
from django.utils import timezone

from portal.accounts.models import User
from portal.accounts.timezones import zone_of
from portal.news import announcements

register = template.Library()


@register.inclusion_tag("news/_banners.html", takes_context=True)
def banners(context: Context, user: User) -> dict[str, Any]:
    """Show what is announced now. One query; with something to show one more, for the person's time zone."""
    found = announcements.banners(user, timezone.now())
    request = context["request"]
    return {
        "banners": found,
        "zone": zone_of(user) if found else None,
        "path": request.get_full_path(),
        "request": request,
        "csrf_token": context.get("csrf_token"),
    }
