"""What callers get where no server accepts: an answer in the shape that they read, whatever they send."""

import asyncio
import errno
import http.client
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from apiproxy.server.stand_in import BACKLOG, LOOK_SECONDS, StandIn, answer


class Refusal(NamedTuple):
    status: int
    kind: str
    body: bytes


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Provide a port on which nothing serves, and on which callers are answered at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with StandIn([listener], lambda: 0.0).running():
            yield listener.getsockname()[1]


def ask(port: int, method: str, body: bytes, headers: dict[str, str]) -> Refusal:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, "/", body, headers)
    answer = connection.getresponse()
    return Refusal(answer.status, answer.headers["content-type"], answer.read())


async def test_a_program_gets_an_error_in_json(port):
    status, kind, body = await asyncio.to_thread(ask, port, "POST", b"{}", {"accept": "application/json"})
    assert (status, kind, json.loads(body)["error"]["code"]) == (503, "application/json", "server_unavailable")


async def test_a_browser_gets_a_page(port):
    status, kind, body = await asyncio.to_thread(ask, port, "GET", b"", {"accept": "text/html,*/*;q=0.8"})
    assert (status, kind) == (503, "text/html; charset=utf-8")
    assert 'lang="ja"' in body.decode()


async def test_a_question_for_the_head_alone_gets_no_body(port):
    status, _, body = await asyncio.to_thread(ask, port, "HEAD", b"", {})
    assert (status, body) == (503, b"")


async def test_a_caller_who_still_sends_a_large_body_gets_the_answer(port):
    status, _, body = await asyncio.to_thread(ask, port, "POST", bytes(20_000_000), {})
    assert (status, json.loads(body)["error"]["code"]) == (503, "server_unavailable")


async def test_it_leaves_callers_to_a_server_while_one_accepts():
    serves, waits = None, 0.0
    patience: list[float | None] = [serves]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with StandIn([listener], lambda: patience[0]).running():
            asking = asyncio.create_task(asyncio.to_thread(ask, listener.getsockname()[1], "GET", b"", {}))
            done, _ = await asyncio.wait([asking], timeout=1.0)
            assert not done
            patience[0] = waits
            assert (await asking).status == 503


class OutOfDescriptors(socket.socket):
    """A listener of a process that has no descriptor left until `until`, by the monotonic clock."""

    until = 0.0
    tries = 0

    def accept(self):
        self.tries += 1
        if time.monotonic() < self.until:
            raise OSError(errno.EMFILE, "no descriptor is left")
        return super().accept()


async def test_it_rests_while_no_descriptor_is_left_and_answers_once_one_is():
    with OutOfDescriptors() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.until = time.monotonic() + 4 * LOOK_SECONDS
        async with StandIn([listener], lambda: 0.0).running():
            status, _, _ = await asyncio.to_thread(ask, listener.getsockname()[1], "GET", b"", {})
    assert status == 503
    assert listener.tries < 10


class Crowded(socket.socket):
    """A listener to which callers come more quickly than they can be answered."""

    callers = 0

    def accept(self):
        if self.callers > 2 * BACKLOG:
            raise BlockingIOError
        self.callers += 1
        caller, accepted = socket.socketpair()
        caller.close()
        return accepted, ""


async def test_of_those_who_keep_coming_it_answers_no_more_than_can_have_waited():
    with Crowded() as listener:
        listener.bind(("127.0.0.1", 0))
        await StandIn([listener], lambda: 0.0).answer_waiting()
        assert listener.callers == BACKLOG


async def test_a_connection_that_cannot_be_read_is_closed(monkeypatch):
    async def fail(**_: object) -> None:
        raise OSError(errno.ENOMEM, "no memory is left")

    monkeypatch.setattr(asyncio, "open_connection", fail)
    connection, caller = socket.socketpair()
    with caller:
        await answer(connection)
        assert caller.recv(1) == b""


async def test_who_can_ask_another_machine_is_closed_without_an_answer(port):
    with pytest.raises(http.client.RemoteDisconnected):
        await asyncio.to_thread(ask, port, "POST", b"", {"X-Pass-Over": "yes"})
