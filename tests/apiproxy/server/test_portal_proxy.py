"""Pages through the gateway: the real portal behind its socket, and a fake one for what that seldom does."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn
from websockets.sync.client import connect

from apiproxy.server.portal_proxy import STATE, PortalProxy
from tests.installation import ROOT, Installation, installed
from tests.slapd import unused_port
from tests.waiting import until

PERSON = """
from portal.accounts.models import Membership, Tenant, User
tenant, _ = Tenant.objects.get_or_create(slug="research", name="研究部")
user = User.objects.create_user("alice", "", "correct horse")
Membership.objects.create(user=user, tenant=tenant)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Installation]:
    with installed(tmp_path_factory.mktemp("var")) as installation:
        installation.manage("shell", "--verbosity", "0", "--command", PERSON)
        installation.start()
        yield installation


@pytest.fixture
def browser(place) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=place.url, timeout=30) as client:
        yield client


def sign_in(browser: httpx2.Client, password: str = "correct horse", **headers: str) -> httpx2.Response:
    browser.get("/sign-in/")
    form = {"username": "alice", "password": password, "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
    return browser.post("/sign-in/", data=form, headers=headers)


def test_p7_a_person_signs_in_and_reads_pages_that_another_process_made(place, browser):
    page = browser.get(sign_in(browser).headers["location"], follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, "/start/")
    assert "<h1" in page.text
    assert sum(name.lower() == "date" for name, _ in page.headers.multi_items()) == 1
    assert place.pid_of("gateway_worker") != place.pid_of("portal_worker")


def test_p7_the_portal_knows_whose_connection_it_is_and_believes_no_header_about_it(place, browser):
    sign_in(browser, "wrong", **{"x-madoguchi-peer": "203.0.113.9"})
    ((address,),) = place.read("select distinct ip_address from axes_accessattempt")
    assert address == "127.0.0.1"


def test_p7_head_and_files_and_their_connection_go_on(place, browser):
    static = next((place.var / "static").rglob("*.css"))
    path = f"/static/{static.relative_to(place.var / 'static')}"
    whole = browser.get(path, headers={"accept-encoding": "identity"})
    assert whole.content == static.read_bytes()
    head = browser.head(path, headers={"accept-encoding": "identity"})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert browser.get("/sign-in/").status_code == 200


def test_p7_a_websocket_is_joined_to_the_portals(place, browser):
    sign_in(browser)
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    address = f"ws://127.0.0.1:{place.port}/ws/usage/"
    with connect(address, additional_headers={"cookie": cookies}, origin=place.url) as live:
        assert "version" in live.recv(timeout=30)


def test_p7_a_portal_that_is_killed_comes_back_and_calls_go_on_meanwhile(place, browser):
    victim = place.pid_of("portal_worker")
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in place.processes())
    assert place.answers()
    # Waits in the socket's queue until the next one takes it.
    assert browser.get("/sign-in/").status_code == 200
    assert place.pid_of("portal_worker") != victim


def test_p7_a_second_one_with_the_same_state_is_refused(place):
    done = subprocess.run(
        [sys.executable, ROOT / "manage.py", "up", "--port", str(unused_port())],
        env=place.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "portal.sock" in done.stderr
    with httpx2.Client(base_url=place.url, timeout=30) as client:
        assert client.get("/sign-in/").status_code == 200


# --- a portal that behaves as it is asked

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def portal(path: Path, behave: Behaviour) -> AsyncIterator[None]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await behave(reader, writer)
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        yield


@pytest.fixture
async def front(tmp_path) -> AsyncIterator[tuple[Path, str]]:
    """Provide the portal's socket, and the address of a server that hands everything on to it."""
    path = tmp_path / "portal.sock"
    listener = socket.create_server(("127.0.0.1", 0))
    pages = PortalProxy(path)

    async def application(scope, receive, send):
        if scope["type"] != "lifespan":
            await pages(scope, receive, send)
            return
        scope["state"][STATE] = pages.socket
        for phase in ("startup", "shutdown"):
            await receive()
            if phase == "shutdown":
                pages.close()
            await send({"type": f"lifespan.{phase}.complete"})

    classes = {"http": "apiproxy.server.protocol:Protocol", "ws": "apiproxy.server.portal_proxy:Tunnel"}
    config = uvicorn.Config(application, **classes, lifespan="on", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    await asyncio.to_thread(until, lambda: server.started)
    yield path, f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await asyncio.to_thread(thread.join, 20)


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def test_p7_without_a_portal_pages_say_so(front):
    async with httpx2.AsyncClient(base_url=front[1]) as client:
        answer = await client.get("/")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.headers["content-type"].startswith("text/html")


async def test_p7_hop_by_hop_headers_go_no_further(front):
    seen: list[bytes] = []

    async def behave(reader, writer):
        seen.append(await head_of(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=5\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        await reader.read()

    async with portal(front[0], behave), httpx2.AsyncClient(base_url=front[1]) as client:
        answer = await client.get("/a%2Fb?c=%20d", headers={"te": "trailers", "x-madoguchi-peer": "1.2.3.4"})
    assert answer.text == "ok"
    assert "keep-alive" not in answer.headers
    assert seen[0].startswith(b"GET /a%2Fb?c=%20d HTTP/1.1\r\n")
    assert b"\r\nte:" not in seen[0]
    assert seen[0].count(b"x-madoguchi-peer: ") == 1
    assert b"x-madoguchi-peer: 127.0.0.1\r\n" in seen[0]


@pytest.mark.parametrize("length", ["told", "chunked"])
async def test_p7_a_body_reaches_the_portal_as_it_came(front, length):
    body = os.urandom(3_000_000)

    async def behave(reader, writer):
        head = await head_of(reader)
        if b"content-length" in head:
            got = await reader.readexactly(len(body))
        else:
            got = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                got += await reader.readexactly(size)
                await reader.readexactly(2)
        writer.write(
            b"HTTP/1.1 204 No Content\r\n\r\n" if got == body else b"HTTP/1.1 400 No\r\ncontent-length: 0\r\n\r\n"
        )
        await writer.drain()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 100_000):
            yield body[at : at + 100_000]

    async with portal(front[0], behave), httpx2.AsyncClient(base_url=front[1]) as client:
        answer = await client.post("/", content=body if length == "told" else pieces())
    assert answer.status_code == 204


async def test_p7_an_answer_before_the_bodys_end_is_passed_on(front):
    async def behave(reader, writer):
        await head_of(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
        await writer.drain()
        await reader.read()

    async with portal(front[0], behave):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(front[1].rpartition(":")[2]))
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nsome")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 413")
        writer.close()


async def test_p7_a_kept_connection_that_the_portal_closes_costs_no_page(front):
    served = 0

    async def behave(reader, writer):
        nonlocal served
        await head_of(reader)
        served += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        if served == 1:
            await head_of(reader)  # and closes without an answer

    async with portal(front[0], behave), httpx2.AsyncClient(base_url=front[1]) as client:
        assert (await client.get("/")).text == "ok"
        assert (await client.get("/")).text == "ok"


async def test_p7_a_change_is_not_made_twice_because_the_portal_died_over_it(front):
    made = 0

    async def behave(reader, writer):
        nonlocal made
        while True:
            head = await head_of(reader)
            if head.startswith(b"POST "):
                made += 1
                return
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await writer.drain()

    async with portal(front[0], behave), httpx2.AsyncClient(base_url=front[1]) as client:
        assert (await client.get("/")).text == "ok"
        assert (await client.post("/api/v1/keys/mdg_AbCdEfGh/rotate/")).status_code == 503
    assert made == 1


async def test_p7_an_answer_that_breaks_off_is_not_passed_on_as_whole(front):
    async def behave(reader, writer):
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nsome")
        await writer.drain()

    async with portal(front[0], behave), httpx2.AsyncClient(base_url=front[1]) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get("/")


async def test_p7_a_browser_that_reads_nothing_slows_the_portal_down(front):
    """What waits for it is bounded: the portal cannot get rid of more than the sockets and AHEAD hold."""
    sent = 0
    stuck = asyncio.Event()

    async def behave(reader, writer):
        nonlocal sent
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        with contextlib.suppress(TimeoutError):
            while True:
                writer.write(b"x" * 65536)
                sent += 65536
                async with asyncio.timeout(2):
                    await writer.drain()
        stuck.set()

    async with portal(front[0], behave):
        _, writer = await asyncio.open_connection("127.0.0.1", int(front[1].rpartition(":")[2]), limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(60):
            await stuck.wait()
        assert sent < 20_000_000
        writer.transport.abort()


async def test_p7_the_portal_hears_that_a_browser_has_left(front):
    asked, left = asyncio.Event(), asyncio.Event()

    async def behave(reader, writer):
        await head_of(reader)
        asked.set()
        await reader.read()
        left.set()

    async with portal(front[0], behave):
        _, writer = await asyncio.open_connection("127.0.0.1", int(front[1].rpartition(":")[2]))
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await asked.wait()
        writer.transport.abort()
        async with asyncio.timeout(20):
            await left.wait()


WISH = (
    b"GET /ws/usage/ HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)


async def test_g1_bytes_after_a_websocket_request_are_no_request_to_the_portal(front):
    """Else it could say in PEER, which the portal believes, from where it comes."""
    seen = b""
    asked, sent, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def behave(reader, writer):
        nonlocal seen
        seen = await head_of(reader)
        asked.set()
        await sent.wait()  # busy until then: it reads all that has come at once
        seen += await reader.read()
        over.set()

    async with portal(front[0], behave):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(front[1].rpartition(":")[2]))
        writer.write(WISH)
        await asked.wait()
        writer.write(b"GET /sign-in/ HTTP/1.1\r\nhost: x\r\nx-madoguchi-peer: 10.9.8.7\r\n\r\n")
        sent.set()
        async with asyncio.timeout(20):
            await over.wait()
            assert await reader.read() == b""
        writer.close()
    assert seen.startswith(b"GET /ws/usage/ ")
    assert b"10.9.8.7" not in seen


def test_g1_a_socket_that_speaks_too_early_leaves_no_fault_in_the_log(place):
    for number in range(0, 40, 3):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(place.var / "run" / "portal.sock"))
            connection.sendall(WISH)
            time.sleep(number / 10_000)
            with contextlib.suppress(OSError):
                connection.sendall(WISH)
                while connection.recv(65536):
                    pass
    assert "Traceback" not in place.log
