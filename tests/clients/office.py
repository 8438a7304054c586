"""Callers with real clients: an office with a key, and the processes that its clients run in."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portal.usage.models import UsageRecord
from tests.clients.agent_engine import Agent
from tests.waiting import until

HERE = Path(__file__).parent
QUESTION = "Name three colours."
DOCUMENTS = ["I had an apple for lunch.", "Paris is the capital of France.", "The train was late."]


class Lines:
    """A process that reads a call per line and answers each with a line. It says "ready" first."""

    def __init__(self, *command: str | Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=offline(), stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Driver(Lines):
    """driver.py or driver.mjs in its environment."""

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.ask(json.dumps({"do": do, **arguments})))
        return told


def offline(**more: str) -> dict[str, str]:
    """Return an environment from which a client reaches this machine alone.

    Whatever it would like to ask the internet.
    """
    nowhere = "http://127.0.0.1:9"  # "discard": no program listens there
    proxies = {"HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "NO_PROXY": "127.0.0.1", "NODE_USE_ENV_PROXY": "1"}
    return {**os.environ, **proxies, **{name.lower(): value for name, value in proxies.items()}, **more}


@dataclass
class Office:
    """A caller with this key. Models are called as their task is; `fake` is for chat, `agent` calls tools."""

    url: str
    key: str
    agent: Agent

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    def rows(self, count: int = 1) -> list[UsageRecord]:
        """Return what was recorded, once there is so much."""
        until(lambda: UsageRecord.objects.count() >= count)
        return list(UsageRecord.objects.order_by("id"))


@dataclass
class Jdk:
    """The client with the office's key."""

    office: Office
    java: Lines

    def call(self, version: str, path: str, fields: dict[str, Any] | None = None) -> tuple[int, str, list[str]]:
        """Return its status, the version of HTTP that was spoken, and the lines of its body."""
        line = f"{version} {self.office.key} {self.office.v1}{path}"
        status, spoken, body = self.java.ask(f"{line} {json.dumps(fields)}" if fields else line).split("\t")
        return int(status), spoken, body.split("\x1f")


def answer(told: dict[str, Any]) -> Any:
    """Return what a driver's call gave. If it raised, the test ends with that."""
    assert "answer" in told, told
    return told["answer"]
