"""What the search finds of requests for more: one's own, and those of the tenants that one administers."""

from django.db.models import Case, Q, Value, When
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import User
from portal.accounts.permissions import administered_tenants
from portal.quotas.models import QuotaRequest
from portal.quotas.templatetags.quotas import limit, target_name
from portal.web.search import SearchKind, SearchResult
from portal.web.templatetags.formatting import colon

State = QuotaRequest.State
PARTS = (
    "reason",
    "note",
    "key__name",
    "tenant__name",
    *(f"asked_by__{name}" for name in ("username", "last_name", "first_name")),
)


def find_quota_requests(user: User, text: str, most: int) -> list[SearchResult]:
    """Return the requests with the text in their reason, answer, key, tenant or author; those that wait first.

    One query.
    """
    fits = Q()
    for part in PARTS:
        fits |= Q(**{f"{part}__icontains": text})
    visible = Q(asked_by=user) | Q(tenant__in=administered_tenants(user))
    rows = QuotaRequest.objects.filter(visible, fits).select_related("tenant", "user", "key", "asked_by")
    waiting = Case(When(state=State.OPEN, then=Value(0)), default=Value(1))
    return [
        SearchResult(
            title=f"{target_name(row)}{colon()}{limit(row)}",
            address=_address_of(row, user),
            detail=" · ".join(filter(None, [row.get_state_display(), row.tenant.name, row.reason])),
        )
        for row in rows.order_by(waiting, "-asked_at", "-pk")[:most]
    ]


def _address_of(row: QuotaRequest, user: User) -> str:
    """Return the page of one's own request, else the place where those of the tenant are decided."""
    if row.asked_by == user:
        return reverse("quota-request", args=[row.pk])
    return (
        f"{reverse('tenant-requests', args=[row.tenant.slug])}{f'#request-{row.pk}' if row.state == State.OPEN else ''}"
    )


KIND = SearchKind(name="quota-requests", title=_("Quota requests"), order=45, find=find_quota_requests)
