"""Quotas and requests for more, in words."""

from django import template
from django.utils.translation import gettext as _

from portal.quotas.models import Quota, QuotaRequest
from portal.quotas.status import Allowance
from portal.quotas.units import UNITS
from portal.web.templatetags.formatting import person

register = template.Library()


@register.filter
def limit(row: Quota | QuotaRequest | Allowance, amount: int | None = None) -> str:
    """Return the amount of a quota or a request, or another amount of the same, as "500,000 tokens per day"."""
    return UNITS[row.unit].format_amount(row.amount if amount is None else amount, row.window)


@register.filter
def left(allowance: Allowance) -> str:
    """Return what is left, as "250,000 of 500,000 tokens left today"."""
    return UNITS[allowance.unit].format_left(allowance.left, allowance.amount, allowance.window)


@register.filter
def target_name(row: QuotaRequest) -> str:
    """Return the owner of a request, for the person who decides it."""
    if row.key:
        return _("Key “%(name)s”") % {"name": row.key.name}
    return person(row.user) if row.user else row.tenant.name
