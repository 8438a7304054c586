"""Quotas and requests for more, in words."""

from django import template
from django.utils.translation import gettext as _

from portal.quotas import amounts
from portal.quotas.models import Quota, QuotaRequest
from portal.web.templatetags.formatting import person

register = template.Library()


@register.filter
def limit(row: Quota | QuotaRequest, amount: int | None = None) -> str:
    """As "500,000 tokens per day": of a quota, of what is wished, or of another amount of the same."""
    return amounts.format_per(row.amount if amount is None else amount, row.unit, row.window)


@register.filter
def for_whom(row: QuotaRequest) -> str:
    """Of whom a request is, in the eyes of who decides it."""
    if row.key:
        return _("Key “%(name)s”") % {"name": row.key.name}
    return person(row.user) if row.user else row.tenant.name
