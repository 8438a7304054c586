"""The least served flow goes first, none is lost and none waits for ever."""

import random
import tracemalloc
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apiproxy.dataplane import fair_queue
from apiproxy.dataplane.fair_queue import CallFlow, FairQueue

ALICE, BOB, CAROL = (CallFlow("user", number) for number in range(3))
FLOWS = [*(CallFlow("user", number) for number in range(4)), CallFlow("key", 1, weight=4.0)]


@pytest.fixture(scope="module", autouse=True)
def _tidies_often():
    """Let the heaps be tidied as soon as half of their entries are old, not 64 entries later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fair_queue, "SLACK", 0)
        yield


def make(aged_after: float = 1e9) -> FairQueue[str]:
    return FairQueue(aged_after=aged_after)


def take(queue: FairQueue[str], now: float = 0.0, tokens: float = 0.0) -> str:
    """Serve the next call so many tokens; calls are named after the flow's owner."""
    found = queue.first(now)
    assert found is not None
    queue.serve(found, now)
    if tokens:
        queue.charge(FLOWS[int(found[0])], tokens)
    return found


def jain(values: list[float]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def test_calls_of_one_flow_go_in_the_order_in_which_they_came():
    queue = make()
    for number in range(5):
        queue.add(f"0 {number}", ALICE, 0)
    assert [take(queue, tokens=10) for _ in range(5)] == [f"0 {number}" for number in range(5)]


def test_the_least_served_flow_goes_first_and_equal_ones_take_turns():
    queue = make()
    for number in range(3):
        queue.add(f"0 {number}", ALICE, 0)
        queue.add(f"1 {number}", BOB, 0)
    queue.charge(ALICE, 5)
    assert [take(queue) for _ in range(2)] == ["1 0", "1 1"]
    queue.charge(BOB, 5)
    assert [take(queue) for _ in range(4)] == ["0 0", "1 2", "0 1", "0 2"]


def test_a_flow_that_comes_back_is_lifted_to_the_least_of_those_that_wait():
    queue = make()
    queue.add("1 0", BOB, 0)
    queue.add("2 0", CAROL, 0)
    queue.charge(BOB, 100)
    queue.charge(CAROL, 70)
    queue.add("0 0", ALICE, 0)
    assert queue.served(ALICE) == 70


def test_a_flow_that_leaves_and_comes_back_keeps_what_it_was_served():
    queue = make()
    queue.add("1 0", BOB, 0)
    queue.add("0 0", ALICE, 0)
    queue.remove("0 0")
    queue.charge(ALICE, 50)
    queue.add("0 1", ALICE, 0)
    assert queue.served(ALICE) == 50


def test_a_call_that_was_served_less_than_assumed_gives_the_rest_back():
    queue = make()
    queue.add("0 0", ALICE, 0)
    queue.add("1 0", BOB, 0)
    queue.charge(ALICE, 50)
    queue.charge(BOB, 20)
    queue.charge(ALICE, -40)
    assert queue.first(0) == "0 0"


def test_what_was_served_while_none_waited_is_forgotten():
    queue = make()
    queue.charge(ALICE, 50)
    queue.add("0 0", ALICE, 0)
    queue.charge(ALICE, 50)
    queue.remove("0 0")
    assert queue.flows == 0
    queue.add("1 0", BOB, 0)
    queue.add("0 0", ALICE, 0)
    assert queue.served(ALICE) == queue.served(BOB)


def test_a_flow_that_was_not_served_for_long_goes_before_ever_new_ones():
    queue = make(aged_after=60)
    queue.add("0 0", ALICE, 0)
    queue.add("1 0", BOB, 0)
    queue.charge(ALICE, 1000)
    for now in range(1, 60):
        queue.add(f"2 {now}", CallFlow("user", 100 + now), now)
        found = queue.first(now)
        assert found != "0 0"
        queue.serve(found, now)
    assert queue.first(60) == "0 0"


def test_idle_flows_are_forgotten_when_all_others_were_served_as_much():
    queue = make()
    queue.add("0 0", ALICE, 0)
    queue.charge(BOB, 50)
    assert queue.flows == 2
    queue.charge(ALICE, 50)
    assert queue.flows == 1


def test_flows_that_are_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr(fair_queue, "MAX_FLOWS", 10)
    queue = make()
    queue.add("0 0", ALICE, 0)
    for number in range(1, 100):
        queue.charge(CallFlow("key", 1, f"person {number}"), number)
    assert queue.flows <= 11
    assert queue.served(CallFlow("key", 1, "person 99")) == 99


@pytest.mark.parametrize("before", range(12))
def test_a_call_that_comes_while_the_heap_is_tidied_is_not_lost(before):
    queue = make()
    queue.add("0 0", ALICE, 0)
    for _ in range(before):
        queue.add("1 0", BOB, 0)
        queue.remove("1 0")
    queue.add("1 0", BOB, 0)
    assert [take(queue, tokens=1) for _ in range(2)] == ["0 0", "1 0"]


@pytest.mark.parametrize("charged", ["waiting", "idle"])
def test_many_charges_take_no_memory(charged):
    queue = make()
    queue.add("0 0", ALICE, 0)
    tracemalloc.start()
    for _ in range(10_000):
        queue.charge(ALICE if charged == "waiting" else BOB, 1)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 100_000  # of 10,000 entries it would be 1,300,000


def test_the_expected_order_is_the_one_in_which_calls_go():
    queue = make()
    dice = random.Random(1)
    for number in range(40):
        owner = dice.choice((0, 0, 0, 1, 2, 3))
        queue.add(f"{owner} {number}", FLOWS[owner], 0)
    for flow in FLOWS[:4]:
        queue.charge(flow, dice.randrange(500))
    expected = list(queue.order(100))
    assert [take(queue, tokens=100) for _ in range(40)] == expected


@settings(deadline=None)  # on a busy machine
@given(st.lists(st.sampled_from(range(5)), min_size=2, max_size=5, unique=True), st.integers(0, 2**32))
def test_flows_that_always_wait_are_served_alike_by_their_weight(owners, seed):
    """Whatever the calls' lengths are, with several running at a time and one flow that has most of the calls."""
    dice = random.Random(seed)
    queue = make()
    number = 0
    for owner in owners:
        for _ in range(100 if owner == owners[0] else 2):
            queue.add(f"{owner} {(number := number + 1)}", FLOWS[owner], 0)
    running: list[list] = []
    tokens: dict[int, float] = defaultdict(float)
    for _ in range(2000):
        while len(running) < 4:
            call = take(queue)
            owner = int(call[0])
            queue.add(f"{owner} {(number := number + 1)}", FLOWS[owner], 0)
            running.append([owner, dice.randrange(1, 20) * (1 + owner)])
        for call in running:
            call[1] -= 1
            tokens[call[0]] += 10
            queue.charge(FLOWS[call[0]], 10)
        running = [call for call in running if call[1]]
    assert jain([tokens[owner] / FLOWS[owner].weight for owner in owners]) >= 0.95


class QueueMachine(RuleBasedStateMachine):
    """Beside the queue a list of what waits: no call is lost, none is served twice, and one is served if any waits."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = make(aged_after=100)
        self.waiting: list[tuple[str, CallFlow]] = []
        self.number = 0
        self.now = 0.0
        self.since: dict[CallFlow, float] = {}  # when each flow that waits was last served, or came

    @rule(flow=st.sampled_from(FLOWS))
    def come(self, flow: CallFlow) -> None:
        self.number += 1
        least = min((self.queue.served(other) for _, other in self.waiting), default=0.0)
        returns = self.queue.waiting(flow) == 0
        before = self.queue.served(flow)
        self.queue.add(str(self.number), flow, self.now)
        self.waiting.append((str(self.number), flow))
        self.since.setdefault(flow, self.now)
        assert self.queue.served(flow) >= before  # never lowered
        if returns and len(self.waiting) > 1:
            assert self.queue.served(flow) >= least  # never left behind

    @precondition(lambda self: self.waiting)
    @rule(place=st.integers(0, 1000))
    def leave(self, place: int) -> None:
        waiter, flow = self.waiting.pop(place % len(self.waiting))
        self.queue.remove(waiter)
        self.queue.remove(waiter)  # once more does nothing
        self._forget(flow)

    @precondition(lambda self: self.waiting)
    @rule()
    def serve(self) -> None:
        found = self.queue.first(self.now)
        flow = dict(self.waiting)[found]
        assert next(waiter for waiter, other in self.waiting if other == flow) == found  # first in, first out
        self.queue.serve(found, self.now)
        self.waiting.remove((found, flow))
        self.since[flow] = self.now
        self._forget(flow)

    def _forget(self, flow: CallFlow) -> None:
        if all(other != flow for _, other in self.waiting):
            self.since.pop(flow)

    @rule(flow=st.sampled_from(FLOWS), tokens=st.integers(-50, 500))
    def charge(self, flow: CallFlow, tokens: int) -> None:
        self.queue.charge(flow, tokens)

    @rule(seconds=st.integers(1, 120))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def all_are_there(self) -> None:
        assert list(self.queue) == [waiter for waiter, _ in self.waiting]
        assert len(self.queue) == len(self.waiting)
        assert self.queue.oldest() == (self.waiting[0][0] if self.waiting else None)
        found = self.queue.first(self.now)
        assert (found is None) == (not self.waiting)
        if found is not None and not any(self.now - since >= 100 for since in self.since.values()):
            assert self.queue.served(dict(self.waiting)[found]) == min(
                self.queue.served(one) for _, one in self.waiting
            )
        assert sorted(self.queue.order(50)) == sorted(waiter for waiter, _ in self.waiting)
        for flow in FLOWS:
            assert self.queue.waiting(flow) == sum(other == flow for _, other in self.waiting)


TestQueueMachine = QueueMachine.TestCase
