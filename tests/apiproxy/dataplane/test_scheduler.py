"""Calls of batch keys wait for interactive ones, and are never forgotten."""

import asyncio
import concurrent.futures
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiproxy.dataplane import forwarding, scheduler
from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.catalogue import Model, Replica
from apiproxy.dataplane.client_address import ClientAddress
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.downstream import Listener
from apiproxy.dataplane.errors import BatchBusy, ClientDisconnected, ModelUnavailable, UnknownModel
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import ENDPOINTS
from apiproxy.dataplane.scheduler import (
    MAX_QUEUED,
    MAX_WAIT,
    STARVED_AFTER,
    Scheduler,
    capacity_for_batch,
    replicas_for_batch,
)
from modelregistry.models import Replica as ReplicaRow
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey
from portal.quotas.models import Quota
from portal.usage.models import RejectionHour, UsageRecord
from tests.apiproxy import served
from tests.clock import Clock
from tests.engine import DONE, FINISH, SSE, chunk, token
from tests.waiting import until

ONE = Replica(id=1, url="http://127.0.0.1:1", api_key="", upstream_model="m", slots=4)
TWO = replace(ONE, id=2)
SERVED = replace(served.SERVED, replicas=(ONE,))


# --- the rules


@pytest.mark.parametrize(
    ("slots", "workers", "calls"),
    [(None, 1, float("inf")), (1, 1, 1), (2, 1, 1), (4, 1, 3), (8, 2, 3), (4, 8, 1)],
)
def test_batch_leaves_a_slot_free_where_there_are_several(slots, workers, calls):
    assert capacity_for_batch(slots, workers) == calls


@given(
    st.lists(
        st.builds(lambda n, slots: replace(ONE, id=n, slots=slots), st.integers(1, 9), st.none() | st.integers(1, 8))
    ),
    st.dictionaries(st.integers(1, 9), st.integers(0, 9)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 5),
)
def test_a_batch_call_never_takes_the_last_free_slot_unless_it_is_old(replicas, running, late, aged, going):
    found = replicas_for_batch(
        replicas, lambda replica: running.get(replica.id, 0), backlogged=late, starved=aged, in_flight=going, workers=1
    )
    if aged and going < len(replicas):
        assert found == replicas
        return
    assert not (late and found)
    for replica in replicas:
        left = float("inf") if replica.slots is None else replica.slots - running.get(replica.id, 0)
        fits = left >= 2 or (replica.slots == 1 and left == 1)
        assert (replica in found) == (fits and not late)


# --- the queue


class Reader:
    """A client that notes what it is sent."""

    waiting = False

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.listener: Listener | None = None

    def begin(self, headers: list) -> None:
        self.sent.append(b"head")

    def piece(self, body: bytes) -> None:
        self.sent.append(body)

    def listen(self, listener: Listener) -> None:
        self.listener = listener

    def unsubscribe(self) -> None:
        self.listener = None


def context(model: Model, *, batch: bool = True) -> RequestContext:
    key = replace(served.KEY, batch=batch)
    made = RequestContext("req_1", ENDPOINTS["/v1/chat/completions"], key, ClientAddress("", "", ""), Reader())
    made.call = requests.parse(b'{"model": "m", "messages": [], "stream": true}')
    made.model = model
    return made


class Hall:
    def __init__(self, *replicas: Replica, loading_on: frozenset[int] = frozenset()) -> None:
        self.clock = Clock()
        self.balancer = Balancer()
        self.served = replace(SERVED, replicas=replicas or (ONE,), loading_on=loading_on)
        self.model: Model | None = self.served
        self.woken: list[int] = []
        self.quiet: set[int] = set()
        self.scheduler = Scheduler(
            self.balancer,
            find_model=lambda _: self.model,
            find_called_model=self.find_called_model,
            request_wake_up=self.woken.append,
            is_quiet=self.quiet.__contains__,
            workers=1,
            clock=self.clock,
        )
        self.tasks: list[asyncio.Task] = []
        self.came: list[int] = []

    def find_called_model(self, context: RequestContext) -> Model:
        if self.model is None:
            raise UnknownModel("model_not_found", model=context.call.model)
        return self.model

    async def come(self, made: RequestContext | None = None) -> asyncio.Task:
        number = len(self.tasks)

        async def call() -> scheduler.Lease:
            lease = await self.scheduler.acquire(made or context(self.served))
            self.came.append(number)
            return lease

        task = asyncio.create_task(call())
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task

    async def interactive(self, *replicas: Replica) -> Callable[[], None]:
        """Start so many calls of people, and return what ends them."""
        model = self.served
        leases = []
        for replica in replicas:
            self.served = replace(model, replicas=(replica,))
            leases.append(await self.scheduler.acquire(context(self.served, batch=False)))
        self.served = model

        def end() -> None:
            for lease in leases:
                lease.release()

        return end

    async def settled(self) -> list[int]:
        for _ in range(5):
            await asyncio.sleep(0)
        return self.came

    def is_empty(self) -> bool:
        running = [self.balancer.running(replica) for replica in (ONE, TWO)]
        return self.scheduler.queued == 0 and running == [0, 0]


async def test_who_finds_room_goes_at_once():
    hall = Hall()
    found = [await hall.come() for _ in range(3)]
    assert await hall.settled() == [0, 1, 2]
    for task in found:
        task.result().release()
    assert hall.is_empty()


async def test_those_who_wait_go_one_by_one_in_their_order():
    hall = Hall()
    end = await hall.interactive(ONE, ONE, ONE)
    for _ in range(4):
        await hall.come()
    assert await hall.settled() == []
    end()
    assert await hall.settled() == [0, 1, 2]
    hall.tasks[1].result().release()
    assert await hall.settled() == [0, 1, 2, 3]


async def test_a_place_is_taken_from_the_moment_it_is_given_to_the_calls_end():
    """Between its turn and its first byte a call may wait for Redis: no other call may count on the place."""
    hall = Hall(replace(ONE, slots=1))
    first = await hall.come()
    await hall.come()
    assert await hall.settled() == [0]
    assert hall.balancer.running(ONE) == 1
    first.result().release()
    assert await hall.settled() == [0, 1]


async def test_a_call_that_moves_gives_its_place_to_the_next():
    hall = Hall(replace(ONE, slots=1))
    first = await hall.come()
    await hall.come()
    first.result().move(TWO)
    assert hall.balancer.running(TWO) == 1
    hall.scheduler.sweep((), 15)
    assert await hall.settled() == [0, 1]
    for task in hall.tasks:
        task.result().release()
    assert hall.is_empty()


async def test_an_interactive_call_never_waits_and_goes_where_least_is_done():
    hall = Hall(ONE, TWO)
    await hall.interactive(ONE, ONE)
    lease = await hall.scheduler.acquire(context(hall.served, batch=False))
    assert lease.replica == TWO
    assert not lease.waited


async def test_a_sleeping_model_is_asked_to_wake_unless_its_supervisors_are_quiet():
    hall = Hall(loading_on=frozenset({7}))
    hall.balancer.unreachable = frozenset({ONE.id})
    for code, quiet in (("model_loading", set()), ("model_unavailable", {7})):
        hall.quiet |= quiet
        with pytest.raises(ModelUnavailable) as refused:
            await hall.scheduler.acquire(context(hall.served, batch=False))
        assert refused.value.code == code
    assert hall.woken == [SERVED.id, SERVED.id]


async def test_a_turn_goes_to_the_replica_with_room():
    hall = Hall(ONE, replace(TWO, slots=8))
    await hall.interactive(ONE, ONE, ONE, TWO, TWO, TWO, TWO)
    assert (await hall.come()).done() or await hall.settled()
    assert hall.tasks[0].result().replica.id == 2


async def test_who_has_waited_long_goes_but_one_at_a_time():
    hall = Hall()
    await hall.interactive(ONE, ONE, ONE, ONE)
    for _ in range(3):
        await hall.come()
    hall.clock.now += STARVED_AFTER - 1
    hall.scheduler.sweep((), 15)
    assert await hall.settled() == []
    hall.clock.now += 1
    hall.scheduler.sweep((), 15)
    assert await hall.settled() == [0]
    hall.tasks[0].result().release()
    assert await hall.settled() == [0, 1]


async def test_interactive_calls_that_wait_in_an_engine_of_unknown_slots_hold_batch_back():
    hall = Hall(replace(ONE, slots=None))
    await hall.interactive(ONE)
    hall.scheduler.sweep({"m"}, 15)
    await hall.come()
    assert await hall.settled() == []
    hall.scheduler.sweep((), 15)
    assert await hall.settled() == [0]


async def test_o5_who_waits_waits_on_while_no_replica_can_be_reached():
    hall = Hall()
    hall.balancer.unreachable = frozenset({ONE.id})
    for _ in range(3):
        await hall.come()
    hall.scheduler.sweep((), 15)
    assert await hall.settled() == []
    hall.balancer.unreachable = frozenset()
    hall.scheduler.sweep((), 15)
    assert (await hall.settled())[0] == 0


async def test_no_call_waits_for_ever_and_not_too_many_wait():
    hall = Hall()
    await hall.interactive(ONE, ONE, ONE)
    for _ in range(MAX_QUEUED):
        await hall.come()
    too_many = await hall.come()
    await hall.settled()
    assert isinstance(too_many.exception(), BatchBusy)
    assert too_many.exception().headers == {"retry-after": "30"}
    hall.clock.now += MAX_WAIT + 1
    hall.scheduler.sweep((), 15)
    await hall.settled()
    ended = [task.exception() for task in hall.tasks if task.done() and task.exception()]
    assert len(ended) == MAX_QUEUED + 1
    assert hall.scheduler.queued == 0


async def test_a_client_that_leaves_gives_its_place_to_the_next():
    hall = Hall(replace(ONE, slots=1))
    end = await hall.interactive(ONE)
    leaving = context(hall.served)
    await hall.come(leaving)
    await hall.come()
    leaving.client.listener.client_left()
    end()
    assert await hall.settled() == [1]
    assert isinstance(hall.tasks[0].exception(), ClientDisconnected)
    hall.tasks[1].result().release()
    assert hall.is_empty()


async def test_a_call_that_the_server_ends_leaves_nothing_behind():
    hall = Hall(replace(ONE, slots=1))
    end = await hall.interactive(ONE)
    waiting, going = await hall.come(), await hall.come()
    waiting.cancel()
    await hall.settled()
    assert isinstance(waiting.exception(), ModelUnavailable)
    end()
    going.cancel()  # its turn has come, but it does not know yet
    await hall.settled()
    assert isinstance(going.exception(), ModelUnavailable)
    assert hall.is_empty()


async def test_a_model_that_is_gone_keeps_no_call():
    hall = Hall()
    await hall.interactive(ONE, ONE, ONE)
    await hall.come()
    hall.model = None
    hall.scheduler.sweep((), 15)
    await hall.settled()
    assert isinstance(hall.tasks[0].exception(), UnknownModel)
    assert hall.scheduler.queued == 0


async def test_streams_are_kept_patient():
    hall = Hall()
    await hall.interactive(ONE, ONE, ONE)
    made = context(hall.served)
    await hall.come(made)
    for _ in range(4):
        hall.clock.now += 8
        hall.scheduler.sweep((), 15)
    assert made.client.sent == [b"head", b": waiting\n\n", b": waiting\n\n"]
    assert made.head_sent


# --- over real sockets

LONG = [{"send": SSE}, {"send": chunk(token(0))}, {"hang": True}]
QUICK = [{"send": SSE}, {"send": chunk(token(0) + FINISH + DONE) + "0\r\n\r\n"}]


@pytest.fixture
def batch(counter, alice, research) -> httpx2.Client:
    """Return a client with a batch key; the engine has two slots."""
    row = ReplicaRow.objects.get()
    row.slots = 2
    row.save()
    key, text = issue_key(tenant=research, user=alice, name="nightly")
    key.key_class = ApiKey.Class.BATCH
    key.save()
    counter.wait_for_catalogue()
    return httpx2.Client(base_url=counter.url, headers={"authorization": f"Bearer {text}"}, timeout=20)


def ask(client: httpx2.Client, name: str, **fields) -> httpx2.Response:
    body = {"model": "fake", "messages": [], "user": name, **fields}
    return client.post("/v1/chat/completions", json=body)


def users_at_engine(counter) -> list[str]:
    """Return which users' calls have reached the engine, in this order."""
    return [request["body"].get("user", "") for request in counter.engine.seen()["requests"]]


@contextlib.contextmanager
def busy_engine(counter) -> Iterator[None]:
    """Keep the engine busy with a person's stream."""
    with counter.stream(script=LONG, user="person") as response:
        pieces = response.iter_raw()  # forgotten, it would close the answer
        next(pieces)
        yield


def waiting(counter) -> int:
    return counter.application.gateway.queued


def test_batch_calls_wait_for_an_interactive_one_in_their_order_and_interactive_ones_do_not(counter, batch):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with busy_engine(counter):
            calls = []
            for number in range(3):
                calls.append(pool.submit(ask, batch, f"batch {number}"))
                until(lambda: waiting(counter) == number + 1)  # noqa: B023 - called here
            assert counter.chat(user="another person").status_code == 200
            assert users_at_engine(counter) == ["person", "another person"]
        assert [call.result().status_code for call in calls] == [200, 200, 200]
    assert users_at_engine(counter)[2:] == ["batch 0", "batch 1", "batch 2"]
    assert waiting(counter) == 0
    assert len(counter.usage(5)) == 5


def test_batch_calls_go_at_once_when_there_is_room(counter, batch):
    begun = time.monotonic()
    assert ask(batch, "batch").status_code == 200
    assert time.monotonic() - begun < 1


def test_a_batch_stream_that_waits_is_kept_patient_and_then_answered(counter, batch, monkeypatch):
    monkeypatch.setattr(forwarding, "HEARTBEAT", 0.1)
    body = {"model": "fake", "messages": [], "stream": True, "script": QUICK}
    with contextlib.ExitStack() as stack:
        person = contextlib.ExitStack()
        person.enter_context(busy_engine(counter))
        response = stack.enter_context(batch.stream("POST", "/v1/chat/completions", json=body))
        pieces = response.iter_raw()
        first = next(pieces)
        person.close()
        text = (first + b"".join(pieces)).decode()
    assert text.startswith(": waiting\n\n")
    assert "t0" in text
    assert text.endswith("data: [DONE]\n\n")
    assert {row.status for row in counter.usage(2)} == {"aborted", "finished"}


def test_a_call_that_waits_too_long_is_asked_to_come_back(counter, batch, monkeypatch):
    monkeypatch.setattr(scheduler, "MAX_WAIT", 0.5)
    with busy_engine(counter):
        response = ask(batch, "batch")
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "batch_held_back"
        assert response.headers["retry-after"] == "30"
        monkeypatch.setattr(forwarding, "HEARTBEAT", 0.1)
        body = {"model": "fake", "messages": [], "stream": True}
        monkeypatch.setattr(scheduler, "MAX_WAIT", 2.5)
        text = batch.post("/v1/chat/completions", json=body).text
    assert text.startswith(": waiting\n\n")
    assert '"batch_held_back"' in text
    assert text.endswith("data: [DONE]\n\n")
    until(
        lambda: (
            [(row.code, row.model, row.requests) for row in RejectionHour.objects.all()]
            == [("batch_held_back", "fake", 2)]
        )
    )
    assert users_at_engine(counter) == ["person"]


def test_who_leaves_while_waiting_is_forgotten(counter, batch):
    with busy_engine(counter):
        with contextlib.suppress(httpx2.ReadTimeout):
            batch.post("/v1/chat/completions", json={"model": "fake", "messages": []}, timeout=0.5)
        until(lambda: waiting(counter) == 0)
    assert ask(batch, "after").status_code == 200
    assert users_at_engine(counter) == ["person", "after"]
    assert UsageRecord.objects.filter(key__key_class="batch").count() <= 1


def test_a_waiting_call_reserves_nothing(counter, batch, alice):
    Quota.objects.create(user=alice, unit="concurrent", amount=2)
    counter.wait_for_catalogue()
    with concurrent.futures.ThreadPoolExecutor() as pool, busy_engine(counter):
        call = pool.submit(ask, batch, "batch")
        until(lambda: waiting(counter) == 1)
        assert counter.chat(user="person again").status_code == 200
        counter.client.close()
    assert call.result().status_code == 200


def test_a_recording_of_a_batch_key_waits_as_well(counter, batch):
    counter.model.task = "transcription"
    counter.model.save()
    counter.wait_for_catalogue()
    files = {"file": ("a.wav", b"x" * 500_000)}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with busy_transcription(counter):
            call = pool.submit(batch.post, "/v1/audio/transcriptions", data={"model": "fake"}, files=files)
            until(lambda: waiting(counter) == 1)
        assert call.result().status_code == 200


@contextlib.contextmanager
def busy_transcription(counter) -> Iterator[None]:
    data = {"model": "fake", "stream": "true", "script": json.dumps(LONG)}
    with counter.client.stream(
        "POST", "/v1/audio/transcriptions", data=data, files={"file": ("a.wav", b"x")}
    ) as response:
        pieces = response.iter_raw()  # forgotten, it would close the answer
        next(pieces)
        yield


# --- engines that sort


def priorities(counter) -> list[object]:
    return [request["body"].get("priority") for request in counter.engine.seen()["requests"]]


def test_an_engine_that_sorts_learns_which_calls_are_of_batch_and_no_client_is_believed(counter, batch):
    counter.model.engine, counter.model.task = "vllm", "chat"
    counter.model.save()
    row = ReplicaRow.objects.get()
    row.launcher = "vllm"
    row.save()
    counter.wait_for_catalogue()
    assert ask(batch, "batch").status_code == 200
    assert ask(batch, "batch", priority=-5).status_code == 200
    assert counter.chat().status_code == counter.chat(priority=-5).status_code == 200
    assert priorities(counter) == [1, 1, None, None]


def test_an_engine_that_does_not_sort_gets_no_priority(counter, batch):
    assert ask(batch, "batch").status_code == counter.chat(priority=3).status_code == 200
    assert priorities(counter) == [None, None]
