"""What the search finds of requests: the one of exactly this id."""

from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import User
from portal.usage.calls import find_call
from portal.web.search import SearchKind, SearchResult


def find_requests(user: User, text: str, most: int) -> list[SearchResult]:
    """Return the request of this id, if this person may see it. Two queries."""
    call = find_call(text, user)
    if call is None:
        return []
    return [
        SearchResult(
            title=call.request_id, address=reverse("request", args=[call.request_id]), detail=call.model, code=True
        )
    ]


KIND = SearchKind(name="requests", title=_("Requests"), order=50, find=find_requests)
