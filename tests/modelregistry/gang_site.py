"""A site with several hosts, each a process of its own with a recorded card, and models that are split over them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from django.conf import settings

from modelregistry.models import Host, Replica, ServedModel
from modelregistry.process import process
from modelregistry.process.process import Life, Run
from tests import ports
from tests.modelregistry import paper_models
from tests.modelregistry.site import Site
from tests.waiting import until

FAKE = Path(__file__).with_name("vllm_ranks.py")
RECORDED = Path(__file__).parent / "supervisor" / "recorded_nvml"
GIB = 2**30
LIVING = (Life.RUNNING, Life.ENDING)


class Machine:
    """A host. It is reached by TCP, and has one card of 80 GB.

    `environment`: of one with real engines instead, and this machine's memory.
    """

    def __init__(self, place: Path, environment: dict[str, str] | None = None) -> None:
        self.var = place
        self.environment = environment
        self.port = ports.unused_port()
        self.cards = place / "nvml.json"
        self.runs = process.Runs(place / "run" / "engines")
        self.process: subprocess.Popen[str] | None = None
        self.python = sys.executable
        place.mkdir()
        self.occupy(0)

    def occupy(self, gib: int) -> None:
        """Have a stranger hold so much of its card."""
        card = {"name": "NVIDIA A100", "total": 80 * GIB, "used": gib * GIB, "processes": {}, "error": 0}
        draft = self.cards.with_suffix(".new")
        draft.write_text(json.dumps({"error": 0, "cards": [{**card, "uuid": f"GPU-{self.var.name}"}]}))
        draft.replace(self.cards)

    def install(self, version: str) -> None:
        """Have a Python of its own for its engine, in which vLLM has this version."""
        python = self.var / "python3"
        draft = self.var / "python3.new"
        draft.write_text(f'#!/bin/sh\n[ "$1" = -I ] && exec echo {version}\nexec {sys.executable} "$@"\n')
        draft.chmod(0o755)
        draft.replace(python)
        self.python = str(python)

    def start(self) -> None:
        path = os.pathsep.join([str(RECORDED), str(settings.BASE_DIR)])
        recorded = {
            **{"VLLM_COMMAND": f"{self.python} {FAKE}", "VLLM_CARDS": str(self.cards)},
            **{"PYTHONPATH": path, "RECORDED_NVML": str(self.cards)},
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.modelregistry.remote_machine", str(self.port), str(self.var)],
            cwd=settings.BASE_DIR,
            env={"PATH": os.environ["PATH"], **(self.environment or recorded)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "listening\n"

    def fall_silent(self) -> None:
        """Answer nothing from now on; engines go on."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def answer_again(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def die(self) -> None:
        """Go as by a power failure: with all engines."""
        self.fall_silent()
        for run in self.living_runs():
            os.kill(run.shim.pid, signal.SIGKILL)
            process.kill(process.find_leftovers(run))

    def living_runs(self) -> list[Run]:
        return [run for run in self.runs.all() if process.life_of(run) in LIVING]

    def living(self) -> list[int]:
        """Return the processes of every engine that was ever started here, with shims and children."""
        runs = self.runs.all()
        return [run.shim.pid for run in self.living_runs()] + [
            who.pid for run in runs for who in process.find_leftovers(run)
        ]

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout
            self.process.stdout.close()
        for run in self.runs.all():
            process.stop(run, grace=0)
        assert self.living() == []


class GangSite(Site):
    def __init__(self, place: Path, hosts: int = 2, environment: dict[str, str] | None = None) -> None:
        super().__init__(place)
        self.models = place / "models"
        self.models.mkdir()
        names = [f"gpu-{number}" for number in range(1, hosts + 1)]
        self.machines = {name: Machine(place / name, environment) for name in names}
        self.command = ["-m", "tests.modelregistry.cluster_controller"]
        self.environment |= {
            "MADOGUCHI_CACHE": str(place / "cache"),  # this machine has no vLLM
            "LLAMA_SERVER_COMMAND": "",
            "ENGINE_STOP_GRACE": "1",
            "HOST_PORTS": json.dumps({name: one.port for name, one in self.machines.items()}),
        }

    def start(self) -> None:
        for machine in self.machines.values():
            machine.start()
        self.supervise()

    def gang(self, name: str = "m", nodes: int = 2, **fields: object) -> ServedModel:
        directory = paper_models.small_llama(self.models / name)
        args = ["--gpu-memory-utilization=0.5"]  # 40 GB of the card of each of its hosts
        values = {"engine": "vllm", "path": str(directory), "context": 2048, "tensor_parallel": nodes, "nodes": nodes}
        return ServedModel.objects.create(name=name, **(values | {"args": args} | fields))

    def behave(self, name: str = "m", **how: object) -> None:
        draft = self.models / name / "behave.new"
        draft.write_text(json.dumps(how))
        draft.replace(self.models / name / "behave.json")

    def starts(self, name: str = "m") -> list[dict[str, Any]]:
        path = self.models / name / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def is_ready(self, name: str = "m", nodes: int = 2, first: int = 0, *, down: str = "") -> list[Replica] | None:
        """Return the rows of its ranks, in their order, once all of them are there and rank 0 answers.

        `down`: a host that was not looked at since, so that its rows are as before.
        """
        wanted = ["ready", *["joined"] * (nodes - 1)]
        numbers = range(first, first + nodes)
        rows = Replica.objects.filter(model__name=name, index__in=numbers, state__in=wanted).select_related("host")
        found = list(rows.exclude(host__name=down).order_by("index"))
        return found if [row.state for row in found] == wanted else None

    def serves(self, name: str = "m", nodes: int = 2, first: int = 0) -> list[Replica]:
        return until(lambda: self.is_ready(name, nodes, first))

    def serves_again(
        self, before: list[Replica], name: str = "m", seconds: float = 60, *, down: str = ""
    ) -> list[Replica]:
        """Wait until a later start of the gang serves."""
        runs = {row.run_id for row in before}

        def look() -> list[Replica] | None:
            rows = self.is_ready(name, len(before), down=down)
            return rows if rows and runs.isdisjoint(row.run_id for row in rows) else None

        return until(look, seconds)

    def run_of_rank(self, row: Replica) -> Run:
        run = self.machines[row.host.name].runs.find(row.run_id)
        assert run
        return run

    def living_ranks(self) -> dict[str, int]:
        """Return how many ranks run on each host."""
        return {name: len(one.living_runs()) for name, one in self.machines.items()}

    def maintain(self, name: str, *, on: bool = True) -> None:
        Host.objects.filter(name=name).update(maintenance=on)

    def close(self) -> None:
        try:
            super().close()
        finally:
            for machine in self.machines.values():
                machine.close()


def ask(row: Replica, seconds: float = 20) -> str:
    """Return rank 0's answer, which takes all ranks."""
    body = {"model": row.model.name, "messages": [{"role": "user", "content": "hi"}]}
    request = Request(
        f"{row.url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {row.api_key}", "content-type": "application/json"},
    )
    with urlopen(request, timeout=seconds) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])
