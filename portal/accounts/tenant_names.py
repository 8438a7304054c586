"""How tenants are called where several are listed: their names need not differ."""

from collections import Counter
from typing import NamedTuple

from portal.accounts.models import Tenant


class TenantName(NamedTuple):
    """`name`: with its short name, the slug, where others have the same."""

    name: str
    slug: str


def read_tenant_names() -> dict[int, TenantName]:
    """Return how each tenant is called, by its key. One query."""
    rows = list(Tenant.objects.values_list("pk", "name", "slug").order_by("name", "slug"))
    same = Counter(name for _pk, name, _slug in rows)
    return {pk: TenantName(f"{name} ({slug})" if same[name] > 1 else name, slug) for pk, name, slug in rows}
