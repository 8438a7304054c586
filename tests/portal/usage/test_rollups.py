"""The sums of hours, days and months: they hold exactly what was recorded, by however many writers and how often."""

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import pytest
from django.db.models import Sum
from hypothesis import HealthCheck, given, settings, strategies

from portal.usage import records as usage
from portal.usage import rollups
from portal.usage.models import UsageClientDay, UsageDay, UsageHour, UsageMonth, UsageRecord, UsageTenantDay
from tests.installation import installed
from tests.portal.usage.record_rows import NOON, row
from tests.postgres import postgres

SUMMED = (UsageDay, UsageMonth, UsageHour, UsageTenantDay)


def total(model, *names: str) -> list[int]:
    sums = model.objects.aggregate(**{name: Sum(name, default=0) for name in names})
    return [sums[name] for name in names]


rows_ = strategies.builds(
    row,
    request_id=strategies.sampled_from([f"r{n}" for n in range(12)]),
    key_id=strategies.integers(1, 3),
    model=strategies.sampled_from(["a", "b"]),
    end_user=strategies.sampled_from(["", "山田"]),
    started_at=strategies.datetimes(datetime(2026, 11, 29), datetime(2026, 12, 2), timezones=strategies.just(UTC)),
    first_token_ms=strategies.none() | strategies.integers(0, 60_000),
    completion_tokens=strategies.integers(0, 500),
    status=strategies.sampled_from(["finished", "aborted", "failed", "refused", "interrupted"]),
    estimated=strategies.booleans(),
)


@pytest.mark.django_db
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=strategies.lists(strategies.lists(rows_, max_size=8), max_size=4))
def test_whatever_is_recorded_in_whatever_batches_the_sums_are_those_of_the_records(batches):
    for model in (UsageRecord, UsageClientDay, *SUMMED):
        model.objects.all().delete()
    for batch in batches:
        usage.record_usage(batch)
    records = list(UsageRecord.objects.all())
    expected = [len(records), *total(UsageRecord, "prompt_tokens", "completion_tokens")]
    firsts = sum(record.first_token_ms is not None for record in records)
    for model in SUMMED:
        assert total(model, "requests", "prompt_tokens", "completion_tokens") == expected
        assert total(model, "estimated") == [sum(record.estimated for record in records)]
        for status in ("aborted", "failed", "refused", "interrupted"):
            assert total(model, status) == [sum(record.status == status for record in records)]
        assert sum(total(model, *rollups.TTFT_BUCKETS)) == firsts
    by_hour = {(record.started_at.replace(minute=0, second=0, microsecond=0), record.model) for record in records}
    assert {(hour.hour, hour.model) for hour in UsageHour.objects.all()} == by_hour
    days = {(day.key_id, day.day.replace(day=1), day.model, day.end_user) for day in UsageDay.objects.all()}
    assert {(month.key_id, month.month, month.model, month.end_user) for month in UsageMonth.objects.all()} == days
    of_tenants = {(day.tenant_id, day.day, day.model) for day in UsageDay.objects.all()}
    assert {(day.tenant_id, day.day, day.model) for day in UsageTenantDay.objects.all()} == of_tenants


@pytest.mark.django_db
def test_a_batch_larger_than_one_statement_is_summed_whole():
    usage.record_usage([row(f"r{n}", key_id=n) for n in range(usage.ROWS * 3 + 7)])
    assert [total(model, "requests") for model in SUMMED] == [[usage.ROWS * 3 + 7]] * len(SUMMED)


@pytest.mark.django_db
def test_a_day_is_the_tenants(research, sales):
    sales.time_zone = "America/New_York"
    sales.save()
    late = datetime(2026, 11, 22, 15, 30, tzinfo=UTC)  # half past midnight in Tokyo, half past ten in New York
    usage.record_usage(
        [
            row("a", tenant_id=research.pk, key_id=1, started_at=late),
            row("b", tenant_id=sales.pk, key_id=2, started_at=late),
        ]
    )
    days = {day.tenant_id: day.day for day in UsageDay.objects.all()}
    assert days == {research.pk: date(2026, 11, 23), sales.pk: date(2026, 11, 22)}


@pytest.mark.django_db
def test_a_day_is_right_where_the_zone_is_no_whole_hour_from_utc(research):
    research.time_zone = "Asia/Kathmandu"  # UTC+5:45
    research.save()
    begin = datetime(2026, 11, 21, 18, 15, tzinfo=UTC)
    usage.record_usage(
        [
            row(str(n), tenant_id=research.pk, started_at=begin + timedelta(seconds=after))
            for n, after in enumerate([-1, 0])
        ]
    )
    assert sorted(UsageDay.objects.values_list("day", flat=True)) == [date(2026, 11, 21), date(2026, 11, 22)]


@pytest.mark.django_db
def test_a_day_of_23_hours_is_a_whole_day(research):
    research.time_zone = "Europe/Berlin"
    research.save()
    end = datetime(2026, 3, 29, 22, tzinfo=UTC)  # its clocks went forward that night
    moments = [end - timedelta(hours=23, seconds=1), end - timedelta(hours=23), end - timedelta(seconds=1), end]
    usage.record_usage([row(str(n), tenant_id=research.pk, started_at=at) for n, at in enumerate(moments)])
    found = dict(UsageDay.objects.values_list("day", "requests"))
    assert found == {date(2026, 3, 28): 1, date(2026, 3, 29): 2, date(2026, 3, 30): 1}


@pytest.mark.django_db
def test_the_usage_of_a_tenant_that_is_gone_is_summed_all_the_same():
    usage.record_usage([row("a", tenant_id=999)])
    assert UsageDay.objects.get().day == date(2026, 11, 22)


@pytest.mark.django_db
def test_only_answers_with_a_known_first_token_tell_the_speed():
    usage.record_usage([row("a"), row("b", first_token_ms=None), row("c", first_token_ms=1120)])
    hour = UsageHour.objects.get()
    assert (hour.generated_tokens, hour.generated_ms) == (50, 1000)


def test_percentiles_are_near_those_of_the_times_themselves():
    chance = random.Random(7)
    times = sorted(int(chance.lognormvariate(6.5, 0.8)) for _ in range(20_000))
    counts = [0] * len(rollups.TTFT_BUCKETS)
    for time in times:
        counts[rollups.bisect_left(rollups.TTFT_BOUNDS_MS, time)] += 1
    for share in (0.5, 0.95):
        exact = times[int(share * len(times))]
        assert rollups.percentile(counts, share) == pytest.approx(exact, rel=0.08)


def test_percentiles_of_nothing_and_of_what_took_longer_than_can_be_told():
    nothing = [0] * len(rollups.TTFT_BUCKETS)
    assert rollups.percentile(nothing, 0.5) is None
    assert rollups.percentile([*nothing[:-1], 3], 0.5) == rollups.TTFT_BOUNDS_MS[-1]


KEYS = """
from portal.accounts.models import Tenant
from portal.keys.lifecycle import issue_key
tenant = Tenant.objects.create(slug="t", name="t")
for n in range(20):
    issue_key(tenant=tenant, service="s", name=str(n))
"""
WRITE = """
from portal.usage import records
from datetime import timedelta
from tests.portal.usage.record_rows import NOON, row
for n in range(5):
    origin = {{"address": f"10.0.0.{{n}}", "client": "{who}", "started_at": NOON + timedelta(seconds=n)}}
    keys = range(1, 21) if "{who}" == "a" else range(20, 0, -1)
    records.record_usage([row(f"{who}-{{n}}-{{key}}", key_id=key, **origin) for key in keys])
"""


def test_two_writers_lose_no_sum_on_postgresql(tmp_path):
    with postgres() as cluster, installed(tmp_path / "var", DATABASE_URL=cluster.url) as installation:
        installation.manage("shell", "-c", KEYS)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda who: installation.manage("shell", "-c", WRITE.format(who=who)), "ab"))
        for table in ("usageday", "usagemonth", "usagehour", "usagetenantday"):
            assert cluster.rows(f"select sum(requests) from usage_{table}") == [(200,)]
        assert cluster.rows("select distinct host(last_used_from), last_used_at from keys_apikey") == [
            ("10.0.0.4", NOON + timedelta(seconds=4))
        ]


class Noted:
    """A cursor that only remembers."""

    def __init__(self) -> None:
        self.values: list[list[object]] = []

    def execute(self, statement: str, values: list[object]) -> None:
        self.values.append(values)


@pytest.mark.django_db
def test_sums_are_locked_in_the_same_order_by_every_writer():
    """Two that took them as they come would hold each other's rows and wait for ever."""
    rows, one, other = [row(str(n), key_id=n, model=f"m{n % 3}") for n in range(20)], Noted(), Noted()
    rollups.add_records(rows, one)
    rollups.add_records(rows[::-1], other)
    assert one.values == other.values
