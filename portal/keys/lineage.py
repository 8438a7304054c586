"""Which keys follow one another by rotation: a successor goes on with what its predecessors used of their quotas."""

from collections.abc import Collection, Iterable

from portal.keys.models import ApiKey

# Keys in one condition; of more the pairs of all tenants are read, which is quicker than to name them.
NAMED = 500


class Lineage:
    """Built from pairs: (key, the one that it replaced)."""

    def __init__(self, pairs: Iterable[tuple[int, int]]) -> None:
        self._before = dict(pairs)
        self._after = {before: key for key, before in self._before.items()}

    def first(self, key: int) -> int:
        """Return the first of its line, itself if it replaced none."""
        for _ in range(len(self._before)):  # however the rows point, this ends
            before = self._before.get(key)
            if before is None:
                break
            key = before
        return key

    def line(self, key: int) -> list[int]:
        """Return all keys of its line, the first one first."""
        found = [self.first(key)]
        while (after := self._after.get(found[-1])) is not None and len(found) <= len(self._after):
            found.append(after)
        return found


def lineages_of_all() -> Lineage:
    """Return one query."""
    return Lineage(ApiKey.objects.filter(replaces__isnull=False).values_list("pk", "replaces_id"))


def lineage_of(keys: Collection[int]) -> Lineage:
    """Return the lines of these keys: a successor is of the same tenant. One query."""
    if len(keys) > NAMED:
        return lineages_of_all()
    tenants = ApiKey.objects.filter(pk__in=keys).values("tenant")
    pairs = ApiKey.objects.filter(tenant__in=tenants, replaces__isnull=False).values_list("pk", "replaces_id")
    return Lineage(pairs)
