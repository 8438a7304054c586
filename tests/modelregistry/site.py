"""A site with a supervisor of its own: a real `manage.py supervise` on the test's database."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TypeVar
from urllib.request import Request, urlopen

from django.conf import settings
from django.db import connections

from modelregistry.models import Replica, ServedModel
from modelregistry.process import process
from tests.modelregistry import paper_models
from tests.waiting import until

FAKE = Path(__file__).with_name("llama_server.py")
REFUSAL = "this model cannot do that"  # what it answers where it is to refuse its work
T = TypeVar("T")


class Site:
    def __init__(self, var: Path) -> None:
        self.var = var
        self.log = var / "supervisor.log"
        self.runs = process.Runs(var / "run" / "engines")
        self.processes: list[subprocess.Popen[str]] = []
        self.command = ["manage.py"]  # what a Python starts it by
        self.before: list[str] = []  # a command that runs it, as one that enters a network
        self.environment = {
            "MADOGUCHI_VAR": str(var),
            "MADOGUCHI_CACHE": str(settings.CACHE),
            "MADOGUCHI_HOST": "here",
            "DATABASE_URL": f"sqlite:///{connections['default'].settings_dict['NAME']}",
            "LLAMA_SERVER_COMMAND": f"{sys.executable} {FAKE}",
            "ENGINE_STOP_GRACE": "3",
            "MADOGUCHI_CANARY_HOUR": "off",
        }

    def supervise(self, *options: str, **environment: str) -> "subprocess.Popen[str]":
        with self.log.open("a") as log:
            supervisor = subprocess.Popen(
                [*self.before, sys.executable, *self.command, "supervise", *options],
                cwd=settings.BASE_DIR,
                env=os.environ | self.environment | environment,
                stderr=log,
                text=True,
            )
        self.processes.append(supervisor)
        return supervisor

    def model(self, name: str = "m", *behave: str, **fields: object) -> ServedModel:
        """Return a llama.cpp model for the stand-in; its file has a header and nothing behind it."""
        path = paper_models.gguf(self.var / "model.gguf")
        args = [f"--behave={each}" for each in behave]
        values = {"engine": "llama.cpp", "path": str(path), "args": args, **fields}
        return ServedModel.objects.create(name=name, **values)

    def replica(self, name: str = "m", number: int = 0) -> Replica | None:
        return Replica.objects.filter(model__name=name, index=number).first()

    def reaches(self, state: str, name: str = "m", number: int = 0, seconds: float = 60) -> Replica:
        def look() -> Replica | None:
            replica = self.replica(name, number)
            return replica if replica and replica.state == state else None

        return until(look, seconds)

    def run_of(self, replica: Replica) -> process.Run:
        run = self.runs.find(replica.run_id)
        assert run
        return run

    def living(self) -> list[int]:
        """Return the processes of every engine that was ever started here, with shims and children."""
        runs = self.runs.all()
        shims = [run.shim.pid for run in runs if process.life_of(run) in (process.Life.RUNNING, process.Life.ENDING)]
        return shims + [who.pid for run in runs for who in process.find_leftovers(run)]

    def close(self) -> None:
        if self.log.exists():
            print(self.log.read_text()[-30_000:])  # shown with the test if it failed
        for supervisor in self.processes:
            supervisor.kill()
            supervisor.wait()
        for run in self.runs.all():
            process.stop(run, grace=0)
        assert self.living() == []


def stream(replica: Replica, tokens: int) -> "Stream":
    return Stream(replica, tokens)


class Stream:
    """A streamed answer on its way."""

    def __init__(self, replica: Replica, tokens: int) -> None:
        body = '{"model": "%s", "stream": true, "max_tokens": %d, "messages": [{"role": "user", "content": "hi"}]}'
        request = Request(
            f"{replica.url}/v1/chat/completions",
            data=(body % (replica.model.name, tokens)).encode(),
            headers={"authorization": f"Bearer {replica.api_key}", "content-type": "application/json"},
        )
        self.response = urlopen(request, timeout=30)
        self.first = self.response.readline()

    def rest(self) -> str:
        return (self.first + self.response.read()).decode()
