"""python -m tests.gpu.check [--out FILE]: is what we know of GPUs true on this machine? Five minutes, no network.

For a host with an NVIDIA GPU, and no part of CI. It looks at

1. the cards: what `modelregistry.process.gpus` reads through NVML, beside what nvidia-smi says;
2. CUDA alone: what a process takes of a card beyond what it asked for, and whether the driver says whose it is;
3. real engines: each that this host has gets a model of random weights, is planned and started by a supervisor of its
   own state directory, asked, and measured beside its prediction; a second model waits while others fill the card; the
   supervisor and all of Madoguchi are killed, and nothing is left on the card. Without an engine this part says so;
4. llama-server's memory in shapes of known models, contexts, slots and arguments (`check_memory`).

It prints a report. Exit status: 0 all is as planned, 1 something is not, 2 there is no GPU.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import django
import httpx2
from django.conf import settings

from modelregistry.engines import programs
from modelregistry.engines.registry import launched_by
from modelregistry.memory import llama_cpp as llama_cpp_memory
from modelregistry.memory import vllm as vllm_memory
from modelregistry.memory.placement import GPU_MARGIN
from modelregistry.process import gpus
from modelregistry.process.gpus import Device
from tests.gpu import check_memory
from tests.gpu.check_cuda import ASKED, holding
from tests.installation import Installation, installed
from tests.waiting import until

MIB = 1024**2
READY_WITHIN = 200.0  # seconds; vLLM compiles and records graphs before its first answer
SLACK = 64 * MIB  # what a driver may take or give back between two looks
ERROR = 0.20  # of a prediction, either way: what the memory table allows
ROOM_LEFT = 1024 * MIB  # on a card that others fill; a second model of 1.9 GB does not fit there
# Prompt and answer of a question that fills more than one batch of llama.cpp's.
QUESTION = {"prompt": " ".join(["word"] * 300), "max_tokens": 16, "temperature": 0}


KEY = """
from portal.accounts.models import Tenant
from portal.keys.lifecycle import issue_key
print(issue_key(tenant=Tenant.objects.create(slug="check", name="check"), service="check", name="check")[1])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One comparison. `well` None: for the record, there is nothing to compare with."""

    what: str
    planned: str
    seen: str
    well: bool | None

    def __str__(self) -> str:
        sign = {True: "ok  ", False: "DIFF", None: "    "}[self.well]
        return f"{sign} {self.what}: planned {self.planned}, seen {self.seen}"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, help="where the findings go as JSON, too")
    out = options.parse_args().out
    found = cards()
    if not found:
        print("There is no NVIDIA GPU here, or its driver is not loaded.", file=sys.stderr)
        return 2
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
    django.setup()
    findings = []
    for part in (compare_cards(found), compare_context(found[0]), compare_engines(found[0])):
        for finding in completed(part):
            print(finding, flush=True)
            findings.append(finding)
    if out:
        out.write_text(json.dumps([asdict(finding) for finding in findings], indent=1))
    return 1 if any(finding.well is False for finding in findings) else 0


def completed(part: Iterator[Finding]) -> Iterator[Finding]:
    """Yield what it finds; what ends it early is a finding too, and the other parts follow."""
    try:
        yield from part
    except Exception:  # noqa: BLE001 -- whatever it is
        yield Finding(what="this part", planned="to its end", seen=traceback.format_exc(), well=False)


def cards() -> list[Device]:
    return [device for device in gpus.list_devices() if device.kind == "gpu" and not device.fault]


def mib(size: float) -> str:
    return f"{size / MIB:,.0f} MiB"


# --- 1 the cards


def compare_cards(found: list[Device]) -> Iterator[Finding]:
    names = "index,uuid,name,memory.total,memory.used,memory.free"
    command = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    rows = [[word.strip() for word in line.split(",")] for line in told.splitlines()]
    whole = [device for device in found if not device.uuid.startswith("MIG-")]
    yield Finding(what="cards", planned=str(len(whole)), seen=str(len(rows)), well=len(whole) == len(rows) or not whole)
    for device, (index, uuid, name, total, used, free) in zip(whole, rows, strict=False):
        same = (str(device.index), device.uuid, device.name) == (index, uuid, name)
        yield Finding(what=f"card {index}", planned=f"{device.name} {device.uuid}", seen=f"{name} {uuid}", well=same)
        # Totals are the driver's; what is used may change between the two looks.
        for what, ours, theirs, most in (
            ("total", device.total, float(total) * MIB, MIB),
            ("used", device.used, float(used) * MIB, SLACK),
            ("free", device.free, float(free) * MIB, SLACK),
        ):
            well = abs(ours - theirs) <= most
            yield Finding(what=f"card {index}, {what}", planned=mib(ours), seen=mib(theirs), well=well)


# --- 2 CUDA alone


def compare_context(card: Device) -> Iterator[Finding]:
    """Yield a process with a context and 1 GiB on the first card."""
    before = card.used
    with holding(card) as pid:
        if pid is None:
            yield Finding(what="CUDA", planned="a context", seen="cannot be had, see above", well=False)
            return
        now = same_card(card)
        own = gpus.memory_held([now], {pid}).get(card.index)
        yield Finding(
            what="the driver tells whose memory it is",
            planned="yes",
            seen="yes" if own else "no (a container, or MIG)",
            well=None if own is None else True,
        )
        yield Finding(what="the card's use grows by", planned=mib(own or 0), seen=mib(now.used - before), well=None)
        bare = (own or now.used - before) - ASKED
        # PyTorch's and ggml's own libraries come on top of a bare context, so it must be the smaller one.
        for name, most in (("vLLM", vllm_memory.CUDA_CONTEXT), ("llama.cpp", llama_cpp_memory.CUDA_CONTEXT)):
            well = 0 < bare <= most
            yield Finding(
                what=f"a bare context, of {name}'s", planned=f"at most {mib(most)}", seen=mib(bare), well=well
            )
    yield nothing_left("left after its end", card)


def same_card(card: Device) -> Device:
    """Return it as it is now."""
    return next(device for device in cards() if device.index == card.index)


def nothing_left(what: str, before: Device) -> Finding:
    """Compare the card's use with what it was; a driver takes a moment to give back."""
    with contextlib.suppress(AssertionError):
        until(lambda: abs(same_card(before).used - before.used) <= SLACK, 5)
    left = same_card(before).used - before.used
    return Finding(what=what, planned="nothing", seen=mib(left), well=abs(left) <= SLACK)


# --- 3 engines


def compare_engines(card: Device) -> Iterator[Finding]:
    found = programs.find_engines(settings.ENGINE_COMMANDS, settings.CACHE, os.environ.get("PATH", os.defpath))
    on_gpu = [launcher for launcher, program in found.items() if not launched_by(launcher).runs_on_cpu(program)]
    if not on_gpu:
        yield Finding(what="engines", planned="–", seen="this host has none for GPUs", well=None)
        return
    with tempfile.TemporaryDirectory(prefix="madoguchi-gpu-") as directory:
        for launcher in on_gpu:
            path = model_for(launcher, Path(directory))
            with installed(Path(directory) / f"var-{launcher}") as place:
                yield from completed(compare_engine(place, launcher, path, card))
        for launcher in on_gpu:
            if launcher in ("llama-server", "xllamacpp"):
                yield from compare_starts(launcher, Path(directory))


def compare_starts(launcher: str, workspace: Path) -> Iterator[Finding]:
    """Yield each start of `check_memory`, and print its row of the table."""
    for start in check_memory.STARTS:
        yield from completed(compare_start(launcher, start, workspace))


def compare_start(launcher: str, start: check_memory.Start, workspace: Path) -> Iterator[Finding]:
    taken = check_memory.measure(start, launcher, settings.ENGINE_COMMANDS, workspace)
    print(check_memory.line(taken), flush=True)
    yield Finding(
        what=f"{start.model}, error {taken.error:+.1%}",
        planned=mib(taken.allocation.prediction.total),
        seen=mib(taken.worked),
        well=abs(taken.error) <= ERROR,
    )
    in_log = check_memory.buffers((taken.run / "engine.log").read_text())
    ram = f"{mib(taken.ram)} of RAM" + "".join(f", {name} {size:,.0f}" for name, size in in_log.items())
    yield Finding(what="beside it", planned=f"{mib(taken.allocation.prediction.host)} of RAM", seen=ram, well=None)


def model_for(launcher: str, directory: Path) -> Path:
    """Return a chat model of random weights: 0.6 GB for llama.cpp, 2 GB for vLLM."""
    from tests import engines as made
    from tests import random_checkpoint, random_gguf
    from tests.bench.footprint import QWEN2

    if launcher != "vllm":
        path = directory / "qwen2.gguf"
        return path if path.exists() else random_gguf.write(path, QWEN2)
    size = {"layers": 16, "hidden": 2048, "feed_forward": 8192, "heads": 32, "kv_heads": 8}
    return random_checkpoint.write(directory / "llama", made.tiny_llama(), **size)


def compare_engine(place: Installation, launcher: str, path: Path, card: Device) -> Iterator[Finding]:
    register(place, "m", launcher, path, context=4096)
    began = time.monotonic()
    place.start()
    try:
        place.ready("m", seconds=READY_WITHIN)
        yield Finding(what=f"{launcher} starts", planned="–", seen=f"in {time.monotonic() - began:.0f} s", well=None)
        key = place.manage("shell", "--verbosity", "0", "--command", KEY)
        yield answers(place, key, launcher)
        replica = until(lambda: (row := now(place, "m")) and row["memory_bytes"] and row, 60)
        predicted, measured = replica["predicted_bytes"], replica["memory_bytes"]
        error = predicted / measured - 1
        yield Finding(
            what=f"{launcher} {replica['version']} on {replica['devices']}, error {error:+.1%}",
            planned=mib(predicted),
            seen=mib(measured),
            well=abs(error) <= ERROR,
        )
        yield from compare_full_card(place, launcher, path, card)
        yield from compare_killed(place, key, launcher, card)
    except AssertionError:
        replica = now(place, "m") or {}
        yield Finding(
            what=launcher, planned="ready", seen=f"{replica.get('state')}: {replica.get('detail')}", well=False
        )
    finally:
        if place.process.poll() is None:
            place.stop()
    yield nothing_left(f"{launcher} stopped: left on the card", card)


def register(place: Installation, name: str, launcher: str, path: Path, context: int) -> None:
    engine = "vllm" if launcher == "vllm" else "llama.cpp"
    choice = [] if launcher == "vllm" else ["--launcher", launcher]
    words = ("--engine", engine, "--path", str(path), "--context", str(context), "--slots", "8", *choice)
    place.manage("registermodel", name, *words)


def answers(place: Installation, key: str, what: str) -> Finding:
    headers = {"authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=place.url, headers=headers, timeout=120) as client:
        status = client.post("/v1/completions", json={**QUESTION, "model": "m"}).status_code
    return Finding(what=f"{what} answers", planned="200", seen=str(status), well=status == 200)


def compare_full_card(place: Installation, launcher: str, path: Path, card: Device) -> Iterator[Finding]:
    """Yield whether a model waits while a process that is not ours holds the card, and starts when that has ended."""
    room = same_card(card).free - GPU_MARGIN
    with holding(card, room - ROOM_LEFT) as pid:
        yield Finding(what="others hold", planned=mib(room - ROOM_LEFT), seen="yes" if pid else "no", well=bool(pid))
        register(place, "second", launcher, path, context=8192)
        replica = until(lambda: (row := now(place, "second")) and (row["cause"] or row["state"] == "ready") and row, 60)
        yield Finding(
            what="a model on a full card",
            planned="does-not-fit",
            seen=f"{replica['cause']} ({replica['state']}): {replica['detail']}",
            well=replica["cause"] == "does-not-fit",
        )
    began = time.monotonic()
    place.ready("second", seconds=READY_WITHIN)
    yield Finding(what="it starts", planned="–", seen=f"{time.monotonic() - began:.0f} s after the end", well=None)
    place.manage("unregistermodel", "second")


def compare_killed(place: Installation, key: str, launcher: str, card: Device) -> Iterator[Finding]:
    """Yield what is left on the card when the supervisor is killed, and when all of Madoguchi is."""
    until(lambda: [row["model"] for row in place.rows("replicas")] == ["m"], 60)
    replica = now(place, "m") or {}
    supervisor = place.pid_of("manage.py supervise")
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: any("manage.py supervise" in what and pid != supervisor for pid, what in place.processes().items()))
    until(lambda: (row := now(place, "m")) and row["state"] == "ready", READY_WITHIN)
    again = now(place, "m") or {}
    yield Finding(
        what="after a killed supervisor the engine is process",
        planned=str(replica.get("pid")),
        seen=str(again.get("pid")),
        well=again.get("pid") == replica.get("pid"),
    )
    yield answers(place, key, "it")
    place.process.kill()
    place.process.wait()
    with contextlib.suppress(AssertionError):
        until(lambda: not place.processes(), 60)
    left = place.processes()
    yield Finding(what="after a killed `up`, processes", planned="none", seen=str(len(left)), well=not left)
    yield nothing_left(f"{launcher} killed: left on the card", card)


def now(place: Installation, name: str) -> dict[str, Any] | None:
    found = {model["name"]: model for model in json.loads(place.manage("models", "--json"))}
    return next(iter(found[name]["replicas"]), None)  # none before the supervisor has seen it


if __name__ == "__main__":
    sys.exit(main())
