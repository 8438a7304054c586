"""What the search finds of API keys."""

from django.urls import reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import User
from portal.keys import queries
from portal.keys.models import ApiKey
from portal.web.search import SearchKind, SearchResult
from portal.web.templatetags.formatting import person


def find_keys(user: User, text: str, most: int) -> list[SearchResult]:
    """Return the keys that this person may see, those that work first. One query."""
    fitting = queries.search_keys(queries.viewable_by(user), text.removesuffix("…"))
    found = queries.with_usable(fitting).order_by(queries.is_usable().desc(), "-created_at", "-pk")
    return [
        SearchResult(title=key.service or key.name, address=reverse("key", args=[key.prefix]), detail=describe_key(key))
        for key in found[:most]
    ]


def describe_key(key: ApiKey) -> str:
    """Return what distinguishes a key from others of its name. For one of `queries.with_usable`."""
    owner = person(key.user) if key.user else gettext("Service key")
    return " · ".join([f"{key.prefix}…", key.tenant.name, owner, str(queries.state_of(key).label)])


KIND = SearchKind(name="keys", title=_("API keys"), order=40, find=find_keys)
