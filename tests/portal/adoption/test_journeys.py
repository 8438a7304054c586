"""Journeys and their counts are what SQL over raw records says, in whatever steps they are made."""

import random
from collections import Counter
from datetime import date, datetime, time, timedelta
from typing import Any

import pytest
from django.utils import timezone

from portal.accounts.models import Membership, Tenant, User
from portal.adoption import journeys, summary
from portal.adoption.models import COMPANY, AdoptionJourney, AdoptionSummary
from portal.keys.models import ApiKey
from portal.usage import records
from tests.pages import call, key_of, service_key_of
from tests.portal.adoption import world

pytestmark = pytest.mark.django_db
STEPS = ("regular", "week2", "week4")


def stored() -> dict[tuple[int, int], tuple[Any, ...]]:
    """Return what journeys of tenants say, as world.OF_PEOPLE does."""
    return {
        (one.user_id, one.scope): (
            one.arrived_on,
            one.key_on,
            one.answered_on,
            *(summary.has_done(one, step, date.max) for step in STEPS),
        )
        for one in AdoptionJourney.objects.exclude(scope=COMPANY)
    }


def expected() -> dict[tuple[int, int], tuple[Any, ...]]:
    def day(text: str | None) -> date | None:
        return date.fromisoformat(text) if text else None

    return {
        (person, tenant): (*map(day, days), *map(bool, flags))
        for person, tenant, *rest in world.query(world.OF_PEOPLE)
        for days, flags in [(rest[:3], rest[3:])]
    }


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_journeys_and_counts_are_those_of_sql_over_raw_records(seed):
    rows = world.build_world(seed)
    chance = random.Random(seed)
    moment = world.START
    while rows:  # in steps of a night to a month, and whole in between
        moment += timedelta(days=chance.choice([1, 2, 5, 30]))
        rows = world.record_until(rows, moment)
        journeys.update_journeys(moment)
    journeys.update_journeys(world.END)
    assert stored() == expected()
    before = list(AdoptionJourney.objects.order_by("pk").values())
    assert journeys.update_journeys(world.END) == 0
    assert journeys.update_journeys(world.END, rebuild=True) == 0
    assert list(AdoptionJourney.objects.order_by("pk").values()) == before
    _check_counts()


def nearest_five(number: int) -> int:
    return 5 * round(number / 5)


def _check_counts() -> None:
    """Check that each count that is shown is that of SQL to the nearest five, and that none is below five."""
    today = timezone.localdate(world.END)
    summary.update_summaries(today)
    cohorts = summary.Cohorts(as_of=summary.monday_of(today))
    shown_at_all = 0
    for tenant in Tenant.objects.all():
        counted: Counter[tuple[str, str]] = Counter()
        for (_person, scope), (arrived, key, answered, *flags) in expected().items():
            week = summary.monday_of(arrived)
            if scope != tenant.pk or week not in cohorts.complete:
                continue
            before = [day is not None and day < cohorts.as_of for day in (key, answered)]
            for step, done in zip(summary.STEPS, [True, *before, *flags], strict=True):
                counted[week.isoformat(), step] += done
                counted["total", step] += done
        found = summary.read_summary(tenant.pk)
        assert found is not None
        for week in [*(one.isoformat() for one in cohorts.complete), "total"]:
            for step, number in found.counts["weeks"][week].items():
                assert number is None or (number == nearest_five(counted[week, step]) and counted[week, step] >= 5)
                shown_at_all += number is not None
    assert shown_at_all > 10
    by_week = {(scope, week): number for scope, week, number in world.query(world.OF_WEEKS)}
    active = {
        (scope, week): number
        for scope in (COMPANY, *Tenant.objects.values_list("pk", flat=True))
        for week, number in summary.read_summary(scope).counts["active"].items()
        if number is not None
    }
    assert active == {place: nearest_five(by_week[place]) for place in active}
    assert len(active) > 10


def person_in(tenant: Tenant, name: str = "zoe") -> User:
    person = User.objects.create(username=name)
    Membership.objects.create(user=person, tenant=tenant, since=world.START)
    return person


def at(day: int, hour: int = 12) -> datetime:
    return world.START + timedelta(days=day, hours=hour)


def row_of(user: User, scope: int) -> AdoptionJourney:
    return AdoptionJourney.objects.get(user=user, scope=scope)


def test_a_person_of_two_tenants_is_one_of_the_company(research, db):
    other = Tenant.objects.create(slug="other", name="Other")
    zoe = person_in(research)
    Membership.objects.create(user=zoe, tenant=other, since=at(20))
    first, second = key_of(zoe, research), key_of(zoe, other)
    for key, day in ((first, 0), (second, 20)):
        ApiKey.objects.filter(pk=key.pk).update(created_at=at(day))
    records.record_usage([call(first, at=at(1)), call(second, at=at(21))])
    journeys.update_journeys(at(60))
    assert [row_of(zoe, scope.pk).arrived_on for scope in (research, other)] == [at(0).date(), at(20).date()]
    whole = row_of(zoe, COMPANY)
    assert whole.arrived_on == at(0).date()
    # The same day is in week 4 of the company and the second of the tenant.
    assert [summary.has_done(row, "week4", date.max) for row in (whole, row_of(zoe, other.pk))] == [True, False]
    assert whole.active == 0b10 | 1 << 21


def test_usage_that_arrives_late_counts_on_its_own_day(research):
    zoe = person_in(research)
    key = key_of(zoe, research)
    ApiKey.objects.filter(pk=key.pk).update(created_at=at(5))
    records.record_usage([call(key, at=at(5))])
    journeys.update_journeys(at(6))
    records.record_usage([call(key, at=at(3))])
    journeys.update_journeys(at(7))
    assert (row_of(zoe, research.pk).arrived_on, row_of(zoe, research.pk).active) == (at(3).date(), 0b101)


def test_lines_that_were_set_aside_for_long_count_within_a_week(research):
    zoe = person_in(research)
    key = key_of(zoe, research)
    ApiKey.objects.filter(pk=key.pk).update(created_at=at(0))
    records.record_usage([call(key, at=at(0))])
    journeys.update_journeys(at(100))
    records.record_usage([call(key, at=at(9))])
    journeys.update_journeys(at(101))
    assert summary.has_done(row_of(zoe, research.pk), "week2", date.max) is False
    journeys.update_journeys(at(107))
    assert summary.has_done(row_of(zoe, research.pk), "week2", date.max) is True


def test_service_keys_and_deleted_people_are_no_ones_steps(research):
    service = service_key_of(research)
    records.record_usage([call(service, at=at(1)), {**call(service, at=at(1)), "user_id": 10**6}])
    journeys.update_journeys(at(9))
    assert not AdoptionJourney.objects.exists()


def test_a_leaver_stays_with_what_was_done_and_a_deleted_person_does_not(research):
    zoe = person_in(research)
    key = key_of(zoe, research)
    records.record_usage([call(key, at=at(1))])
    journeys.update_journeys(at(9))
    Membership.objects.filter(user=zoe).delete()
    User.objects.filter(pk=zoe.pk).update(is_active=False)
    journeys.update_journeys(at(90), rebuild=True)
    assert row_of(zoe, research.pk).answered_on == at(1).date()
    ApiKey.objects.filter(user=zoe).delete()
    zoe.delete()
    journeys.update_journeys(at(91), rebuild=True)
    assert not AdoptionJourney.objects.exists()


@pytest.mark.parametrize(
    ("client", "name", "playground", "channel"),
    [
        ("claude-code", "laptop", False, "coding"),
        ("openai", "laptop", False, "openai"),
        ("openai", "my Dify", False, "dify"),
        ("browser", "laptop", True, "playground"),
        ("other", "laptop", False, "own"),
        ("", "laptop", False, "unknown"),
    ],
)
def test_the_channel_is_that_of_the_first_answer(research, client, name, playground, channel):
    zoe = person_in(research)
    key = key_of(zoe, research, name=name)
    ApiKey.objects.filter(pk=key.pk).update(is_playground=playground)
    records.record_usage(
        [
            call(key, at=at(1), client_class="cline", status="failed"),
            call(key, at=at(2), client_class=client),
            call(key, at=at(2), client_class=client),
            call(key, at=at(2), client_class="codex"),
            call(key, at=at(3), client_class="dify"),
        ]
    )
    journeys.update_journeys(at(9))
    assert {row_of(zoe, scope).channel for scope in (research.pk, COMPANY)} == {channel}


def test_sums_of_an_older_version_have_a_channel_that_is_not_known(research):
    zoe = person_in(research)
    records.record_usage([call(key_of(zoe, research), at=at(1), client_class="openai")])
    journeys.UsageClientDay.objects.all().delete()
    journeys.update_journeys(at(9))
    assert row_of(zoe, research.pk).channel == "unknown"


def test_the_command_works_once_a_day_and_stores_what_pages_show(research):
    zoe = person_in(research)
    records.record_usage([call(key_of(zoe, research), at=at(1))])
    now = datetime.combine(date(2026, 6, 1), time(3), timezone.get_default_timezone())
    assert summary.update_if_due(now) == 2
    assert summary.update_if_due(now + timedelta(hours=5)) is None
    assert summary.update_if_due(now + timedelta(days=1)) == 0
    assert set(AdoptionSummary.objects.values_list("scope", "as_of")) == {
        (COMPANY, date(2026, 6, 1)),
        (research.pk, date(2026, 6, 1)),
    }
