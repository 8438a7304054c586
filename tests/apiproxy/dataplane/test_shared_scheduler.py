"""Several workers have one queue: an engine gets its room, the least served caller of all goes first, none is lost."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from apiproxy.dataplane import scheduler
from apiproxy.dataplane.catalogue import Model
from apiproxy.dataplane.errors import ClientDisconnected
from apiproxy.dataplane.limits.kept_connection import RETRY
from apiproxy.dataplane.shared_queue import LEASE
from tests.apiproxy.dataplane.queue_workers import EngineCount, QueueWorker, WorkerProcess, model_of
from tests.redis import Redis
from tests.waiting import eventually


@pytest.fixture
def redis(redis_process) -> Redis:
    """Empty, and there, whatever the last test has done to it."""
    if not redis_process.answers():
        redis_process.start()
    redis_process.client.flushall()
    return redis_process


@pytest.fixture(autouse=True)
def no_call_is_short(monkeypatch):
    """Have as many calls sent as there are slots, although those of tests are short."""
    monkeypatch.setattr(scheduler, "SHORT", 0.0)


@pytest.fixture
def engine() -> EngineCount:
    return EngineCount()


Start = Callable[..., Awaitable[list[QueueWorker]]]


@pytest.fixture
async def start(redis, engine) -> AsyncIterator[Start]:
    made: list[QueueWorker] = []

    async def start(count: int, model: Model) -> list[QueueWorker]:
        new = [await QueueWorker(redis.url, model, engine).start() for _ in range(count)]
        made.extend(new)
        return new

    yield start
    for worker in made:
        await worker.close()


def held(redis: Redis, replica: int = 1) -> list[int]:
    """Return how many credits each worker holds, the most first."""
    found = redis.client.hgetall(f"{{test}}:queue:credits:{replica}")
    return sorted((int(value.split()[0]) for name, value in found.items() if name[0] != ":"), reverse=True)


async def hold(worker: QueueWorker, user: int, calls: int) -> None:
    """Let so many calls begin and go on."""
    for _ in range(calls):
        await asyncio.wait_for(worker.acquire(user), LEASE + 5)


def waiting(worker: QueueWorker, user: int, calls: int, **facts: object) -> list[asyncio.Task]:
    return [asyncio.create_task(worker.call(user, 0.02, **facts)) for _ in range(calls)]


async def queued(worker: QueueWorker, calls: int) -> None:
    await eventually(lambda: worker.scheduler.queued == calls)


# --- credits


async def test_an_engine_never_has_more_calls_than_its_room_and_is_never_idle_for_long(start, engine):
    workers, dice = await start(3, model_of(5)), random.Random(1)
    calls = [dice.choice(workers).call(dice.randrange(9), dice.uniform(0, 0.05), cost=9) for _ in range(400)]
    await asyncio.wait_for(asyncio.gather(*calls), 60)
    assert engine.most == 5
    assert len(engine.began) == 400
    assert engine.now == 0


async def test_of_calls_that_are_short_twice_as_many_are_sent(start, engine, monkeypatch):
    monkeypatch.setattr(scheduler, "SHORT", 1.0)
    workers = await start(2, model_of(4))
    await asyncio.gather(*(worker.call(1, 0.05, cost=1) for worker in workers for _ in range(50)))
    assert engine.most == 8


async def test_two_replicas_get_their_rooms_each(start, engine):
    workers = await start(2, model_of(2, 3))
    for worker in workers:
        waiting(worker, 1, 40)
    await eventually(lambda: len(engine.began) == 80)
    await eventually(lambda: engine.now == 0)
    assert engine.most == 5


async def test_what_a_worker_does_not_use_goes_to_another_that_needs_it(start, engine, redis):
    one, other = await start(2, model_of(8))
    await hold(one, 1, 1)
    assert held(redis) == [4]
    await hold(other, 2, 7)
    await eventually(lambda: held(redis) == [7, 1])
    assert engine.now == 8


async def test_a_call_that_finds_a_credit_is_not_mentioned_to_redis(start, redis):
    (worker,) = await start(1, model_of(8))
    await worker.call(1, 0)
    redis.client.config_resetstat()
    for _ in range(500):
        await worker.call(1, 0)
    scripts = redis.client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})
    assert scripts["calls"] <= 10


async def test_a_worker_that_stops_gives_its_credits_back_at_once(start, redis, engine):
    one, other = await start(2, model_of(4))
    await hold(one, 1, 4)
    tasks = waiting(other, 2, 4)
    await queued(other, 4)
    for lease in list(one.leases):
        engine.end()
        del one.leases[lease]
    await one.close()
    await asyncio.wait_for(asyncio.gather(*tasks), 3)


async def test_a_credit_for_a_client_that_has_left_goes_to_another(start, redis, engine):
    one, other = await start(2, model_of(1))
    lease = await one.acquire(1)
    leaving = other.context(2)
    left = asyncio.create_task(other.acquire_for(leaving))
    stays = asyncio.create_task(one.acquire(1))
    await queued(other, 1)
    await queued(one, 1)
    one.release(lease, cost=500)  # so the credit is on its way to the other worker …
    await asyncio.sleep(0)
    leaving.client.listener.client_left()  # … when this call is out of the queue
    with pytest.raises(ClientDisconnected):
        await left
    lease = await asyncio.wait_for(stays, 3)
    assert engine.began == [1, 1]
    one.release(lease)


# --- whose turn it is


async def test_the_least_served_of_all_workers_goes_first(start, engine):
    one, other = await start(2, model_of(1))
    lease = await one.acquire(0)
    burst = [asyncio.create_task(one.call(0, 0.02, cost=100)) for _ in range(20)]
    await queued(one, 20)
    people = [asyncio.create_task(other.call(user, 0.02, cost=100)) for user in range(1, 6)]
    await queued(other, 5)
    one.release(lease, cost=100)
    await asyncio.wait_for(asyncio.gather(*burst, *people), 30)
    assert {1, 2, 3, 4, 5} <= set(engine.began[:8])
    assert engine.most == 1


async def test_what_a_person_was_served_by_one_worker_counts_in_another(start, engine):
    """Person 1 has been served by the one worker when they and another come to the other."""
    one, other = await start(2, model_of(1))
    lease = await one.acquire(1)
    tasks = waiting(one, 9, 1) + waiting(other, 9, 1)
    await queued(one, 1)
    await queued(other, 1)
    lease.charge(5000)
    tasks += waiting(other, 1, 1)
    await queued(other, 2)
    tasks += waiting(other, 2, 1)
    await queued(other, 3)
    await asyncio.sleep(0.6)  # a sweep: counters are known everywhere
    one.release(lease)
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert engine.began[-1] == 1


async def test_a_batch_call_waits_while_people_wait_in_another_worker_and_leaves_a_slot_free(start, engine):
    one, other = await start(2, model_of(3))
    await hold(one, 1, 3)
    batch = [asyncio.create_task(one.acquire(7, batch=True)) for _ in range(3)]
    person = asyncio.create_task(other.acquire(2))
    await queued(one, 3)
    await queued(other, 1)
    await asyncio.sleep(0.6)
    for lease in list(one.leases):
        one.release(lease)
    await asyncio.wait_for(person, 3)
    await eventually(lambda: sum(task.done() for task in batch) == 1)
    await asyncio.sleep(0.6)
    assert engine.now == 2
    assert one.scheduler.queued_batch == 2
    for task in batch[1:]:
        task.cancel()


async def test_places_count_what_waits_in_other_workers(start):
    one, other = await start(2, model_of(1))
    lease = await one.acquire(0)
    tasks = [task for user in range(1, 5) for task in waiting(one, user, 1)]
    await queued(one, 4)
    context = other.context(9)
    asked = asyncio.create_task(other.acquire_for(context))
    await eventually(lambda: context.client.pieces, 10)
    place = int(context.client.pieces[-1].partition(b"=")[2].split()[0])
    assert 2 <= place <= 5
    one.release(lease)
    other.release(await asked)
    await asyncio.gather(*tasks)


# --- a room that is learned


async def test_a_learned_room_is_one_estimate_for_all_workers(start, engine, redis):
    workers = await start(2, model_of(None))
    for worker in workers:
        await hold(worker, 1, 40)
    for worker in workers:
        worker.note_load("2026-01-01T00:00:00", 30)
    more = [waiting(worker, 2, 10) for worker in workers]
    await queued(workers[0], 10)
    await queued(workers[1], 10)
    room = int(redis.client.hget("{test}:queue:credits:1", ":room"))
    assert 32 <= room < 80
    while engine.now >= room:  # nothing goes until what is too much has ended
        assert len(engine.began) == 80
        worker = max(workers, key=lambda one: len(one.leases))
        worker.release(next(iter(worker.leases)))
        await asyncio.sleep(0)
    await asyncio.wait_for(asyncio.gather(*more[0], *more[1]), 10)
    for worker in workers:
        for lease in list(worker.leases):
            worker.release(lease)


# --- what goes wrong


async def test_the_credits_of_a_killed_worker_go_to_others(start, redis, engine):
    (one,) = await start(1, model_of(4))
    victim = await WorkerProcess.start(url=redis.url, slots=4, calls=4, hold=600, user=1)
    try:
        await eventually(lambda: victim.in_flight == 4)
        tasks = waiting(one, 2, 8)
        await queued(one, 8)
    finally:
        await victim.kill()
    await asyncio.wait_for(asyncio.gather(*tasks), LEASE + 3)
    assert engine.most == 4


async def test_a_killed_worker_gets_no_credit_for_the_calls_that_waited_there(start, redis, engine):
    """Of its calls each would be the next, and the engine idle until its lease ends."""
    (one,) = await start(1, model_of(2))
    await hold(one, 1, 2)
    victim = await WorkerProcess.start(url=redis.url, slots=2, calls=8, hold=600, user=2)
    try:
        await eventually(lambda: one.queue.is_wanted(one.model.name))
        tasks = waiting(one, 1, 4)
        await queued(one, 4)
    finally:
        await victim.kill()
    await eventually(lambda: len(redis.client.pubsub_channels()) == 1)
    for lease in list(one.leases):
        one.release(lease)
    await asyncio.wait_for(asyncio.gather(*tasks), LEASE / 2)
    assert victim.began == 0


@pytest.mark.parametrize("entry", ["5", "{}", '{"at": 1e15, "waits": [[0]]}', "nonsense"])
async def test_what_cannot_be_read_is_as_if_it_were_away(start, redis, engine, entry):
    """As another version may have written it: it must not end the queue of all."""
    one, other = await start(2, model_of(2))
    await hold(one, 1, 2)
    tasks = waiting(one, 1, 4)
    await queued(one, 4)
    numbers, before = redis.client.zrange("{test}:queue:workers", 0, -1), redis.client.info("stats")
    redis.client.hset("{test}:queue:waits:" + one.model.name, mapping=dict.fromkeys(numbers, entry))
    redis.client.hset("{test}:queue:served:" + one.model.name, mapping={"0": "inf", "0:user:1:": "nan"})
    redis.client.hset("{test}:queue:credits:1", mapping={":room": "x", ":settle": "nan", numbers[0]: f"{9**40} 1"})
    tasks += waiting(other, 2, 2)
    for lease in list(one.leases):
        one.release(lease)
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    await asyncio.sleep(RETRY * 2)  # a lost connection is made again
    connections = "total_connections_received"
    assert redis.client.info("stats")[connections] == before[connections]


async def test_a_worker_that_stalls_is_counted_again_when_it_goes_on(start, redis, engine):
    (one,) = await start(1, model_of(4))
    stalled = await WorkerProcess.start(url=redis.url, slots=4, calls=12, hold=1.0, user=1)
    try:
        await eventually(lambda: stalled.in_flight == 4)
        stalled.process.send_signal(signal.SIGSTOP)
        kept = stalled.in_flight
        await hold(one, 2, 4)  # by then its credits are free
        most = []
        stalled.changed = lambda: most.append(engine.now + stalled.in_flight)
        began = stalled.began
        await asyncio.sleep(3)
        stalled.process.send_signal(signal.SIGCONT)
        await eventually(lambda: stalled.in_flight == 0)  # what it had has ended, and no more has begun
        await asyncio.sleep(1.5)
        assert stalled.began == began
        assert max(most) <= 4 + kept
        for lease in list(one.leases):
            one.release(lease)
        await eventually(lambda: stalled.began == 12)
        assert max(most[-12:]) <= 4
    finally:
        await stalled.kill()


async def test_calls_go_on_by_shares_while_redis_is_away_and_by_one_queue_when_it_is_back(start, redis, engine):
    workers = await start(2, model_of(4))
    for worker in workers:
        await hold(worker, 1, 2)
    tasks = [task for worker in workers for task in waiting(worker, 2, 5)]
    redis.kill()
    await eventually(lambda: not any(worker.queue.is_shared for worker in workers))
    assert engine.now == 4
    for worker in workers:
        for lease in list(worker.leases):
            worker.release(lease)
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert engine.most == 4
    for worker in workers:
        await hold(worker, 1, 2)
    tasks = [task for worker in workers for task in waiting(worker, 2, 10)]
    redis.start()
    await eventually(lambda: all(worker.queue.is_shared for worker in workers))
    await eventually(lambda: held(redis) == [2, 2])
    for lease in list(workers[0].leases):
        workers[0].release(lease)
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert engine.most == 4


async def test_calls_that_wait_begin_at_once_when_redis_goes_and_leaves_them_a_share(start, redis, engine):
    one, other = await start(2, model_of(4))
    await hold(one, 1, 4)
    tasks = waiting(other, 2, 2)
    await queued(other, 2)
    redis.hang()
    try:
        await asyncio.wait_for(asyncio.gather(*tasks), 3)
    finally:
        redis.go_on()
    assert engine.most == 6  # its share above what the other had when Redis went


async def test_credits_are_entered_again_when_redis_has_lost_them(start, redis, engine):
    workers = await start(2, model_of(4))
    await hold(workers[0], 1, 3)
    await hold(workers[1], 1, 1)
    redis.client.flushall()
    tasks = [task for worker in workers for task in waiting(worker, 2, 10)]
    await eventually(lambda: held(redis) == [3, 1])
    assert engine.most == 4
    for worker in workers:
        for lease in list(worker.leases):
            worker.release(lease)
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert engine.most == 4


async def test_no_credit_is_lost_or_doubled_whatever_redis_does(start, redis, engine):
    """Redis is emptied, hangs and comes back while calls come and go; then there is all the room again."""
    workers, dice = await start(3, model_of(6)), random.Random(2)
    over = asyncio.Event()

    async def people(user: int) -> None:
        while not over.is_set():
            await dice.choice(workers).call(user, dice.uniform(0, 0.1), cost=dice.randrange(1, 90))

    tasks = [asyncio.create_task(people(user)) for user in range(30)]
    for _ in range(3):
        await asyncio.sleep(dice.uniform(0.2, 1.0))
        redis.client.flushall()
        await asyncio.sleep(dice.uniform(0.2, 1.0))
        redis.hang()
        await asyncio.sleep(dice.uniform(0.1, 0.8))
        redis.go_on()
    over.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert engine.now == 0
    assert engine.most <= 6 + 2 * 2  # what two others had above their shares when Redis went
    await eventually(lambda: all(worker.queue.is_shared for worker in workers))
    engine.most = 0
    await hold(workers[0], 1, 6)
    late = waiting(workers[1], 2, 1)
    await queued(workers[1], 1)
    await asyncio.sleep(0.6)
    assert engine.most == 6
    for lease in list(workers[0].leases):
        workers[0].release(lease)
    await asyncio.wait_for(asyncio.gather(*late), 3)
