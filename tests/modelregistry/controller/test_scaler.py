"""When a model gets one replica more, and when one fewer."""

import asyncio
from dataclasses import replace

import pytest

from modelregistry.controller import scaler
from modelregistry.controller.loads import ModelLoad
from modelregistry.controller.repository import FreeModel, PlacedAt
from modelregistry.controller.scaler import EVERY, Scaler, ScalingRule
from modelregistry.controller.shortages import PlacementAttempt, Shortage
from modelregistry.engines.base import Spec
from tests.clock import Clock

RULE = ScalingRule(wait=15.0, after=60.0, quiet=900.0)
BUSY = ModelLoad(wait=30.0, waiting=9, running=8, room=8)
FULL = ModelLoad(wait=0.0, waiting=0, running=8, room=8)  # no call waits, and all room is taken
IDLE = ModelLoad(running=1, room=8)


class PaperPlacer:
    """One model, 1, with one replica that is always there; what is added is at once as `becomes` says."""

    def __init__(self) -> None:
        self.has_room = True
        self.becomes = "ready"
        self.changes: list[int] = []
        self.is_settling = False
        self.recorded: list[dict[int, Shortage]] = []
        spec = Spec(engine="vllm", name="m", path="/m")
        placed = {0: PlacedAt(host=1, state="ready")}
        model = FreeModel(spec=spec, replicas=1, most=3, placed=placed, external=False, enabled=True, called=False)
        self.models = {1: model}

    def change(self, **values) -> None:
        self.models[1] = replace(self.models[1], **values)

    def runs(self, number: int, state: str) -> None:
        self.change(placed={**self.models[1].placed, number: PlacedAt(host=1, state=state)})

    async def add_further(self, key):
        if self.is_settling:
            return PlacementAttempt()
        if not self.has_room:
            return PlacementAttempt(shortage=Shortage(cause="no-room", host=1, free=5, need=9))
        self.runs(key.number, self.becomes)
        self.changes.append(+1)
        return PlacementAttempt(placed=True)

    async def note_shortages(self, found):
        self.recorded.append(dict(found))

    async def remove_further(self, key, *, quiet):
        assert key.number >= self.models[1].replicas
        self.change(placed={number: at for number, at in self.models[1].placed.items() if number != key.number})
        self.changes.append(-1)


class PaperSite:
    def __init__(self) -> None:
        self.clock = Clock()
        self.placer = PaperPlacer()
        self.load: ModelLoad | None = IDLE
        self.asked = 0
        self.renew_controller()

    def renew_controller(self) -> None:
        self.scaler = Scaler(self.placer, self.read_loads, RULE, clock=self.clock)

    async def read_loads(self):
        self.asked += 1
        return None if self.load is None else {1: self.load}

    @property
    def numbers(self) -> set[int]:
        return set(self.placer.models[1].placed)

    def go_on(self, seconds: float, load: ModelLoad | None = None) -> int:
        """Let so much time pass, with this load; return how many replicas there are then."""
        self.load = load
        for _ in range(int(seconds / EVERY)):
            asyncio.run(self.scaler.look())
            self.clock.now += EVERY
        return len(self.numbers)


@pytest.fixture
def site() -> PaperSite:
    return PaperSite()


def test_one_more_comes_when_calls_would_wait_too_long_for_a_while_and_the_next_after_another(site):
    assert site.go_on(RULE.after, BUSY) == 1
    assert site.go_on(EVERY, BUSY) == 2
    assert site.go_on(RULE.after, BUSY) == 2
    assert site.go_on(EVERY, BUSY) == 3
    assert site.go_on(5 * RULE.after, BUSY) == 3  # the most


@pytest.mark.parametrize("load", [replace(BUSY, wait=RULE.wait), replace(BUSY, wait=None), None, IDLE])
def test_none_comes_for_a_wait_that_is_short_or_unknown(site, load):
    assert site.go_on(5 * RULE.after, load) == 1


def test_a_wait_that_is_short_in_between_or_is_not_reported_begins_anew(site):
    for between in (IDLE, None):
        assert site.go_on(RULE.after - EVERY, BUSY) == 1
        assert site.go_on(EVERY, between) == 1
    assert site.go_on(RULE.after, BUSY) == 1
    assert site.go_on(EVERY, BUSY) == 2


def test_none_comes_while_the_last_one_is_not_ready(site):
    site.placer.becomes = "starting"
    assert site.go_on(10 * RULE.after, BUSY) == 2
    site.placer.runs(1, "ready")
    assert site.go_on(EVERY, BUSY) == 3


def test_without_room_it_is_tried_again_from_time_to_time(site):
    site.placer.has_room = False
    assert site.go_on(3 * RULE.after, BUSY) == 1
    site.placer.has_room = True
    assert site.go_on(scaler.TRY_AGAIN + EVERY, BUSY) == 2


def test_what_is_missing_is_recorded_once_until_there_is_a_place(site):
    site.placer.has_room = False
    site.go_on(3 * RULE.after, BUSY)
    site.placer.has_room = True
    site.go_on(scaler.TRY_AGAIN + EVERY, BUSY)
    short = Shortage(cause="no-room", wanted=2, host=1, free=5, need=9)
    assert site.placer.recorded == [{}, {1: short}, {}]  # first, what an earlier controller left is over


@pytest.mark.parametrize("load", [IDLE, None])
def test_nothing_is_missing_any_more_when_calls_do_not_wait_or_are_not_reported(site, load):
    site.placer.has_room = False
    site.go_on(3 * RULE.after, BUSY)
    site.go_on(EVERY, load)
    assert site.placer.recorded[1:] == [{1: Shortage(cause="no-room", wanted=2, host=1, free=5, need=9)}, {}]


@pytest.mark.parametrize("change", [{"most": 1}, {"enabled": False}])
def test_nothing_is_missing_any_more_when_no_more_are_to_be(site, change):
    site.placer.has_room = False
    site.go_on(3 * RULE.after, BUSY)
    site.placer.change(**change)
    site.go_on(EVERY, BUSY)
    assert site.placer.recorded[-1] == {}


def test_while_it_is_not_known_whether_there_is_a_place_nothing_is_missing_and_it_is_tried_at_once(site):
    site.placer.is_settling = True
    site.go_on(3 * RULE.after, BUSY)
    assert site.placer.recorded == [{}]
    site.placer.is_settling = False
    assert site.go_on(EVERY, BUSY) == 2


def test_while_one_that_could_not_run_is_not_tried_again_that_is_what_is_missing(grown):
    grown.placer.runs(1, "failed")
    grown.go_on(RULE.after + 2 * EVERY, BUSY)
    assert grown.placer.recorded[-1] == {1: Shortage(cause="useless", wanted=3)}
    grown.go_on(scaler.AGAIN_AFTER, BUSY)
    assert grown.placer.recorded[-1] == {}


@pytest.fixture
def grown(site) -> PaperSite:
    assert site.go_on(3 * RULE.after, BUSY) == 3
    return site


def test_one_leaves_after_a_long_quiet_time_and_the_next_after_another(grown):
    assert grown.go_on(RULE.quiet, IDLE) == 3
    assert grown.go_on(EVERY, IDLE) == 2
    assert grown.go_on(RULE.quiet, IDLE) == 2
    assert grown.go_on(EVERY, IDLE) == 1
    assert grown.go_on(5 * RULE.quiet, IDLE) == 1  # the least
    assert grown.placer.changes == [+1, +1, -1, -1]


@pytest.mark.parametrize("load", [FULL, None, replace(IDLE, waiting=1), replace(IDLE, running=5)])
def test_none_leaves_while_all_are_needed_or_nothing_is_known(grown, load):
    assert grown.go_on(5 * RULE.quiet, load) == 3


def test_a_load_that_comes_and_goes_changes_nothing(grown):
    for _ in range(20):
        assert grown.go_on(RULE.quiet / 2, IDLE) == 3
        assert grown.go_on(RULE.after / 2, BUSY) == 3
    assert grown.placer.changes == [+1, +1]


@pytest.mark.parametrize("change", ["disabled", "asleep"])
def test_a_model_that_sleeps_or_is_disabled_has_no_further_ones(grown, change):
    if change == "disabled":
        grown.placer.change(enabled=False)
    else:
        grown.placer.runs(0, "asleep")
    assert grown.go_on(3 * EVERY, BUSY) == 1


def test_a_model_that_was_woken_has_further_ones_as_soon_as_its_calls_wait(grown):
    grown.placer.runs(0, "asleep")
    assert grown.go_on(3 * EVERY, IDLE) == 1
    grown.placer.runs(0, "ready")
    assert grown.go_on(RULE.after + EVERY, BUSY) == 2


@pytest.mark.parametrize("state", ["failed", "asleep"])
def test_one_that_could_not_run_leaves_and_is_not_tried_again_at_once(grown, state):
    grown.placer.runs(1, state)
    grown.go_on(EVERY, BUSY)
    assert grown.numbers == {0, 2}
    grown.go_on(scaler.AGAIN_AFTER - EVERY, BUSY)
    assert grown.numbers == {0, 2}
    grown.go_on(2 * EVERY, BUSY)
    assert grown.numbers == {0, 1, 2}


def test_another_controller_goes_on_with_what_it_finds(grown):
    grown.go_on(RULE.quiet / 2, IDLE)
    grown.renew_controller()
    assert grown.go_on(RULE.quiet, IDLE) == 3
    assert grown.go_on(EVERY, IDLE) == 2


def test_nothing_is_asked_for_models_whose_number_is_fixed(site):
    site.placer.change(most=1)
    site.go_on(3 * EVERY)
    assert site.asked == 0
