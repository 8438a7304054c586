"""The loads that are put on a gateway, and what the load generator saw."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.processes import Cores, pinned

LOADGEN = Path(__file__).with_name("bin") / "loadgen"
PATIENCE = 180  # seconds for one load; the longest takes 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`clients` connections with one request at a time; `tokens` = 0: answers in one piece, else streams.

    `requests` in all (0: one for each client). `pace` in ms between two tokens of a stream (0: as fast as they go).
    `ramp`: the clients' starts are spread over so many ms, during which no delay is noted. `rate`: no more requests are
    started in a second. `keys`: a file with one to a line, used in turn instead of the contender's own. `each`: so
    many of a stream's tokens are noted together, and the others are words of common length. `headers`: more of them.
    """

    name: str
    clients: int
    requests: int = 0
    tokens: int = 0
    pace: int = 0
    ramp: int = 0
    rate: int = 0
    keys: Path | None = None
    each: int = 1
    headers: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        arguments = ["-c", str(self.clients), "-n", str(self.requests or self.clients), "-t", str(PATIENCE)]
        if self.tokens:
            body = f'"x_n":{self.tokens},"x_pace":{self.pace}'
            if self.each > 1:
                body += f',"x_words":{self.each}'
            arguments += [
                "-m",
                "stream",
                "-T",
                str(self.tokens),
                "-b",
                body,
                "-r",
                str(self.ramp),
                "-w",
                str(self.ramp),
                "-E",
                str(self.each),
            ]
        for header in self.headers:
            arguments += ["-h", header]
        if self.rate:
            arguments += ["-R", str(self.rate)]
        if self.keys:
            arguments += ["-K", str(self.keys)]
        return arguments


def paced(streams: int, *, tokens: int = 300, ramp: int = 3000) -> Workload:
    """Return a load of so many streams at 30 tokens a second: as fast as a person reads."""
    return Workload(name=f"paced{streams}", clients=streams, tokens=tokens, pace=33, ramp=ramp)


WARM_UP = (
    Workload(name="warm-up", clients=8, requests=200),
    Workload(name="warm-up", clients=8, requests=32, tokens=20),
)
UNARY = Workload(name="unary", clients=32, requests=6000)
BURST = Workload(name="burst", clients=64, requests=640, tokens=100)
COMPARED = (UNARY, BURST, paced(100), paced(500), paced(1000))


def load(workload: Workload, *, port: int, key: str, cores: Cores) -> dict[str, Any]:
    """Return what the load generator saw; see the head of loadgen.c. Blocks until the load is done."""
    command = [str(LOADGEN), "-p", str(port), "-k", key, "-M", "fake-model", *workload.arguments()]
    done = subprocess.run(pinned(command, cores), capture_output=True, text=True, timeout=PATIENCE + 30)
    if not done.stdout:
        raise SystemExit(f"loadgen: {done.stderr}")
    return json.loads(done.stdout)
