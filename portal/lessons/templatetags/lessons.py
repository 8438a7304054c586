"""The courses on pages of others, which import nothing from here."""

from typing import Any

from django import template

from portal.accounts.models import User
from portal.lessons.progress import read_suggestion

register = template.Library()


@register.inclusion_tag("lessons/_line.html", takes_context=True)
def lessons_line(context: dict[str, Any], user: User) -> dict[str, Any]:
    """Show how far the person is, in one line. Eight queries at most; one for who wants none of it."""
    return {"progress": read_suggestion(user), "csrf_token": context.get("csrf_token")}
