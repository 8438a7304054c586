"""A real controller gives a model one more replica while its calls wait, and takes it back without cutting one off."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest
from django.db import connections

from modelregistry.models import ReplicaPlacement
from modelregistry.moves import read_moves
from portal.operations.queue_reports import write_report
from tests.modelregistry.site import Site, stream
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)
SOON = {"SCALE_UP_WAIT": "5", "SCALE_UP_AFTER": "1", "SCALE_DOWN_AFTER": "1"}


def snapshot(expected: float | None) -> dict[str, Any]:
    """Return what a gateway reports; None: no call waits."""
    values = {"loading": None, "usual_loading": None, "longest": 3.0, "expected": expected}
    waiting = [{"model": "m", "waiting": {"interactive": 3}, **values}] if expected is not None else []
    return {"calls": [], "models": waiting, "replicas": []}


@contextmanager
def gateway(expected: float | None) -> Iterator[None]:
    """Report this for as long as it lasts, as a gateway does every few seconds."""
    over = Event()

    def report() -> None:
        while not over.is_set():
            write_report("a/1", snapshot(expected), [])
            over.wait(1.0)
        connections.close_all()

    reporting = Thread(target=report)
    reporting.start()
    try:
        yield
    finally:
        over.set()
        reporting.join()


def test_a_model_has_one_more_replica_while_calls_wait_and_no_call_is_cut_off_when_it_leaves(site: Site):
    model = site.model(replicas_max=2)
    site.supervise(**SOON)
    site.reaches("ready")
    with gateway(30.0):
        further = site.reaches("ready", number=1)
    answer = stream(further, 60)
    with gateway(None):
        site.reaches("draining", number=1)
        assert answer.rest().endswith("[DONE]\n\n")
        until(lambda: site.replica(number=1) is None)
    assert site.reaches("ready").run_id
    assert [one.number for one in ReplicaPlacement.objects.all()] == [0]
    assert [(one.number, one.cause) for one in read_moves(model=model)] == [(1, "quiet"), (1, "busy")]
