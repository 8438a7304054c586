"""What the search finds of people and tenants."""

from django.db.models import Q, Value
from django.db.models.functions import Concat
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import Membership, User
from portal.accounts.permissions import administered_tenants
from portal.web.search import SearchKind, SearchResult
from portal.web.templatetags.formatting import person


def find_people(user: User, text: str, most: int) -> list[SearchResult]:
    """Return members of the tenants that this person administers, of all tenants for operators. One query."""
    members = Membership.objects.filter(tenant__in=administered_tenants(user)).annotate(
        # As names are written in either language, so that a whole name is found.
        family_first=Concat("user__last_name", Value(" "), "user__first_name"),
        given_first=Concat("user__first_name", Value(" "), "user__last_name"),
        joined=Concat("user__last_name", "user__first_name"),
    )
    fits = Q()
    for part in ("user__username", "user__email", "family_first", "given_first", "joined"):
        fits |= Q(**{f"{part}__icontains": text})
    rows = members.filter(fits).select_related("user", "tenant").order_by("user__username", "tenant__slug")[:most]
    return [
        SearchResult(
            title=person(row.user),
            address=reverse("tenant-person", args=[row.tenant.slug, row.user_id]),
            detail=f"{row.user.username} · {row.tenant.name}",
        )
        for row in rows
    ]


def find_tenants(user: User, text: str, most: int) -> list[SearchResult]:
    """Return tenants that this person administers, all for operators. One query."""
    rows = administered_tenants(user).filter(Q(name__icontains=text) | Q(slug__icontains=text)).order_by("name")[:most]
    return [SearchResult(title=row.name, address=reverse("tenant", args=[row.slug]), detail=row.slug) for row in rows]


KINDS = (
    SearchKind(name="people", title=_("People"), order=20, find=find_people),
    SearchKind(name="tenants", title=_("Tenants"), order=30, find=find_tenants),
)
