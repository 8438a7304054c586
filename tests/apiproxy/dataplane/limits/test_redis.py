"""Limits over several workers: races, dead workers, and a Redis that is killed, hangs, forgets or wants a password."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from apiproxy.dataplane import limits
from apiproxy.dataplane.catalogue import Counter, Limit
from apiproxy.dataplane.errors import OverQuota, OverRate, Refusal
from apiproxy.dataplane.limits.local import Limits
from apiproxy.dataplane.limits.redis import SharedLimits
from apiproxy.dataplane.limits.units import UNITS, Consumption
from portal.quotas.windows import window_bounds
from tests.apiproxy.dataplane.limits.budgets import DAY, MODEL, NOON, TOKYO, Records, limit, shared_limits
from tests.installation import ROOT
from tests.redis import Redis, redis_server
from tests.slapd import unused_port, write_certificates
from tests.waiting import eventually

DAMAGE = [
    ("hset", "u", "1e+17"),
    ("hset", "u", "many"),
    ("hset", "b", "long ago"),
    ("hset", "r:dead.1", "x"),
    ("set", "a text"),
    ("lpush", "a", "list"),
]


@pytest.mark.parametrize("damage", DAMAGE)
async def test_m10_a_counter_that_was_damaged_is_read_again_and_stops_no_other(redis, workers, recorded, damage):
    (one,) = await workers(1)
    budget = (limit("requests", 3), limit("requests", 9, scope="user"))
    (await one.admit(budget, MODEL, Consumption(0), NOON)).settle(Consumption(0))
    recorded.add(NOON, requests=1)
    under_way = await one.admit(budget, MODEL, Consumption(0), NOON)
    verb, *values = damage
    if verb != "hset":
        redis.client.delete("{test}:tenant:1::requests:day")
    getattr(redis.client, verb)("{test}:tenant:1::requests:day", *values)
    under_way.settle(Consumption(0))
    recorded.add(NOON, requests=1)
    (await one.admit(budget, MODEL, Consumption(0), NOON)).settle(Consumption(0))
    for _ in range(3):
        with contextlib.suppress(OverQuota):
            (await one.admit(budget, MODEL, Consumption(0), NOON)).settle(Consumption(0))
    assert (one.counting.local_fallback, one.counting.admitted_locally) == (False, 0)
    with pytest.raises(OverQuota):
        await one.admit(budget, MODEL, Consumption(0), NOON)


@pytest.fixture
def redis(redis_process) -> Redis:
    """Empty, and there, whatever the last test has done to it."""
    if not redis_process.answers():
        redis_process.start()
    redis_process.client.flushall()
    return redis_process


class Clock:
    """The event loop's, or ahead of it."""

    ahead = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


Workers = Callable[[int], Awaitable[list[SharedLimits]]]


@pytest.fixture
async def workers(redis, recorded, clock) -> AsyncIterator[Workers]:
    made: list[SharedLimits] = []

    async def make(count: int) -> list[SharedLimits]:
        new = [shared_limits(redis.url, recorded.spent, workers=2, clock=clock) for _ in range(count)]
        for shared in new:
            await shared.start()
        made.extend(new)
        return new

    yield make
    for shared in made:
        await shared.close()


async def admit_calls(
    shared: SharedLimits, budget: list[Limit], calls: int, estimate: int = 0, now: float = NOON
) -> list:
    """Return the holds of those that were let through."""
    answers = await asyncio.gather(
        *(shared.admit(budget, MODEL, Consumption(estimate), now) for _ in range(calls)), return_exceptions=True
    )
    holds = [answer for answer in answers if not isinstance(answer, Refusal)]
    assert not [hold for hold in holds if isinstance(hold, BaseException)]
    return holds


def read_reservations(redis: Redis, unit: str, window: str = "") -> dict[str, str]:
    found = redis.client.hgetall(f"{{test}}:tenant:1::{unit}:{window}")
    return {name: value for name, value in found.items() if name.startswith("r:")}


# --- several workers


@contextlib.contextmanager
def processes(redis: Redis, count: int, **facts) -> Iterator[list["subprocess.Popen[str]"]]:
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.limits_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(count)
    ]
    try:
        for process in running:
            process.stdin.write(json.dumps({"url": redis.url, "now": NOON, **facts}) + "\n")
            process.stdin.flush()
        for process in running:
            assert process.stdout.readline() == "ready\n"
        for process in running:
            process.stdin.write("\n")
            process.stdin.flush()
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def test_a_thousand_parallel_calls_of_two_processes_against_a_budget_of_ten_let_ten_through(redis):
    with processes(redis, 2, unit="tokens", amount=1000, calls=500, estimate=100) as running:
        told = [json.loads(process.stdout.readline()) for process in running]
    assert {one["wrong"] for one in told} == {"[]"}
    assert sum(one["let"] for one in told) == 10


async def test_what_a_killed_worker_had_reserved_is_free_again_when_its_lease_is_over(redis, workers):
    budget = [limit("concurrent", 100)]
    (alive,) = await workers(1)
    with processes(redis, 1, unit="concurrent", amount=100, calls=100, estimate=0) as (process,):
        assert json.loads(await asyncio.to_thread(process.stdout.readline))["let"] == 100
        with pytest.raises(OverRate):
            await alive.admit(budget, MODEL, Consumption(0), NOON)
        process.kill()
        begun = asyncio.get_running_loop().time()
        holds = await eventually(lambda: admit_calls(alive, budget, 1))
        assert asyncio.get_running_loop().time() - begun < limits.redis.LEASE + 1
        holds += await admit_calls(alive, budget, 200)
    assert len(holds) == 100
    assert len(read_reservations(redis, "concurrent")) == 1  # nothing is left of the dead one


async def test_what_was_open_at_a_killed_worker_is_counted_as_recorded(redis, workers, recorded):
    budget = [limit("requests", 200)]
    (alive,) = await workers(1)
    await alive.admit(budget, MODEL, Consumption(0), NOON)
    with processes(redis, 1, unit="requests", amount=200, calls=100, estimate=0) as (process,):
        assert json.loads(await asyncio.to_thread(process.stdout.readline))["let"] == 100
        process.kill()
        recorded.add(NOON, requests=100)  # by the gateway that drains its spool
        asked = recorded.asked
        await eventually(lambda: redis.client.zcard("{test}:leases") == 1)
    hold = await alive.admit(budget, MODEL, Consumption(0), NOON)
    assert dict(hold.headers(NOON))[b"x-ratelimit-remaining-requests"] == b"98"
    assert recorded.asked == asked + 1


async def test_a_worker_whose_lease_ran_out_while_it_slept_enters_again_what_it_holds(redis, workers):
    one, other = await workers(2)
    budget = [limit("concurrent", 3)]
    holds = await admit_calls(one, budget, 2)
    for lease in redis.client.zrange("{test}:leases", 0, -1):
        redis.client.zadd("{test}:leases", {lease: 1})
    assert len(await admit_calls(one, budget, 5)) == 1  # its own two count
    with pytest.raises(OverRate):
        await other.admit(budget, MODEL, Consumption(0), NOON)
    for hold in holds:
        hold.settle(Consumption(0))
    await eventually(lambda: not one.counting.unsent)
    assert len(await admit_calls(other, budget, 5)) == 2


async def test_what_one_worker_used_all_know(workers):
    one, other = await workers(2)
    budget = [limit("tokens", 150), limit("concurrent", 1)]
    hold = await one.admit(budget, MODEL, Consumption(100), NOON)
    with pytest.raises(OverRate):
        await other.admit(budget, MODEL, Consumption(10), NOON)
    hold.settle(Consumption(20))
    await one.admit([], MODEL, Consumption(0), NOON)
    await eventually(lambda: not one.counting.unsent)
    hold = await other.admit(budget, MODEL, Consumption(100), NOON)
    assert dict(hold.headers(NOON))[b"x-ratelimit-remaining-tokens"] == b"30"


async def test_workers_who_find_no_counter_at_the_same_time_count_what_is_recorded_once(workers, recorded):
    recorded.add(NOON, requests=90)
    budget = [limit("requests", 100)]
    holds = await asyncio.gather(*(admit_calls(shared, budget, 20) for shared in await workers(3)))
    assert sum(map(len, holds)) == 10


async def test_a_caller_who_leaves_while_redis_is_asked_leaves_no_reservation(redis, workers):
    (shared,) = await workers(1)
    budget = [limit("concurrent", 1)]
    (await shared.admit(budget, MODEL, Consumption(0), NOON)).release()
    asking = asyncio.create_task(shared.admit(budget, MODEL, Consumption(0), NOON))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await eventually(lambda: read_reservations(redis, "concurrent") == {})
    await shared.admit(budget, MODEL, Consumption(0), NOON)


async def test_a_call_that_comes_late_for_its_window_counts_in_the_next(workers, recorded):
    """Two workers ask within the same moment, one with the time before midnight."""
    one, other = await workers(2)
    budget = [limit("requests", 2)]
    midnight = NOON + DAY / 2
    await one.admit(budget, MODEL, Consumption(0), midnight - 1)
    asked = recorded.asked
    (await one.admit(budget, MODEL, Consumption(0), midnight)).settle(Consumption(0))
    await other.admit(budget, MODEL, Consumption(0), midnight - 0.001)
    with pytest.raises(OverQuota):
        await one.admit(budget, MODEL, Consumption(0), midnight)
    assert recorded.asked == asked


async def test_every_key_has_an_end(redis, workers):
    (shared,) = await workers(1)
    for window in ("minute", "day", "month"):
        (await shared.admit([limit("tokens", 9, window)], MODEL, Consumption(1), NOON)).settle(Consumption(1))
    await shared.admit([limit("concurrent", 9)], MODEL, Consumption(1), NOON)
    await eventually(lambda: not shared.counting.unsent)
    assert len(redis.client.keys()) == 7
    assert all(redis.client.ttl(key) > 0 for key in redis.client.scan_iter())


async def test_a_worker_that_ends_gives_back_what_it_holds_at_once(workers):
    one, other = await workers(2)
    budget = [limit("concurrent", 1)]
    await one.admit(budget, MODEL, Consumption(0), NOON)
    await one.close()
    await other.admit(budget, MODEL, Consumption(0), NOON)


# --- Redis goes away and comes back


def outages(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.msg == limits.redis.REDIS_AWAY for record in caplog.records)


async def test_a_killed_redis_stops_no_call_and_each_worker_uses_its_share(redis, workers, caplog):
    one, other = await workers(2)
    budget = [limit("requests", 100)]
    for hold in [*await admit_calls(one, budget, 40), *await admit_calls(other, budget, 20)]:
        hold.settle(Consumption(0))
    open_call = await one.admit([*budget, limit("concurrent", 4)], MODEL, Consumption(0), NOON)
    await other.admit(budget, MODEL, Consumption(0), NOON)  # 62 are spent, and both have seen it but for one
    redis.kill()
    await eventually(lambda: one.counting.local_fallback and other.counting.local_fallback)
    alone = [len(await admit_calls(shared, budget, 100)) for shared in (one, other)]
    assert alone == [20, 19]
    assert len(await admit_calls(one, [limit("concurrent", 4)], 10)) == 1  # of two; the open call is the other
    open_call.settle(Consumption(0))
    assert len(await admit_calls(one, [limit("concurrent", 4)], 10)) == 1
    assert outages(caplog) == 2  # once each


async def test_what_was_used_while_redis_was_away_is_sent_when_it_is_back(redis, workers, recorded, clock):
    """It comes back empty. What is recorded is read, and not sent a second time."""
    one, other = await workers(2)
    budget = [limit("requests", 100), limit("concurrent", 50)]
    held = await admit_calls(one, budget, 10)
    redis.kill()
    await eventually(lambda: one.counting.local_fallback and other.counting.local_fallback)
    for hold in await admit_calls(one, budget, 5):
        hold.settle(Consumption(0))
        recorded.add(NOON, requests=1)
    held += await admit_calls(one, budget, 3)
    clock.ahead += 1.2  # so long, and it counts as recorded
    redis.start()
    await eventually(lambda: not one.counting.local_fallback and not other.counting.local_fallback)
    await eventually(lambda: not one.counting.unsent)
    hold = await other.admit(budget, MODEL, Consumption(0), NOON)
    assert dict(hold.headers(NOON))[b"x-ratelimit-remaining-requests"] == b"81"  # 5 recorded, 13 open, itself
    for hold in held:
        hold.settle(Consumption(0))
    await eventually(lambda: not one.counting.unsent)
    hold = await other.admit(budget, MODEL, Consumption(0), NOON)
    assert dict(hold.headers(NOON))[b"x-ratelimit-remaining-requests"] == b"80"
    assert len(read_reservations(redis, "concurrent")) == 1


async def test_what_is_read_from_the_records_is_not_counted_again_when_a_worker_comes_back_late(
    redis, workers, recorded, clock, monkeypatch
):
    (one,) = await workers(1)
    budget = [limit("requests", 100)]
    monkeypatch.setattr(limits.kept_connection, "RETRY", 4.0)
    redis.kill()
    await eventually(lambda: one.counting.local_fallback)
    for hold in await admit_calls(one, budget, 5):
        hold.settle(Consumption(0))
        recorded.add(NOON, requests=1)
    clock.ahead += 1.2  # so long, and it counts as recorded
    redis.start()
    (other,) = await workers(1)
    (await other.admit(budget, MODEL, Consumption(0), NOON)).release()
    assert one.counting.unsent == 5
    await eventually(lambda: not one.counting.unsent)
    hold = await other.admit(budget, MODEL, Consumption(0), NOON)
    assert dict(hold.headers(NOON))[b"x-ratelimit-remaining-requests"] == b"94"


async def test_a_redis_that_hangs_is_left_alone_within_a_moment_and_nothing_is_lost(redis, workers):
    (shared,) = await workers(1)
    budget = [limit("requests", 100)]
    first = await admit_calls(shared, budget, 4)
    redis.hang()
    for hold in first:
        hold.settle(Consumption(0))  # Redis may or may not hear of it
    begun = asyncio.get_running_loop().time()
    holds = await admit_calls(shared, budget, 10)
    assert 0.1 < asyncio.get_running_loop().time() - begun < 2
    assert len(holds) == 10
    assert shared.counting.local_fallback
    begun = asyncio.get_running_loop().time()
    await admit_calls(shared, budget, 1)
    assert asyncio.get_running_loop().time() - begun < 0.1  # no call waits again
    for hold in holds:
        hold.settle(Consumption(0))
    redis.go_on()
    await eventually(lambda: not shared.counting.local_fallback and not shared.counting.unsent)
    hold = await shared.admit(budget, MODEL, Consumption(0), NOON)
    # 14 settled, each once; one of them open, and this one: what was asked while it hung counts no more.
    assert dict(hold.headers(NOON))[b"x-ratelimit-remaining-requests"] == b"84"


async def test_a_redis_that_is_emptied_is_filled_again(redis, workers, recorded):
    one, other = await workers(2)
    budget = [limit("tokens", 1000), limit("concurrent", 3)]
    (await one.admit(budget, MODEL, Consumption(100), NOON)).settle(Consumption(400))
    recorded.add(NOON, tokens=400)
    await one.admit(budget, MODEL, Consumption(100), NOON)
    await other.admit(budget, MODEL, Consumption(100), NOON)
    redis.client.flushall()
    redis.client.script_flush()
    await eventually(lambda: len(read_reservations(redis, "concurrent")) == 2)
    hold = await other.admit(budget, MODEL, Consumption(100), NOON)
    assert dict(hold.headers(NOON))[b"x-ratelimit-remaining-tokens"] == b"300"
    with pytest.raises(OverRate):
        await one.admit(budget, MODEL, Consumption(100), NOON)


async def test_a_redis_that_comes_back_with_what_it_once_knew_is_not_believed(redis, workers, recorded):
    """As after a restart from an old snapshot."""
    (shared,) = await workers(1)
    budget = [limit("requests", 10)]
    (await shared.admit(budget, MODEL, Consumption(0), NOON)).settle(Consumption(0))
    await eventually(lambda: not shared.counting.unsent)
    key = "{test}:tenant:1::requests:day"
    old = redis.client.hgetall(key), redis.client.hgetall("{test}:epoch")
    for _ in range(8):
        recorded.add(NOON, requests=1)
    redis.kill()
    await eventually(lambda: shared.counting.local_fallback)
    redis.start()
    redis.client.hset(key, mapping=old[0])
    redis.client.hset("{test}:epoch", mapping=old[1])
    await eventually(lambda: not shared.counting.local_fallback)
    assert len(await admit_calls(shared, budget, 10)) == 2


async def test_settlements_beyond_what_is_kept_are_read_from_the_records(redis, workers, recorded, clock, monkeypatch):
    monkeypatch.setattr(limits.redis, "MAX_UNSENT", 10)
    (shared,) = await workers(1)
    budget = [limit("requests", 100)]
    await shared.admit(budget, MODEL, Consumption(0), NOON)
    redis.hang()
    holds = await admit_calls(shared, budget, 30)
    for hold in holds:
        hold.settle(Consumption(0))
        recorded.add(NOON, requests=1)
    clock.ahead += 1.2
    redis.go_on()
    await eventually(lambda: not shared.counting.local_fallback and not shared.counting.unsent)
    hold = await shared.admit(budget, MODEL, Consumption(0), NOON)
    assert dict(hold.headers(NOON))[b"x-ratelimit-remaining-requests"] == b"68"


async def test_a_start_without_redis_counts_what_is_recorded(redis, workers, recorded):
    redis.kill()
    recorded.add(NOON, requests=90)
    (shared,) = await workers(1)
    assert len(await admit_calls(shared, [limit("requests", 100)], 20)) == 5  # half of what is left
    redis.start()
    await eventually(lambda: not shared.counting.local_fallback)
    assert len(await admit_calls(shared, [limit("requests", 100)], 20)) == 5


async def test_a_redis_that_takes_no_writes_is_away(redis, workers, caplog):
    (shared,) = await workers(1)
    await shared.admit([limit("requests", 10)], MODEL, Consumption(0), NOON)
    redis.client.config_set("maxmemory", 1)
    try:
        assert len(await admit_calls(shared, [limit("requests", 10)], 20)) == 5
        tries = redis.client.info("stats")["total_connections_received"]
        await eventually(lambda: redis.client.info("stats")["total_connections_received"] >= tries + 2)
        assert shared.counting.local_fallback
        assert outages(caplog) == 1
        assert "OOM" in caplog.text
    finally:
        redis.client.config_set("maxmemory", 0)
    await eventually(lambda: not shared.counting.local_fallback)


# --- addresses


async def can_connect(url: str) -> bool:
    shared = shared_limits(url, Records().spent)
    await shared.start()
    try:
        return not shared.counting.local_fallback
    finally:
        await shared.close()


async def test_a_password_is_used_and_never_logged(caplog):
    port = unused_port()
    url = f"redis://:s3cret%3A%2F%40x@127.0.0.1:{port}/3"
    with redis_server("--requirepass", "s3cret:/@x", url=url, port=port):
        assert await can_connect(url)
        assert not await can_connect(f"redis://:wr0ng@127.0.0.1:{port}/3")
        assert not await can_connect(f"redis://127.0.0.1:{port}/3")
    assert "WRONGPASS" in caplog.text
    assert "s3cret" not in caplog.text
    assert "wr0ng" not in caplog.text


async def test_tls_is_spoken_and_the_certificate_checked(tmp_path):
    write_certificates(tmp_path)
    port = unused_port()
    ca = tmp_path / "ca.pem"
    options = ("--port", "0", "--tls-port", str(port), "--tls-cert-file", str(tmp_path / "server.pem"))
    keys = ("--tls-key-file", str(tmp_path / "server.key"), "--tls-ca-cert-file", str(ca), "--tls-auth-clients", "no")
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs="
    with redis_server(*options, *keys, url=f"{url}{ca}", port=port):
        assert await can_connect(f"{url}{ca}")
        assert not await can_connect(f"{url}{tmp_path / 'other-ca.pem'}")
        assert not await can_connect(f"redis://127.0.0.1:{port}/0")


async def test_a_socket_of_this_host_will_do(tmp_path):
    with redis_server("--unixsocket", str(tmp_path / "redis.sock")):
        assert await can_connect(f"unix://{tmp_path / 'redis.sock'}")


# --- the same rules

AMOUNTS = st.integers(0, 6)
LIMITS = st.lists(
    st.builds(
        lambda unit, window, scope, model, amount: Limit(
            Counter(scope, 1, model, UNITS[unit], "" if unit == "concurrent" else window), amount, TOKYO
        ),
        st.sampled_from(["requests", "tokens", "concurrent"]),
        st.sampled_from(["minute", "day"]),
        st.sampled_from(["tenant", "key"]),
        st.sampled_from([None, MODEL]),
        AMOUNTS,
    ),
    max_size=4,
    unique_by=lambda one: one.counter,
)
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.integers(0, 4)),
        st.tuples(st.just("settle"), st.integers(0, 20), st.integers(0, 5)),
        st.tuples(st.just("release"), st.integers(0, 20)),
        st.tuples(st.just("pass"), st.sampled_from([1.0, 60.0, DAY])),
    ),
    max_size=25,
)


async def outcome(way: Limits | SharedLimits, budget: list[Limit], estimate: int, now: float):
    try:
        hold = await way.admit(budget, MODEL, Consumption(estimate), now)
    except Refusal as refusal:
        return None, (refusal.code, refusal.headers, refusal.message("en"))
    return hold, sorted(hold.headers(now))


async def follow(url: str, budget: list[Limit], acts: list[tuple]) -> None:
    records = Records()
    ways: list[Limits | SharedLimits] = [
        Limits(window_bounds, records.spent),
        shared_limits(url, records.spent),
    ]
    await ways[1].start()
    holds, now = [], NOON
    try:
        for act, *facts in acts:
            if act == "admit":
                (one, said), (other, likewise) = [await outcome(way, budget, facts[0], now) for way in ways]
                assert said == likewise
                holds.append((one, other))
            elif act == "pass":
                now += facts[0]
            elif holds:
                for hold in holds[facts[0] % len(holds)]:
                    if hold is not None:
                        hold.settle(Consumption(facts[1])) if act == "settle" else hold.release()
        assert not ways[1].counting.local_fallback
    finally:
        await ways[1].close()


@hypothesis_settings(max_examples=150, deadline=None)
@given(budget=LIMITS, acts=ACTS)
def test_both_ways_to_count_agree(redis_process, budget, acts):
    if not redis_process.answers():
        redis_process.start()
    redis_process.client.flushall()
    asyncio.run(follow(redis_process.url, budget, acts))
