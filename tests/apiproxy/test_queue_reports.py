"""Operators see who waits in every gateway: from a call that waits at a real socket to what pages and the API show."""

import concurrent.futures
import contextlib
from collections.abc import Iterator

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from apiproxy.bridge import catalogue_loader
from apiproxy.dataplane.ledger import DatabaseUnavailable
from apiproxy.server import asgi
from modelregistry.controller.loads import read_loads
from modelregistry.models import Replica
from portal.operations.models import QueueReport
from portal.operations.queue import QueueNow, QueueReader
from tests.engine import SSE, chunk, token
from tests.waiting import until

LONG = [{"send": SSE}, {"send": chunk(token(0))}, {"hang": True}]
SECRET = "the prompt that no operator sees"


@pytest.fixture(autouse=True)
def _often(monkeypatch) -> None:
    monkeypatch.setattr(asgi, "REPORT_QUEUE", 0.05)
    monkeypatch.setattr(asgi, "REPORT_IDLE_QUEUE", 0.1)


@contextlib.contextmanager
def waiting_call(counter) -> Iterator[None]:
    """Let a call wait for the only slot of the engine, and be answered afterwards."""
    row = Replica.objects.get()
    row.slots = 1
    row.save()
    counter.wait_for_catalogue()
    with concurrent.futures.ThreadPoolExecutor() as pool, counter.stream(script=LONG) as response:
        pieces = response.iter_raw()
        next(pieces)
        pool.submit(counter.chat, messages=[{"role": "user", "content": SECRET}])
        until(lambda: counter.application.gateway.queued == 1)
        yield


def read() -> QueueNow:
    return QueueReader()(timezone.now())


def test_operators_see_who_waits_for_what_and_beside_whom_but_not_what_is_asked(counter):
    with waiting_call(counter):
        until(lambda: read().waiting == 1)
        queue = read()
        (call,), (model,), (worker,) = queue.calls, queue.models, queue.workers
        assert (call.user, call.tenant, call.model, call.place) == ("alice", "research", "fake", 1)
        assert (call.key, call.call_class) == (counter.key_row.prefix, "interactive")
        assert [(one.host, one.running, one.room) for one in model.replicas] == [("here", 1, 1)]
        assert (model.waiting, worker.waiting) == ({"interactive": 1}, 1)
        assert SECRET not in str(QueueReport.objects.values_list())


def test_the_controller_reads_for_which_models_calls_wait(counter):
    with waiting_call(counter):
        until(lambda: any(load.waiting for load in (read_loads() or {}).values()))
        [load] = (read_loads() or {}).values()
        # How long it waits is not known before a call has ended.
        assert (load.wait, load.waiting, load.running, load.room) == (None, 1, 1, 1)
    until(lambda: not any(load.waiting for load in (read_loads() or {}).values()))


def test_who_waits_no_more_is_gone_within_the_next_reports(counter):
    with waiting_call(counter):
        until(lambda: read().waiting == 1)
    until(lambda: read().waiting == 0)


def test_a_worker_that_stops_takes_its_report_with_it(counter):
    until(lambda: len(read().workers) == 1)
    counter.server.should_exit = True
    until(lambda: not read().workers)


def test_while_the_database_is_away_calls_are_served_and_the_report_follows_when_it_is_back(counter, monkeypatch):
    until(lambda: read().workers)
    write, tried = catalogue_loader.report_queue, []

    def refuse(*facts) -> None:
        tried.append(facts)
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(catalogue_loader, "report_queue", refuse)
    until(lambda: tried)
    last = QueueReport.objects.get().at
    assert counter.chat().status_code == 200
    monkeypatch.setattr(catalogue_loader, "report_queue", write)
    until(lambda: QueueReport.objects.get().at > last)


@pytest.mark.django_db
def test_pages_read_little_while_no_one_waits():
    with CaptureQueriesContext(connection) as queries:
        assert read().calls == ()
    assert len(queries) <= 5
