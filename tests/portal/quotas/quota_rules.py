"""Any quotas, and the rules of which calls they limit, applied slowly and plainly."""

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from portal.quotas.models import Quota

IDS = (1, 2)
owners = st.one_of(
    st.builds(lambda tenant: {"tenant_id": tenant}, st.sampled_from(IDS)),
    st.builds(lambda user: {"user_id": user}, st.sampled_from(IDS)),
    st.builds(lambda tenant, user: {"tenant_id": tenant, "user_id": user}, st.sampled_from(IDS), st.sampled_from(IDS)),
    st.builds(lambda key: {"key_id": key}, st.sampled_from(IDS)),
    st.just({"default_for": "tenant"}),
    st.builds(
        lambda each, tenant: {"default_for": each, "tenant_id": tenant},
        st.sampled_from(["member", "service"]),
        st.sampled_from(IDS),
    ),
)
amounts = st.sampled_from([("tokens", "day"), ("tokens", "month"), ("requests", "day"), ("concurrent", "")])


def quota(owner: dict[str, Any], model: int | None, unit: tuple[str, str], amount: int) -> Quota:
    return Quota(**owner, model_id=model, unit=unit[0], window=unit[1], amount=amount)


def one_of_a_kind(rows: Iterable[Quota]) -> list[Quota]:
    """Return the rows that the table's constraint allows side by side."""
    return list(
        {
            (row.tenant_id, row.user_id, row.key_id, row.default_for, row.model_id, row.unit, row.window): row
            for row in rows
        }.values()
    )


quotas = st.lists(st.builds(quota, owners, st.sampled_from([None, 1]), amounts, st.integers(0, 3)), max_size=12).map(
    one_of_a_kind
)
Row = tuple[str, int | None, int | None, int | None, int | None, str, str, int]


Owner = tuple[str, int | None, int | None, int | None]


def owners_of(row: Quota, tenant: int, user: int | None, key: int) -> set[Owner]:
    """Return which of these a quota without a default names: none or one."""
    named = (row.tenant_id, row.user_id, row.key_id)
    possible: set[Owner] = {("tenant", tenant, None, None), ("key", None, None, key)}
    if user is not None:
        possible |= {("user", None, user, None), ("member", tenant, user, None)}
    return {owner for owner in possible if owner[1:] == named}


def naive(rows: list[Quota], tenant: int, user: int | None, key: int) -> set[Row]:
    """Return what applies by the rules as people read them, one quota after the other."""

    def has(**wanted: object) -> bool:
        return any(all(getattr(row, name) == value for name, value in wanted.items()) for row in rows)

    found: set[Row] = set()
    for row in rows:
        same = {"model_id": row.model_id, "unit": row.unit, "window": row.window, "default_for": ""}
        what = (row.model_id, row.unit, row.window, row.amount)
        if row.default_for == "":
            found |= {(*owner, *what) for owner in owners_of(row, tenant, user, key)}
        elif row.default_for == "tenant" and not has(tenant_id=tenant, user_id=None, **same):
            found.add(("tenant", tenant, None, None, *what))
        elif row.default_for == "member" and row.tenant_id == tenant and user is not None:
            if not has(tenant_id=tenant, user_id=user, **same):
                found.add(("member", tenant, user, None, *what))
        elif row.default_for == "service" and row.tenant_id == tenant and user is None and not has(key_id=key, **same):
            found.add(("key", None, None, key, *what))
    return found
