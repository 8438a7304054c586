"""Who may give which quota to which person, and how a request for more becomes one."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest
from django.db import connection

from portal.accounts.models import Membership
from portal.notifications.models import Notice
from portal.quotas import administration
from portal.quotas.administration import MAX_AMOUNT, NotAllowed, QuotaKind, QuotaRefused, QuotaTarget
from portal.quotas.models import Quota, QuotaRequest
from portal.web.templatetags.formatting import figure
from tests.conftest import person
from tests.pages import key_of, serve, service_key_of
from tests.portal.recorded import notified

pytestmark = pytest.mark.django_db

DAILY = QuotaKind(unit="tokens", window="day")


@contextlib.contextmanager
def refused(kind: type[QuotaRefused], code: str, *named: str) -> Iterator[None]:
    """Assert that it is refused for this reason, in a sentence with these names and numbers."""
    with pytest.raises(QuotaRefused) as caught:
        yield
    assert (type(caught.value), caught.value.code) == (kind, code)
    for name in named:
        assert name in caught.value.sentence


class TestGiving:
    def test_operators_give_tenants_people_and_defaults(self, olivia, alice, research):
        for to in (QuotaTarget(tenant=research), QuotaTarget(user=alice), QuotaTarget(default_for="tenant")):
            administration.set_quota(olivia, to, DAILY, 100)
        assert Quota.objects.count() == 3

    def test_giving_again_changes_the_quota_that_is_there(self, olivia, research):
        first = administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 100)
        again = administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 200)
        assert (first.pk, 200) == (again.pk, Quota.objects.get().amount)

    def test_an_admin_gives_members_keys_and_defaults_of_the_tenant(self, bob, alice, research):
        service, own = service_key_of(research), key_of(alice, research)
        owners = [QuotaTarget(tenant=research, user=alice), QuotaTarget(key=service), QuotaTarget(key=own)]
        owners += [QuotaTarget(tenant=research, default_for=each) for each in ("member", "service")]
        for to in owners:
            administration.set_quota(bob, to, DAILY, 100)
        assert Quota.objects.count() == 5

    def test_an_admin_gives_neither_the_tenant_itself_nor_people_everywhere(self, bob, alice, research):
        for to in (QuotaTarget(tenant=research), QuotaTarget(user=alice), QuotaTarget(default_for="tenant")):
            with refused(NotAllowed, "operators-only"):
                administration.set_quota(bob, to, DAILY, 100)
        assert not Quota.objects.exists()

    def test_an_admin_gives_nothing_in_another_tenant(self, bob, charlie, sales):
        for to in (
            QuotaTarget(tenant=sales, user=charlie),
            QuotaTarget(key=key_of(charlie, sales)),
            QuotaTarget(tenant=sales, default_for="member"),
        ):
            with pytest.raises(NotAllowed):
                administration.set_quota(bob, to, DAILY, 100)

    def test_a_member_gives_nobody_anything(self, alice, bob, research):
        with pytest.raises(NotAllowed):
            administration.set_quota(alice, QuotaTarget(tenant=research, user=bob), DAILY, 100)

    def test_an_admin_does_not_give_to_themselves_but_another_admin_does(self, bob, carol, research):
        for to in (QuotaTarget(tenant=research, user=bob), QuotaTarget(key=key_of(bob, research))):
            with refused(NotAllowed, "your-own"):
                administration.set_quota(bob, to, DAILY, 100)
            administration.set_quota(carol, to, DAILY, 100)

    def test_who_is_no_member_has_no_quota_of_a_member(self, bob, charlie, research):
        with refused(QuotaRefused, "not-a-member", "Charlie", "研究部"):
            administration.set_quota(bob, QuotaTarget(tenant=research, user=charlie), DAILY, 100)

    @pytest.mark.parametrize("own", [True, False], ids=["own", "default"])
    def test_an_admin_gives_no_more_than_the_tenant_has(self, bob, olivia, alice, research, own):
        to = QuotaTarget(tenant=research, user=alice)
        administration.set_quota(
            olivia, QuotaTarget(tenant=research) if own else QuotaTarget(default_for="tenant"), DAILY, 1000
        )
        administration.set_quota(bob, to, DAILY, 1000)
        with refused(QuotaRefused, "more-than-tenant", "研究部", "1,000"):
            administration.set_quota(bob, to, DAILY, 1001)
        administration.set_quota(olivia, to, DAILY, 1001)

    def test_what_the_tenant_has_of_something_else_is_no_ceiling(self, bob, olivia, alice, research):
        model = serve()
        to = QuotaTarget(tenant=research, user=alice)
        administration.set_quota(olivia, QuotaTarget(tenant=research), QuotaKind(unit="requests", window="day"), 10)
        administration.set_quota(olivia, QuotaTarget(tenant=research), QuotaKind(unit="tokens", window="month"), 10)
        administration.set_quota(
            olivia, QuotaTarget(tenant=research), QuotaKind(unit="tokens", window="day", model=model), 10
        )
        assert administration.set_quota(bob, to, DAILY, 1000).amount == 1000

    @pytest.mark.parametrize(
        ("unit", "window", "amount", "code"),
        [
            ("tokens", "", 1, "window"),
            ("concurrent", "day", 1, "window"),
            ("bytes", "day", 1, "unit"),
            ("tokens", "year", 1, "unit"),
            ("tokens", "day", -1, "amount"),
            ("tokens", "day", MAX_AMOUNT + 1, "too-much"),
        ],
    )
    def test_nonsense_is_refused(self, olivia, research, unit, window, amount, code):
        with refused(QuotaRefused, code):
            administration.set_quota(olivia, QuotaTarget(tenant=research), QuotaKind(unit=unit, window=window), amount)

    def test_what_was_given_can_be_taken_away_by_who_might_give_it(self, bob, olivia, alice, research):
        member = administration.set_quota(bob, QuotaTarget(tenant=research, user=alice), DAILY, 1)
        tenants = administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 1)
        with pytest.raises(NotAllowed):
            administration.remove_quota(bob, tenants)
        administration.remove_quota(bob, member)
        assert [*Quota.objects.all()] == [tenants]


@pytest.fixture
def limited(olivia, bob, research):
    """Give each member of the tenant 100 a day, the tenant 1,000."""
    administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 1000)
    administration.set_quota(bob, QuotaTarget(tenant=research, default_for="member"), DAILY, 100)


@pytest.fixture
def quota_request(limited, alice, research) -> QuotaRequest:
    return administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 200, "a deadline")


class TestAsking:
    def test_a_member_asks_and_the_admins_are_told(self, quota_request, bob, olivia):
        assert (quota_request.previous_amount, quota_request.amount, quota_request.state, quota_request.reason) == (
            100,
            200,
            "open",
            "a deadline",
        )
        assert notified("request-asked") == ["bob"]
        assert Notice.objects.get().path == "/tenant/research/requests/"

    def test_an_admin_asks_for_the_tenant_and_operators_are_told(self, limited, bob, olivia, research):
        quota_request = administration.create_request(bob, QuotaTarget(tenant=research), DAILY, 2000)
        assert (quota_request.previous_amount, quota_request.user, quota_request.key) == (1000, None, None)
        assert notified("request-asked") == ["olivia"]

    def test_the_only_admin_asks_operators(self, limited, bob, olivia, research):
        administration.create_request(bob, QuotaTarget(tenant=research, user=bob), DAILY, 200)
        assert notified("request-asked") == ["olivia"]

    def test_who_answers_for_a_service_key_asks_for_it(self, limited, alice, bob, research):
        administration.set_quota(bob, QuotaTarget(tenant=research, default_for="service"), DAILY, 50)
        key = service_key_of(research, responsible=alice)
        assert administration.create_request(alice, QuotaTarget(key=key), DAILY, 100).previous_amount == 50

    def test_nobody_asks_for_others(self, limited, alice, bob, charlie, research, sales):
        for to in (
            QuotaTarget(tenant=research),
            QuotaTarget(tenant=research, user=bob),
            QuotaTarget(key=key_of(bob, research)),
        ):
            with pytest.raises(NotAllowed):
                administration.create_request(alice, to, DAILY, 2000)
        with pytest.raises(NotAllowed):
            administration.create_request(charlie, QuotaTarget(tenant=research, user=charlie), DAILY, 2000)
        with pytest.raises(NotAllowed):
            administration.create_request(bob, QuotaTarget(key=key_of(alice, research)), DAILY, 2000)

    def test_where_nothing_limits_there_is_nothing_to_ask_for(self, alice, research):
        with refused(QuotaRefused, "no-quota"):
            administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 2000)

    def test_a_wish_is_for_more(self, limited, alice, research):
        with refused(QuotaRefused, "not-more", "100"):
            administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 100)

    def test_a_wish_is_for_no_more_than_a_quota_can_be(self, limited, quota_request, alice, research):
        with refused(QuotaRefused, "too-much", figure(MAX_AMOUNT)):
            administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, MAX_AMOUNT + 1)
        with refused(QuotaRefused, "too-much", figure(MAX_AMOUNT)):
            administration.change_request(alice, quota_request, MAX_AMOUNT + 1, "")

    def test_the_same_is_asked_for_once(self, quota_request, alice, research):
        with refused(QuotaRefused, "requested"):
            administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 300)
        assert QuotaRequest.objects.count() == 1

    def test_who_asked_can_take_it_back_and_nobody_else(self, quota_request, alice, bob):
        with pytest.raises(NotAllowed):
            administration.withdraw_request(bob, quota_request)
        assert administration.withdraw_request(alice, quota_request).state == "withdrawn"
        with refused(QuotaRefused, "withdrawn"):
            administration.grant_request(bob, quota_request)


class TestDeciding:
    def test_granting_gives_a_quota_of_one_s_own(self, quota_request, alice, bob, research):
        row = administration.grant_request(bob, quota_request, note="until Friday")
        assert (row.state, row.granted, row.decided_by, row.note) == ("granted", 200, bob, "until Friday")
        own = Quota.objects.get(user=alice)
        assert (own.tenant, own.default_for, own.amount) == (research, "", 200)
        assert notified("request-decided") == ["alice"]

    def test_t1_nobody_decides_what_is_theirs_whoever_asked(self, quota_request, bob):
        QuotaRequest.objects.update(user=bob)
        quota_request.refresh_from_db()
        assert administration.requests_to_decide(bob, [quota_request]) == set()
        with pytest.raises(NotAllowed):
            administration.grant_request(bob, quota_request)

    def test_less_than_wished_may_be_given_but_more_than_there_is(self, quota_request, alice, bob):
        with refused(QuotaRefused, "not-more", "100"):
            administration.grant_request(bob, quota_request, 100)
        assert administration.grant_request(bob, quota_request, 150).granted == 150
        assert Quota.objects.get(user=alice).amount == 150

    def test_a_key_s_wish_raises_the_quota_of_the_key(self, limited, alice, bob, research):
        key = key_of(alice, research)
        administration.set_quota(bob, QuotaTarget(key=key), DAILY, 10)
        administration.grant_request(bob, administration.create_request(alice, QuotaTarget(key=key), DAILY, 20))
        assert Quota.objects.get(key=key).amount == 20
        assert not Quota.objects.filter(user=alice).exists()

    def test_a_tenant_s_wish_is_granted_by_an_operator_alone(self, limited, bob, carol, olivia, research):
        quota_request = administration.create_request(bob, QuotaTarget(tenant=research), DAILY, 2000)
        with pytest.raises(NotAllowed):
            administration.grant_request(carol, quota_request)
        administration.grant_request(olivia, quota_request)
        assert Quota.objects.get(tenant=research, default_for="", user=None).amount == 2000

    def test_nobody_decides_what_they_asked_for(self, limited, bob, olivia, research):
        Membership.objects.create(user=olivia, tenant=research, role="admin")
        for asker, to in ((bob, QuotaTarget(tenant=research, user=bob)), (olivia, QuotaTarget(tenant=research))):
            quota_request = administration.create_request(asker, to, DAILY, 2000)
            for verb in (administration.grant_request, lambda by, row: administration.refuse_request(by, row, "no")):
                with refused(NotAllowed, "your-own"):
                    verb(asker, quota_request)

    def test_members_and_strangers_decide_nothing(self, quota_request, charlie, research):
        for who in (charlie, person("dave", research)):
            with pytest.raises(NotAllowed):
                administration.grant_request(who, quota_request)

    def test_an_admin_cannot_grant_more_than_the_tenant_has(self, limited, alice, bob, olivia, research):
        quota_request = administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 5000)
        with refused(QuotaRefused, "more-than-tenant", "研究部", "1,000"):
            administration.grant_request(bob, quota_request)
        assert QuotaRequest.objects.get().state == "open"
        assert administration.grant_request(olivia, quota_request).granted == 5000

    def test_refusing_needs_a_reason_and_changes_no_quota(self, quota_request, alice, bob):
        with refused(QuotaRefused, "no-reason"):
            administration.refuse_request(bob, quota_request, " ")
        assert administration.refuse_request(bob, quota_request, "not this month").note == "not this month"
        assert not Quota.objects.filter(user=alice).exists()
        assert notified("request-decided") == ["alice"]

    def test_after_an_answer_the_same_may_be_asked_again(self, quota_request, alice, bob, research):
        administration.refuse_request(bob, quota_request, "not now")
        assert (
            administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 300).state == "open"
        )

    def test_it_waits_for_those_who_may_answer(self, quota_request, alice, bob, charlie, carol, olivia, research):
        of_tenant = administration.create_request(bob, QuotaTarget(tenant=research), DAILY, 2000)
        waits = {who.username: [*administration.waiting_for(who)] for who in (alice, bob, carol, charlie, olivia)}
        assert waits == {
            "alice": [],
            "bob": [quota_request],
            "carol": [quota_request],
            "charlie": [],
            "olivia": [of_tenant],
        }

    def test_what_no_admin_could_answer_waits_for_operators(self, limited, bob, olivia, research):
        quota_request = administration.create_request(bob, QuotaTarget(tenant=research, user=bob), DAILY, 200)
        assert [*administration.waiting_for(olivia)] == [quota_request]
        assert [*administration.waiting_for(bob)] == []


@pytest.mark.django_db(transaction=True)
def test_of_two_who_decide_at_once_one_wins(quota_request, alice, bob, carol):
    together = threading.Barrier(2, timeout=30)
    decided: list[str] = []
    refused: list[str] = []

    def decide(verb: Callable[[], QuotaRequest]) -> None:
        try:
            together.wait()
            decided.append(verb().state)
        except QuotaRefused as refusal:
            refused.append(refusal.code)
        finally:
            connection.close()

    verbs = (
        lambda: administration.grant_request(bob, quota_request),
        lambda: administration.refuse_request(carol, quota_request, "no"),
    )
    threads = [threading.Thread(target=decide, args=[verb]) for verb in verbs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    row = QuotaRequest.objects.get()
    assert decided == refused == [row.state]  # the other is refused because it is so already
    assert Quota.objects.filter(user=alice).exists() == (row.state == "granted")


def test_t6_a_wish_whose_only_admin_is_switched_off_reaches_operators(limited, alice, bob, olivia, research):
    bob.is_active = False
    bob.save()
    quota_request = administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 200)
    assert set(Notice.objects.filter(kind="request-asked").values_list("user", flat=True)) == {olivia.pk}
    assert (list(administration.waiting_for(olivia)), list(administration.deciders(quota_request))) == (
        [quota_request],
        [olivia],
    )
