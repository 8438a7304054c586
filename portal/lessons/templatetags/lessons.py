"""The courses and seminars on pages of others, which import nothing from here."""

from typing import Any
from zoneinfo import ZoneInfo

from django import template
from django.utils import timezone

from portal.accounts.models import User
from portal.lessons import seminars
from portal.lessons.progress import read_suggestion

register = template.Library()


@register.inclusion_tag("lessons/_line.html", takes_context=True)
def lessons_line(context: dict[str, Any], user: User) -> dict[str, Any]:
    """Show how far the person is, in one line. Three queries at most; one for who wants none of it."""
    return {"progress": read_suggestion(user), "csrf_token": context.get("csrf_token")}


@register.inclusion_tag("lessons/_own_seminars.html")
def seminars_card(user: User, zone: ZoneInfo) -> dict[str, Any]:
    """Show the seminars that the person takes part in or is named for, in their zone. One query."""
    now = timezone.now()
    found = list(seminars.seminars_of(user, now))
    return {"seminars": found, "now": now, "zone": zone}
