"""Which quotas apply to which key."""

from hypothesis import given
from hypothesis import strategies as st

from portal.quotas.models import Quota
from portal.quotas.policy import AppliedQuota, Policy
from tests.portal.quotas.quota_rules import IDS, Row, naive, quotas


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
            Quota(pk=1, tenant_id=1, default_for="member", unit="tokens", window="day", amount=100),
            Quota(pk=2, tenant_id=1, default_for="member", unit="tokens", window="month", amount=1000),
            Quota(pk=3, tenant_id=1, default_for="member", unit="tokens", window="day", amount=0, model_id=7),
            Quota(pk=4, tenant_id=1, user_id=5, unit="tokens", window="day", amount=500),
        ]
    )
    assert [bound.quota.pk for bound in policy.member(1, 5)] == [4, 2, 3]
    assert [bound.quota.pk for bound in policy.member(1, 6)] == [1, 2, 3]
    assert policy.member(2, 5) == []


def test_a_default_for_service_keys_binds_no_personal_one():
    policy = Policy([Quota(pk=1, tenant_id=1, default_for="service", unit="concurrent", amount=4)])
    assert [bound.quota.pk for bound in policy.key(9, 1, None)] == [1]
    assert policy.key(9, 1, 5) == []
    assert policy.key(9, 2, None) == []


def test_an_operators_quota_for_a_person_follows_them_into_each_tenant():
    policy = Policy([Quota(pk=1, user_id=5, unit="tokens", window="day", amount=4)])
    for tenant in (1, 2):
        (bound,) = policy.call(tenant=tenant, user=5, key=9)
        assert (bound.scope, bound.tenant, bound.user) == ("user", None, 5)
