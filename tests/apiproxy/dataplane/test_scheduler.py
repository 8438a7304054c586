"""Calls wait for their turn: the least served caller's first, interactive ones before batch, and none is forgotten."""

import asyncio
import concurrent.futures
import contextlib
import gc
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiproxy.dataplane import forwarding, room, scheduler
from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.catalogue import Model, Replica
from apiproxy.dataplane.client_address import ClientAddress
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.downstream import Listener
from apiproxy.dataplane.errors import (
    BatchBusy,
    ClientDisconnected,
    InvalidKey,
    ModelBusy,
    ModelUnavailable,
    Refusal,
    UnknownModel,
)
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import ENDPOINTS
from apiproxy.dataplane.model_queue import FEW, flow_of
from apiproxy.dataplane.queue_sharing import capacity_for_batch
from apiproxy.dataplane.room import EngineLoad
from apiproxy.dataplane.scheduler import (
    MAX_LOADING,
    MAX_QUEUED,
    MAX_WAIT,
    PLACE_EVERY,
    SHORT,
    STARVED_AFTER,
    Scheduler,
    replicas_for_batch,
)
from apiproxy.dataplane.wake_ups import WakeUp
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
    ("slots", "calls"),
    [(float("inf"), float("inf")), (1, 1), (2, 1), (4, 3)],
)
def test_batch_leaves_a_slot_free_where_there_are_several(slots, calls):
    assert capacity_for_batch(slots) == calls


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
        replicas,
        lambda replica: running.get(replica.id, 0),
        backlogged=late,
        starved=aged,
        in_flight=going,
        capacity=lambda replica: capacity_for_batch(replica.slots or float("inf")),
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


def context(model: Model, *, batch: bool = True, user: int | None = 1, end_user: str = "") -> RequestContext:
    key = replace(served.KEY, batch=batch, user=user, separates_users=bool(end_user))
    caller = ClientAddress("", "", end_user)
    made = RequestContext("req_1", ENDPOINTS["/v1/chat/completions"], key, caller, Reader())
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
        self.gone: set[int] = set()
        self.revoked: set[int | None] = set()  # users whose keys are
        self.scheduler = self.make_scheduler()
        self.tasks: list[asyncio.Task] = []
        self.came: list[int] = []

    def make_scheduler(self, **options: Any) -> Scheduler:
        find_model = options.pop("find_model", lambda _: self.model)
        return Scheduler(
            self.balancer,
            find_model=find_model,
            find_called_model=self.find_called_model,
            request_wake_up=options.pop("request_wake_up", lambda wake: self.woken.append(wake.model)),
            is_gone=self.gone.__contains__,
            is_looked_after=lambda model, replica: not model.external and replica.host not in self.gone,
            clock=self.clock,
            **options,
        )

    def find_called_model(self, context: RequestContext) -> Model:
        if context.key.user in self.revoked:
            raise InvalidKey("invalid_api_key")
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

    async def person(self, user: int | None, **facts) -> RequestContext:
        """Let a person call, who may have to wait."""
        made = context(self.served, batch=False, user=user, **facts)
        await self.come(made)
        return made

    async def large(self, user: int, size: int) -> None:
        """Let a person call with a body of so many bytes."""
        made = context(self.served, batch=False, user=user)
        made.call.size = size
        await self.come(made)

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


def asleep() -> Hall:
    hall = Hall(loading_on=frozenset({7}))
    hall.served = hall.model = replace(hall.served, replicas=())
    return hall


async def test_a_call_for_a_sleeping_model_wakes_it_and_waits_for_it():
    hall = asleep()
    await hall.person(1)
    await hall.come()  # of a batch key
    assert set(hall.woken) == {SERVED.id}
    hall.clock.now += 100  # a queue of calls that take so long would be refused
    hall.scheduler.sweep((), 15)
    assert await hall.settled() == []
    hall.served = hall.model = replace(hall.served, replicas=(ONE,), loading_on=frozenset())
    hall.scheduler.recheck()
    assert await hall.settled() == [0, 1]
    assert all(task.result().waited for task in hall.tasks)
    for task in hall.tasks:
        task.result().release()
    assert hall.is_empty()


async def test_one_caller_has_only_so_many_models_loaded_at_a_time():
    """Each may take the place of a model that others use."""
    hall = asleep()
    known = {name: replace(hall.served, name=name, id=number) for number, name in enumerate("abcdef", start=1)}
    hall.scheduler = hall.make_scheduler(find_model=known.get)

    async def ask(name: str, user: int | None) -> asyncio.Task:
        made = context(known[name], batch=user == 3, user=user)
        made.key = replace(made.key, service_weight=1.25)
        return await hall.come(made)

    for user in (1, 3, None):  # a person, one whose key is of batch, and a service that counts as a little more
        hall.woken.clear()
        tasks = [await ask(name, user) for name in "abcdef"]
        await hall.settled()
        refused = [task.done() for task in tasks]
        assert refused == [False] * 4 + [user is not None, True]
        assert tasks[5].exception().code == "too_many_loading"
        assert user == 3 or known["f"].id not in hall.woken
    await ask("a", 1)  # one that is being loaded already
    assert not (await ask("e", 2)).done()


async def test_a_caller_whose_model_is_not_loaded_is_refused_and_the_next_one_has_it_loaded():
    hall = asleep()
    asked: list[WakeUp] = []
    hall.scheduler = hall.make_scheduler(request_wake_up=asked.append)
    first = await hall.come(context(hall.served, batch=False, user=1))
    second = await hall.come(context(hall.served, batch=True, user=2))
    assert asked == [WakeUp(SERVED.id, ("user", 1), MAX_LOADING, True)]
    hall.scheduler.refuse_wake_up(asked.pop(), 20.0)
    await hall.settled()
    assert (first.exception().code, first.exception().headers["retry-after"]) == ("too_many_loading", "20")
    assert not second.done()
    hall.scheduler.sweep((), 15)
    assert asked == [WakeUp(SERVED.id, ("user", 2), MAX_LOADING, False)]
    again = await hall.come(context(hall.served, batch=False, user=1))
    await hall.settled()
    assert again.exception().code == "too_many_loading"
    hall.clock.now += 20
    hall.scheduler.sweep((), 15)
    assert not (await hall.come(context(hall.served, batch=False, user=1))).done()
    assert asked[-1] == WakeUp(SERVED.id, ("user", 1), MAX_LOADING, True)


async def test_streams_hear_how_long_a_model_has_been_loading_and_what_is_usual():
    hall = asleep()
    first = await hall.person(1)
    hall.clock.now += 12
    hall.scheduler.sweep((), 15)
    assert first.client.sent[-1] == b": loading 12s\n\n"
    hall.served = hall.model = replace(hall.served, replicas=(ONE,))
    hall.scheduler.recheck()
    assert await hall.settled() == [0]
    hall.tasks[0].result().release()
    hall.served = hall.model = replace(hall.served, replicas=())
    second = await hall.person(1)
    hall.clock.now += 6
    hall.scheduler.sweep((), 15)
    assert second.client.sent[-1] == b": loading 6s of ~12s\n\n"
    second.client.listener.client_left()
    await hall.settled()
    assert hall.is_empty()


async def test_who_waits_for_a_model_that_no_host_loads_any_more_is_refused():
    hall = asleep()
    await hall.person(1)
    hall.gone.add(7)
    hall.scheduler.sweep((), 15)
    await hall.settled()
    assert hall.tasks[0].exception().code == "model_unavailable"
    with pytest.raises(ModelUnavailable) as refused:
        await hall.scheduler.acquire(context(hall.served, batch=False))
    assert refused.value.code == "model_unavailable"
    assert hall.is_empty()


async def test_who_waits_too_long_for_a_model_is_asked_to_come_back():
    hall = asleep()
    await hall.person(1)
    hall.clock.now += MAX_WAIT + 1
    hall.scheduler.sweep((), 15)
    await hall.settled()
    assert hall.tasks[0].exception().code == "model_loading"
    assert hall.is_empty()


async def test_a_model_that_cannot_be_reached_and_is_loaded_elsewhere_is_waited_for():
    hall = Hall(loading_on=frozenset({7}))
    hall.balancer.unreachable = frozenset({ONE.id})
    await hall.person(1)
    assert await hall.settled() == []
    hall.balancer.unreachable = frozenset()
    hall.scheduler.sweep((), 15)
    assert await hall.settled() == [0]
    hall.tasks[0].result().release()
    assert hall.is_empty()


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
    assert made.client.sent == [b"head", b": queue position=1\n\n", b": queue position=1\n\n"]
    assert made.head_sent


# --- people


async def test_a_person_who_finds_room_goes_without_a_queue():
    hall = Hall()
    await hall.person(1)
    assert hall.scheduler.queued == 0
    lease = hall.tasks[0].result()
    assert not lease.waited
    lease.release()
    assert hall.is_empty()


async def test_the_least_served_person_goes_first_and_a_call_counts_while_it_runs():
    hall = Hall(replace(ONE, slots=2))
    for _ in range(4):
        await hall.person(1)
    await hall.person(2)
    assert await hall.settled() == [0, 1]
    hall.clock.now += 2 * SHORT
    hall.tasks[0].result().charge(100)
    hall.tasks[1].result().release()
    assert await hall.settled() == [0, 1, 4]
    hall.tasks[4].result().charge(200)  # the other's calls were served 100
    hall.tasks[0].result().release()
    assert await hall.settled() == [0, 1, 4, 2]


async def test_equally_served_people_take_turns():
    hall = Hall(replace(ONE, slots=1))
    for user in (1, 1, 1, 2, 2, 3):
        await hall.person(user)
    for place in (0, 1, 3, 5, 2, 4):
        assert (await hall.settled())[-1] == place
        hall.tasks[place].result().release()
    assert hall.is_empty()


async def test_people_behind_a_shared_key_have_turns_of_their_own():
    hall = Hall(replace(ONE, slots=1))
    for end_user in ("a", "a", "a", "b"):
        await hall.person(None, end_user=end_user)
    for place in (0, 1, 3, 2):
        assert (await hall.settled())[-1] == place
        hall.tasks[place].result().release()


async def test_a_turn_is_that_of_the_person_whatever_their_mail_address_is():
    made = context(SERVED, user=None, end_user="a@example.com")
    made.caller = ClientAddress("", "", "a@example.com", "6f0c")
    assert flow_of(made).end_user == "6f0c"
    assert made.end_user == "a@example.com"


async def test_end_users_that_a_key_may_not_name_get_no_turns_of_their_own():
    hall = Hall()
    named = context(hall.served, batch=False, user=None)
    named.call = requests.parse(b'{"model": "m", "messages": [], "user": "a"}')
    assert flow_of(named) == flow_of(context(hall.served, batch=False, user=None))
    named.key = replace(named.key, takes_user_headers=True)
    assert flow_of(named).end_user == ""
    named.key = replace(named.key, separates_users=True)
    assert flow_of(named).end_user == "a"
    named.key = replace(named.key, user_secret=b"s")  # then only signed names are believed
    assert flow_of(named).end_user == ""


async def test_people_behind_a_key_share_its_part_one_call_each():
    hall = Hall(replace(ONE, slots=1))
    (end,) = [await hall.interactive(ONE)]
    for end_user in ("a", "a", "a", "b"):
        made = context(hall.served, batch=False, user=None)
        made.caller = ClientAddress("", "", end_user)
        await hall.come(made)
    end()
    for place in (0, 3, 1, 2):
        assert (await hall.settled())[-1] == place
        hall.tasks[place].result().release()


async def test_a_service_key_counts_as_so_many_people_of_its_tenant():
    hall = Hall()
    service = context(hall.served, batch=False, user=None)
    service.key = replace(service.key, weight=2.0, service_weight=3.0)
    assert flow_of(service).weight == 6.0
    service.key = replace(service.key, separates_users=True)
    service.caller = ClientAddress("", "", "a")
    assert flow_of(service).weight == 2.0  # a person


async def test_a_caller_has_the_weight_of_the_tenant_and_is_one_whatever_it_is():
    hall = Hall()
    person, service = (context(hall.served, batch=False, user=user) for user in (1, None))
    usual = flow_of(person), flow_of(service)
    for one in (person, service):
        one.key = replace(one.key, weight=2.5)
    assert (flow_of(person), flow_of(service)) == usual
    assert [flow_of(person).weight, flow_of(service).weight] == [2.5 * one.weight for one in usual]


async def test_interactive_calls_go_before_batch_which_came_first():
    hall = Hall(replace(ONE, slots=1))
    end = await hall.interactive(ONE)
    await hall.come()
    await hall.person(2)
    end()
    assert await hall.settled() == [1]
    hall.tasks[1].result().release()
    assert await hall.settled() == [1, 0]


async def test_the_sites_own_checks_go_after_batch():
    hall = Hall(replace(ONE, slots=1))
    end = await hall.interactive(ONE)
    check = context(hall.served)
    check.key = replace(check.key, canary=True)
    await hall.come(check)
    await hall.come()
    end()
    assert await hall.settled() == [1]
    hall.tasks[1].result().release()
    assert await hall.settled() == [1, 0]
    assert hall.scheduler.queued == 0


async def test_a_person_waits_for_a_slot_of_any_replica():
    hall = Hall(replace(ONE, slots=1), replace(TWO, slots=2))
    end = await hall.interactive(TWO)
    for _ in range(3):
        await hall.person(1)
    assert await hall.settled() == [0, 1]
    end()
    assert await hall.settled() == [0, 1, 2]
    assert hall.tasks[2].result().replica.id == TWO.id


async def test_a_replica_that_refused_a_moment_ago_is_left_alone_while_others_work():
    hall = Hall(replace(ONE, slots=1), replace(TWO, slots=1))
    end = await hall.interactive(ONE)
    hall.balancer.penalise(TWO, hall.clock())
    await hall.person(1)
    assert await hall.settled() == []
    end()
    assert await hall.settled() == [0]
    assert hall.tasks[0].result().replica.id == ONE.id


@pytest.mark.parametrize(("seconds", "going"), [(SHORT / 2, 4), (2 * SHORT, 2)])
async def test_an_engine_of_short_calls_always_has_the_next_ones_at_hand(seconds, going):
    hall = Hall(replace(ONE, slots=2))
    await serve_one(hall, seconds)
    for _ in range(6):
        await hall.person(1)
    assert await hall.settled() == list(range(going))


async def test_people_wait_for_room_that_an_engine_of_unknown_slots_is_found_to_have():
    hall = Hall(replace(ONE, slots=None))
    await hall.interactive(*[hall.served.replicas[0]] * 64)
    hall.scheduler.note_loads({ONE.id: EngineLoad("1", 9, 0.5)})
    await hall.person(1)
    await hall.come()
    assert await hall.settled() == []
    hall.scheduler.note_loads({})
    assert await hall.settled() == [0, 1]


async def test_batch_leaves_a_part_of_a_learned_room_free():
    hall = Hall(replace(ONE, slots=None))
    hall.scheduler.note_loads({ONE.id: EngineLoad("1", 0, 0.5)})
    await hall.interactive(*[hall.served.replicas[0]] * 63)
    await hall.come()
    await hall.person(1)
    assert await hall.settled() == [1]


async def test_one_caller_cannot_fill_the_queue_for_others():
    hall = Hall()
    await hall.interactive(ONE, ONE, ONE, ONE)
    for _ in range(MAX_QUEUED + 1):
        await hall.person(1)
    await hall.person(2)
    await hall.settled()
    assert isinstance(hall.tasks[MAX_QUEUED].exception(), ModelBusy)
    assert not hall.tasks[-1].done()
    assert hall.scheduler.queued == MAX_QUEUED + 1


async def test_one_key_cannot_fill_the_queue_with_end_users_that_it_names(monkeypatch):
    monkeypatch.setattr(scheduler, "MAX_OF_KEY", 3)
    hall = Hall(replace(ONE, slots=1))
    await hall.interactive(ONE)
    for number in range(4):
        await hall.person(None, end_user=f"invented {number}")
    await hall.person(2)
    await hall.settled()
    assert isinstance(hall.tasks[3].exception(), ModelBusy)
    assert hall.scheduler.queued == 4
    hall.tasks[0].cancel()
    await hall.settled()
    await hall.person(None, end_user="another")
    assert hall.scheduler.queued == 4


async def test_one_caller_cannot_fill_the_memory_with_calls_that_wait_for_whichever_models():
    hall = Hall(replace(ONE, slots=1))
    hall.scheduler = hall.make_scheduler(memory=2 * 1000)
    await hall.interactive(ONE)
    for _ in range(4):
        await hall.large(1, 1000)
    await hall.large(2, 1000)
    await hall.settled()
    assert isinstance(hall.tasks[3].exception(), ModelBusy)
    assert hall.scheduler.queued == 4
    hall.tasks[0].cancel()
    await hall.settled()
    await hall.large(1, 1000)
    assert hall.scheduler.queued == 4


async def test_all_callers_together_cannot_fill_the_memory(monkeypatch):
    monkeypatch.setattr(scheduler, "MAX_WAITING", 3)
    hall = Hall(replace(ONE, slots=1))
    for user in range(5):
        await hall.person(user)
    await hall.settled()
    assert isinstance(hall.tasks[4].exception(), ModelBusy)
    assert hall.scheduler.queued == 3


async def test_a_crowd_of_batch_calls_keeps_no_person_out(monkeypatch):
    monkeypatch.setattr(scheduler, "MAX_WAITING", 3)
    hall = Hall(replace(ONE, slots=1))
    await hall.interactive(ONE)
    for user in range(4):
        await hall.come(context(hall.served, user=user))
    await hall.person(9)
    await hall.settled()
    assert [task.done() for task in hall.tasks] == [False, False, False, True, False]
    assert isinstance(hall.tasks[3].exception(), BatchBusy)


async def test_who_fills_the_queue_gives_way_to_others(monkeypatch):
    monkeypatch.setattr(scheduler, "MAX_WAITING", 4)
    hall = Hall(replace(ONE, slots=1))
    await hall.interactive(ONE)
    for user in (1, 1, 1, 2, 3, 4):
        await hall.person(user)
    await hall.settled()
    refused = [number for number, task in enumerate(hall.tasks) if task.done()]
    assert refused == [1, 2]
    assert all(isinstance(hall.tasks[number].exception(), ModelBusy) for number in refused)
    assert hall.scheduler.queued == 4


async def serve_one(hall: Hall, seconds: float) -> None:
    """Let a call end after so many seconds, from which the next ones' waits are expected."""
    lease = await hall.scheduler.acquire(context(hall.served, batch=False))
    hall.clock.now += seconds
    lease.charge(10)
    lease.release()


async def test_streams_show_their_place_and_the_expected_wait():
    hall = Hall(replace(ONE, slots=2))
    await serve_one(hall, 8)
    await hall.interactive(ONE, ONE)
    waiting = [await hall.person(user) for user in (2, 2, 3)]
    hall.clock.now += PLACE_EVERY
    hall.scheduler.sweep((), 15)
    assert [made.client.sent[-1] for made in waiting] == [
        b": queue position=1 eta=4s\n\n",
        b": queue position=3 eta=12s\n\n",
        b": queue position=2 eta=8s\n\n",
    ]


async def test_the_wait_of_interactive_calls_is_reported_without_those_of_batches():
    hall = Hall(replace(ONE, slots=2))
    await serve_one(hall, 8)
    await hall.interactive(ONE, ONE)
    await hall.come()
    [model] = hall.scheduler.snapshot(()).models
    assert (model.waiting, model.expected) == ({"batch": 1}, None)
    for user in (2, 2, 3):
        await hall.person(user)
    [model] = hall.scheduler.snapshot(()).models
    assert (model.waiting, model.expected) == ({"interactive": 3, "batch": 1}, 12.0)


async def test_a_call_that_would_wait_too_long_is_refused_at_once_with_the_time_until_it_would_not():
    hall = Hall(replace(ONE, slots=1))
    for _ in range(FEW):
        await serve_one(hall, 100)
    for _ in range(3):
        await hall.person(1)
    refused = await hall.person(1)
    await hall.settled()
    assert isinstance(hall.tasks[3].exception(), ModelBusy)
    assert hall.tasks[3].exception().headers == {"retry-after": "60"}
    assert refused.client.sent == []
    await hall.person(2)  # whose turn is the next
    await hall.settled()
    assert not hall.tasks[4].done()
    assert hall.scheduler.queued == 3


async def test_the_expected_wait_grows_while_calls_take_longer_than_usual():
    hall = Hall(replace(ONE, slots=1))
    await serve_one(hall, 1)
    await hall.interactive(ONE)
    made = await hall.person(1)
    hall.clock.now += 12
    hall.scheduler.sweep((), 15)
    assert made.client.sent[-1] == b": queue position=1 eta=12s\n\n"
    hall.clock.now += MAX_WAIT
    hall.scheduler.sweep((), 15)
    await hall.settled()
    assert hall.tasks[0].exception().headers == {"retry-after": "60"}


async def test_who_is_refused_late_is_not_asked_to_come_back_within_a_moment():
    hall = Hall(replace(ONE, slots=2))
    await serve_one(hall, 1)
    await hall.come()  # the one batch call that may go when it has waited for long
    end = await hall.interactive(ONE)
    await hall.person(1)
    late = await hall.come()
    hall.clock.now += MAX_WAIT + 1
    end()
    hall.scheduler.sweep((), 15)
    assert await hall.settled() == [0, 1]
    assert late.exception().headers == {"retry-after": "10"}


@pytest.mark.parametrize(
    "seconds", [[50], [1] * 20 + [400], [400] + [1] * 20, [100] * (FEW - 1), [1, 1, 1, 1, 1, 300, 300, 300]]
)
async def test_no_call_is_refused_at_once_for_a_few_long_ones(seconds):
    hall = Hall(replace(ONE, slots=1))
    for one in seconds:
        await serve_one(hall, one)
    for _ in range(10):
        await hall.person(1)
    await hall.settled()
    assert hall.scheduler.queued == 9


async def test_a_person_whose_key_is_revoked_while_waiting_is_out_at_once():
    hall = Hall(replace(ONE, slots=1))
    for user in (1, 2, 3):
        await hall.person(user)
    hall.revoked.add(2)
    hall.scheduler.recheck()
    await hall.settled()
    assert isinstance(hall.tasks[1].exception(), InvalidKey)
    assert hall.scheduler.queued == 1
    hall.tasks[0].result().release()
    assert await hall.settled() == [0, 2]


async def test_a_new_replica_takes_waiting_calls_at_once():
    hall = Hall(replace(ONE, slots=1))
    await hall.person(1)
    await hall.person(2)
    hall.model = hall.served = replace(hall.served, replicas=(*hall.served.replicas, TWO))
    hall.scheduler.recheck()
    assert await hall.settled() == [0, 1]
    assert hall.tasks[1].result().replica == TWO


async def test_people_wait_while_no_replica_can_be_reached_and_are_refused_when_there_is_none():
    hall = Hall(replace(ONE, slots=1))
    await hall.person(1)
    await hall.person(2)
    hall.balancer.unreachable = frozenset({ONE.id})
    hall.tasks[0].result().release()
    hall.scheduler.sweep((), 15)
    assert await hall.settled() == [0]
    hall.model = replace(hall.served, replicas=())
    hall.scheduler.recheck()
    await hall.settled()
    assert isinstance(hall.tasks[1].exception(), ModelUnavailable)
    assert hall.is_empty()


class Storm:
    """Calls come, end, leave, are cancelled and move; replicas and the model come and go, keys are revoked."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.replicas = (replace(ONE, slots=2), replace(TWO, slots=self.dice.choice((1, 3, None))))
        self.hall = Hall(*self.replicas)
        self.contexts: list[RequestContext] = []
        self.released: set[int] = set()

    def running(self) -> list[int]:
        return [
            number
            for number, task in enumerate(self.hall.tasks)
            if number not in self.released and task.done() and task.exception() is None
        ]

    def lease(self) -> scheduler.Lease | None:
        """Return that of any call under way."""
        running = self.running()
        return self.hall.tasks[self.dice.choice(running)].result() if running else None

    async def come(self) -> None:
        made = context(self.hall.served, batch=self.dice.random() < 0.3, user=self.dice.randrange(5))
        self.contexts.append(made)
        await self.hall.come(made)

    async def end(self) -> None:
        if running := self.running():
            self.release(self.dice.choice(running))

    def release(self, number: int) -> None:
        self.released.add(number)
        self.hall.tasks[number].result().release()

    async def charge(self) -> None:
        if lease := self.lease():
            lease.charge(self.dice.randrange(500))

    async def move(self) -> None:
        if lease := self.lease():
            lease.move(self.dice.choice(self.replicas))

    async def leave(self) -> None:
        listeners = [made.client.listener for made in self.contexts if made.client.listener is not None]
        if listeners:
            self.dice.choice(listeners).client_left()

    async def cancel(self) -> None:
        if self.hall.tasks:
            self.dice.choice(self.hall.tasks).cancel()

    async def change(self) -> None:
        hall, dice = self.hall, self.dice
        there = tuple(one for one in self.replicas if dice.random() < 0.8)
        hall.model = None if dice.random() < 0.05 else replace(hall.served, replicas=there)
        hall.balancer.unreachable = frozenset({TWO.id} if dice.random() < 0.3 else ())
        hall.revoked = {dice.randrange(5)} if dice.random() < 0.2 else set()
        hall.scheduler.recheck()

    async def sweep(self) -> None:
        self.hall.clock.now += self.dice.choice((1, 5, 100))
        self.hall.scheduler.sweep({"m"} if self.dice.random() < 0.2 else (), 15)

    def check(self) -> None:
        """Hold that no call waits beside a free slot, and that those which wait are known."""
        hall = self.hall
        waiting = [made for made, task in zip(self.contexts, hall.tasks, strict=True) if not task.done()]
        assert hall.scheduler.queued == len(waiting)
        if hall.model is not None and any(not made.key.batch for made in waiting):
            for one in hall.balancer.keep_reachable(hall.model.replicas):
                assert one.slots is not None
                assert hall.balancer.running(one) >= one.slots

    async def finish(self) -> None:
        """Let all calls end one after the other."""
        hall = self.hall
        hall.model, hall.balancer.unreachable, hall.revoked = hall.served, frozenset(), set()
        hall.scheduler.sweep((), 15)
        await hall.settled()
        while running := self.running():
            self.release(running[0])
            await hall.settled()


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_no_call_is_lost_and_nothing_is_left_behind(seed):
    storm = Storm(seed)
    steps = [storm.come] * 4 + [storm.end] * 3
    steps += [storm.charge, storm.leave, storm.cancel, storm.change, storm.sweep, storm.move]
    for _ in range(600):
        await storm.dice.choice(steps)()
        if storm.dice.random() < 0.5:  # else the next comes before those concerned know of this one
            await storm.hall.settled()
            storm.check()
    await storm.finish()
    assert all(task.done() for task in storm.hall.tasks)
    assert all(isinstance(task.exception(), Refusal | ClientDisconnected | None) for task in storm.hall.tasks)
    assert storm.hall.is_empty()


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
    assert text.startswith(": queue position=1\n\n")
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
    assert text.startswith(": queue position=1\n\n")
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


def test_a_person_waits_for_a_slot_and_is_shown_how_long(counter, batch):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with busy_engine(counter), busy_engine(counter):
            call = pool.submit(counter.chat, user="waiting")
            until(lambda: waiting(counter) == 1)
            assert users_at_engine(counter) == ["person", "person"]
        response = call.result()
    assert response.status_code == 200
    assert float(response.headers["x-madoguchi-waited"]) >= 0
    assert "x-madoguchi-waited" not in counter.chat().headers


def test_another_persons_call_goes_before_the_rest_of_ones_many(counter, batch, bob, research):
    _, text = issue_key(tenant=research, user=bob, name="bob's")
    counter.wait_for_catalogue()
    other = httpx2.Client(base_url=counter.url, headers={"authorization": f"Bearer {text}"}, timeout=20)
    with concurrent.futures.ThreadPoolExecutor() as pool, busy_engine(counter), contextlib.ExitStack() as second:
        second.enter_context(busy_engine(counter))
        calls = []
        for number in range(3):
            calls.append(pool.submit(counter.chat, user=f"many {number}"))
            until(lambda: waiting(counter) == number + 1)  # noqa: B023 - called here
        calls.append(pool.submit(ask, other, "bob"))
        until(lambda: waiting(counter) == 4)
        second.close()
        assert [call.result().status_code for call in calls] == [200] * 4
    assert users_at_engine(counter)[2:] == ["bob", "many 0", "many 1", "many 2"]
    assert waiting(counter) == 0
    assert counter.application.gateway.in_flight == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": [], "max_tokens": 5}),
    ],
)
def test_streams_of_all_formats_show_their_place(counter, batch, monkeypatch, path, body):
    monkeypatch.setattr(scheduler, "PLACE_EVERY", 0.1)
    with busy_engine(counter), busy_engine(counter):
        body = {"model": "fake", "stream": True, **body}
        with counter.client.stream("POST", path, json=body) as response:
            assert response.status_code == 200
            assert next(response.iter_raw()) == b": queue position=1\n\n"
        until(lambda: waiting(counter) == 0)
    assert users_at_engine(counter) == ["person", "person"]


def test_a_person_who_leaves_while_waiting_is_out_of_the_queue_at_once(counter, batch):
    with busy_engine(counter), busy_engine(counter):
        with contextlib.suppress(httpx2.ReadTimeout):
            counter.client.post("/v1/chat/completions", json={"model": "fake", "messages": []}, timeout=0.5)
        until(lambda: waiting(counter) == 0)
    assert users_at_engine(counter) == ["person", "person"]


def test_a_server_that_stops_refuses_calls_that_wait(counter, batch):
    with concurrent.futures.ThreadPoolExecutor() as pool, busy_engine(counter), busy_engine(counter):
        call = pool.submit(counter.chat)
        until(lambda: waiting(counter) == 1)
        counter.server.should_exit = True
        response = call.result()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "shutting_down"


def test_a_person_waits_for_the_room_that_an_engine_reports(counter, monkeypatch):
    monkeypatch.setattr(room, "START", 1.0)
    row = ReplicaRow.objects.get()
    row.launcher = "vllm"
    row.live = {"at": "now", "running": 1, "waiting": 0, "cache_used": 0.5}
    row.save()
    counter.wait_for_catalogue()

    def waits() -> bool:
        call = pool.submit(counter.chat)
        until(lambda: call.done() or waiting(counter) == 1)
        return not call.done()

    with concurrent.futures.ThreadPoolExecutor() as pool, busy_engine(counter):
        until(waits)


def test_a_key_that_is_revoked_while_its_call_waits_is_refused(counter, batch):
    with concurrent.futures.ThreadPoolExecutor() as pool, busy_engine(counter):
        call = pool.submit(ask, batch, "batch")
        until(lambda: waiting(counter) == 1)
        ApiKey.objects.filter(name="nightly").delete()
        assert call.result().status_code == 401
        assert users_at_engine(counter) == ["person"]


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Keep the garbage collector from freeing anything. When this ends no call may be left."""
    gc.collect()
    gc.disable()
    try:
        yield
        until(lambda: not any(isinstance(one, RequestContext) for one in gc.get_objects()), 10)
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["left", "revoked", "late", "late stream", "one too many", "stopped"])
def test_a_call_that_ends_while_it_waits_leaves_nothing_in_memory(counter, batch, monkeypatch, way):
    if way.startswith("late"):
        monkeypatch.setattr(scheduler, "MAX_WAIT", 2.5)
        monkeypatch.setattr(forwarding, "HEARTBEAT", 0.1)
    if way == "one too many":
        monkeypatch.setattr(scheduler, "MAX_QUEUED", 0)
    body = {"model": "fake", "messages": [{"role": "user", "content": "x" * 300_000}], "stream": way == "late stream"}
    with no_collector(), concurrent.futures.ThreadPoolExecutor() as pool, busy_engine(counter):
        call = pool.submit(batch.post, "/v1/chat/completions", json=body, timeout=0.5 if way == "left" else 20)
        if way != "one too many":
            until(lambda: waiting(counter) == 1)
        if way == "revoked":
            ApiKey.objects.filter(name="nightly").delete()
        if way == "stopped":
            counter.server.should_exit = True
        if way == "left":
            assert isinstance(call.exception(), httpx2.ReadTimeout)
        else:
            codes = {"revoked": 401, "stopped": 503, "late stream": 200}
            assert call.result().status_code == codes.get(way, 429)


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
