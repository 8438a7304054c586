"""Models that sleep with their engine alive, under a real supervisor, with a stand-in for vLLM on recorded cards."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from django.utils import timezone

from modelregistry import fit, routes
from modelregistry.models import ServedModel, WakeRequest
from modelregistry.process import process
from modelregistry.supervisor.adoption import ADOPTED
from tests.modelregistry import paper_models
from tests.output import lines_of
from tests.waiting import until

FAKE = Path(__file__).parents[1] / "vllm_server.py"
RECORDED = Path(__file__).with_name("recorded_nvml")
GIB = 2**30
AWAKE, ASLEEP = 39 * GIB, GIB


class Sleepers:
    """A site whose host has cards, and a vLLM that we installed."""

    def __init__(self, site, cards: int = 2) -> None:
        self.site = site
        self.cards = site.var / "nvml.json"
        self.set_cards(cards)
        python = site.var / "cache/engines/vllm-0.32.0/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
        python.chmod(0o755)
        site.environment |= {
            "MADOGUCHI_CACHE": str(site.var / "cache"),
            "PYTHONPATH": str(RECORDED),
            "RECORDED_NVML": str(self.cards),
        }

    def set_cards(self, number: int) -> None:
        cards = [
            {"uuid": f"GPU-{at}", "name": "NVIDIA A100", "total": 80 * GIB, "used": GIB, "processes": {}, "error": 0}
            for at in range(number)
        ]
        self.cards.write_text(json.dumps({"error": 0, "cards": cards}))

    def model(self, name: str = "m", *, config: dict[str, int] | None = None, **fields: object) -> ServedModel:
        directory = paper_models.small_llama(self.site.var / name, **(config or {}))
        self.behave(name)
        values = {"engine": "vllm", "path": str(directory), "context": 2048, "idle_after": 1, "sleep_mode": "level1"}
        values |= {"args": ["--gpu-memory-utilization=0.5"]}
        return ServedModel.objects.create(name=name, **(values | fields))

    def behave(self, name: str = "m", **how: object) -> None:
        memory = {"cards": str(self.cards), "awake": AWAKE, "asleep": ASLEEP}
        draft = self.site.var / name / "behave.new"
        draft.write_text(json.dumps(memory | how))
        draft.replace(self.site.var / name / "behave.json")

    def calls(self, name: str = "m") -> list[str]:
        path = self.site.var / name / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def call(self, model: ServedModel) -> None:
        """Request it as a gateway does for callers that wait."""
        WakeRequest.objects.update_or_create(model=model, defaults={"at": timezone.now()})

    def sleeps(self, name: str = "m"):
        """Wait until it sleeps with its engine alive."""
        return until(lambda: (row := self.site.reaches("asleep", name)) and row.pid and row)

    def wakes(self, model: ServedModel):
        self.call(model)
        return self.site.reaches("ready", model.name)


@pytest.fixture
def sleepers(site) -> Sleepers:
    return Sleepers(site)


def ask(replica) -> str:
    body = {"model": replica.model.name, "messages": [{"role": "user", "content": "hi"}]}
    request = Request(
        f"{replica.url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {replica.api_key}", "content-type": "application/json"},
    )
    with urlopen(request, timeout=20) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


RELOADED = ["/wake_up tags=weights", "/collective_rpc", "/wake_up tags=kv_cache"]
COPIED = ["/wake_up tags=weights", "/wake_up tags=kv_cache"]


@pytest.mark.parametrize(
    ("level", "calls"), [("level1", ["/sleep level=1", *COPIED]), ("level2", ["/sleep level=2", *RELOADED])]
)
def test_an_idle_model_sleeps_with_its_engine_and_serves_again_when_it_is_called(sleepers, level, calls):
    sleepers.site.supervise()
    model = sleepers.model(sleep_mode=level)
    before = sleepers.site.reaches("ready")
    assert before.cause == ""
    assert "/sleep" not in "".join(sleepers.calls())
    asleep = sleepers.sleeps()
    assert (asleep.pid, asleep.cause) == (before.pid, "")
    assert (before.slept, asleep.slept) == ("", level)
    assert routes.ready_replicas() == []
    assert sleepers.calls() == calls[:1]
    again = sleepers.wakes(model)
    assert (again.pid, again.restarts, again.cause, again.slept) == (before.pid, 0, "", "")
    assert ask(again) == "one, two, three, four, five, six"
    assert sleepers.calls()[: len(calls)] == calls
    assert again.version == "0.32.0"


def test_what_a_sleeping_engine_still_holds_is_planned_and_the_rest_is_free_for_others(sleepers):
    sleepers.site.supervise()
    sleepers.set_cards(1)
    sleepers.model(args=["--gpu-memory-utilization=0.7"])
    awake = until(lambda: (row := sleepers.site.reaches("ready")) and row.predicted and row)
    sleepers.sleeps()
    asleep = until(lambda: (row := sleepers.site.replica()).memory_bytes == ASLEEP and row, 60)
    assert asleep.predicted["total"] < 2 * GIB < 50 * GIB < awake.predicted["total"]
    assert asleep.predicted["host"] - awake.predicted["host"] == awake.predicted["weights"]
    assert asleep.devices == [0]
    [host] = fit.hosts()
    [there] = [fit.occupant_of(row) for row in host.replica_set.all()]  # as the page sees it
    assert (there.devices, there.needed) == ((0,), asleep.predicted["total"])
    sleepers.model("n", args=["--gpu-memory-utilization=0.7"])
    assert sleepers.site.reaches("ready", "n").devices == [0]


def test_a_model_whose_card_was_taken_meanwhile_sleeps_on_and_says_so(sleepers):
    sleepers.site.supervise()
    sleepers.set_cards(1)
    first = sleepers.model(args=["--gpu-memory-utilization=0.7"])
    sleepers.sleeps()
    second = sleepers.model("n", args=["--gpu-memory-utilization=0.7"], idle_after=None)
    sleepers.site.reaches("ready", "n")
    sleepers.call(first)
    refused = until(lambda: (row := sleepers.site.replica()).detail and row)
    assert "n #0" in refused.detail
    assert refused.pid is not None  # its engine lives
    assert process.life_of(sleepers.site.run_of(refused)) is process.Life.RUNNING
    assert not [route for route in routes.ready_replicas() if route.model_id == first.pk]
    second.delete()
    assert sleepers.wakes(first).pid == refused.pid


def test_a_host_whose_ram_has_no_room_for_the_weights_lets_them_go(sleepers):
    sleepers.site.supervise()
    terabytes = {"vocab_size": 2**22, "hidden_size": 2**17}
    sleepers.model(overcommit=True, config=terabytes)
    sleepers.sleeps()
    assert sleepers.calls() == ["/sleep level=2"]


def wait_for(sleepers, model):
    """Call it as gateways do that have callers who wait, until it is ready."""
    called = 0.0

    def is_ready():
        nonlocal called
        if time.monotonic() - called > 2:
            sleepers.call(model)
            called = time.monotonic()
        row = sleepers.site.replica(model.name)
        return row if row and row.state == "ready" else None

    return until(is_ready, 90)


def test_models_that_take_turns_on_a_card_sleep_and_wake_instead_of_being_loaded(sleepers):
    sleepers.set_cards(1)
    sleepers.site.supervise()
    first = sleepers.model("m", idle_after=600, args=["--gpu-memory-utilization=0.7"])
    awake = sleepers.site.reaches("ready")
    second = sleepers.model("n", idle_after=600, args=["--gpu-memory-utilization=0.7"])
    other = wait_for(sleepers, second)
    assert sleepers.sleeps().pid == awake.pid
    assert sleepers.calls() == ["/sleep level=1"]
    again = wait_for(sleepers, first)
    assert (again.pid, again.restarts) == (awake.pid, 0)
    assert sleepers.sleeps("n").pid == other.pid
    assert sleepers.calls("n") == ["/sleep level=1"]


def test_what_a_sleeping_engine_holds_is_given_back_where_a_called_model_needs_the_whole_card(sleepers):
    sleepers.set_cards(1)
    sleepers.site.supervise()
    first = sleepers.model()
    sleepers.behave(asleep=15 * GIB)
    asleep = sleepers.sleeps()
    # Its weights alone are 64 GiB.
    whole = sleepers.model("n", args=[], idle_after=600, config={"vocab_size": 2**20, "hidden_size": 2**14})
    wait_for(sleepers, whole)
    assert process.life_of(sleepers.site.run_of(asleep)) is process.Life.ENDED
    row = sleepers.site.reaches("asleep")
    assert (row.pid, row.restarts) == (None, 0)
    assert wait_for(sleepers, first).run_id != asleep.run_id


@pytest.mark.parametrize(("how", "cause"), [({"sleep": 500}, "sleep-failed"), ({"asleep": 29 * GIB}, "sleep-memory")])
def test_an_engine_that_does_not_sleep_as_it_should_is_stopped_and_starts_when_it_is_called(sleepers, how, cause):
    sleepers.site.supervise()
    model = sleepers.model()
    before = sleepers.site.reaches("ready")
    sleepers.behave(**how)
    asleep = until(lambda: (row := sleepers.site.reaches("asleep")) and row.pid is None and row)
    assert asleep.cause == cause
    assert process.life_of(sleepers.site.run_of(before)) is process.Life.ENDED
    sleepers.behave()
    again = sleepers.wakes(model)
    assert again.pid != before.pid
    assert sleepers.sleeps().pid == again.pid  # one failure may be by chance
    assert sleepers.wakes(model).cause == ""


@pytest.mark.parametrize(
    ("how", "cause"),
    [({"damaged": True}, "wake-damaged"), ({"wake": 500}, "wake-failed"), ({"wake": "hang"}, "wake-failed")],
)
def test_an_engine_that_does_not_wake_as_it_was_never_serves_and_is_started_again(sleepers, how, cause):
    sleepers.site.supervise(ENGINE_START_TIMEOUT="4")
    model = sleepers.model()
    before = sleepers.site.reaches("ready")
    sleepers.sleeps()
    sleepers.behave(**how)
    again = sleepers.wakes(model)
    assert again.pid != before.pid
    assert (again.cause, again.restarts) == (cause, 1)
    assert ask(again) == "one, two, three, four, five, six"
    assert process.life_of(sleepers.site.run_of(before)) is process.Life.ENDED


def test_an_engine_that_failed_twice_is_stopped_instead_and_not_tried_for_ever(sleepers):
    sleepers.site.supervise()
    model = sleepers.model()
    sleepers.site.reaches("ready")
    sleepers.behave(damaged=True)
    for _ in range(2):
        sleepers.sleeps()
        sleepers.wakes(model)
    asleep = until(lambda: (row := sleepers.site.reaches("asleep")) and row.pid is None and row)
    assert asleep.cause == "wake-damaged"
    assert sleepers.calls().count("/sleep level=1") == 2
    again = sleepers.wakes(model)
    assert b"--enable-sleep-mode" not in Path(f"/proc/{again.pid}/cmdline").read_bytes()


def test_an_engine_that_dies_asleep_is_just_asleep(sleepers):
    sleepers.site.supervise()
    model = sleepers.model()
    asleep = sleepers.sleeps()
    os.kill(asleep.pid, signal.SIGKILL)
    dead = until(lambda: (row := sleepers.site.replica()).pid is None and row)
    assert (dead.state, dead.restarts, dead.retry_at) == ("asleep", 0, None)
    assert sleepers.wakes(model).run_id != asleep.run_id


def test_a_sleeping_model_that_is_changed_or_stopped_or_deleted_gives_back_everything(sleepers):
    sleepers.site.supervise()
    model = sleepers.model()
    first = sleepers.sleeps()
    ServedModel.objects.update(generation=1)  # as a restart by an operator
    until(lambda: (row := sleepers.site.replica()).state == "asleep" and row.pid is None)
    assert process.life_of(sleepers.site.run_of(first)) is process.Life.ENDED
    sleepers.wakes(model)
    second = sleepers.sleeps()
    ServedModel.objects.update(enabled=False)
    sleepers.site.reaches("stopped")
    assert process.life_of(sleepers.site.run_of(second)) is process.Life.ENDED
    ServedModel.objects.update(enabled=True)
    sleepers.site.reaches("ready")
    third = sleepers.sleeps()
    run = sleepers.site.run_of(third)
    model.delete()
    until(lambda: sleepers.site.replica() is None and process.life_of(run) is process.Life.ENDED)


@pytest.mark.parametrize("level", ["level1", "level2"])
def test_a_supervisor_that_comes_after_a_killed_one_finds_the_engine_asleep_and_wakes_it_rightly(sleepers, level):
    killed = sleepers.site.supervise()
    model = sleepers.model(sleep_mode=level)
    asleep = sleepers.sleeps()
    killed.kill()
    killed.wait()
    sleepers.site.supervise()
    until(lambda: lines_of(ADOPTED, sleepers.site.log.read_text()))
    again = sleepers.wakes(model)
    assert (again.pid, again.restarts) == (asleep.pid, 0)
    assert sleepers.calls()[1:] == (COPIED if level == "level1" else RELOADED)


@pytest.mark.parametrize("state", ["ready", "draining", "starting"])
def test_a_sleeping_engine_is_never_routed_to_whatever_its_row_says(sleepers, state):
    killed = sleepers.site.supervise()
    model = sleepers.model()
    asleep = sleepers.sleeps()
    killed.kill()
    killed.wait()
    # As if the supervisor had been killed before it could write what it had done.
    type(asleep).objects.update(state=state)
    sleepers.site.supervise()
    found = sleepers.sleeps()
    assert (found.pid, routes.ready_replicas()) == (asleep.pid, [])
    assert sleepers.calls() == ["/sleep level=1"]  # it was known to sleep, and did not serve until it was idle again
    assert sleepers.wakes(model).pid == asleep.pid


def test_an_engine_that_was_to_sleep_when_its_supervisor_was_killed_sleeps(sleepers):
    killed = sleepers.site.supervise()
    model = sleepers.model()
    ready = sleepers.site.reaches("ready")
    killed.kill()
    killed.wait()
    type(ready).objects.update(state="draining")
    ServedModel.objects.update(idle_after=3600)
    sleepers.site.supervise()
    asleep = sleepers.sleeps()
    assert asleep.pid == ready.pid
    assert sleepers.wakes(model).pid == ready.pid


def test_a_supervisor_that_stops_everything_while_an_engine_wakes_leaves_nothing_running(sleepers):
    supervisor = sleepers.site.supervise("--stop-engines")
    model = sleepers.model()
    sleepers.sleeps()
    sleepers.behave(wake="hang")
    sleepers.call(model)
    until(lambda: "/wake_up tags=weights" in sleepers.calls())
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == 0
    assert sleepers.site.living() == []
    assert sleepers.site.replica().state == "asleep"


def test_an_engine_that_was_woken_by_a_killed_supervisor_proves_itself_to_the_next_one(sleepers):
    killed = sleepers.site.supervise()
    sleepers.model()
    asleep = sleepers.sleeps()
    killed.kill()
    killed.wait()
    sleepers.behave(damaged=True)
    request = Request(
        f"{asleep.url}/wake_up?tags=weights&tags=kv_cache",
        method="POST",
        headers={"authorization": f"Bearer {asleep.api_key}"},
    )
    assert urlopen(request, timeout=10).status == 200
    sleepers.site.supervise()
    until(lambda: sleepers.site.replica().cause == "wake-damaged")
    again = sleepers.site.reaches("ready")
    assert (again.restarts, again.pid == asleep.pid) == (1, False)


def test_a_build_without_sleep_mode_is_started_without_it_and_says_so(sleepers):
    python = sleepers.site.var / "cache/engines/vllm-0.32.0/bin/python"
    refusal = "Value error, Sleep mode is not supported on current platform."
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *--enable-sleep-mode*) echo "{refusal}"; exit 1;; esac\n'
        f'exec {sys.executable} {FAKE} "$@"\n'
    )
    sleepers.site.supervise()
    sleepers.model()
    ready = sleepers.site.reaches("ready")
    assert (ready.cause, ready.restarts) == ("sleep-unsupported", 1)
    asleep = until(lambda: (row := sleepers.site.reaches("asleep")) and row.pid is None and row)
    assert asleep.cause == "sleep-unsupported"
    assert sleepers.calls() == []


def test_the_build_for_cpus_is_known_before_it_starts(sleepers):
    there = sleepers.site.var / "cache/engines/vllm-0.32.0"
    cpu = there.rename(there.with_name("vllm-0.32.0+cpu"))
    sleepers.site.supervise()
    model = sleepers.model(args=[])
    ready = sleepers.site.reaches("ready")
    assert (ready.cause, ready.restarts) == ("sleep-cpu", 0)
    asleep = until(lambda: (row := sleepers.site.reaches("asleep")) and row.pid is None and row)
    assert asleep.cause == "sleep-cpu"
    cpu.rename(there)  # the build for GPUs is installed
    assert sleepers.wakes(model).cause == ""
