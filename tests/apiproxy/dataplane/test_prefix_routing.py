"""Of several replicas, a call goes to the one that has read most of its prompt, unless others cost less."""

import asyncio
import json
from dataclasses import replace

import pytest

from apiproxy.dataplane import prefix_routing
from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.catalogue import Model, Replica
from apiproxy.dataplane.client_address import ClientAddress
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.downstream import Listener
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import ENDPOINTS
from apiproxy.dataplane.prefix_routing import (
    EDGES,
    KB,
    MAX_BITS,
    PICTURED,
    SAMPLES,
    ExpectedCost,
    PrefixMemory,
    PrefixRouter,
    PromptPrefix,
    has_prefixes,
    read_prefix,
)
from apiproxy.dataplane.scheduler import Lease, Scheduler
from tests.apiproxy import served
from tests.clock import Clock

REPLICAS = tuple(
    Replica(id=id, url=f"http://127.0.0.1:{id}", api_key="", upstream_model="m", slots=8) for id in (1, 2, 3)
)
ONE, TWO, THREE = REPLICAS
MODEL = replace(served.SERVED, replicas=REPLICAS)
CHAT = ENDPOINTS["/v1/chat/completions"]
SYSTEM = "You answer in short sentences. " * 200  # 6 KB


def body(*turns: str, **fields: object) -> bytes:
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": turn} for turn in turns], **fields}
    ).encode()


def prefix(*turns: str, tenant: int = 1, **fields: object) -> PromptPrefix:
    return read_prefix(requests.parse(body(*turns, **fields)), CHAT, tenant)


class Place:
    """Three replicas, of which none has read anything; `running`: calls by id."""

    def __init__(self) -> None:
        self.memory = PrefixMemory()
        self.running: dict[int, int] = {}

    def place(self, wanted: PromptPrefix, *replicas: Replica) -> tuple[Replica, ExpectedCost]:
        return self.memory.place(wanted, replicas or REPLICAS, lambda id: self.running.get(id, 0))


@pytest.fixture
def place():
    return Place()


# --- what is known of a prompt


def test_prompts_with_the_same_beginning_have_the_same_first_marks():
    first, second = prefix(SYSTEM, "a" * 4000), prefix(SYSTEM, "b" * 4000)
    same = sum(one == other for one, other in zip(first.marks, second.marks, strict=True))
    assert same == len(SYSTEM) // KB
    assert len(first.marks) > same


def test_a_longer_conversation_begins_with_all_of_the_shorter():
    short, long = prefix(SYSTEM, "x" * 3000), prefix(SYSTEM, "x" * 3000, "y" * 9000)
    assert tuple(long.marks[: len(short.marks)]) == tuple(short.marks)


def test_members_before_the_prompt_do_not_count():
    assert (
        prefix(SYSTEM).marks == read_prefix(requests.parse(b'{"temperature": 0.25, ' + body(SYSTEM)[1:]), CHAT, 1).marks
    )


@pytest.mark.parametrize(
    ("path", "member"), [("/v1/completions", "prompt"), ("/v1/responses", "input"), ("/v1/messages", "messages")]
)
def test_each_api_has_its_prompt_in_its_own_member(path, member):
    sent = json.dumps({"model": "m", "max_tokens": 5, member: SYSTEM})
    found = read_prefix(requests.parse(sent.encode()), ENDPOINTS[path], 1)
    assert found.size == len(sent) - sent.index(f'"{member}"')
    assert len(found.marks) == found.size // KB


def test_nothing_of_another_tenant_or_another_salt_is_the_same():
    marks = [prefix(SYSTEM).marks, prefix(SYSTEM, tenant=2).marks]
    marks += [read_prefix(requests.parse(body(SYSTEM, cache_salt=salt)), CHAT, 1).marks for salt in ("a", "\ud800")]
    for place_in_it in zip(*marks, strict=True):
        assert len(set(place_in_it)) == len(marks)


def test_a_prompt_of_any_length_has_few_marks():
    assert len(prefix("x" * 10_000_000).marks) == len(EDGES) < 40
    assert prefix("x" * 10_000_000).size == EDGES[-1]
    assert prefix("short").marks == []
    assert sorted(set(EDGES)) == list(EDGES)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"replicas": (ONE,)}, False),
        ({"external": True}, False),
        ({"stops_unary": False}, False),
        ({"stops_unary": False, "tenants": frozenset({1})}, True),
        ({"stops_unary": False, "tenants": frozenset({1, 2})}, False),
    ],
    ids=["vLLM", "one replica", "external", "llama.cpp", "llama.cpp for one tenant", "llama.cpp for two"],
)
def test_where_nothing_is_kept_for_others_prompts_are_not_looked_at(changes, expected):
    assert has_prefixes(replace(MODEL, **changes), CHAT) is expected
    assert not has_prefixes(replace(MODEL, **changes), ENDPOINTS["/v1/embeddings"])


# --- where it goes


def test_the_next_turn_goes_where_the_last_one_was_read(place):
    first, _ = place.place(prefix(SYSTEM, "a"))
    for _ in range(3):  # others that are equally idle
        place.place(prefix("something else" * 1000), *[one for one in REPLICAS if one is not first])
    chosen, expected = place.place(prefix(SYSTEM, "a", "b"))
    assert chosen == first
    assert expected.unread < KB + 100


def test_prompts_that_nobody_has_read_are_dealt_out(place):
    chosen = []
    for number in range(6):
        chosen.append(place.place(prefix(f"{number} " * 4000))[0].id)
    assert sorted(chosen) == [1, 1, 2, 2, 3, 3]


def test_a_burst_of_new_prompts_does_not_queue_at_one_replica(place):
    assert {place.place(prefix(f"{number} " * 4000))[0].id for number in range(3)} == {1, 2, 3}


def test_a_popular_beginning_is_read_by_others_when_the_first_is_busy(place):
    first, _ = place.place(prefix(SYSTEM, "a"))
    place.running[first.id] = 400  # more than reading the prompt once would cost
    second, expected = place.place(prefix(SYSTEM, "b"))
    assert second != first
    assert expected.unread > len(SYSTEM)
    place.running[first.id] = 0
    place.running[second.id] = 1
    third, expected = place.place(prefix(SYSTEM, "c"))
    assert third == first  # both know it now
    assert expected.unread < KB + 200


def test_what_a_replica_has_still_to_read_counts(place):
    long, _ = place.place(prefix(SYSTEM, "a"))
    place.memory.add_unread(long.id, 200_000)
    assert place.place(prefix(SYSTEM, "b"))[0] != long
    place.memory.add_unread(long.id, -200_000)
    assert place.place(prefix(SYSTEM, "c"))[0] == long


def test_only_replicas_that_are_offered_are_chosen(place):
    first, _ = place.place(prefix(SYSTEM))
    others = [one for one in REPLICAS if one != first]
    assert place.place(prefix(SYSTEM), *others)[0] in others


def test_a_replica_that_was_away_has_read_nothing(place):
    first, _ = place.place(prefix(SYSTEM))
    place.memory.keep_only([one.id for one in REPLICAS if one != first])
    _, expected = place.place(prefix(SYSTEM), first)
    assert expected.unread == prefix(SYSTEM).size


def test_replicas_that_come_and_go_for_ever_are_forgotten(place):
    for id in range(1, 3 * MAX_BITS):
        coming = replace(ONE, id=id)
        place.place(prefix(SYSTEM), coming)
        assert place.place(prefix(SYSTEM), coming)[1].unread < KB
        place.memory.keep_only([])
    assert place.place(prefix(SYSTEM))[1].unread == prefix(SYSTEM).size


def test_what_is_remembered_is_bounded_and_the_latest_is_kept(place, monkeypatch):
    monkeypatch.setattr(prefix_routing, "REMEMBERED", 100)
    early = prefix("early " * 1000)
    place.place(early, ONE)
    for number in range(100):
        place.place(prefix(f"{number} " * 4000), ONE)
    assert place.place(early, ONE)[1].unread == early.size
    assert place.place(prefix("99 " * 4000), ONE)[1].unread < KB


# --- what is learned


def test_the_speed_of_reading_is_that_of_the_quickest_quarter(place):
    for number in range(SAMPLES):
        place.memory.learn(ExpectedCost(unread=10_000, waited=0.0, beside=0), 1.0 if number % 2 else 5.0)
    assert place.memory.seconds_per_byte == pytest.approx(1e-4)
    for _ in range(SAMPLES):
        place.memory.learn(ExpectedCost(unread=10_000, waited=0.0, beside=0), 0.1)
    assert place.memory.seconds_per_byte == pytest.approx(1e-5)


def test_short_prompts_say_nothing_of_the_speed(place):
    before = place.memory.seconds_per_byte
    for _ in range(SAMPLES):
        place.memory.learn(ExpectedCost(unread=100, waited=0.0, beside=0), 3.0)
    assert place.memory.seconds_per_byte == before


@pytest.mark.parametrize("price", [0.001, 0.05])
def test_the_price_of_a_call_is_what_calls_take_longer_beside_others(place, price):
    speed = 1e-4
    for _ in range(500):
        place.memory.learn(ExpectedCost(unread=20_000, waited=0.0, beside=0), 20_000 * speed)
        place.memory.learn(ExpectedCost(unread=20_000, waited=0.5, beside=10), 20_000 * speed + 0.5 + 10 * price)
    assert place.memory.seconds_per_call == pytest.approx(price, rel=0.2)


# --- in the scheduler


class Client:
    waiting = False

    def listen(self, listener: Listener) -> None: ...
    def unsubscribe(self) -> None: ...


class Counter:
    """A scheduler that has a model with three replicas."""

    def __init__(self, model: Model = MODEL) -> None:
        self.model = model
        self.balancer = Balancer()
        self.clock = Clock()
        self.scheduler = Scheduler(
            self.balancer,
            find_model=lambda _: self.model,
            find_called_model=lambda _: self.model,
            request_wake_up=lambda _: None,
            is_gone=lambda _: False,
            is_looked_after=lambda *_: True,
            clock=self.clock,
        )

    def call(self, *turns: str, batch: bool = False) -> RequestContext:
        made = RequestContext("req_1", CHAT, replace(served.KEY, batch=batch), ClientAddress("", "", ""), Client())
        made.call = requests.parse(body(*turns))
        made.model = self.model
        return made

    async def lease(self, *turns: str, **options: bool) -> Lease:
        found = await self.scheduler.acquire(self.call(*turns, **options))
        self.clock.now += 60
        return found

    async def serve(self, *turns: str, **options: bool) -> Replica:
        """Serve a call to its end, and return its replica."""
        found = await self.lease(*turns, **options)
        replica = found.replica
        found.release()
        return replica


@pytest.mark.parametrize("batch", [False, True])
async def test_a_conversation_stays_with_its_replica(batch):
    counter = Counter()
    first = await counter.serve(SYSTEM, "a", batch=batch)
    others = {(await counter.serve(f"{number} " * 4000)).id for number in range(2)}
    assert others == {one.id for one in REPLICAS if one != first}
    for turns in (["a", "b"], ["a", "b", "c"]):
        assert await counter.serve(SYSTEM, *turns, batch=batch) == first


async def test_a_replica_without_room_is_not_waited_for():
    model = replace(MODEL, replicas=tuple(replace(one, slots=1) for one in REPLICAS))
    counter = Counter(model)
    first = await counter.lease(SYSTEM, "a")
    second = await counter.lease(SYSTEM, "b")
    assert second.replica != first.replica


async def test_a_replica_that_cannot_be_reached_or_has_just_refused_is_not_chosen():
    counter = Counter()
    first = await counter.serve(SYSTEM)
    counter.balancer.unreachable = frozenset({first.id})
    second = await counter.serve(SYSTEM)
    assert second != first
    counter.balancer.unreachable = frozenset()
    counter.balancer.penalise(first, counter.clock.now)
    counter.balancer.penalise(second, counter.clock.now)
    assert await counter.serve(SYSTEM) not in (first, second)


async def test_a_call_that_waited_goes_where_its_prompt_was_read():
    model = replace(MODEL, replicas=tuple(replace(one, slots=1) for one in REPLICAS))
    counter = Counter(model)
    leases = [await counter.lease(f"{number} " * 4000) for number in range(3)]
    waiting = asyncio.create_task(counter.lease("2 " * 4000, "more"))
    await asyncio.sleep(0)
    assert counter.scheduler.queued == 1
    known = leases[2].replica
    leases[2].release()
    found = await waiting
    assert found.replica == known
    assert found.waited


async def test_what_a_stopped_replica_had_read_is_not_expected_of_its_successor():
    counter = Counter()
    first = await counter.serve(SYSTEM)
    whole = counter.model
    counter.model = replace(whole, replicas=tuple(one for one in REPLICAS if one != first))
    counter.scheduler.recheck()
    counter.model = whole
    again = counter.call(SYSTEM)
    await counter.scheduler.acquire(again)
    assert again.expected is not None
    assert again.expected.unread == prefix(SYSTEM).size


async def test_a_model_with_one_replica_costs_nothing():
    counter = Counter(replace(MODEL, replicas=(ONE,)))
    alone = counter.call(SYSTEM)
    await counter.scheduler.acquire(alone)
    assert (alone.prefix, alone.expected) == (None, None)


async def wait_after(*first_tokens: tuple[float, bool]) -> float:
    """Return what a call is expected to wait while both replicas read, after calls with (seconds, whether moved)."""
    counter = Counter(replace(MODEL, replicas=(ONE, TWO)))
    for seconds, moved in first_tokens:
        lease = await counter.lease(f"{seconds} {moved} " * 10_000)
        if moved:
            lease.move(TWO if lease.replica == ONE else ONE)
        lease.note_first_token(seconds)
        lease.release()
    for number in range(2):
        await counter.lease(f"{number} " * 30_000)
    call = counter.call("third " * 10_000)
    await counter.scheduler.acquire(call)
    assert call.expected is not None
    return call.expected.waited


async def test_the_first_token_teaches_unless_the_call_was_moved():
    learned = await wait_after((1.0, False))
    assert learned < await wait_after((2.0, False))
    assert learned > await wait_after((1.0, False), (0.01, False))
    assert learned == await wait_after((1.0, False), (0.01, True))


@pytest.mark.parametrize("end", ["read", "moved", "released"])
async def test_a_call_that_ends_in_any_way_leaves_nothing_to_read(end):
    model = replace(MODEL, replicas=(ONE,))
    counter = Counter(replace(model, replicas=(ONE, TWO)))
    known = await counter.serve(SYSTEM)
    burdened = await counter.lease(SYSTEM, "z" * 200_000)
    assert burdened.replica == known
    assert (await counter.lease(SYSTEM, "b")).replica != known
    if end == "read":
        burdened.prompt_read()
    elif end == "moved":
        burdened.move(next(one for one in (ONE, TWO) if one != known))
    burdened.release()
    call = counter.call(SYSTEM, "c")
    found = await counter.scheduler.acquire(call)
    assert call.expected is not None
    assert (found.replica, call.expected.waited) == (known, 0.0)


async def test_pictures_are_not_counted_by_their_bytes():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 900_000}}
    sent = json.dumps({"model": "m", "messages": [{"role": "user", "content": [picture]}]}).encode()
    found = read_prefix(requests.parse(sent), CHAT, 1)
    assert found.size == PICTURED
    assert not found.is_whole


def test_models_that_are_no_more_are_forgotten():
    router = PrefixRouter()
    memory = router.of("m")
    router.keep_only(lambda _: MODEL)
    assert router.of("m") is memory
    router.keep_only(lambda _: replace(MODEL, replicas=(ONE,)))
    assert router.of("m") is memory  # what the other replica has read is worth keeping until there are two again
    router.keep_only(lambda _: None)
    assert router.of("m") is not memory
