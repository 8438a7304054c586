"""What the search finds of use cases: the published ones that the gallery shows a person."""

from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import User
from portal.use_cases import gallery
from portal.use_cases.gallery import GalleryQuery
from portal.web.search import SearchKind, SearchResult


def find_use_cases(user: User, text: str, most: int) -> list[SearchResult]:
    """Return the cases with the words in their title or summary, the most helpful first. Two queries."""
    found = gallery.with_texts(gallery.search(gallery.visible(user), GalleryQuery(text=text)))[:most]
    return [
        SearchResult(title=shown.title, address=reverse("use-case", args=[case.pk]), detail=shown.summary)
        for case in found
        if case.current and (shown := case.current.text)
    ]


KIND = SearchKind(name="use-cases", title=_("Use cases"), order=15, find=find_use_cases)
