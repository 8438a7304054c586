"""The wall before the pages: what strangers send is bounded before Django spools it to the disk."""

import asyncio
import json
from typing import Any

import pytest

from portal.web.request_bounds import API, FORM, STRANGER, RequestBounds

SESSION = (b"cookie", b"sessionid=made-up")
KEY = (b"authorization", b"Bearer mdm_made-up")


class Page:
    """The application behind the wall: notes which bodies reach it."""

    def __init__(self) -> None:
        self.bodies: list[int] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(len(message["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


class Client:
    """Sends a body piece by piece; `None` is a piece that never comes."""

    def __init__(
        self,
        *pieces: bytes | None,
        path: str = "/signin/",
        headers: Any = (),
        told: int | None = None,
        leaves: bool = False,
    ) -> None:
        length = (b"transfer-encoding", b"chunked") if told is None else (b"content-length", b"%d" % told)
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": [length, *headers]}
        self.taken = 0
        self._pieces = list(pieces)
        self._leaves = leaves
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if self.taken == len(self._pieces):
            return {"type": "http.disconnect"}
        piece = self._pieces[self.taken]
        if piece is None:
            await asyncio.Event().wait()
        self.taken += 1
        return {"type": "http.request", "body": piece, "more_body": self._leaves or self.taken < len(self._pieces)}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def ask(self, wall: RequestBounds) -> int:
        """Return the answer's status; 0 for none."""
        await wall(self.scope, self.receive, self.send)
        return self.sent[0]["status"] if self.sent else 0


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def wall(page) -> RequestBounds:
    return RequestBounds(page)


@pytest.mark.parametrize(
    ("path", "headers", "most"),
    [
        ("/signin/", [], STRANGER),
        ("/api/v1/keys", [], STRANGER),
        ("/nowhere/", [], STRANGER),
        ("/keys/new/", [SESSION], FORM),
        ("/api/v1/keys", [SESSION], API),
        ("/api/v1/keys", [KEY], API),
    ],
)
async def test_g3_a_body_is_bounded_by_path_and_caller(wall, page, path, headers, most):
    for told in (most, None):
        pieces = [b"x" * (most // 2), b"x" * (most - most // 2)]
        assert await Client(*pieces, path=path, headers=headers, told=told).ask(wall) == 200
    assert page.bodies == [most, most]
    told = Client(b"x", path=path, headers=headers, told=most + 1)
    assert (await told.ask(wall), told.taken) == (413, 0)  # nothing of it was read
    endless = Client(*[b"x" * 1024] * 10_000, path=path, headers=headers)
    assert await endless.ask(wall) == 413
    assert endless.taken == most // 1024 + 1
    assert (wall.buffered, page.bodies) == (0, [most, most])


async def test_g3_a_hundred_gigabytes_of_a_stranger_are_refused_unread(wall, page):
    client = Client(b"x" * 65536, told=100 * 10**9)
    assert await client.ask(wall) == 413
    assert (client.taken, page.bodies) == (0, [])


@pytest.mark.parametrize(("path", "kind"), [("/signin/", b"text/html"), ("/api/v1/keys", b"application/problem+json")])
async def test_g3_a_refusal_says_why_where_it_is_looked_for(wall, path, kind):
    english, japanese = (
        Client(told=10**9, path=path, headers=[(b"accept-language", language)]) for language in (b"en", b"ja,en;q=0.5")
    )
    for client in (english, japanese):
        assert await client.ask(wall) == 413
        assert dict(client.sent[0]["headers"])[b"content-type"].startswith(kind)
    assert english.sent[1]["body"] != japanese.sent[1]["body"]
    if kind == b"application/problem+json":
        assert json.loads(japanese.sent[1]["body"])["status"] == 413


async def test_g3_without_a_body_nothing_is_read(wall):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})

    client = Client(None, told=0)
    assert await client.ask(RequestBounds(app)) == 204
    assert client.taken == 0


@pytest.mark.parametrize("wait", [{"pause": 0.05}, {"whole": 0.05}])
async def test_g17_a_body_that_does_not_come_is_a_time_out(page, wait):
    client = Client(b"username=al", None, told=40)
    assert await client.ask(RequestBounds(page, **wait)) == 408
    assert page.bodies == []


async def test_g17_a_body_that_trickles_has_a_time_in_all(page):
    wall = RequestBounds(page, whole=0.1)

    class Slow(Client):
        async def receive(self) -> dict[str, Any]:
            await asyncio.sleep(0.01)
            return await super().receive()

    assert await Slow(*[b"x"] * 1000, told=1000).ask(wall) == 408


async def test_a_client_that_leaves_within_its_body_is_no_request(wall, page):
    client = Client(b"username=al", told=40, leaves=True)
    assert await client.ask(wall) == 0
    assert (page.bodies, wall.buffered) == ([], 0)


async def test_g3_many_unfinished_bodies_hold_no_more_than_all_may_and_a_whole_one_is_served(page):
    wall = RequestBounds(page, together=10 * STRANGER)
    silent = [Client(b"x" * (STRANGER - 1), None, told=STRANGER) for _ in range(100)]
    asking = [asyncio.create_task(client.ask(wall)) for client in silent]
    await asyncio.sleep(0)
    assert await Client(b"x" * 1000, told=1000).ask(wall) == 200
    for _, refused in zip(range(90), asyncio.as_completed(asking, timeout=30), strict=False):
        assert await refused == 408
    assert wall.buffered <= 10 * STRANGER
    assert {task.result() for task in asking if task.done()} == {408}
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert wall.buffered == 0
