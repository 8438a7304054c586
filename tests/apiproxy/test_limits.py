from zoneinfo import ZoneInfo

import pytest

from apiproxy.catalogue import Counter, Limit
from apiproxy.errors import OverQuota, OverRate
from apiproxy.limits import Limits, duration
from portal.metering.windows import bounds

TOKYO = ZoneInfo("Asia/Tokyo")
NOON = 1_795_402_800.0  # 2026-11-23 12:00 in Tokyo
MODEL = 1


def limit(unit: str, amount: int, window: str = "day", scope: str = "tenant", model: int | None = None) -> Limit:
    return Limit(Counter(scope, 1, model, unit, "" if unit == "concurrent" else window), amount, TOKYO)


@pytest.fixture
def limits() -> Limits:
    return Limits(bounds)


async def test_a_thousand_parallel_calls_against_a_budget_of_ten_let_ten_through(limits):
    let, budget = 0, [limit("tokens", 1000)]
    for _ in range(1000):
        try:
            await limits.admit(budget, MODEL, 100, NOON)
            let += 1
        except OverQuota:
            pass
    assert let == 10


async def test_what_was_not_used_comes_back(limits):
    budget = [limit("tokens", 150)]
    (await limits.admit(budget, MODEL, 100, NOON)).settle(20)
    (await limits.admit(budget, MODEL, 100, NOON)).settle(130)
    with pytest.raises(OverQuota):
        await limits.admit(budget, MODEL, 1, NOON)


async def test_several_limits_are_reserved_all_or_none(limits):
    wide, narrow = limit("requests", 100), limit("requests", 1, scope="key")
    await limits.admit([wide, narrow], MODEL, 0, NOON)
    for _ in range(5):
        with pytest.raises(OverQuota):
            await limits.admit([wide, narrow], MODEL, 0, NOON)
    hold = await limits.admit([wide], MODEL, 0, NOON)
    assert dict(limits.headers(hold, NOON))[b"x-ratelimit-remaining-requests"] == b"98"


async def test_a_call_that_reached_no_engine_costs_nothing(limits):
    budget = [limit("requests", 1), limit("tokens", 10)]
    for _ in range(5):
        (await limits.admit(budget, MODEL, 10, NOON)).release()


async def test_settling_twice_counts_once(limits):
    budget = [limit("requests", 2)]
    hold = await limits.admit(budget, MODEL, 0, NOON)
    hold.settle(0)
    hold.settle(0)
    hold.release()
    await limits.admit(budget, MODEL, 0, NOON)


async def test_concurrent_calls_are_counted_while_they_run(limits):
    budget = [limit("concurrent", 2)]
    first, _ = await limits.admit(budget, MODEL, 0, NOON), await limits.admit(budget, MODEL, 0, NOON)
    with pytest.raises(OverRate):
        await limits.admit(budget, MODEL, 0, NOON)
    first.settle(5)
    await limits.admit(budget, MODEL, 0, NOON)


async def test_a_limit_of_one_model_leaves_the_others_alone(limits):
    budget = [limit("requests", 0, model=7)]
    await limits.admit(budget, MODEL, 0, NOON)
    with pytest.raises(OverQuota):
        await limits.admit(budget, 7, 0, NOON)


async def test_a_day_ends_at_midnight_of_the_tenants_zone(limits):
    budget = [limit("requests", 1)]
    (await limits.admit(budget, MODEL, 0, NOON)).settle(0)
    with pytest.raises(OverQuota) as refused:
        await limits.admit(budget, MODEL, 0, NOON + 12 * 3600 - 1)
    assert refused.value.headers["retry-after"] == "1"
    assert "2026-11-24 00:00 JST" in refused.value.message("en")
    await limits.admit(budget, MODEL, 0, NOON + 12 * 3600)


async def test_a_call_that_began_before_midnight_is_not_counted_in_the_next_day(limits):
    budget = [limit("tokens", 10)]
    late = await limits.admit(budget, MODEL, 10, NOON + 12 * 3600 - 1)
    (await limits.admit(budget, MODEL, 10, NOON + 12 * 3600)).settle(3)
    late.settle(10)
    await limits.admit(budget, MODEL, 7, NOON + 12 * 3600)


async def test_the_last_part_of_a_quota_can_be_used(limits):
    budget = [limit("tokens", 1000)]
    (await limits.admit(budget, MODEL, 900, NOON)).settle(900)
    await limits.admit(budget, MODEL, 5000, NOON)
    with pytest.raises(OverQuota):
        await limits.admit(budget, MODEL, 5000, NOON)


async def test_a_new_limit_knows_what_was_used_before(limits):
    budget = [limit("requests", 5)]
    assert limits.unknown(budget) == budget
    limits.seed(budget[0], 5, NOON)
    assert limits.unknown(budget) == []
    with pytest.raises(OverQuota):
        await limits.admit(budget, MODEL, 0, NOON)


async def test_a_clock_set_back_forgives_nothing_and_locks_out_no_longer_than_its_own_day(limits):
    budget = [limit("requests", 1)]
    (await limits.admit(budget, MODEL, 0, NOON + 86400)).settle(0)
    with pytest.raises(OverQuota) as refused:
        await limits.admit(budget, MODEL, 0, NOON)
    assert refused.value.headers["retry-after"] == str(12 * 3600)


async def test_a_raised_limit_goes_on_with_what_was_used(limits):
    (await limits.admit([limit("requests", 1)], MODEL, 0, NOON)).settle(0)
    (await limits.admit([limit("requests", 2)], MODEL, 0, NOON)).settle(0)
    with pytest.raises(OverQuota):
        await limits.admit([limit("requests", 2)], MODEL, 0, NOON)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1s"), (59.1, "1m0s"), (360, "6m0s"), (86348, "23h59m8s"), (0, "0s")]
)
def test_resets_are_go_durations(seconds, text):
    assert duration(seconds) == text
