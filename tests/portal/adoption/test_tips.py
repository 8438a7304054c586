"""Tips go to people who need one, seldom, on working days, and are off with one click."""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.test import Client

from portal.accounts.models import Membership, Tenant, User
from portal.adoption import journeys, tips
from portal.keys.models import ApiKey
from portal.notifications import mailing
from portal.notifications.inbox import notification_rows
from portal.notifications.models import Notice
from portal.usage import records
from portal.web import workdays
from tests.pages import call, key_of
from tests.portal.recorded import notified

pytestmark = pytest.mark.django_db
MONDAY = datetime(2026, 6, 8, 11, tzinfo=ZoneInfo("Asia/Tokyo"))


def key_since(user: User, tenant: Tenant, days: float) -> ApiKey:
    key = key_of(user, tenant)
    ApiKey.objects.filter(pk=key.pk).update(created_at=MONDAY - timedelta(days=days))
    return key


def send(now: datetime = MONDAY) -> int:
    journeys.update_journeys(now)
    return tips.send_tips(now)


@pytest.mark.parametrize(("days", "sent"), [(1, 0), (5, 1), (59, 1), (70, 0)])
def test_a_key_without_an_answer_is_a_reason_for_some_weeks(alice, research, days, sent):
    key_since(alice, research, days)
    assert send() == sent
    assert notified(tips.NO_CALL) == ["alice"] * sent


@pytest.mark.parametrize(("days", "sent"), [(13, 0), (14, 1), (60, 1), (61, 0)])
def test_two_weeks_without_an_answer_are_a_reason(alice, research, days, sent):
    records.record_usage([call(key_since(alice, research, 90), at=MONDAY - timedelta(days=days))])
    assert send() == sent
    assert notified(tips.AWAY) == ["alice"] * sent


def test_there_is_at_most_one_in_two_weeks(alice, research):
    key_since(alice, research, 5)
    sent = [send(MONDAY + timedelta(days=day)) for day in range(28)]
    assert sum(sent) == 2
    assert [day for day, number in enumerate(sent) if number] == [0, 14]


@pytest.mark.parametrize(
    ("now", "sent"),
    [
        (MONDAY, 1),
        (MONDAY.replace(hour=3), 0),
        (MONDAY.replace(hour=20), 0),
        (MONDAY - timedelta(days=1), 0),  # a Sunday
        (MONDAY.replace(month=7, day=20), 0),  # Marine Day
        (MONDAY.replace(month=7, day=21), 1),
    ],
)
def test_tips_come_in_office_hours_of_working_days(alice, research, now, sent):
    key = key_of(alice, research)
    ApiKey.objects.filter(pk=key.pk).update(created_at=now - timedelta(days=5))
    assert send(now) == sent


def test_days_between_two_holidays_are_holidays():
    assert date(2026, 9, 22) in workdays.holidays(2026)
    assert workdays.is_working_day(date(2026, 9, 24))


@pytest.mark.parametrize("change", ["left", "moved out", "switched off", "unwanted", "tenant off"])
def test_who_left_or_wants_none_gets_none(alice, research, change):
    key_since(alice, research, 5)
    if change in ("left", "switched off"):
        User.objects.filter(pk=alice.pk).update(is_active=False)
    elif change == "moved out":
        Membership.objects.filter(user=alice).delete()
    elif change == "unwanted":
        User.objects.filter(pk=alice.pk).update(wants_tips=False)
    else:
        Tenant.objects.update(is_active=False)
    assert send() == 0


def test_no_tip_is_sent_before_the_days_are_read(alice, research):
    key_since(alice, research, 5)
    assert tips.send_tips(MONDAY) == 0
    journeys.update_journeys(MONDAY - timedelta(days=1))
    assert tips.send_tips(MONDAY) == 0


class TestOff:
    def test_by_the_button_of_the_notice(self, as_alice, alice):
        as_alice.post("/adoption/tips/", {"tips": "off"})
        alice.refresh_from_db()
        assert not alice.wants_tips

    def test_by_the_mailed_link_without_signing_in_and_only_when_it_is_pressed(self, alice):
        client = Client(enforce_csrf_checks=True)
        assert client.get(tips.link_of(alice)).status_code == 200
        alice.refresh_from_db()
        assert alice.wants_tips
        assert client.post(tips.link_of(alice), {"List-Unsubscribe": "One-Click"}).status_code == 200
        alice.refresh_from_db()
        assert not alice.wants_tips

    @pytest.mark.parametrize("token", ["x", "MQ:1vfoo:bar"])
    def test_a_made_up_link_leads_nowhere(self, alice, token):
        assert Client().post(f"/adoption/tips/{token}/").status_code == 404

    def test_the_link_of_one_person_does_not_work_for_another(self, alice, bob):
        number, _, rest = tips.link_of(alice).rstrip("/").rpartition("/")[2].partition(":")
        other = tips.link_of(bob).rstrip("/").rpartition("/")[2].partition(":")[0]
        assert number != other
        assert tips.person_of_link(f"{other}:{rest}") is None

    def test_by_the_settings(self, as_alice, alice):
        as_alice.post("/settings/", {"language": "ja", "theme": "dark", "wants_mail": "on"})
        alice.refresh_from_db()
        assert not alice.wants_tips

    def test_the_mail_has_the_link_for_people_and_for_mail_programs(self, alice, research, settings):
        settings.PUBLIC_URL = "https://llm.example"
        key_since(alice, research, 5)
        send()
        rows = notification_rows(Notice.objects.all())
        mail = mailing.compose_mail(rows, alice.email, tips_off=tips.link_of(alice))
        address = settings.PUBLIC_URL + tips.link_of(alice)
        assert address in mail.body
        assert mail.extra_headers["List-Unsubscribe"] == f"<{address}>"
