"""Hosts whose processes are held up or killed, while their kernel answers as ever: real supervisors and their engines.

The second host has a state directory of its own and shares the database, as another machine would.
"""

import os
import select
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta

import httpx2
import pytest

from modelregistry import routes
from modelregistry.models import Host, Replica
from portal.audit.models import AuditEvent
from tests.apiproxy.conftest import Counter
from tests.apiproxy.errors import code
from tests.modelregistry.site import Site
from tests.waiting import until

# Seconds for a host to be off the catalogue, and to be back, while these processes have the machine to themselves.
WITHIN = 10.0
CHUNKS = 5


@dataclass
class Second:
    """The second host, as the callers of its models see it."""

    counter: Counter
    site: Site
    frozen: list[int] = field(default_factory=list)

    def serve(self, name: str = "m", *behave: str) -> Replica:
        self.site.model(name, *behave)
        ready = self.site.reaches("ready", name)
        until(lambda: self.count_ready(name) == 1)
        return ready

    def call(self, says: str = "hi", model: str = "m", chunks: int = CHUNKS) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": says}], "stream": True, "max_tokens": chunks}
        return self.counter.client.post("/v1/chat/completions", json=body)

    def metrics(self) -> str:
        return self.counter.client.get("/metrics").text

    def count_ready(self, model: str = "m") -> int:
        """Return what /metrics shows; 0 also before the gateway knows the model."""
        start = f'madoguchi_replicas_ready{{model="{model}"}}'
        return sum(int(line.split()[-1]) for line in self.metrics().splitlines() if line.startswith(start))

    def pids(self) -> list[int]:
        """Return the supervisor first, then all shims and engines."""
        return [self.site.processes[-1].pid, *self.site.living()]

    def freeze(self, pids: list[int]) -> None:
        self.frozen = pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self.frozen:
            os.kill(pid, signal.SIGCONT)
        self.frozen = []

    def kill(self) -> None:
        """Return when all are gone: until then one of them may take another connection."""
        dying = [os.pidfd_open(pid) for pid in self.pids()]
        for one in dying:
            signal.pidfd_send_signal(one, signal.SIGKILL)
        for one in dying:
            assert select.select([one], [], [], 30)[0]
            os.close(one)

    def changes(self, ready: int, *models: str) -> None:
        until(lambda: all(self.count_ready(model) == ready for model in models), 3 * WITHIN)


@pytest.fixture
def second(counter, tmp_path, monkeypatch):
    monkeypatch.setattr(routes, "GONE", timedelta(seconds=WITHIN))  # until then its supervisor may come back
    site = Site(tmp_path / "second")
    site.var.mkdir()
    site.environment["MADOGUCHI_HOST"] = "second"
    site.supervise()
    place = Second(counter, site)
    yield place
    place.thaw()
    for pid in site.living():
        os.kill(pid, signal.SIGKILL)
    site.close()


def blames_no_call(second: Second) -> bool:
    text = second.metrics()
    return (
        "suspected_poison" not in text
        and "madoguchi_engine_deaths_total{" not in text
        and not AuditEvent.objects.filter(action="model.crash").exists()
    )


def test_a_host_that_is_held_up_is_off_the_catalogue_and_back_and_no_caller_hangs(second):
    second.serve()
    assert second.call().status_code == 200
    with ThreadPoolExecutor() as callers:
        second.freeze(second.pids())
        hanging: Future[httpx2.Response] = callers.submit(second.call)
        second.changes(0, "m")
        refused = second.call()  # beside one that still hangs
        assert (refused.status_code, code(refused)) == (503, "model_unavailable")
        assert hanging.result(2 * WITHIN).status_code == 503
    second.thaw()
    second.changes(1, "m")
    assert second.call().status_code == 200
    assert blames_no_call(second)


def test_a_supervisor_that_is_away_takes_no_engine_off_the_catalogue(second):
    second.serve()
    second.freeze(second.pids()[:1])
    began = time.monotonic()
    while time.monotonic() - began < 1.5 * WITHIN:
        assert second.call().status_code == 200
        assert second.count_ready() == 1


@pytest.mark.parametrize("models", [("m",), ("m", "n")])
def test_the_death_of_a_host_is_blamed_on_no_call(second, models):
    for name in models:
        second.serve(name)
    with ThreadPoolExecutor() as callers:
        open_ = callers.submit(second.call, "innocent", chunks=600)
        until(lambda: "madoguchi_in_flight 1\n" in second.metrics())
        second.kill()
        assert '"engine_error"' in open_.result(30).text
        again = second.call("innocent", chunks=600)
    assert (again.status_code, code(again)) == (503, "model_unavailable")
    second.changes(0, *models)
    assert blames_no_call(second)

    second.site.supervise()
    second.site.reaches("ready")
    second.changes(1, *models)
    assert second.call("innocent").status_code == 200


def test_a_sleeping_model_of_a_host_that_is_gone_is_not_said_to_be_on_its_way(second, monkeypatch):
    monkeypatch.setattr(routes, "GONE", routes.QUIET)
    second.serve()
    second.kill()
    row = second.site.replica()
    row.state = Replica.State.ASLEEP
    row.save()  # as a save notifies gateways
    until(lambda: second.count_ready() == 0)  # else a call may still meet the engine as it dies, and be blamed
    assert code(second.call()) == "model_unavailable"  # as soon as it is seen that nothing will come


def test_a_call_that_kills_the_only_engine_of_a_living_host_is_still_refused(second):
    second.serve("m", "mortal")
    assert second.call("die").status_code == 502
    again = second.call("die")
    assert (again.status_code, code(again)) == (400, "suspected_poison")
    assert 'verdict="guilty"} 1\n' in second.metrics()
    second.site.reaches("ready")
    until(lambda: second.count_ready() == 1)
    assert second.call().status_code == 200
    assert Host.objects.get(name="second").seen_at
