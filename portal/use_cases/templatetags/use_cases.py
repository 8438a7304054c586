"""`{% colleagues_use_cases user %}`: what colleagues use models for, for the home page; flags of cases."""

from typing import Any

from django import template
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import User
from portal.use_cases import gallery
from portal.use_cases.models import UseCaseCheck

register = template.Library()

FAULTS = {
    "gone": _("its model is gone or switched off"),
    "closed": _("not everyone who sees it may call its model"),
}


@register.inclusion_tag("use_cases/_colleagues.html")
def colleagues_use_cases(user: User) -> dict[str, Any]:
    """Return the three cases that helped most members of the person's tenants. Two queries."""
    return {"cases": gallery.most_helpful(user)}


@register.filter
def flag_of(flags: dict[int, str], pk: int) -> str:
    return flags.get(pk, "")


@register.filter
def flag_label(code: str) -> str | Promise:
    return FAULTS[code] if code in FAULTS else UseCaseCheck.Outcome(code).label
