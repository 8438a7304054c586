"""Room that changes hands: what is not to run here any more is not judged as taken, and which model goes first."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from django.utils import timezone

from modelregistry.engines.base import Spec
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.surface import HostedRun, HostRoom
from modelregistry.memory.allocation import Allocation, Occupant
from modelregistry.memory.estimate import Prediction
from modelregistry.memory.placement import Space
from modelregistry.process.process import Life
from modelregistry.supervisor.database import Database
from modelregistry.supervisor.eviction import RoomOutcome
from modelregistry.supervisor.gangs import Gangs
from modelregistry.supervisor.launching import SupervisorConfig
from modelregistry.supervisor.loop import Supervisor
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.office import Office
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.repository import DesiredModel
from modelregistry.supervisor.room_maker import RoomMaker
from modelregistry.supervisor.wake_demand import WakeDemand
from tests.clock import Clock

CARD = 80
SIZES = dict.fromkeys(("weights", "cache", "cache_least", "overhead", "rule_of_thumb"), 0)
NEED = Prediction(**SIZES, total=60, devices=1, context=1, sequences=1)
GRANTED = Allocation(
    **{"prediction": NEED, "formula": NEED, "devices": (0,), "visible": ("0",), "fraction": 0.5, "forced": False},
    **{"fingerprint": "f", "launcher": "vllm", "version": "", "device": "A100"},
)
SPACES = (Space(needs={0: 60}),)
OLD, NEW = ReplicaKey(1, 0), ReplicaKey(1, 1)


def desire(*numbers: int, **more: object) -> DesiredModel:
    values = {"idle_after": None, "hours": None, "url": "", "upstream_key": "", "upstream_model": "", "pinned": True}
    spec = Spec(engine="vllm", name="m", path="/m")
    return DesiredModel(**({"spec": spec, "enabled": True, "numbers": frozenset(numbers)} | values | more))


def replica(key: ReplicaKey, state: str, **more: object) -> ManagedReplica:
    values = {"key": key, "desired": desire(key.number), "fingerprint": "", "state": ReplicaState(state), "since": 0.0}
    return ManagedReplica(**(values | more))


class PaperCard:
    """A supervisor whose host has one card, on which a replica runs that takes most of it."""

    def __init__(self, supervisor: Supervisor, state: str) -> None:
        run = HostedRun(run_id="r", label={}, pid=1, of_this_boot=True, life=Life.RUNNING)
        self.replicas = {OLD: replica(OLD, state, run=run, run_id="r", allocation=GRANTED)}
        self.sync = supervisor.sync
        self.began: list[ManagedReplica] = []
        clock = Clock()
        self.maker = RoomMaker(
            *(self.replicas, self.sync),
            measure=self.measure,
            lock=asyncio.Lock(),
            begin_drain=lambda victim, spaces: self.began.append(victim),
            gangs=Gangs(clock=clock),
            clock=clock,
        )

    async def measure(self, hosted) -> HostRoom:
        there = [Occupant(name=one.name, needed=60, devices=(0,), held={0: 60}) for one in hosted]
        return HostRoom(devices=(), occupants=there, free={0: CARD - 60 * len(there)})

    async def outlook(self, key: ReplicaKey = NEW) -> RoomOutcome:
        return await self.maker.find_outlook(replica(key, "starting"), SPACES)


@pytest.fixture
def card(tmp_path) -> Callable[[str], PaperCard]:
    config = SupervisorConfig(
        **{"host": "here", "runs": tmp_path / "runs", "cache": tmp_path / "cache", "commands": {}},
        **{"ports": range(1, 2), "start_limit": 1, "stop_grace": 1},
    )
    supervisor = Supervisor(config, office=Office(number="n", holder="this test", term=1), database=Database())
    return lambda state: PaperCard(supervisor, state)


@pytest.mark.parametrize("state", ["ready", "draining", "starting"])
async def test_a_rank_gets_the_room_of_another_one_that_was_here_before(card, state):
    there = card(state)
    there.sync.desired_models = {1: desire(0)}
    assert await there.outlook() is RoomOutcome.NEVER
    there.sync.desired_models = {1: desire(1)}
    assert await there.outlook() is RoomOutcome.COMING


@pytest.mark.parametrize("wanted", [None, desire(0, enabled=False), desire()])
async def test_another_model_gets_the_room_of_what_is_unregistered_disabled_or_placed_elsewhere(card, wanted):
    there = card("draining")
    there.sync.desired_models = {1: desire(0)}
    assert await there.outlook(ReplicaKey(2, 0)) is RoomOutcome.NEVER
    there.sync.desired_models = {1: wanted} if wanted else {}
    assert await there.outlook(ReplicaKey(2, 0)) is RoomOutcome.COMING


async def test_what_waits_for_such_room_starts_when_it_is_free_without_being_called(card):
    there = card("draining")
    there.sync.desired_models = {1: desire(1)}
    there.replicas[NEW] = waiting = replica(NEW, "starting", fingerprint=desire(1).fingerprint())
    waiting.record_no_room(0.0, "", NEED, SPACES, can_come=True)
    await there.maker.make_room()
    assert waiting.without_room
    del there.replicas[OLD]
    await there.maker.make_room()
    assert not waiting.without_room
    assert there.began == []


async def test_a_rank_for_which_others_wait_starts_in_room_that_is_free_although_its_model_may_sleep(card):
    there = card("draining")
    spec = Spec(engine="vllm", name="m", path="/m", tensor_parallel=2, nodes=2)
    hosts = ("gpu-1", "gpu-2")
    wanted = desire(1, spec=spec, idle_after=9.0, gangs={0: hosts})
    there.sync.desired_models = {1: wanted}
    own = wanted.of(1)
    there.replicas[NEW] = rank = replica(NEW, "starting", desired=own, fingerprint=own.fingerprint())
    rank.rank, rank.hosts = 1, hosts
    rank.record_no_room(0.0, "", NEED, SPACES, can_come=True)
    with there.maker.gangs.take_part(OLD, replace(own.spec, rank=0)):
        there.maker.gangs.report_no_room(NEW, own.spec, "too large", can_come=True, coming=True)
        del there.replicas[OLD]
        await there.maker.make_room()
    assert not rank.without_room


# --- Which model comes before a rank that has its memory set apart

HOSTS = ("gpu-1", "gpu-2")
SPLIT = Spec(engine="vllm", name="large", path="/large", tensor_parallel=2, nodes=2)
OTHER = ReplicaKey(2, 0)


class Contest:
    """A rank of a model over two hosts that is called, and another model that has been called for longer."""

    def __init__(self, card: PaperCard) -> None:
        self.card = card
        large = desire(1, spec=SPLIT, pinned=False, gangs={0: HOSTS})
        other = desire(0, spec=Spec(engine="vllm", name="other", path="/other"), pinned=False)
        card.sync.desired_models = {1: large, 2: other}
        card.replicas.clear()
        self.rank = card.replicas[NEW] = replica(NEW, "starting", desired=large.of(1), rank=1, hosts=HOSTS)
        self.other = card.replicas[OTHER] = replica(
            OTHER, "starting", desired=other, fingerprint=other.fingerprint(), spaces=SPACES
        )
        self.call(large=10, other=60)

    def call(self, **seconds: float) -> None:
        """Have callers wait for these models for so long."""
        at, numbers = timezone.now(), {"large": 1, "other": 2}
        waits = {
            numbers[name]: WakeDemand(at=at, since=at - timedelta(seconds=one), interactive_at=at)
            for name, one in seconds.items()
        }
        self.card.sync.demands.update({}, self.card.maker.clock())
        self.card.sync.demands.update(waits, self.card.maker.clock())

    @property
    def prior(self) -> str:
        return self.card.maker.find_prior(self.rank)


@pytest.fixture
def contest(card) -> Contest:
    return Contest(card("ready"))


def test_a_rank_lets_a_model_go_first_for_which_room_is_being_made(contest):
    contest.other.record_no_room(0.0, "", NEED, SPACES, can_come=True)
    assert contest.prior == "other"
    contest.call(large=60, other=10)
    assert contest.prior == ""
    contest.call(large=10)
    assert contest.prior == ""


def test_a_rank_does_not_wait_for_a_model_that_waits_for_something_else_than_room(contest):
    contest.other.record_crash(0.0, "ended with exit code 1")
    assert contest.other.state == ReplicaState.BACKOFF
    assert contest.prior == ""


async def test_a_rank_leaves_the_room_that_was_made_to_the_model_that_is_about_to_start_there(contest):
    contest.other.record_no_room(0.0, "", NEED, SPACES, can_come=True)
    await contest.card.maker.make_room()  # there is enough by now
    assert not contest.other.without_room
    assert contest.prior == "other"
    contest.other.begin_start(contest.other.desired, "", contest.card.maker.clock())
    assert contest.prior == "other"
    contest.other.allocation = GRANTED
    assert contest.prior == ""
