"""Three models in room for two, called all the time through the gateway by clients that never try again.

Meanwhile their supervisor is killed, and comes back; then everything is: gateway, supervisor, engines, Redis.
"""

import http.client
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from apiproxy.dataplane.scheduler import MAX_WAIT
from tests.installation import Installation, installed
from tests.modelregistry import paper_models
from tests.redis import Redis, redis_server
from tests.waiting import until

RECORDED = Path(__file__).parent / "modelregistry" / "supervisor" / "recorded_nvml"
FAKE = Path(__file__).parent / "modelregistry" / "llama_server.py"
GIB = 2**30
NAMES = ("a", "b", "c")
LOAD = 3  # seconds
CLIENTS = 6
SECONDS = float(os.environ.get("ROOM_FOR_TWO_SECONDS", "40"))


CALM = (3.0, 7.0)  # seconds between two kills
PARTS = ("gateway", "supervisor", "engine", "redis")


@pytest.fixture
def redis_process() -> Iterator[Redis]:
    with redis_server() as running:
        yield running


@pytest.fixture
def host(tmp_path, redis_process) -> Iterator[Installation]:
    """Provide an installation with one card that has room for two of its three models."""
    var = tmp_path / "var"
    models = tmp_path / "models"
    cards = tmp_path / "nvml.json"
    card = {"uuid": "GPU-a", "name": "NVIDIA A100", "total": 80 * GIB, "used": GIB // 2, "processes": {}, "error": 0}
    cards.write_text(json.dumps({"error": 0, "cards": [card], "models": str(models)}))
    environment = {
        "PYTHONPATH": str(RECORDED),
        "RECORDED_NVML": str(cards),
        "LLAMA_SERVER_COMMAND": f"{sys.executable} {FAKE}",
        "ENGINE_STOP_GRACE": "3",
        "REDIS_URL": redis_process.url,
    }
    with installed(var, **environment) as installation:
        for name in NAMES:
            rows = 30 * GIB // (2 * 4096)
            path = paper_models.gguf(models / f"{name}.gguf", tensors={"token_embd.weight": ("F16", (rows, 4096))})
            options = ("--launcher", "llama-server", "--context", "2048", "--slots", "4")
            behave = (f"--arg=--behave=loading={LOAD}",)
            installation.manage("registermodel", name, "--engine", "llama.cpp", "--path", str(path), *options, *behave)
        yield installation


@dataclass
class Call:
    model: str
    seconds: float
    waited: float  # until the first token
    complete: bool
    began: float = 0.0  # monotonic, like `ended`
    ended: float = 0.0
    request_id: str = ""
    why: str = ""  # it is not complete


def call(url: str, key: str, model: str, tokens: int) -> Call:
    body = {"model": model, "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    request = Request(f"{url}/v1/chat/completions", data=json.dumps(body).encode(), headers=headers)
    begun, first, lines, request_id, why = time.monotonic(), 0.0, [], "", "cut"
    try:
        with urlopen(request, timeout=MAX_WAIT + 60) as answer:
            request_id = answer.headers["x-request-id"]
            for line in answer:
                if line.startswith(b"data:"):
                    first = first or time.monotonic()
                    lines.append(line)
    except HTTPError as error:
        why = json.loads(error.read())["error"]["code"]
    except (URLError, OSError, http.client.HTTPException) as error:
        why = repr(error)
    ended = time.monotonic()
    complete = sum(b'"content"' in line for line in lines) == tokens and lines[-1].startswith(b"data: [DONE]")
    why = "" if complete else b"".join(lines[-2:]).decode() or why
    return Call(model, ended - begun, (first or ended) - begun, complete, begun, ended, request_id, why)


@contextmanager
def calling(installation: Installation, key: str, seconds: float) -> Iterator[list[Call]]:
    """Call all the time meanwhile, for so many seconds; all calls are over afterwards."""
    made: list[Call] = []
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            made.append(call(installation.url, key, rng.choices(NAMES, (5, 3, 2))[0], rng.randint(5, 80)))
            time.sleep(rng.uniform(0, 4))

    clients = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    yield made
    for client in clients:
        client.join()


def kill_supervisor(installation: Installation) -> None:
    for pid, command in installation.processes().items():
        if "supervise" in command.split():
            os.kill(pid, signal.SIGKILL)


@dataclass
class Kill:
    """`model`: of the engine, or "". `over`: when it can hurt no further call."""

    part: str
    model: str
    at: float
    over: float


class Killer:
    """Kills a part of the installation at random, and waits until it is replaced."""

    def __init__(self, installation: Installation, redis: Redis, dice: random.Random) -> None:
        self.installation = installation
        self.redis = redis
        self.dice = dice
        self.kills: list[Kill] = []

    def engines(self) -> dict[str, list[int]]:
        """Return the processes of engines that run, by their model."""
        found: dict[str, list[int]] = {}
        for pid, command in self.installation.processes().items():
            words = command.split()
            if words and "python" in words[0] and FAKE.name in words[1]:
                found.setdefault(words[words.index("--alias") + 1], []).append(pid)
        return found

    def kill(self, part: str) -> None:
        at, model = time.monotonic(), ""
        if part == "redis":
            self.redis.kill()
            time.sleep(self.dice.uniform(0, 2))
            self.redis.start()
        elif part == "supervisor":
            kill_supervisor(self.installation)
        elif part == "gateway":
            for pid, command in self.installation.processes().items():
                if "apiproxy.server.gateway_worker" in command:
                    os.kill(pid, signal.SIGKILL)
            until(self.installation.answers)
        elif running := self.engines():
            model = self.dice.choice(sorted(running))
            for pid in running[model]:
                os.kill(pid, signal.SIGKILL)
        self.kills.append(Kill(part, model, at, time.monotonic()))

    def excuses(self, call: Call) -> bool:
        """Return whether a part that the call needed was killed while it was under way."""
        return any(
            kill.at <= call.ended and call.began <= kill.over
            for kill in self.kills
            if kill.part == "gateway" or (kill.part == "engine" and kill.model == call.model)
        )


@pytest.mark.timeout(300 + SECONDS)
def test_no_call_fails_or_waits_for_ever(host):
    key = host.start_for()
    until(lambda: sum(row["state"] == "ready" for row in host.rows("replicas")) == 2)
    with calling(host, key, SECONDS) as made:
        for _ in range(2):
            time.sleep(SECONDS / 3)
            kill_supervisor(host)
    [(swaps,)] = host.read("select count(*) from modelregistry_evictionrecord")
    print(f"{len(made)} calls, {swaps} swaps, worst wait {max(one.waited for one in made):.1f} s")
    assert [one for one in made if not one.complete] == []
    assert {one.model for one in made} == set(NAMES)
    assert max(one.waited for one in made) <= MAX_WAIT + LOAD
    assert swaps > 0
    assert len([command for command in host.processes().values() if "llama_server.py" in command.split()[1]]) == 2
    until(lambda: len(host.usage()) == len(made))


@pytest.mark.timeout(300 + SECONDS)
def test_whatever_is_killed_no_waiter_is_lost(host, redis_process):
    dice = random.Random(int(os.environ.get("CHAOS_SEED") or 7))
    key = host.start_for()
    until(lambda: sum(row["state"] == "ready" for row in host.rows("replicas")) == 2)
    killer = Killer(host, redis_process, dice)
    with calling(host, key, SECONDS) as made:
        end = time.monotonic() + SECONDS
        parts: list[str] = []
        while time.monotonic() < end:
            calm = time.monotonic() + dice.uniform(*CALM)
            while time.monotonic() < calm:
                assert all(len(pids) == 1 for pids in killer.engines().values())
                time.sleep(0.25)
            parts = parts or dice.sample(PARTS, len(PARTS))
            killer.kill(parts.pop())
    for one in made:
        if not one.complete:
            print(one.model, f"{one.began:.1f}-{one.ended:.1f}", one.why, killer.excuses(one))
    print(*killer.kills, sep="\n")
    complete = [one for one in made if one.complete]
    print(f"{len(made)} calls, {len(complete)} complete, worst wait {max(one.waited for one in made):.1f} s")
    assert [one for one in made if not one.complete and not killer.excuses(one)] == []
    assert max(one.waited for one in made) <= MAX_WAIT + LOAD
    assert {kill.part for kill in killer.kills} == set(PARTS)
    until(lambda: {one.request_id for one in complete} <= set(host.usage()))
    rows = host.usage()
    assert {rows[one.request_id]["status"] for one in complete} == {"finished"}
    assert len(rows) <= len(made)
