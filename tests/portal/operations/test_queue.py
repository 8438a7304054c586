"""The queue that operators see: merged from all workers that are alive, and how fair it was."""

import json
import random
import time
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.utils import timezone

from modelregistry.models import Replica
from portal.operations.models import FairnessMinute, QueueReport
from portal.operations.queue import (
    GONE_AFTER,
    MAX_SHOWN,
    fairness_index,
    read_fairness,
    read_queue,
    served_to_backlogged,
)
from portal.operations.queue_reports import FORGOTTEN_AFTER, KEPT, withdraw_report, write_report
from tests.html import all_of, has
from tests.pages import key_of, serve, service_key_of
from tests.portal.browsing import client_of, read

pytestmark = pytest.mark.django_db

NONE = {"calls": [], "models": [], "replicas": []}


def snapshot(key, *waited: float, running: int = 0, room: float | None = None, **model) -> dict:
    """Return what a worker reports in which calls of this key have waited so long."""
    facts = {"model": "qwen", "call_class": "interactive", "expected": 12.0, "end_user": ""}
    owner = {"tenant": key.tenant_id, "user": key.user_id, "key": key.pk}
    calls = [{**facts, **owner, "waited": one, "place": at} for at, one in enumerate(waited, start=1)]
    waits = {"waiting": {"interactive": len(waited)}, "longest": max(waited, default=0.0)}
    about = {"model": "qwen", "loading": None, "usual_loading": None, **waits, **model}
    replica = Replica.objects.first()
    works = {"replica": replica.pk if replica else 1, "model": "qwen", "running": running, "room": room}
    return {"calls": calls, "models": [about] if waited else [], "replicas": [works]}


@pytest.fixture
def key(alice, research):
    serve("qwen")
    return key_of(alice, research)


def test_calls_of_all_workers_are_listed_the_longest_waiting_first(key):
    write_report("a/1", snapshot(key, 5.0, 3.0, running=2, room=4.0), [])
    write_report("b/1", snapshot(key, 9.0, running=1, room=4.0), [])
    queue = read_queue({})
    assert [(one.waited, one.worker) for one in queue.calls] == [(9.0, "b/1"), (5.0, "a/1"), (3.0, "a/1")]
    (model,) = queue.models
    assert (model.total, model.longest) == (3, 9.0)
    assert [(one.running, one.room) for one in model.replicas] == [(3, 4.0)]
    assert [(one.worker, one.waiting) for one in queue.workers] == [("a/1", 2), ("b/1", 1)]


def test_a_worker_that_reports_no_more_vanishes_with_its_calls(key):
    write_report("a/1", snapshot(key, 5.0), [])
    write_report("b/1", snapshot(key, 3.0), [])
    QueueReport.objects.filter(worker="a/1").update(at=timezone.now() - timedelta(seconds=GONE_AFTER + 1))
    queue = read_queue({})
    assert [one.waited for one in queue.calls] == [3.0]
    assert [one.worker for one in queue.workers] == ["b/1"]
    withdraw_report("b/1")
    assert read_queue({}).workers == ()


def test_a_new_report_replaces_the_one_before(key):
    write_report("a/1", snapshot(key, 5.0), [])
    QueueReport.objects.update(at=timezone.now() - timedelta(seconds=20))
    assert read_queue({}).workers[0].age >= 20
    write_report("a/1", NONE, [])
    queue = read_queue({})
    assert (queue.waiting, queue.models) == (0, ())
    assert queue.workers[0].age < 10


def test_a_long_queue_is_cut_but_counted(key):
    for worker in range(3):
        write_report(f"a/{worker}", snapshot(key, *map(float, range(MAX_SHOWN))), [])
    queue = read_queue({})
    assert len(queue.calls) == MAX_SHOWN
    assert queue.waiting == 3 * MAX_SHOWN


def test_a_key_or_person_that_is_gone_leaves_its_call_in_the_list(key):
    report = snapshot(key, 5.0)
    report["calls"][0] |= {"key": 10**9, "user": 10**9, "tenant": 10**9}
    write_report("a/1", report, [])
    (one,) = read_queue({}).calls
    assert (one.user, one.tenant, one.key) == (None, "", "")


# --- fairness


def test_of_one_minute_it_is_jain_s_index():
    assert fairness_index([{"a": 10.0, "b": 10.0, "c": 10.0}]) == pytest.approx(1.0)
    assert fairness_index([{"a": 30.0, "b": 0.0, "c": 0.0}]) == pytest.approx(1 / 3)
    assert fairness_index([{"a": 10.0, "b": 20.0}]) == pytest.approx(30**2 / (2 * (100 + 400)))


def test_a_minute_with_fewer_callers_makes_it_no_less_fair():
    crowded, quiet = dict.fromkeys("abcdefgh", 10.0), {"a": 40.0, "b": 40.0}
    assert fairness_index([crowded, quiet]) == pytest.approx(1.0)


def test_who_is_served_in_turns_is_served_alike_in_the_end():
    minutes = [{"a": 20.0, "b": 0.0}, {"a": 0.0, "b": 20.0}]
    assert fairness_index(minutes) == pytest.approx(1.0)
    assert fairness_index(minutes[:1]) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(50))
def test_it_is_above_zero_and_one_at_most_or_unknown(seed):
    dice = random.Random(seed)
    minutes = [
        {name: dice.choice((0, 1, 50, 10**6)) for name in dice.sample("abcde", dice.randint(1, 5))}
        for _ in range(dice.randint(0, 5))
    ]
    index = fairness_index(minutes)
    assert index is None or 0 < index <= 1 + 1e-9


def test_only_those_who_always_waited_are_compared():
    flows = [["a", 60, 10.0], ["b", 50, 20.0], ["now and then", 10, 1.0]]
    assert served_to_backlogged([(60, flows)]) == {"a": 10.0, "b": 20.0}
    assert served_to_backlogged([(5, [["a", 5, 10.0]])]) == {}  # a moment is no minute


def test_what_a_caller_was_served_by_another_worker_counts():
    assert served_to_backlogged([(60, [["a", 60, 10.0]]), (60, [["a", 1, 5.0], ["b", 1, 7.0]])]) == {"a": 15.0}


def minute(number: int, **served: float) -> dict:
    flows = [[name, 60, tokens] for name, tokens in served.items()]
    return {"number": number, "model": "qwen", "call_class": "interactive", "contended": 60, "flows": flows}


def test_the_last_hour_is_read_and_what_is_older_is_deleted():
    now = int(time.time() // 60)
    write_report("a/1", NONE, [minute(now - 100, a=1.0, b=9.0)])
    assert read_fairness(now) == {}
    write_report("a/1", NONE, [minute(now - 2, a=10.0, b=10.0), minute(now - 1, a=5.0)])
    (fair,) = read_fairness(now)["qwen"]
    assert (fair.index, fair.callers, fair.minutes) == (1.0, 2, 1)
    assert FairnessMinute.objects.filter(number__lt=now - KEPT).count() == 0


def test_a_minute_that_is_written_twice_counts_once():
    now = int(time.time() // 60)
    for _ in range(2):
        write_report("a/1", NONE, [minute(now - 1, a=10.0, b=30.0)])
    assert FairnessMinute.objects.count() == 1


def test_reports_of_workers_that_are_gone_for_good_are_deleted():
    write_report("old/1", NONE, [])
    QueueReport.objects.update(at=timezone.now() - 2 * FORGOTTEN_AFTER)
    write_report("a/1", NONE, [minute(int(time.time() // 60) - 1, a=1.0)])
    assert [one.worker for one in QueueReport.objects.all()] == ["a/1"]


# --- where it is shown


def test_the_page_shows_calls_models_and_workers(key, olivia):
    now = int(time.time() // 60)
    write_report("a/1", snapshot(key, 5.0, loading=3.0, usual_loading=40.0), [minute(now - 1, a=10.0, b=30.0)])
    page = read(client_of(olivia), "/operations/queue/")
    for attribute, shown in {"data-call": key.prefix, "data-model": "qwen", "data-worker": "a/1"}.items():
        assert [one[attribute] for one in all_of(page, f"[{attribute}]")] == [shown]


def test_calls_of_one_caller_are_one_row_with_their_count(key, bob, research, olivia):
    other, service = key_of(bob, research), service_key_of(research, "Dify")
    write_report("a/1", snapshot(key, *map(float, range(100, 0, -1))), [])
    write_report("b/1", snapshot(other, 200.0, 150.0), [])
    report = snapshot(service, 50.0, 40.0, 30.0)
    report["calls"][0]["end_user"] = "yamada"
    report["calls"][2]["call_class"] = "batch"
    write_report("c/1", report, [])
    rows = all_of(read(client_of(olivia), "/operations/queue/"), "[data-call]")
    found = [(row["data-call"], row["data-calls"]) for row in rows]
    assert found == [(other.prefix, "2"), (key.prefix, "100"), *[(service.prefix, "1")] * 3]


def test_calls_are_narrowed_down_to_a_model(key, olivia):
    for worker, model in enumerate(("qwen", "other")):
        report = snapshot(key, *map(float, range(150, 0, -1)), model=model)
        for one in report["calls"]:
            one["model"] = model
        write_report(f"a/{worker}", report, [])
    assert len(all_of(read(client_of(olivia), "/operations/queue/"), "[data-call]")) == 2
    page = read(client_of(olivia), "/operations/queue/?model=other")
    (row,) = all_of(page, "[data-call]")
    assert row["data-calls"] == "150"
    assert has(page, "[data-only=other] a")
    assert {one["data-model"] for one in all_of(page, "[data-model]")} == {"qwen", "other"}
    assert not has(read(client_of(olivia), "/operations/queue/?model=nonsense"), "[data-call]")


@pytest.mark.parametrize("language", ["ja", "en"])
def test_a_page_of_200_callers_is_no_larger_than_any_other(key, olivia, language):
    report = snapshot(key, *map(float, range(MAX_SHOWN, 0, -1)))
    for number, one in enumerate(report["calls"]):
        one["end_user"] = f"山田太郎{number:04}@example.com"
    write_report("a/1", report, [])
    olivia.language = language
    olivia.save()
    page = read(client_of(olivia), "/operations/queue/")
    assert len(all_of(page, "[data-call]")) == MAX_SHOWN
    assert len(page.encode()) <= 250 * 1024


@pytest.mark.parametrize("registered", [True, False])
def test_a_model_is_linked_to_its_page_while_it_has_one(key, olivia, registered):
    write_report("a/1", snapshot(key, 5.0, model="qwen" if registered else "gone"), [])
    page = read(client_of(olivia), "/operations/queue/")
    assert has(page, "[data-model] th a") is registered


def test_an_empty_queue_has_a_page_too(olivia):
    page = read(client_of(olivia), "/operations/queue/")
    assert not has(page, "[data-call]")


def test_the_api_and_the_command_show_the_same(key, olivia, call, capsys):
    write_report("a/1", snapshot(key, 5.0), [])
    sent = call(olivia).get("queue/")
    assert [one["key"] for one in sent["calls"]] == [key.prefix]
    call_command("queue", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert [one["key"] for one in printed["calls"]] == [key.prefix]
    assert printed["models"] == sent["models"]
    call_command("queue")
    assert key.prefix in capsys.readouterr().out
