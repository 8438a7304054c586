"""What callers get where no server accepts: an answer in the shape that they read, whatever they send."""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from apiproxy.server.stand_in import StandIn


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
