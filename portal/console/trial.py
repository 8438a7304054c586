"""What the page for trying a model offers to choose from."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant
from portal.keys import access
from portal.keys.models import ModelAccess

# Tokens that an answer may have unless told otherwise: a good page of text, and an end for small models that ramble.
ANSWER = 800


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A chat model and the short names of those of a person's tenants that may use it."""

    offer: access.Offer
    tenants: tuple[str, ...]


def choices(tenants: Sequence[Tenant]) -> list[Choice]:
    """The chat models that at least one of these may use; what answers now comes first. At most four queries."""
    if not tenants:
        return []
    chat = access.open_to(tenants).filter(task=ServedModel.Task.CHAT)
    slugs = [tenant.slug for tenant in tenants]
    restricted: dict[str, set[str]] = defaultdict(set)
    for model, slug in ModelAccess.objects.filter(model__in=chat).values_list("model__name", "tenant__slug"):
        restricted[model].add(slug)
    return [
        Choice(
            offer=offer,
            tenants=tuple(slug for slug in slugs if offer.name not in restricted or slug in restricted[offer.name]),
        )
        for offer in sorted(access.offers(chat), key=access.promise)
    ]
