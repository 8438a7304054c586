"""Three models in room for two: a supervisor unloads what is needed least for what is called, and loses no answer."""

import json
import sqlite3
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connections
from django.db.models import F
from django.utils import timezone

from apiproxy.bridge import catalogue_loader
from apiproxy.dataplane.ledger import DatabaseUnavailable
from apiproxy.dataplane.wake_ups import WakeUp
from modelregistry import routes
from modelregistry.models import EvictionRecord, Replica, ServedModel, WakeRequest
from modelregistry.process import process
from modelregistry.supervisor.eviction import MIN_STAY
from tests.modelregistry import paper_models
from tests.modelregistry.repeating import repeating
from tests.modelregistry.site import Site, stream
from tests.waiting import until

RECORDED = Path(__file__).with_name("recorded_nvml")
GIB = 2**30
NAMES = ("a", "b", "c")


class Cards:
    """A site whose host has two cards of 80 GB: each has room for one model of 50."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.models = site.var / "models"
        self.models.mkdir()
        card = {"name": "NVIDIA A100", "total": 80 * GIB, "used": GIB // 2, "processes": {}, "error": 0}
        path = site.var / "nvml.json"
        cards = [{**card, "uuid": f"GPU-{letter}"} for letter in "ab"]
        path.write_text(json.dumps({"error": 0, "cards": cards, "models": str(self.models)}))
        site.environment |= {"PYTHONPATH": str(RECORDED), "RECORDED_NVML": str(path)}

    def model(self, name: str, *behave: str, gib: int = 50, **fields: object) -> ServedModel:
        rows = gib * GIB // (2 * 4096)
        path = paper_models.gguf(self.models / f"{name}.gguf", tensors={"token_embd.weight": ("F16", (rows, 4096))})
        return self.site.model(name, *behave, path=str(path), context=2048, **fields)

    def states(self) -> dict[str, str]:
        return dict(Replica.objects.values_list("model__name", "state"))

    def ready(self) -> set[str]:
        return {name for name, state in self.states().items() if state == "ready"}


@pytest.fixture
def cards(site) -> Cards:
    return Cards(site)


def calling(model: ServedModel, calls: int = 1, *, batch: bool = False) -> AbstractContextManager[None]:
    """Renew the request for a model, as a gateway does while calls wait for it."""
    wake = WakeUp(model.pk, ("user", 1), None, interactive=not batch)

    def renew() -> None:
        with suppress(DatabaseUnavailable):
            if not Replica.objects.filter(model=model, state="ready").exists():
                catalogue_loader.request_wake_up(wake, calls)

    return repeating(renew)


def three_models(cards: Cards, *behave: str) -> dict[str, ServedModel]:
    """Have two models loaded, and a third one without room."""
    models = {name: cards.model(name, *behave) for name in NAMES[:2]}
    cards.site.supervise()
    until(lambda: cards.ready() == {"a", "b"})
    models["c"] = cards.model("c", *behave)
    cards.site.reaches("asleep", "c")
    return models


def test_a_model_without_room_takes_the_place_of_an_idle_one_when_a_person_calls_it_and_not_a_batch(site, cards):
    models = three_models(cards)
    with calling(models["c"], batch=True):  # for longer than an idle model is protected from what a person calls
        until(lambda: WakeRequest.objects.filter(at__gt=F("since") + timedelta(seconds=MIN_STAY + 2)).exists())
    assert cards.ready() == {"a", "b"}
    [served] = [one for one in routes.served_models() if one.name == "c"]
    assert (bool(served.loading_on), served.no_room) == (True, False)
    before = {name: site.replica(name).pid for name in "ab"}
    with calling(models["c"], calls=3):
        site.reaches("ready", "c")
    [gone] = {"a", "b"} - cards.ready()
    until(lambda: cards.states()[gone] == "asleep")
    [stays] = {"a", "b"} - {gone}
    assert site.replica(stays).pid == before[stays]
    record = until(lambda: EvictionRecord.objects.exclude(load_seconds=None).first())
    assert (record.model, record.successor, record.calls) == (models[gone], models["c"], 3)
    assert record.drain_seconds > 0
    assert record.load_seconds > 0
    assert record.waited_seconds >= 0
    until(lambda: not WakeRequest.objects.exists())

    with calling(models[gone]):
        site.reaches("ready", gone)
    assert len(cards.ready()) == 2


def test_a_running_answer_is_finished_before_its_model_goes(site, cards):
    models = three_models(cards)
    ServedModel.objects.filter(name="b").update(pinned=True)
    answers = {name: stream(site.replica(name), 500) for name in "ab"}  # 25 s
    with calling(models["c"]):
        site.reaches("draining", "a")
        assert answers["a"].rest().count("data:") == 501
        site.reaches("ready", "c")
    assert answers["b"].rest().count("data:") == 501
    assert cards.ready() == {"b", "c"}


def test_a_model_that_loads_is_not_unloaded_for_another(site, cards):
    slow = cards.model("a", "loading=15", gib=70)
    cards.model("b", gib=70, pinned=True)
    site.supervise()
    site.reaches("ready", "b")
    site.reaches("starting", "a")
    loading = until(lambda: site.replica("a").pid)
    model = cards.model("c", gib=70)
    site.reaches("asleep", "c")
    with calling(model):
        first = site.reaches("ready", "a")
        assert (first.pid, first.restarts) == (loading, 0)
        site.reaches("ready", "c")
    assert cards.states() == {"a": "asleep", "b": "ready", "c": "ready"}
    assert not EvictionRecord.objects.exclude(model=slow).exists()


def test_a_pinned_model_stays_and_calls_for_another_are_refused_at_once(site, cards):
    for name in "ab":
        cards.model(name, pinned=True)
    site.supervise()
    until(lambda: cards.ready() == {"a", "b"})
    model = cards.model("c")
    refused = site.reaches("failed", "c")
    assert refused.cause == "does-not-fit"
    [served] = [one for one in routes.served_models() if one.name == "c"]
    assert (served.loading_on, served.no_room) == (frozenset(), True)
    ServedModel.objects.filter(name="a").update(pinned=False)
    with calling(model):
        site.reaches("ready", "c")
    assert cards.ready() == {"b", "c"}


def test_a_model_within_its_hours_keeps_its_place(site, cards):
    today = timezone.localtime().strftime("%a 00:00-24:00") + (timezone.localtime() + timedelta(days=1)).strftime(
        "; %a 00:00-24:00"
    )
    for name in "ab":
        cards.model(name, hours=today)
    site.supervise()
    until(lambda: cards.ready() == {"a", "b"})
    cards.model("c")
    site.reaches("failed", "c")


def test_a_killed_supervisor_leaves_nothing_twice_and_the_called_model_still_comes(site, cards):
    models = three_models(cards)
    [supervisor] = site.processes
    with calling(models["c"]):
        until(lambda: Replica.objects.filter(state="draining").exists())
        supervisor.kill()
        supervisor.wait()
        site.supervise()
        site.reaches("ready", "c")
        until(lambda: sorted(cards.states().values()) == ["asleep", "ready", "ready"])
    running = [run for run in site.runs.all() if process.life_of(run) is process.Life.RUNNING]
    assert len(running) == 2


def test_an_eviction_goes_on_while_the_database_is_away(site, cards):
    models = three_models(cards)

    def running() -> int:
        return len([run for run in site.runs.all() if process.life_of(run) is process.Life.RUNNING])

    with calling(models["c"]):
        until(lambda: Replica.objects.filter(state="draining").exists())
    away(True)
    until(lambda: running() == 1)
    until(lambda: running() == 2)
    away(False)
    site.reaches("ready", "c")
    assert len(cards.ready()) == 2


def away(is_away: bool) -> None:
    """Make every read of what is wanted fail in the database, or work again."""
    names = ("modelregistry_wakerequest", "renamed_away")
    source, target = names if is_away else names[::-1]
    with sqlite3.connect(connections["default"].settings_dict["NAME"], timeout=10) as database:
        database.execute(f"ALTER TABLE {source} RENAME TO {target}")
    database.close()
