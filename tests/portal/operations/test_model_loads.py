"""What the controller is given of gateways' queues, to decide how many replicas a model has."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from modelregistry.controller.loads import ModelLoad, read_loads
from modelregistry.models import ServedModel
from portal.operations.model_loads import sum_loads
from portal.operations.models import QueueReport
from portal.operations.queue import GONE_AFTER


def report(
    model: str = "m", expected: float | None = None, *, replica_id: int = 1, room: float | None = 4
) -> dict[str, Any]:
    """Return a worker's report: of 3 calls that wait if a time is expected, and of one replica."""
    values = {"loading": None, "usual_loading": None, "longest": 3.0, "expected": expected}
    waiting = {"model": model, "waiting": {"interactive": 3, "batch": 50}, **values}
    replica = {"replica": replica_id, "model": model, "running": 2, "room": room}
    return {"calls": [], "models": [waiting] if expected is not None else [], "replicas": [replica]}


def test_the_longest_wait_of_all_workers_counts_and_their_calls_are_added():
    assert sum_loads([report(expected=5.0), report(expected=20.0)]) == {
        "m": ModelLoad(wait=20.0, waiting=6, running=4, room=4)
    }


def test_the_room_of_a_model_is_that_of_its_replicas_and_unknown_if_that_of_one_is():
    two = [report(), report(), report(replica_id=2, room=8), report("n", replica_id=3)]
    assert sum_loads(two) == {"m": ModelLoad(running=6, room=12), "n": ModelLoad(running=2, room=4)}
    assert sum_loads([*two, report(replica_id=4, room=None)])["m"].room is None


def test_calls_of_batches_are_no_wait_and_an_earlier_gateway_knows_none():
    batch = report(expected=9.0)
    batch["models"][0]["waiting"] = {"batch": 50}
    assert sum_loads([batch])["m"].wait == 0.0
    earlier = report(expected=9.0)
    del earlier["models"][0]["expected"]
    assert (sum_loads([earlier])["m"].wait, sum_loads([earlier])["m"].waiting) == (None, 3)


@pytest.mark.django_db
def test_loads_are_of_registered_models_and_of_gateways_that_report(django_assert_num_queries):
    assert read_loads() is None
    model = ServedModel.objects.create(name="m", engine="vllm", path="/m")
    now = timezone.now()
    QueueReport.objects.create(worker="a/1", at=now, snapshot=report(expected=20.0))
    QueueReport.objects.create(worker="b/1", at=now, snapshot=report("gone", 20.0, replica_id=2))
    with django_assert_num_queries(2):
        found = read_loads()
    assert found == {model.pk: ModelLoad(wait=20.0, waiting=3, running=2, room=4)}
    QueueReport.objects.update(at=now - timedelta(seconds=GONE_AFTER + 5))
    assert read_loads() is None
