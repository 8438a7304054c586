"""Which keys replaced which by rotation: a successor shares the used part of its predecessors' quotas."""

from collections.abc import Collection, Iterable

from portal.keys.models import ApiKey

# Keys in one condition. For more, the pairs of all tenants are read, which is faster than naming them.
NAMED = 500


class Lineage:
    """Chains of keys, built from pairs: (key, the key that it replaced)."""

    def __init__(self, pairs: Iterable[tuple[int, int]]) -> None:
        self._before = dict(pairs)
        self._after = {before: key for key, before in self._before.items()}

    def first(self, key: int) -> int:
        """Return the first key of the chain; the key itself if it replaced none."""
        for _ in range(len(self._before)):  # bounded, even if the rows formed a circle
            before = self._before.get(key)
            if before is None:
                break
            key = before
        return key

    def chain(self, key: int) -> list[int]:
        """Return all keys of the key's chain, oldest first."""
        found = [self.first(key)]
        while (after := self._after.get(found[-1])) is not None and len(found) <= len(self._after):
            found.append(after)
        return found


def lineages_of_all() -> Lineage:
    """Return the chains of all keys. One query."""
    return Lineage(ApiKey.objects.filter(replaces__isnull=False).values_list("pk", "replaces_id"))


def find_chained(keys: Iterable[ApiKey]) -> set[int]:
    """Return those of these keys that replaced another or were replaced. They were read with `replaced_by`."""
    return {key.pk for key in keys if key.replaces_id or getattr(key, "replaced_by", None)}


def lineage_of(keys: Collection[int]) -> Lineage:
    """Return the chains of these keys: a successor has the same tenant. One query."""
    if len(keys) > NAMED:
        return lineages_of_all()
    tenants = ApiKey.objects.filter(pk__in=keys).values("tenant")
    pairs = ApiKey.objects.filter(tenant__in=tenants, replaces__isnull=False).values_list("pk", "replaces_id")
    return Lineage(pairs)
