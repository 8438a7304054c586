"""Four time-outs of each model's own, beside a model with the settings' defaults in front of the same engine."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from modelregistry.models import Host, Replica, ServedModel
from tests.apiproxy.errors import code
from tests.engine import ANSWER, DONE, FINISH, SSE, chunk, unary, usage_event
from tests.waiting import until

LIMIT = 0.5
# Of the gateway, which looks once a second; a busy machine looks later.
SLACK = 5.0
END = {"send": chunk(FINISH + usage_event(7, 3) + DONE) + "0\r\n\r\n"}
SLOW = {"wait": LIMIT + 2}
HANG = {"hang": True}


def add_hasty_model(counter, **timeouts: float) -> None:
    """Add a model "hasty" with these time-outs, answered by the same engine as the other."""
    model = ServedModel.objects.create(name="hasty", engine="external", url=counter.engine.url, **timeouts)
    Replica.objects.create(model=model, host=Host.objects.get(), state="ready", url=counter.engine.url)
    counter.wait_for_catalogue()


@contextlib.contextmanager
def takes(least: float, most: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert least <= time.monotonic() - begun < most


def test_first_byte(counter):
    add_hasty_model(counter, first_byte_timeout=LIMIT)
    with takes(LIMIT, LIMIT + SLACK):
        late = counter.chat(model="hasty", stream=True, script=[HANG])
    assert (late.status_code, code(late)) == (504, "engine_timeout")
    assert counter.chat(script=[SLOW, {"send": unary(200, ANSWER)}]).status_code == 200
    assert counter.engine.seen()["left"] == 1


def test_between_bytes(counter):
    add_hasty_model(counter, idle_timeout=LIMIT)
    halting = [{"send": SSE}, {"events": 1}]
    with takes(LIMIT, LIMIT + SLACK), counter.stream(model="hasty", script=[*halting, HANG]) as response:
        text = response.read().decode()
    assert "t0 " in text
    assert "engine_timeout" in text
    assert text.endswith(DONE)
    with counter.stream(script=[*halting, SLOW, END]) as response:
        assert "engine_timeout" not in response.read().decode()
    assert {row.model: row.status for row in counter.usage(2)} == {"hasty": "failed", "fake": "finished"}


def test_in_all_however_well_a_stream_goes(counter):
    add_hasty_model(counter, total_timeout=LIMIT)
    steady = [{"send": SSE}, {"events": 30, "every": 0.1}, END]
    with takes(LIMIT, LIMIT + SLACK), counter.stream(model="hasty", script=steady) as response:
        text = response.read().decode()
    assert "t0 " in text
    assert "engine_timeout" in text
    until(lambda: counter.engine.seen()["left"] == 1)
    with counter.stream(script=steady) as response:
        assert "t29 " in response.read().decode()


def test_in_all_ends_a_call_without_a_stream_and_is_not_tried_again(counter):
    add_hasty_model(counter, total_timeout=LIMIT)
    model, host = ServedModel.objects.get(name="hasty"), Host.objects.get()
    Replica.objects.create(model=model, host=host, index=1, state="ready", url=counter.engine.url)
    counter.wait_for_catalogue()
    with takes(LIMIT, LIMIT + SLACK):
        late = counter.chat(model="hasty", script=[HANG])
    assert (late.status_code, code(late)) == (504, "engine_timeout")
    assert len(counter.engine.seen()["requests"]) == 1


@pytest.fixture
def black_hole() -> Iterator[str]:
    """Provide a URL where connections are never made: the listener's queue is full and is not emptied."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as waiting:
        for _ in range(3):
            connection = waiting.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_connect(counter, black_hole, settings):
    settings.GATEWAY_CONNECT_TIMEOUT = 2.0
    add_hasty_model(counter, connect_timeout=LIMIT)
    for replica in Replica.objects.all():
        replica.url = black_hole
        replica.save()
    counter.wait_for_catalogue()
    with takes(LIMIT, 2.0):
        assert code(counter.chat(model="hasty")) == "model_unavailable"
    with takes(2.0, 2.0 + SLACK):
        assert code(counter.chat()) == "model_unavailable"


def test_connect_goes_to_another_replica_once(counter, black_hole):
    add_hasty_model(counter, connect_timeout=LIMIT)
    first, model = Replica.objects.get(model__name="hasty"), ServedModel.objects.get(name="hasty")
    first.url = black_hole
    first.save()
    Replica.objects.create(model=model, host=Host.objects.get(), index=1, state="ready", url=counter.engine.url)
    counter.wait_for_catalogue()
    begun = time.monotonic()
    assert [counter.chat(model="hasty").status_code for _ in range(6)] == [200] * 6
    # The first attempt that found no host was the last for a while.
    assert time.monotonic() - begun < 2 * LIMIT + 0.4
    assert len(counter.engine.seen()["requests"]) == 6
