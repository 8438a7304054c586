"""Reloads, upgrades, restarts and deaths of gateway and portal while people call: what they notice."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from apiproxy.server.stand_in import PATIENCE_AFTER_FAILURE
from tests.engine import DONE, FINISH, SSE, chunk, usage_event
from tests.installation import ROOT
from tests.redis import redis_server
from tests.restart.load import Load
from tests.restart.site import NEXT, Site, copy_version, site
from tests.waiting import eventually, until

STREAMS, SECONDS, RATE = 20, 2.0, 20


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Iterator[Site]:
    """Provide a site with two gateways, started; of which version is up to each test."""
    with redis_server() as shared:
        place = tmp_path_factory.mktemp("restart")
        with site(place, REDIS_URL=shared.url, GATEWAY_WORKERS="2") as running:
            running.start()
            yield running


def load_of(running: Site) -> Load:
    return Load(running.nginx.url, running.key, running.nginx.trust(), STREAMS, SECONDS, RATE)


async def under_way(load: Load) -> None:
    """Return when all streams are open and calls are answered."""
    await eventually(lambda: load.open_streams == load.streams and load.count()["call"] >= load.rate)


async def test_a_new_version_takes_over_under_load_and_no_call_fails(two, tmp_path):
    following = copy_version(tmp_path, NEXT)
    async with load_of(two) as load:
        await under_way(load)
        two.lead_to(following)
        begun = time.monotonic()
        done = await asyncio.to_thread(two.reload)
        assert (done.returncode, done.stderr) == (0, "")
        assert await asyncio.to_thread(two.version) == NEXT
        assert two.process.poll() is None
        await asyncio.sleep(SECONDS)  # all streams of the old version have ended
    print(load.count(), f"slowest call {load.slowest('call', begun):.2f} s")
    assert load.failed() == []
    made = {one.request_id for one in load.answers if one.request_id}
    until(lambda: made <= two.installation.usage().keys())
    assert {row["status"] for name, row in two.installation.usage().items() if name in made} == {"finished"}


async def test_a_version_that_does_not_start_takes_nothing_over(two, tmp_path):
    broken = copy_version(tmp_path, NEXT)
    (broken / "apiproxy" / "server" / "front.py").write_text("raise RuntimeError('unfinished')\n")
    version, before = two.version(), two.gateways()
    async with load_of(two) as load:
        await under_way(load)
        two.lead_to(broken)
        done = await asyncio.to_thread(two.reload)
        assert done.returncode == 1
        assert str(broken) in done.stderr
    assert load.failed() == []
    assert two.version() == version
    assert two.gateways() == before


async def test_calls_wait_while_everything_is_restarted_on_sockets_that_stay(two):
    """As `systemctl restart`, with the listeners in units of their own."""
    two.lead_to(ROOT)
    async with load_of(two) as load:
        await under_way(load)
        begun = time.monotonic()
        await asyncio.to_thread(two.stop)
        await asyncio.to_thread(two.start)
    print(load.count(), f"slowest call {load.slowest('call', begun):.2f} s")
    assert load.failed() == []


async def test_a_killed_gateway_cuts_its_own_answers_and_no_call_that_comes_later(two):
    async with load_of(two) as load:
        await under_way(load)
        victim = two.gateways()[0]
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: len(set(two.gateways()) - {victim}) == 2)
        await asyncio.sleep(SECONDS)
    failed = load.failed()
    print(load.count(), load_of_failures(load), f"slowest call {load.slowest('call', killed):.2f} s")
    assert all(one.began <= killed + 0.1 for one in failed)
    assert sum(one.kind == "stream" for one in failed) < STREAMS
    assert sum(one.kind == "call" for one in failed) <= 3


def test_pages_stay_when_a_version_is_given_up_after_its_portal_was_published(two, tmp_path):
    broken = copy_version(tmp_path, NEXT)
    up = broken / "apiproxy" / "bridge" / "management" / "commands" / "up.py"
    text = up.read_text()
    assert text.count("report_ready(os.environ)") == 1
    up.write_text(text.replace("report_ready(os.environ)", "raise RuntimeError('unfinished')"))
    before = two.gateways()
    two.lead_to(broken)
    assert two.reload().returncode == 1
    two.lead_to(ROOT)
    until(lambda: two.gateways() == before)  # those of the other version have ended
    with httpx2.Client(base_url=two.installation.url) as http:  # the gateways' own port
        until(lambda: http.get("/sign-in/").status_code == 200, 5)


def test_callers_are_refused_in_time_while_no_gateway_starts_and_served_once_one_does(two, tmp_path):
    """`up` goes on, so what started it knows of nothing."""
    version = copy_version(tmp_path, NEXT)
    two.lead_to(version)
    assert two.reload().returncode == 0
    until(lambda: len(two.gateways()) == 2)
    front = version / "apiproxy" / "server" / "front.py"
    text = front.read_text()
    front.write_text("raise RuntimeError('broken meanwhile')\n")
    for pid in two.gateways():
        os.kill(pid, signal.SIGKILL)
    with httpx2.Client(base_url=two.nginx.url, verify=two.nginx.trust(), timeout=PATIENCE_AFTER_FAILURE + 20) as http:
        answer = http.post("/v1/chat/completions", json={"model": "plain", "messages": []})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_unavailable")
        assert http.get("/sign-in/").status_code == 200
        front.write_text(text)
        until(lambda: http.get("/v1/models").status_code == 401, 60)
    two.lead_to(ROOT)
    assert two.reload().returncode == 0


def load_of_failures(load: Load) -> dict[str, int]:
    return dict(Counter(f"{one.kind}: {one.why}" for one in load.failed()))


def test_what_the_gateway_before_still_answers_counts_against_limits_of_the_next(tmp_path):
    """Without Redis each counts in its memory."""
    with site(tmp_path) as one, client(one) as http:
        one.installation.manage(
            *("setquota", "--tenant", "research", "--unit", "tokens", "--per", "day", "--amount", "1000000")
        )
        one.start()
        (before,) = one.gateways()
        with http.stream("POST", "/v1/chat/completions", json=large_stream(20.0)) as response:
            pieces = response.iter_raw()
            next(pieces)
            assert one.reload().returncode == 0
            assert [status(http) for _ in range(2)] == [200, 200]
            assert one.gateways() != [before]
            assert b"".join(pieces).endswith(DONE.encode())
        until(lambda: before not in one.gateways())
        until(lambda: status(http) == 429, 20)


def client(running: Site) -> httpx2.Client:
    """Return a client that opens a connection for each call."""
    headers = {"authorization": f"Bearer {running.key}", "connection": "close"}
    return httpx2.Client(base_url=running.installation.url, headers=headers, timeout=30)


def status(http: httpx2.Client) -> int:
    return http.post("/v1/chat/completions", json={"model": "plain", "messages": []}).status_code


def large_stream(seconds: float) -> dict[str, Any]:
    """Return a call whose answer takes so long, and two million tokens."""
    end = chunk(FINISH + usage_event(7, 2_000_000) + DONE) + "0\r\n\r\n"
    script = [{"send": SSE}, {"events": 4, "every": seconds / 4}, {"send": end}]
    return {"model": "plain", "messages": [], "stream": True, "script": script}
