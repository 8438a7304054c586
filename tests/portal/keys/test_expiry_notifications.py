"""Who is notified, and when, that a key ends or that no person is responsible for it."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.core.management import call_command
from django.utils import timezone

from modelregistry.supervisor import tasks
from portal.keys import lifecycle, playground
from portal.keys.expiry_notifications import notify_expiring, notify_responsible_left
from portal.keys.models import ApiKey
from portal.notifications.models import Notice
from tests.conftest import person
from tests.pages import key_of

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


def aged(key: ApiKey, *, life: timedelta, left: timedelta) -> ApiKey:
    """Return the key as it is when so much is left of so long a life."""
    now = timezone.now()
    ApiKey.objects.filter(pk=key.pk).update(expires_at=now + left, created_at=now + left - life)
    key.refresh_from_db()
    return key


def notices_after_run(user) -> list[tuple[str, int | None]]:
    notify_expiring(timezone.now())
    return [(notice.kind, notice.facts.get("days")) for notice in user.notices.order_by("pk")]


@pytest.mark.parametrize(
    ("life", "left", "notices"),
    [
        (90 * DAY, 8 * DAY, []),
        (90 * DAY, 7 * DAY, [("key-expires", 7)]),
        (90 * DAY, 3.5 * DAY, [("key-expires", 4)]),
        (90 * DAY, 1 * DAY, [("key-expires", 1)]),
        (90 * DAY, -0.1 * DAY, [("key-expired", None)]),
        (90 * DAY, -8 * DAY, []),
        (10 * DAY, 6 * DAY, []),
        (10 * DAY, 1 * DAY, [("key-expires", 1)]),
        (1 * DAY, 0.5 * DAY, []),
        (1 * DAY, -0.1 * DAY, [("key-expired", None)]),
    ],
)
def test_the_owner_is_told_in_time(alice, research, life, left, notices):
    aged(key_of(alice, research), life=life, left=left)
    assert notices_after_run(alice) == notices


def test_each_is_told_once_and_again_when_the_end_was_moved(alice, research):
    key = aged(key_of(alice, research), life=90 * DAY, left=6 * DAY)
    assert notices_after_run(alice) == notices_after_run(alice) == [("key-expires", 6)]
    aged(key, life=90 * DAY, left=0.5 * DAY)
    assert notices_after_run(alice) == [("key-expires", 6), ("key-expires", 1)]
    aged(key, life=200 * DAY, left=5 * DAY)
    assert notices_after_run(alice)[2:] == [("key-expires", 5)]


def test_a_notice_names_the_last_day_in_the_tenant_s_zone(alice, research):
    key = aged(key_of(alice, research), life=90 * DAY, left=6 * DAY)
    tokyo = ZoneInfo("Asia/Tokyo")
    midnight = timezone.now().astimezone(tokyo).replace(hour=0, minute=0, second=0, microsecond=0) + 4 * DAY
    ApiKey.objects.filter(pk=key.pk).update(expires_at=midnight)
    notify_expiring(timezone.now())
    at = datetime.fromisoformat(alice.notices.get().facts["at"])
    assert at.date() == (midnight - DAY).date()
    assert alice.notices.get().path == f"/keys/{key.prefix}/"


@pytest.mark.parametrize("why", ["revoked", "stopped", "replaced", "playground"])
def test_a_key_whose_end_is_no_news_is_passed_over(alice, research, why):
    key = aged(key_of(alice, research), life=90 * DAY, left=3 * DAY)
    if why == "revoked":
        lifecycle.revoke_key(key, by=alice)
    elif why == "stopped":
        alice.memberships.all().delete()
    elif why == "replaced":
        lifecycle.rotate_key(key, 2 * DAY, by=alice)
    else:
        ApiKey.objects.filter(pk=key.pk).update(is_playground=True)
    assert notices_after_run(alice) == []


def test_the_end_of_a_replaced_key_is_news_when_its_successor_was_revoked(alice, research):
    key = aged(key_of(alice, research), life=90 * DAY, left=3 * DAY)
    new, _ = lifecycle.rotate_key(key, 5 * DAY, by=alice)
    lifecycle.revoke_key(new, by=alice)
    assert notices_after_run(alice) == [("key-expires", 3)]


def test_of_a_service_key_the_admins_and_who_is_responsible_are_told(alice, bob, charlie, research):
    key, _ = lifecycle.issue_key(tenant=research, service="Dify", name="Dify", responsible=alice)
    aged(key, life=90 * DAY, left=3 * DAY)
    assert [notices_after_run(who) for who in (alice, bob, charlie)] == [[("key-expires", 3)], [("key-expires", 3)], []]


class TestLeavers:
    @pytest.fixture
    def key(self, alice, research) -> ApiKey:
        return lifecycle.issue_key(tenant=research, service="Dify", name="Dify", responsible=alice)[0]

    def admins_notified(self) -> set[str]:
        notify_responsible_left()
        return {
            notice.user.username for notice in Notice.objects.filter(kind="responsible-left").select_related("user")
        }

    @pytest.mark.parametrize("leaves", ["account", "membership"])
    def test_the_admins_are_told_when_who_is_responsible_leaves(self, key, alice, bob, olivia, leaves):
        assert self.admins_notified() == set()
        if leaves == "account":
            alice.is_active = False
            alice.save()
        else:
            alice.memberships.all().delete()
        assert self.admins_notified() == {"bob"}
        facts = bob.notices.get().facts
        assert (facts["key"], facts["person"], facts["prefix"]) == ("Dify", "Alice", key.prefix)

    def test_operators_are_told_where_no_admin_is_left(self, key, alice, olivia):
        alice.memberships.all().delete()
        assert self.admins_notified() == {"olivia"}

    def test_a_second_who_leaves_is_told_as_well(self, key, alice, bob, research):
        alice.memberships.all().delete()
        self.admins_notified()
        dora = person("dora", research)
        lifecycle.change_key(key, responsible=dora)
        dora.memberships.all().delete()
        self.admins_notified()
        assert {notice.facts["person"] for notice in bob.notices.all()} == {"Alice", "dora"}

    def test_a_key_that_works_no_more_is_no_matter(self, key, alice, bob):
        lifecycle.revoke_key(key, by=bob)
        alice.memberships.all().delete()
        assert self.admins_notified() == set()


def test_the_command_does_all_of_it_and_may_be_repeated(alice, bob, research, capsys):
    aged(key_of(alice, research), life=90 * DAY, left=3 * DAY)
    lifecycle.issue_key(tenant=research, service="Dify", name="Dify", responsible=alice)
    for _ in range(2):
        call_command("sendnotices")
    assert alice.notices.count() == 1
    assert capsys.readouterr().out == "0 mailed\n" * 2


def test_it_runs_every_ten_minutes():
    [work] = [work for work in tasks.registered_tasks() if work.name == "sendnotices"]
    assert (work.every, work.argv) == (timedelta(minutes=10), ("sendnotices",))


def test_t6_the_key_of_the_playground_is_no_news_to_anybody(alice, bob, research):
    """No person made it by hand, so no person knows what ended."""
    playground.renew_key(alice, research, timezone.now())
    key = aged(ApiKey.objects.get(is_playground=True), life=90 * DAY, left=0.5 * DAY)
    notify_expiring(timezone.now())
    aged(key, life=90 * DAY, left=-0.5 * DAY)
    notify_expiring(timezone.now())
    lifecycle.revoke_key(key)
    assert not Notice.objects.exists()


@pytest.mark.parametrize("end", ["revoke", "expire"])
def test_t6_who_is_switched_off_is_not_told_of_the_key_they_answered_for(alice, bob, research, end):
    key = lifecycle.issue_key(tenant=research, service="Dify", name="Dify", responsible=alice)[0]
    alice.is_active = False
    alice.save()
    if end == "revoke":
        lifecycle.revoke_key(ApiKey.objects.get(pk=key.pk))
    else:
        aged(key, life=90 * DAY, left=-0.5 * DAY)
        notify_expiring(timezone.now())
    assert set(Notice.objects.values_list("user__username", flat=True)) == {"bob"}
