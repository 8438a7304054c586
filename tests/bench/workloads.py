"""The loads that are put on a gateway, and what the load generator saw."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.processes import pinned

LOADGEN = Path(__file__).with_name("bin") / "loadgen"
PATIENCE = 120  # seconds for one load; the longest takes 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`clients` connections with one request at a time; `tokens` = 0: answers in one piece, else streams.

    `requests` in all (0: one for each client). `pace` in ms between two tokens of a stream (0: as fast as they go).
    `ramp`: the clients' starts are spread over so many ms.
    """

    name: str
    clients: int
    requests: int = 0
    tokens: int = 0
    pace: int = 0
    ramp: int = 0

    def arguments(self) -> list[str]:
        arguments = ["-c", str(self.clients), "-n", str(self.requests or self.clients), "-t", str(PATIENCE)]
        if self.tokens:
            body = f'"x_n":{self.tokens},"x_pace":{self.pace}'
            arguments += ["-m", "stream", "-T", str(self.tokens), "-b", body, "-r", str(self.ramp)]
        return arguments


WARM_UP = (
    Workload(name="warm-up", clients=8, requests=200),
    Workload(name="warm-up", clients=8, requests=32, tokens=20),
)
# 30 tokens a second is what a person reads comfortably, and about what one engine gives each of many.
WORKLOADS = (
    Workload(name="unary", clients=32, requests=6000),
    Workload(name="burst", clients=64, requests=640, tokens=100),
    Workload(name="paced 100", clients=100, tokens=300, pace=33, ramp=1000),
    Workload(name="paced 500", clients=500, tokens=300, pace=33, ramp=3000),
)


def load(workload: Workload, *, port: int, key: str, core: int) -> dict[str, Any]:
    """What the load generator saw; see the head of loadgen.c. Blocks until the load is done."""
    command = [str(LOADGEN), "-p", str(port), "-k", key, "-M", "fake-model", *workload.arguments()]
    done = subprocess.run(pinned(command, core), capture_output=True, text=True, timeout=PATIENCE + 30)
    if not done.stdout:
        raise SystemExit(f"loadgen: {done.stderr}")
    return json.loads(done.stdout)
