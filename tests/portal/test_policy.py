"""Which quotas bind whom."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from portal.quotas.models import Quota
from portal.quotas.policy import AppliedQuota, Policy

IDS = (1, 2)
owners = st.one_of(
    st.builds(lambda tenant: {"tenant_id": tenant}, st.sampled_from(IDS)),
    st.builds(lambda user: {"user_id": user}, st.sampled_from(IDS)),
    st.builds(lambda tenant, user: {"tenant_id": tenant, "user_id": user}, st.sampled_from(IDS), st.sampled_from(IDS)),
    st.builds(lambda key: {"key_id": key}, st.sampled_from(IDS)),
    st.just({"each": "tenant"}),
    st.builds(
        lambda each, tenant: {"each": each, "tenant_id": tenant},
        st.sampled_from(["member", "service"]),
        st.sampled_from(IDS),
    ),
)
amounts = st.sampled_from([("tokens", "day"), ("tokens", "month"), ("requests", "day"), ("concurrent", "")])


def quota(owner: dict, model: int | None, unit: tuple[str, str], amount: int) -> Quota:
    return Quota(**owner, model_id=model, unit=unit[0], window=unit[1], amount=amount)


def one_of_a_kind(rows: Iterable[Quota]) -> list[Quota]:
    """As the table's constraint has it."""
    return list(
        {
            (row.tenant_id, row.user_id, row.key_id, row.each, row.model_id, row.unit, row.window): row for row in rows
        }.values()
    )


quotas = st.lists(st.builds(quota, owners, st.sampled_from([None, 1]), amounts, st.integers(0, 3)), max_size=12).map(
    one_of_a_kind
)
Row = tuple[str, int | None, int | None, int | None, int | None, str, str, int]


def naive(rows: list[Quota], tenant: int, user: int | None, key: int) -> set[Row]:
    """Return the rules as they are told to people, one quota after the other."""

    def has(**wanted: object) -> bool:
        return any(all(getattr(row, name) == value for name, value in wanted.items()) for row in rows)

    found: set[Row] = set()
    for row in rows:
        same = {"model_id": row.model_id, "unit": row.unit, "window": row.window, "each": ""}
        what = (row.model_id, row.unit, row.window, row.amount)
        of = (row.tenant_id, row.user_id, row.key_id)
        if row.each == "":
            if of == (tenant, None, None):
                found.add(("tenant", tenant, None, None, *what))
            if user is not None and of == (None, user, None):
                found.add(("user", None, user, None, *what))
            if user is not None and of == (tenant, user, None):
                found.add(("member", tenant, user, None, *what))
            if of == (None, None, key):
                found.add(("key", None, None, key, *what))
        elif row.each == "tenant" and not has(tenant_id=tenant, user_id=None, **same):
            found.add(("tenant", tenant, None, None, *what))
        elif row.each == "member" and row.tenant_id == tenant and user is not None:
            if not has(tenant_id=tenant, user_id=user, **same):
                found.add(("member", tenant, user, None, *what))
        elif row.each == "service" and row.tenant_id == tenant and user is None and not has(key_id=key, **same):
            found.add(("key", None, None, key, *what))
    return found


def flat(bound: AppliedQuota) -> Row:
    row = bound.quota
    return (bound.scope, bound.tenant, bound.user, bound.key, row.model_id, row.unit, row.window, row.amount)


@given(quotas, st.sampled_from(IDS), st.sampled_from([None, *IDS]), st.sampled_from(IDS))
def test_a_call_is_bound_by_what_the_rules_say_and_by_nothing_twice(rows, tenant, user, key):
    bounds = [flat(bound) for bound in Policy(rows).call(tenant=tenant, user=user, key=key)]
    assert len(bounds) == len(set(bounds))
    assert set(bounds) == naive(rows, tenant, user, key)


def test_a_quota_of_ones_own_replaces_the_default_of_its_kind_alone():
    policy = Policy(
        [
            Quota(pk=1, tenant_id=1, each="member", unit="tokens", window="day", amount=100),
            Quota(pk=2, tenant_id=1, each="member", unit="tokens", window="month", amount=1000),
            Quota(pk=3, tenant_id=1, each="member", unit="tokens", window="day", amount=0, model_id=7),
            Quota(pk=4, tenant_id=1, user_id=5, unit="tokens", window="day", amount=500),
        ]
    )
    assert [bound.quota.pk for bound in policy.member(1, 5)] == [4, 2, 3]
    assert [bound.quota.pk for bound in policy.member(1, 6)] == [1, 2, 3]
    assert policy.member(2, 5) == []


def test_a_default_for_service_keys_binds_no_personal_one():
    policy = Policy([Quota(pk=1, tenant_id=1, each="service", unit="concurrent", amount=4)])
    assert [bound.quota.pk for bound in policy.key(9, 1, None)] == [1]
    assert policy.key(9, 1, 5) == []
    assert policy.key(9, 2, None) == []


def test_an_operators_quota_for_a_person_follows_them_into_each_tenant():
    policy = Policy([Quota(pk=1, user_id=5, unit="tokens", window="day", amount=4)])
    for tenant in (1, 2):
        (bound,) = policy.call(tenant=tenant, user=5, key=9)
        assert (bound.scope, bound.tenant, bound.user) == ("user", None, 5)
