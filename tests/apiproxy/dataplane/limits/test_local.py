"""The rules of limits, for both ways to count: in this process, and in Redis for several workers."""

from collections.abc import AsyncIterator

import pytest

from apiproxy.dataplane.catalogue import Counter, Limit
from apiproxy.dataplane.errors import WORDS, OverQuota, OverRate
from apiproxy.dataplane.limits.local import Admission, Limits, encoded_headers
from apiproxy.dataplane.limits.units import REQUESTS, TOKENS, UNITS, Consumption, Unit
from portal.quotas.windows import window_bounds
from tests.apiproxy.dataplane.limits.budgets import DAY, MODEL, NOON, TOKYO, limit, shared_limits


@pytest.fixture(params=["in this process", "in Redis"])
async def limits(request, redis_process, recorded) -> AsyncIterator[Admission]:
    if request.param == "in this process":
        yield Limits(window_bounds, recorded.spent)
        return
    redis_process.client.flushall()
    shared = shared_limits(redis_process.url, recorded.spent)
    await shared.start()
    assert not shared.counting.local_fallback
    yield shared
    assert (shared.counting.local_fallback, shared.counting.admitted_locally) == (False, 0)
    await shared.close()


async def test_a_thousand_parallel_calls_against_a_budget_of_ten_let_ten_through(limits):
    let, budget = 0, [limit("tokens", 1000)]
    for _ in range(1000):
        try:
            await limits.admit(budget, MODEL, Consumption(100), NOON)
            let += 1
        except OverRate:
            pass
    assert let == 10


@pytest.mark.parametrize("unit", ["tokens", "requests", "concurrent"])
async def test_of_limits_that_share_a_counter_the_lowest_holds_and_calls_are_counted_once(limits, unit):
    shared = [limit(unit, 3), limit(unit, 2), limit(unit, 5)]
    reservations = [await limits.admit(shared, MODEL, Consumption(1), NOON) for _ in range(2)]
    with pytest.raises((OverQuota, OverRate)):
        await limits.admit(shared, MODEL, Consumption(1), NOON)
    for reservation in reservations:
        reservation.release()
    again = await limits.admit(shared, MODEL, Consumption(1), NOON)
    names = UNITS[unit].headers
    assert names is None or (names[0], b"2") in again.headers(NOON)


async def test_t4_a_call_beside_another_passes_no_quota(limits):
    """Only a call that is alone may be larger than what is left."""
    budget = (limit("tokens", 1050),)
    first = await limits.admit(budget, MODEL, Consumption(600), NOON)
    with pytest.raises(OverRate):
        await limits.admit(budget, MODEL, Consumption(600), NOON)
    await limits.admit(budget, MODEL, Consumption(450), NOON)  # but what fits may go
    with pytest.raises(OverRate):
        await limits.admit(budget, MODEL, Consumption(1), NOON)
    first.settle(Consumption(0))
    with pytest.raises(OverRate):
        await limits.admit(budget, MODEL, Consumption(601), NOON)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("unit", ["requests", "tokens"])
async def test_t4_of_several_limits_that_are_reached_the_one_that_lasts_longest_is_named(limits, unit, turned):
    owners = (("minute", "key"), ("day", "user"), ("month", "tenant"))
    budget = [limit(unit, 5, window=window, scope=scope) for window, scope in owners]
    budget = tuple(reversed(budget)) if turned else tuple(budget)
    (await limits.admit(budget, MODEL, Consumption(5), NOON)).settle(Consumption(5))
    for _ in range(4 if unit == "requests" else 0):
        (await limits.admit(budget, MODEL, Consumption(5), NOON)).settle(Consumption(5))
    with pytest.raises(OverQuota) as refused:
        await limits.admit(budget, MODEL, Consumption(1), NOON)
    end = window_bounds("month", NOON, TOKYO)[1]
    assert int(refused.value.headers["retry-after"]) == end - NOON
    assert "2026-12-01 00:00 JST" in refused.value.message("en")


async def test_m10_no_number_of_a_call_makes_a_counter_useless(limits):
    """Whatever it asks for and is said to have used, the next caller is counted where all are."""
    wide, budget = (limit("tokens", 10**40, scope="user"),), (limit("tokens", 100), limit("requests", 10))
    for number in (10**15, 10**18, 2**63, 10**30, -(10**18)):
        hold = await limits.admit(wide, MODEL, Consumption(number), NOON)
        hold.settle(Consumption(number))
        (await limits.admit(wide, MODEL, Consumption(1), NOON)).release()
    (await limits.admit(budget, MODEL, Consumption(10**18), NOON)).settle(Consumption(7))
    hold = await limits.admit(budget, MODEL, Consumption(93), NOON)
    assert dict(hold.headers(NOON))[b"x-ratelimit-remaining-tokens"] == b"0"


async def test_what_was_not_used_comes_back(limits):
    budget = (limit("tokens", 150),)
    (await limits.admit(budget, MODEL, Consumption(100), NOON)).settle(Consumption(20))
    (await limits.admit(budget, MODEL, Consumption(100), NOON)).settle(Consumption(130))
    with pytest.raises(OverQuota):
        await limits.admit(budget, MODEL, Consumption(1), NOON)


async def test_several_limits_are_reserved_all_or_none(limits):
    wide, narrow = limit("requests", 100), limit("requests", 1, scope="key")
    await limits.admit((wide, narrow), MODEL, Consumption(0), NOON)
    for _ in range(5):
        with pytest.raises(OverQuota):
            await limits.admit((wide, narrow), MODEL, Consumption(0), NOON)
    hold = await limits.admit((wide,), MODEL, Consumption(0), NOON)
    assert dict(hold.headers(NOON))[b"x-ratelimit-remaining-requests"] == b"98"


async def test_a_member_is_counted_in_each_tenant_apart_and_apart_from_the_person(limits):
    here, there = (Limit(Counter("member", 1, None, REQUESTS, "day", tenant), 1, TOKYO) for tenant in (7, 8))
    for budget in (here, there, limit("requests", 1, scope="user")):
        await limits.admit((budget,), MODEL, Consumption(0), NOON)
        with pytest.raises(OverQuota):
            await limits.admit((budget,), MODEL, Consumption(0), NOON)


async def test_a_refusal_names_the_members_limit(limits):
    with pytest.raises(OverQuota) as refused:
        await limits.admit(
            (Limit(Counter("member", 1, None, TOKENS, "day", 7), 0, TOKYO),), MODEL, Consumption(1), NOON
        )
    assert refused.value.facts["scope"] == "member"
    assert "member" in refused.value.message("en")
    assert WORDS["ja"]["member"] in refused.value.message("ja")


@pytest.mark.parametrize("unit", ["requests", "tokens", "concurrent"])
async def test_a_quota_of_nothing_promises_no_return(limits, unit):
    with pytest.raises(OverQuota) as refused:
        await limits.admit((limit(unit, 0),), MODEL, Consumption(1), NOON)
    assert (refused.value.text, refused.value.code) == ("blocked_by_quota", "insufficient_quota")
    assert refused.value.headers == {"x-should-retry": "false"}


async def test_a_call_that_reached_no_engine_costs_nothing(limits):
    budget = (
        limit("requests", 1),
        limit("tokens", 10),
    )
    for _ in range(5):
        (await limits.admit(budget, MODEL, Consumption(10), NOON)).release()


async def test_settling_twice_counts_once(limits):
    budget = (limit("requests", 2),)
    hold = await limits.admit(budget, MODEL, Consumption(0), NOON)
    hold.settle(Consumption(0))
    hold.settle(Consumption(0))
    hold.release()
    await limits.admit(budget, MODEL, Consumption(0), NOON)


async def test_a_unit_that_no_code_knows_is_reserved_and_settled_as_its_object_says(limits):
    unit = Unit(name="bytes", counts="request_bytes", header="bytes", error_type="requests", words={"en": "bytes"})
    budget = (Limit(Counter("tenant", 1, None, unit, "minute"), 1000, TOKYO),)
    reservation = await limits.admit(budget, MODEL, Consumption(tokens=10**6, request_bytes=700), NOON)
    assert dict(reservation.headers(NOON)) == {
        b"x-ratelimit-limit-bytes": b"1000",
        b"x-ratelimit-remaining-bytes": b"300",
        b"x-ratelimit-reset-bytes": b"1m0s",
    }
    with pytest.raises(OverRate) as refused:
        await limits.admit(budget, MODEL, Consumption(request_bytes=700), NOON)
    assert refused.value.headers["x-ratelimit-remaining-bytes"] == "0"
    named = {"scope": "tenant", "amount": "1,000", "unit": unit.words, "window": "minute"}
    assert named.items() <= refused.value.facts.items()
    assert all(word in refused.value.message("en") for word in ("tenant", "1,000", "bytes", "minute"))
    reservation.settle(Consumption(request_bytes=200))
    later = await limits.admit(budget, MODEL, Consumption(request_bytes=700), NOON)
    assert dict(later.headers(NOON))[b"x-ratelimit-remaining-bytes"] == b"100"


async def test_concurrent_calls_are_counted_while_they_run(limits):
    budget = (limit("concurrent", 2),)
    first, _ = (
        await limits.admit(budget, MODEL, Consumption(0), NOON),
        await limits.admit(budget, MODEL, Consumption(0), NOON),
    )
    with pytest.raises(OverRate):
        await limits.admit(budget, MODEL, Consumption(0), NOON)
    first.settle(Consumption(5))
    await limits.admit(budget, MODEL, Consumption(0), NOON)


async def test_a_limit_of_one_model_leaves_the_others_alone(limits):
    budget = (limit("requests", 0, model=7),)
    await limits.admit(budget, MODEL, Consumption(0), NOON)
    with pytest.raises(OverQuota):
        await limits.admit(budget, 7, Consumption(0), NOON)


async def test_a_day_ends_at_midnight_of_the_tenants_zone(limits):
    budget = (limit("requests", 1),)
    (await limits.admit(budget, MODEL, Consumption(0), NOON)).settle(Consumption(0))
    with pytest.raises(OverQuota) as refused:
        await limits.admit(budget, MODEL, Consumption(0), NOON + 12 * 3600 - 1)
    assert refused.value.headers["retry-after"] == "1"
    assert "2026-11-24 00:00 JST" in refused.value.message("en")
    await limits.admit(budget, MODEL, Consumption(0), NOON + 12 * 3600)


async def test_a_call_that_began_before_midnight_is_not_counted_in_the_next_day(limits):
    budget = (limit("tokens", 10),)
    late = await limits.admit(budget, MODEL, Consumption(10), NOON + 12 * 3600 - 1)
    (await limits.admit(budget, MODEL, Consumption(10), NOON + 12 * 3600)).settle(Consumption(3))
    late.settle(Consumption(10))
    await limits.admit(budget, MODEL, Consumption(7), NOON + 12 * 3600)


async def test_the_last_part_of_a_quota_can_be_used(limits):
    budget = (limit("tokens", 1000),)
    (await limits.admit(budget, MODEL, Consumption(900), NOON)).settle(Consumption(900))
    await limits.admit(budget, MODEL, Consumption(5000), NOON)
    with pytest.raises(OverRate):
        await limits.admit(budget, MODEL, Consumption(5000), NOON)


@pytest.mark.parametrize("window", ["minute", "day", "month"])
async def test_what_calls_under_way_hold_is_not_said_to_be_used_up(limits, window):
    budget = (limit("tokens", 2000, window=window),)
    (await limits.admit(budget, MODEL, Consumption(100), NOON)).settle(Consumption(100))
    running = [await limits.admit(budget, MODEL, Consumption(800), NOON) for _ in range(2)]
    with pytest.raises(OverRate) as refused:
        await limits.admit(budget, MODEL, Consumption(408), NOON)
    assert (refused.value.text, refused.value.type) == ("held_by_running_requests", "tokens")
    assert all(refused.value.message(language) for language in ("en", "ja"))
    expected = {"retry-after": "1", "x-should-retry": "true", "x-ratelimit-remaining-tokens": "300"}
    assert expected.items() <= refused.value.headers.items()
    for one in running:
        one.settle(Consumption(10))
    (await limits.admit(budget, MODEL, Consumption(408), NOON)).settle(Consumption(1880))
    with pytest.raises((OverQuota, OverRate)) as refused:
        await limits.admit(budget, MODEL, Consumption(408), NOON)
    assert refused.value.text == ("rate_limit_exceeded" if window == "minute" else "insufficient_quota")


async def test_a_limit_that_is_used_up_goes_before_one_that_calls_under_way_hold(limits):
    held, used = limit("tokens", 100, window="month"), limit("requests", 1, scope="key")
    await limits.admit((held,), MODEL, Consumption(60), NOON)
    (await limits.admit((used,), MODEL, Consumption(0), NOON)).settle(Consumption(0))
    with pytest.raises(OverQuota) as refused:
        await limits.admit((held, used), MODEL, Consumption(60), NOON)
    assert (refused.value.facts["scope"], refused.value.facts["window"]) == ("key", "day")


async def test_a_call_that_uses_none_of_a_unit_is_not_refused_for_those_that_used_it_up(limits):
    budget = (limit("tokens", 10),)
    (await limits.admit(budget, MODEL, Consumption(10), NOON)).settle(Consumption(10))
    (await limits.admit(budget, MODEL, Consumption(0), NOON)).settle(Consumption(0))
    with pytest.raises(OverQuota):
        await limits.admit(budget, MODEL, Consumption(1), NOON)


async def test_a_new_limit_knows_what_was_used_before(limits, recorded):
    recorded.add(NOON - 60, requests=5)
    with pytest.raises(OverQuota):
        await limits.admit((limit("requests", 5),), MODEL, Consumption(0), NOON)


async def test_a_clock_set_back_forgives_nothing_and_locks_out_no_longer_than_its_own_day(limits):
    budget = (limit("requests", 1),)
    (await limits.admit(budget, MODEL, Consumption(0), NOON + 86400)).settle(Consumption(0))
    with pytest.raises(OverQuota) as refused:
        await limits.admit(budget, MODEL, Consumption(0), NOON)
    assert refused.value.headers["retry-after"] == str(12 * 3600)


async def test_a_clock_that_went_ahead_and_was_corrected_forgives_nothing(limits, recorded):
    budget = (limit("requests", 2),)
    for when in (NOON, NOON, NOON + DAY):
        (await limits.admit(budget, MODEL, Consumption(0), when)).settle(Consumption(0))
        recorded.add(when, requests=1)
    with pytest.raises(OverQuota):
        await limits.admit(budget, MODEL, Consumption(0), NOON + 1)


async def test_a_clock_that_went_back_and_was_corrected_forgives_nothing(limits, recorded):
    budget = (limit("requests", 2),)
    for when in (NOON, NOON + 1):
        (await limits.admit(budget, MODEL, Consumption(0), when)).settle(Consumption(0))
        recorded.add(when, requests=1)
    with pytest.raises(OverQuota):
        await limits.admit(budget, MODEL, Consumption(0), NOON - DAY)
    with pytest.raises(OverQuota):
        await limits.admit(budget, MODEL, Consumption(0), NOON + 2)


async def test_a_start_with_a_clock_that_is_behind_forgives_nothing_either(limits, recorded):
    recorded.add(NOON, requests=2)
    budget = (limit("requests", 3),)
    (await limits.admit(budget, MODEL, Consumption(0), NOON - DAY)).settle(Consumption(0))
    recorded.add(NOON - DAY, requests=1)
    (await limits.admit(budget, MODEL, Consumption(0), NOON)).settle(Consumption(0))
    with pytest.raises(OverQuota):
        await limits.admit(budget, MODEL, Consumption(0), NOON)


async def test_a_new_day_needs_no_query_of_what_was_used_in_it(limits, recorded):
    budget = (
        limit("requests", 5),
        limit("tokens", 100, window="minute"),
    )
    (await limits.admit(budget, MODEL, Consumption(0), NOON)).settle(Consumption(0))
    asked = recorded.asked
    for minute in range(1, 5):
        (await limits.admit(budget, MODEL, Consumption(0), NOON + minute * 60)).settle(Consumption(0))
    (await limits.admit(budget, MODEL, Consumption(0), NOON + DAY)).settle(Consumption(0))
    assert recorded.asked == asked


async def test_what_could_not_be_read_is_counted_as_soon_as_it_can(limits, recorded, redis_process):
    recorded.add(NOON, requests=5)
    recorded.away = True
    budget = (limit("requests", 6),)
    (await limits.admit(budget, MODEL, Consumption(0), NOON)).release()
    recorded.away = False
    redis_process.client.hset("{test}:tenant:1::requests:day", "q", 1)  # in Redis, that is: five seconds later
    (await limits.admit(budget, MODEL, Consumption(0), NOON)).settle(Consumption(0))
    with pytest.raises(OverQuota):
        await limits.admit(budget, MODEL, Consumption(0), NOON)


async def test_a_raised_limit_goes_on_with_what_was_used(limits):
    (await limits.admit([limit("requests", 1)], MODEL, Consumption(0), NOON)).settle(Consumption(0))
    (await limits.admit([limit("requests", 2)], MODEL, Consumption(0), NOON)).settle(Consumption(0))
    with pytest.raises(OverQuota):
        await limits.admit([limit("requests", 2)], MODEL, Consumption(0), NOON)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1s"), (59.1, "1m0s"), (360, "6m0s"), (86348, "23h59m8s"), (0, "0s")]
)
def test_resets_are_go_durations(seconds, text):
    *_, (_, reset) = encoded_headers(REQUESTS.headers, 9, 9, seconds)
    assert reset.decode() == text


async def test_keys_that_share_a_limit_agree_on_it_after_the_clock_went_forth_and_back(limits):
    shared = limit("requests", 3)
    mine, yours = (shared,), (shared,)
    await limits.admit(mine, MODEL, Consumption(0), NOON)
    await limits.admit(yours, MODEL, Consumption(0), NOON + DAY)
    await limits.admit(yours, MODEL, Consumption(0), NOON)
    await limits.admit(mine, MODEL, Consumption(0), NOON)
    with pytest.raises(OverQuota):
        await limits.admit(yours, MODEL, Consumption(0), NOON)
    with pytest.raises(OverQuota):
        await limits.admit(mine, MODEL, Consumption(0), NOON)
