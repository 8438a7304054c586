"""The models to choose from in the playground."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from portal.accounts.models import Tenant
from portal.keys import model_access
from portal.keys.models import ModelAccess

# Default for the tokens of an answer: a good page of text, and a limit for small models that ramble.
ANSWER = 800


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """A model, and the short names of a person's tenants that may use it."""

    offer: model_access.AvailableModel
    tenants: tuple[str, ...]


def model_choices(tenants: Sequence[Tenant]) -> dict[str, list[ModelChoice]]:
    """Return by their task the models that at least one of these tenants may use, those that answer now first.

    At most four queries.
    """
    if not tenants:
        return {}
    served = model_access.open_to(tenants)
    slugs = [tenant.slug for tenant in tenants]
    restricted: dict[str, set[str]] = defaultdict(set)
    for model, slug in ModelAccess.objects.filter(model__in=served).values_list("model__name", "tenant__slug"):
        restricted[model].add(slug)
    found: dict[str, list[ModelChoice]] = defaultdict(list)
    for offer in sorted(model_access.available_models(served), key=model_access.sort_key):
        allowed = restricted.get(offer.name)
        choice = ModelChoice(
            offer=offer,
            tenants=tuple(slug for slug in slugs if allowed is None or slug in allowed),
        )
        found[offer.task].append(choice)
    return found
