"""Quota alerts: once, to the people concerned, before the quota is used up, at a cost that does not grow with them."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from portal.accounts.models import Membership, User
from portal.keys import playground
from portal.keys.lifecycle import rotate_key
from portal.keys.models import ApiKey
from portal.notifications import quota_alerts
from portal.notifications.models import Notice
from portal.quotas import alerts, status
from portal.quotas.models import Quota
from tests.conftest import person
from tests.pages import key_of, serve, service_key_of, use, use_each

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 20, 3, 0, tzinfo=UTC)  # noon in Tokyo


def notices_sent() -> set[tuple[str, str]]:
    return set(Notice.objects.values_list("user__username", "kind"))


@pytest.fixture
def key(alice, research):
    return key_of(alice, research)


def limit(amount: int = 100, window: str = "day", **of) -> Quota:
    return Quota.objects.create(**of, unit="tokens", window=window, amount=amount)


class TestTelling:
    def test_below_four_fifths_nobody_is_told(self, key, research):
        limit(tenant=research, default_for="member")
        use(key, tokens=(79, 0), at=NOW)
        assert quota_alerts.notify_near_limits(NOW) == 0
        assert notices_sent() == set()

    def test_at_four_fifths_the_member_is_told_once(self, key, alice, research):
        limit(tenant=research, default_for="member")
        use(key, tokens=(80, 0), at=NOW)
        assert quota_alerts.notify_near_limits(NOW) == 1
        use(key, tokens=(1, 0), at=NOW)
        assert quota_alerts.notify_near_limits(NOW + timedelta(minutes=10)) == 0
        notice = Notice.objects.get()
        assert (notice.user, notice.kind, notice.path) == (alice, "quota-near", "/")
        assert notice.facts["percent"] == 80
        assert notice.facts["renews_at"] == "2026-11-21T00:00:00+09:00"

    def test_when_nothing_is_left_that_is_told_too(self, key, research):
        limit(tenant=research, default_for="member")
        use(key, tokens=(80, 0), at=NOW)
        quota_alerts.notify_near_limits(NOW)
        use(key, tokens=(20, 0), at=NOW)
        quota_alerts.notify_near_limits(NOW)
        quota_alerts.notify_near_limits(NOW)
        assert sorted(Notice.objects.values_list("kind", flat=True)) == ["quota-near", "quota-reached"]

    def test_the_next_window_is_told_anew(self, key, research):
        limit(tenant=research, default_for="member")
        for day in (NOW, NOW + timedelta(days=1)):
            use(key, tokens=(90, 0), at=day)
            quota_alerts.notify_near_limits(day)
        assert Notice.objects.count() == 2

    def test_after_more_was_given_its_end_is_told_as_well(self, key, research):
        quota = limit(tenant=research, default_for="member")
        use(key, tokens=(100, 0), at=NOW)
        quota_alerts.notify_near_limits(NOW)
        quota.amount = 120
        quota.save()
        quota_alerts.notify_near_limits(NOW)
        assert sorted(Notice.objects.values_list("kind", flat=True)) == ["quota-near", "quota-reached"]

    def test_of_a_tenant_its_admins_are_told(self, key, bob, research):
        limit(tenant=research)
        use(key, tokens=(90, 0), at=NOW)
        quota_alerts.notify_near_limits(NOW)
        assert notices_sent() == {("bob", "quota-near")}
        assert Notice.objects.get().path == "/tenant/research/"

    def test_of_a_service_key_who_answers_for_it_is_told_or_else_the_admins(self, alice, bob, research):
        limit(tenant=research, default_for="service")
        key = service_key_of(research, responsible=alice)
        use(key, tokens=(90, 0), at=NOW)
        quota_alerts.notify_near_limits(NOW)
        assert notices_sent() == {("alice", "quota-near")}
        Notice.objects.all().delete()
        Membership.objects.get(user=alice).delete()
        quota_alerts.notify_near_limits(NOW)
        assert notices_sent() == {("bob", "quota-near")}

    def test_what_a_person_has_everywhere_is_summed_over_tenants(self, alice, research, sales):
        Membership.objects.create(user=alice, tenant=sales)
        limit(user=alice)
        for tenant in (research, sales):
            use(key_of(alice, tenant), tokens=(40, 0), at=NOW)
        quota_alerts.notify_near_limits(NOW)
        assert notices_sent() == {("alice", "quota-near")}

    def test_one_s_own_quota_counts_in_place_of_the_default(self, key, alice, research):
        limit(tenant=research, default_for="member")
        limit(1000, tenant=research, user=alice)
        use(key, tokens=(90, 0), at=NOW)
        assert quota_alerts.notify_near_limits(NOW) == 0

    def test_who_is_blocked_is_told_nothing(self, key, alice, research):
        limit(tenant=research, default_for="member")
        limit(0, tenant=research, user=alice)
        use(key, tokens=(90, 0), at=NOW)
        assert quota_alerts.notify_near_limits(NOW) == 0

    def test_a_quota_of_one_model_counts_that_model(self, key, research):
        model = serve("qwen")
        Quota.objects.create(
            tenant=research, default_for="member", unit="requests", window="month", amount=2, model=model
        )
        for name in ("qwen", "other", "other"):
            use(key, model=name, at=NOW)
        assert quota_alerts.notify_near_limits(NOW) == 0
        use(key, model="qwen", at=NOW)
        quota_alerts.notify_near_limits(NOW)
        assert notices_sent() == {("alice", "quota-reached")}

    def test_who_left_is_told_nothing(self, key, alice, research):
        limit(tenant=research, default_for="member")
        use(key, tokens=(90, 0), at=NOW)
        alice.is_active = False
        alice.save()
        assert quota_alerts.notify_near_limits(NOW) == 0

    def test_its_queries_do_not_grow_with_people(self, research):
        limit(10**9, tenant=research, default_for="member")
        limit(10**9, tenant=research, default_for="member", window="month")
        limit(tenant=research)

        def fill(first: int, count: int) -> int:
            people = [User(username=f"p{n}", password="!") for n in range(first, first + count)]
            made = User.objects.bulk_create(people)
            Membership.objects.bulk_create([Membership(user=user, tenant=research) for user in made])
            names = [user.username for user in made]
            keys = [
                ApiKey(tenant=research, user=user, name="k", prefix=n, digest=n)
                for user, n in zip(made, names, strict=True)
            ]
            use_each(ApiKey.objects.bulk_create(keys), at=NOW)
            with CaptureQueriesContext(connection) as queries:
                assert quota_alerts.notify_near_limits(NOW) == (1 if first == 0 else 0)
            return len(queries)

        person("carol", research, role="admin")
        fill(0, 10)
        few = fill(100, 10)
        assert fill(1000, 2000) == few <= 10


class TestWalls:
    def test_a_tenant_s_page_has_the_worst_first(self, alice, bob, research):
        limit(tenant=research, default_for="member")
        limit(1000, tenant=research)
        use(key_of(alice, research), tokens=(85, 0), at=NOW)
        use(key_of(bob, research), tokens=(750, 0), at=NOW)
        found = alerts.alerts_of(research, NOW)
        assert [(wall.bound.scope, wall.bound.user, wall.percent) for wall in found] == [
            ("member", bob.pk, 100),
            ("member", alice.pk, 85),
            ("tenant", None, 83),
        ]

    def test_other_tenants_have_their_own(self, alice, charlie, research, sales):
        limit(tenant=sales, default_for="member")
        use(key_of(charlie, sales), tokens=(85, 0), at=NOW)
        assert alerts.alerts_of(research, NOW) == []


class TestLines:
    def test_m9_of_a_rotated_key_pages_show_what_its_predecessors_used_as_well(self, research, bob):
        first = service_key_of(research)
        limit(key=first, amount=100)
        limit(key=first, amount=1000, window="month")
        use(first, tokens=(70, 0), at=NOW)
        second, _ = rotate_key(first, timedelta(hours=1))
        third, _ = rotate_key(second, timedelta(hours=1))
        use(third, tokens=(20, 0), at=NOW)
        use(service_key_of(research, "batch"), tokens=(5, 0), at=NOW)
        for key in (first, second, third):
            assert {(one.window, one.spent) for one in status.allowances_of_key(key, NOW)} == {
                ("day", 90),
                ("month", 90),
            }
        assert {wall.spent for wall in alerts.alerts_of(research, NOW)} == {90}


def test_t6_the_key_of_the_playground_has_no_wall_of_its_own(alice, research):
    playground.renew_key(alice, research, NOW)
    ApiKey.objects.update(expires_at=None)
    key = ApiKey.objects.get(is_playground=True)
    limit(key=key)
    use(key, tokens=(100, 0), at=NOW)
    assert quota_alerts.notify_near_limits(NOW) == 0
    assert notices_sent() == set()
