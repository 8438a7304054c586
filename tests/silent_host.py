"""unshare --net python -m tests.silent_host VAR: what callers see while the host of an engine is silent, as JSON.

Gateway and callers are in the network namespace that this is started in, the engine is in another one; the wire between
them is cut for a while and mended. Needs root and iproute2.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import httpx2

from apiproxy.dataplane.crash_inquiry import ENGINE_DIED
from tests import engine
from tests.installation import Installation, installed
from tests.waiting import until

NEAR, FAR = "192.0.2.1", "192.0.2.2"  # RFC 5737: for examples
MODEL = "assembled"  # served by an engine of our own, as far as the gateway knows
CUT_SECONDS = 4.0
LINES = [*[{"send": engine.chunk(engine.token(1))}, {"wait": 0.1}] * 600]


def main(var: Path) -> None:
    ip("link", "set", "lo", "up")
    with far_engine() as (port, far), installed(var) as place:
        key = place.furnish(f"http://{FAR}:{port}")
        place.serve()
        until(place.answers)
        with httpx2.Client(base_url=place.url, headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
            print(json.dumps(watch(place, client, lambda state: far("ip", "link", "set", "far", state))))
        place.process.terminate()
        place.process.wait(30)


def watch(place: Installation, client: httpx2.Client, wire: Callable[[str], None]) -> dict[str, object]:
    until(lambda: ready(place) == 1)
    stream = Stream(client)
    until(lambda: stream.events > 3)
    for _ in range(20):
        assert ask(client)[0] == 200
    wire("down")
    cut = time.monotonic()
    away: float | None = None
    calls = []
    while time.monotonic() - cut < CUT_SECONDS:
        calls.append(ask(client))
        if away is None and ready(place) == 0:
            away = time.monotonic() - cut
    wire("up")
    mended = time.monotonic()
    until(lambda: ready(place) == 1, 20)
    back = time.monotonic() - mended
    stream.thread.join(30)
    return {
        "off_after": away,
        "back_after": back,
        "statuses": sorted({status for status, _ in calls}),
        "calls": len(calls),
        "longest": max(seconds for _, seconds in calls),
        "then": ask(client)[0],
        "stream_ended_after": stream.ended - cut,
        "stream_last": stream.last,
        "blamed": place.log.count(ENGINE_DIED.split("%s")[1]),
    }


def ask(client: httpx2.Client) -> tuple[int, float]:
    began = time.monotonic()
    answer = client.post("/v1/chat/completions", json={"model": MODEL, "messages": []})
    return answer.status_code, time.monotonic() - began


class Stream:
    """A stream that goes on for a minute, if nothing happens to it."""

    def __init__(self, client: httpx2.Client) -> None:
        self.events, self.last, self.ended = 0, "", 0.0
        self.thread = threading.Thread(target=self._read, args=(client,))
        self.thread.start()

    def _read(self, client: httpx2.Client) -> None:
        body = {"model": MODEL, "messages": [], "stream": True, "script": [{"send": engine.SSE}, *LINES]}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    self.events, self.last = self.events + 1, line
        self.ended = time.monotonic()


def ready(place: Installation) -> int:
    """Return the value that /metrics has."""
    with urlopen(f"{place.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith(f'madoguchi_replicas_ready{{model="{MODEL}"}}')]
    return int(line.split()[-1])


@contextlib.contextmanager
def far_engine() -> Iterator[tuple[int, Callable[..., None]]]:
    """Provide an engine at the other end of a wire: its port, and what runs a command over there."""
    command = ["unshare", "--net", "--kill-child", sys.executable, "-m", "tests.silent_host", "--engine"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        pid = int(process.stdout.readline())
        ip("link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(pid))
        ip("address", "add", f"{NEAR}/24", "dev", "near")
        ip("link", "set", "near", "up")
        process.stdin.write("\n")
        process.stdin.flush()

        def far(*words: str) -> None:
            subprocess.run(["nsenter", "--net", "--target", str(pid), *words], check=True)

        yield int(process.stdout.readline()), far
    finally:
        process.kill()
        process.wait()


def be_engine() -> None:
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    ip("link", "set", "lo", "up")
    ip("address", "add", f"{FAR}/24", "dev", "far")
    ip("link", "set", "far", "up")
    asyncio.run(engine.main("0.0.0.0"))


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


if __name__ == "__main__":
    be_engine() if sys.argv[1] == "--engine" else main(Path(sys.argv[1]))
