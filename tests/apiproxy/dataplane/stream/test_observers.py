"""Observers watch streams on their way: they change no byte, and may stop one."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.errors import EngineFailed, Refusal
from apiproxy.dataplane.stream.observers import StreamObserver
from tests.engine import DONE, FINISH, SSE, chunk, token
from tests.waiting import until

SCRIPT = [{"send": SSE}, *({"send": chunk(token(number))} for number in range(5)), {"send": chunk(FINISH + DONE)}]
ENDED = [*SCRIPT, {"send": "0\r\n\r\n"}]


class Watches:
    may_stop = False

    def ended_itself(self, choice: int) -> None: ...


class Count(Watches):
    """Counts the events of one call; stops it before event number `last`, if that is given."""

    def __init__(self, last: int | None = None) -> None:
        self.last = last
        self.seen = b""

    def feed(self, events: bytes) -> Refusal | None:
        assert events.endswith(b"\n\n")  # whole ones
        self.seen += events
        return EngineFailed("engine_error") if self.last is not None and self.events > self.last else None

    @property
    def events(self) -> int:
        return self.seen.count(b"data: {")


class Fails(Watches):
    def feed(self, events: bytes) -> Refusal | None:
        raise KeyError("choices")


@pytest.fixture
def observe(counter) -> Callable[[StreamObserver], list[RequestContext]]:
    """Return what has all calls from now on observed, and the list of their contexts."""

    def with_(observer: StreamObserver) -> list[RequestContext]:
        contexts: list[RequestContext] = []

        def of(context: RequestContext) -> StreamObserver:
            contexts.append(context)
            return observer

        gateway = counter.application.gateway
        gateway.services = replace(gateway.services, observe=of)
        return contexts

    return with_


def read(counter, **fields) -> bytes:
    with counter.stream(**fields) as response:
        return b"".join(response.iter_raw())


def test_an_observer_is_fed_every_event_and_the_client_gets_the_same_bytes(counter, observe):
    unobserved = read(counter, script=ENDED)
    count = Count()
    contexts = observe(count)
    assert read(counter, script=ENDED) == unobserved
    assert count.events == 6
    (context,) = contexts
    assert (context.model.name, context.key.id) == ("fake", counter.key_row.pk)
    assert {row.status for row in counter.usage(2)} == {"finished"}


def test_an_observer_sees_the_stream_from_which_an_answer_is_assembled(counter, observe):
    counter.model.engine, counter.model.path = "llama.cpp", "/m.gguf"  # is always asked for a stream
    counter.model.save()
    counter.wait_for_catalogue()
    count = Count()
    observe(count)
    assert counter.chat(script=ENDED).json()["choices"][0]["message"]["content"].startswith("t0")
    assert count.events >= 6


def test_an_observer_stops_a_stream_and_its_engine_and_what_was_made_is_recorded(counter, observe):
    observe(Count(last=2))
    script = [{"send": SSE}]
    for number in range(4):
        script += [{"send": chunk(token(number))}, {"wait": 0.1}]  # else the events come as one
    text = read(counter, script=[*script, {"hang": True}]).decode()
    assert "t1" in text
    assert "t2" not in text
    assert '"engine_error"' in text
    assert text.endswith("data: [DONE]\n\n")
    until(lambda: counter.application.gateway.in_flight == 0)
    (row,) = counter.usage()
    assert (row.status, row.completion_tokens) == ("failed", 2)  # the first event has no token


def test_an_observer_that_stops_the_last_events_leaves_a_stream_that_ends(counter, observe):
    observe(Count(last=2))
    script = [*SCRIPT[:2], {"wait": 0.1}, {"send": chunk(token(1) + token(2) + FINISH + DONE) + "0\r\n\r\n"}]
    text = read(counter, script=script).decode()
    assert "t2" not in text
    assert text.endswith("data: [DONE]\n\n")
    assert text.count('"engine_error"') == text.count("[DONE]") == 1


def test_an_observer_that_stops_before_the_first_event_leaves_an_http_status(counter, observe):
    observe(Count(last=0))
    assert counter.chat(stream=True, script=[*SCRIPT[:2], {"hang": True}]).status_code == 502


def test_an_observer_that_fails_costs_the_client_nothing(counter, observe):
    unobserved = read(counter, script=ENDED)
    observe(Fails())
    assert read(counter, script=ENDED) == unobserved
