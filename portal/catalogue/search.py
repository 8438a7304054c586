"""What the search finds of models: those that the catalogue shows a person."""

from django.db.models import Q
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import User
from portal.keys.model_access import offered_to
from portal.web.search import SearchKind, SearchResult


def find_models(user: User, text: str, most: int) -> list[SearchResult]:
    """Return the models that this person may call with the text in a name or a description. One query."""
    fits = Q()
    for part in ("name", "aliases__name", "description_ja", "description_en"):
        fits |= Q(**{f"{part}__icontains": text})
    rows = offered_to(user).filter(fits).distinct().order_by("name")[:most]
    return [
        SearchResult(title=row.name, address=reverse("model", args=[row.name]), detail=row.description, code=True)
        for row in rows
    ]


KIND = SearchKind(name="models", title=_("Models"), order=10, find=find_models)
