"""Usage by the hour of any calendar: nothing is lost, nothing is in an hour that it was not made in."""

from bisect import bisect_right
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies

from portal.accounts.models import Membership, Tenant
from portal.keys.models import ApiKey
from portal.usage import hours, records, rejections, report, scopes
from portal.usage.models import RejectionHour, UsageDay, UsageHour, UsageRecord, UsageTenantDay
from portal.usage.periods import Period
from portal.usage.rejections import RejectionTotals
from tests.pages import call, key_of

# (zone, a day on which its clocks move, or any)
DAYS = [
    ("Asia/Tokyo", date(2026, 11, 22)),
    ("Asia/Kolkata", date(2026, 11, 22)),
    ("Asia/Kathmandu", date(2026, 11, 22)),
    ("Australia/Adelaide", date(2026, 10, 4)),  # 2:00 -> 3:00
    ("Australia/Adelaide", date(2026, 4, 5)),  # 3:00 -> 2:00
    ("Australia/Lord_Howe", date(2026, 10, 4)),  # 2:00 -> 2:30
    ("Australia/Lord_Howe", date(2026, 4, 5)),  # 2:00 -> 1:30
    ("America/New_York", date(2026, 11, 1)),
    ("America/St_Johns", date(2026, 3, 8)),
    ("Europe/Berlin", date(2026, 3, 29)),
    ("Pacific/Chatham", date(2026, 4, 5)),  # UTC+13:45, 3:45 -> 2:45
]


def day_of(first: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    return report.period_bounds(Period(name="", first=first, last=first), zone)


@pytest.mark.parametrize(("name", "day"), DAYS)
def test_m6_the_hours_of_a_day_follow_each_other_without_gap_or_overlap(name, day):
    zone = ZoneInfo(name)
    begin, end = day_of(day, zone)
    found = hours.hours_between(begin, end, zone)
    assert found[0].timestamp() == begin.timestamp()
    assert len(set(found)) == len(found)
    lengths = [(after - before).total_seconds() / 3600 for before, after in pairwise([*found, end.astimezone(UTC)])]
    assert all(0.25 <= length <= 1 for length in lengths)
    assert sum(length != 1 for length in lengths) <= 2
    # A quarter lies within one hour of each zone.
    for number in range(round((end.timestamp() - begin.timestamp()) / 900)):
        quarter = begin.astimezone(UTC) + number * hours.QUARTER
        inside = [quarter + timedelta(seconds=seconds) for seconds in (0, 1, 899)]
        assert {hours.start_of_hour(one, zone) for one in inside} == {found[bisect_right(found, quarter) - 1]}


@pytest.mark.django_db
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    of=strategies.sampled_from(DAYS),
    others=strategies.sampled_from(["Asia/Tokyo", "Asia/Kolkata", "Australia/Lord_Howe"]),
    minutes=strategies.lists(strategies.integers(-60, 26 * 60), min_size=1, max_size=12),
)
@example(of=("Asia/Kolkata", date(2026, 11, 22)), others="Asia/Tokyo", minutes=[0, 29, 30, 31, 1439, 1440])
@example(of=("Australia/Lord_Howe", date(2026, 10, 4)), others="Asia/Tokyo", minutes=[119, 120, 134, 135])
@example(of=("Australia/Lord_Howe", date(2026, 4, 5)), others="Asia/Tokyo", minutes=[89, 90, 119, 120, 149, 150, 1469])
def test_m6_a_days_usage_is_in_the_hours_of_its_reader(alice, olivia, of, others, minutes):
    """As the tenant's admin, its member, an operator and one key see it; and refusals likewise."""
    for model in (UsageRecord, UsageHour, UsageDay, UsageTenantDay, RejectionHour, ApiKey, Tenant):
        if model is Tenant:
            Membership.objects.all().delete()
        model.objects.all().delete()
    name, day = of
    zone = ZoneInfo(name)
    here = Tenant.objects.create(slug="here", name="here", time_zone=name)
    there = Tenant.objects.create(slug="there", name="there", time_zone=others)
    Membership.objects.create(user=alice, tenant=here, role="admin")
    Membership.objects.create(user=alice, tenant=there)
    mine, elsewhere = key_of(alice, here), key_of(alice, there)
    begin, end = day_of(day, zone)
    moments = [begin.astimezone(UTC) + timedelta(minutes=minute) for minute in minutes]
    records.record_usage([call(key, at=at, tokens=(1, 1)) for at in moments for key in (mine, elsewhere)])
    for at in moments:
        rejections.add_rejections(
            {RejectionTotals(hours.start_of_quarter(at), here.pk, alice.pk, mine.pk, "qwen", "c"): 1}
        )

    within = [at for at in moments if begin.timestamp() <= at.timestamp() < end.timestamp()]
    period = Period(name="", first=day, last=day)
    for scope, calls in (
        (scopes.find_scope(alice, "tenant:here"), 1),
        (scopes.find_scope(alice, "me"), 2),
        (scopes.find_scope(olivia, "all"), 2),
    ):
        if scope.hours is None and day < report.timezone.now().date() - report.RECORDS_KEPT:
            continue  # recorded by the day only
        series = report.read_series(scope, period, zone)
        expected = Counter(series.slots[bisect_right(series.slots, at) - 1] for at in within)
        assert {slot: sums["requests"] for slot, sums in series.by_slot.items()} == {
            slot: calls * number for slot, number in expected.items()
        }
        assert series.totals.numbers["total_tokens"] == 2 * calls * len(within)
        told = report.count_rejections(scope, period, zone)
        assert told == {(slot, "c"): number for slot, number in expected.items()}


@pytest.mark.django_db
def test_m6_refusals_are_of_the_day_on_which_they_were(alice):
    zone = ZoneInfo("Asia/Kolkata")
    tenant = Tenant.objects.create(slug="pune", name="Pune", time_zone="Asia/Kolkata")
    midnight = datetime(2026, 11, 22, tzinfo=zone)
    for minutes, number in ((-15, 1), (0, 10), (15, 100)):
        at = hours.start_of_quarter(midnight + timedelta(minutes=minutes))
        rejections.add_rejections({RejectionTotals(at, tenant.pk, alice.pk, 1, "", "c"): number})
    day = date(2026, 11, 22)
    scope, period = scopes.find_scope(alice, "me"), Period(name="", first=day, last=day)
    assert sum(report.count_rejections(scope, period, zone).values()) == 110


@pytest.mark.django_db
def test_m6_where_no_zone_needs_quarters_hours_are_summed(alice, research):
    noon = datetime(2026, 11, 22, 3, tzinfo=UTC)
    records.record_usage(
        [call(key_of(alice, research), at=noon + timedelta(minutes=minutes)) for minutes in (0, 20, 40)]
    )
    assert [(row.hour, row.requests) for row in UsageHour.objects.all()] == [(noon, 3)]
