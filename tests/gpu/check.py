"""python -m tests.gpu.check [--out FILE]: is what we know of GPUs true on this machine? Five minutes, no network.

For a host with an NVIDIA GPU, and no part of CI. It looks at

1. the cards: what `modelregistry.process.gpus` reads through NVML, beside what nvidia-smi says;
2. CUDA alone: what a process takes of a card beyond what it asked for, and whether the driver says whose it is;
3. real engines: each that this host has gets a model of random weights, is planned and started by a supervisor of its
   own state directory, asked, and measured beside its prediction. Without an engine this part says so.

It prints a report. Exit status: 0 all is as planned, 1 something is not, 2 there is no GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
from django.conf import settings

from modelregistry.engines import programs
from modelregistry.engines.registry import launched_by
from modelregistry.memory import llama_cpp as llama_cpp_memory
from modelregistry.memory import vllm as vllm_memory
from modelregistry.process import gpus
from modelregistry.process.gpus import Device
from tests.gpu.check_cuda import ASKED
from tests.installation import Installation, installed
from tests.waiting import until

MIB = 1024**2
READY_WITHIN = 200.0  # seconds; vLLM compiles and records graphs before its first answer
ERROR = 0.20  # of a prediction, either way: what the memory table allows
# Prompt and answer of a question that fills more than one batch of llama.cpp's.
QUESTION = {"prompt": " ".join(["word"] * 600), "max_tokens": 16, "temperature": 0}


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
    findings = []
    for finding in (*compare_cards(found), *compare_context(found[0]), *compare_engines()):
        print(finding, flush=True)
        findings.append(finding)
    if out:
        out.write_text(json.dumps([asdict(finding) for finding in findings], indent=1))
    return 1 if any(finding.well is False for finding in findings) else 0


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
            ("used", device.used, float(used) * MIB, 64 * MIB),
            ("free", device.free, float(free) * MIB, 64 * MIB),
        ):
            well = abs(ours - theirs) <= most
            yield Finding(what=f"card {index}, {what}", planned=mib(ours), seen=mib(theirs), well=well)


# --- 2 CUDA alone


def compare_context(card: Device) -> Iterator[Finding]:
    """Yield a process with a context and 1 GiB on the first card."""
    before = card.used
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": card.uuid}
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.check_cuda"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert child.stdout
    try:
        if child.stdout.readline() != b"allocated\n":
            yield Finding(what="CUDA", planned="a context", seen="cannot be had, see above", well=False)
            return
        now = next(device for device in cards() if device.index == card.index)
        own = gpus.memory_held([now], {child.pid}).get(card.index)
        yield Finding(
            what="the driver tells whose memory it is",
            planned="yes",
            seen="yes" if own else "no (a container, or MIG)",
            well=None if own is None else True,
        )
        bare = (own or now.used - before) - ASKED
        # PyTorch's and ggml's own libraries come on top of a bare context, so it must be the smaller one.
        for name, most in (("vLLM", vllm_memory.CUDA_CONTEXT), ("llama.cpp", llama_cpp_memory.CUDA_CONTEXT)):
            well = 0 < bare <= most
            yield Finding(
                what=f"a bare context, of {name}'s", planned=f"at most {mib(most)}", seen=mib(bare), well=well
            )
    finally:
        child.communicate()
    again = next(device for device in cards() if device.index == card.index)
    left = again.used - before
    yield Finding(what="left after its end", planned="nothing", seen=mib(left), well=abs(left) <= 64 * MIB)


# --- 3 engines


def compare_engines() -> Iterator[Finding]:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
    found = programs.find_engines(settings.ENGINE_COMMANDS, settings.CACHE, os.environ.get("PATH", os.defpath))
    on_gpu = [launcher for launcher, program in found.items() if not launched_by(launcher).runs_on_cpu(program)]
    if not on_gpu:
        yield Finding(what="engines", planned="–", seen="this host has none for GPUs", well=None)
        return
    with tempfile.TemporaryDirectory(prefix="madoguchi-gpu-") as directory:
        for launcher in on_gpu:
            path = model_for(launcher, Path(directory))
            with installed(Path(directory) / f"var-{launcher}") as place:
                yield from compare_engine(place, launcher, path)


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


def compare_engine(place: Installation, launcher: str, path: Path) -> Iterator[Finding]:
    engine = "vllm" if launcher == "vllm" else "llama.cpp"
    choice = [] if launcher == "vllm" else ["--launcher", launcher]
    place.manage(
        *("registermodel", "m", "--engine", engine, "--path", str(path), "--context", "4096", "--slots", "8", *choice)
    )
    began = time.monotonic()
    place.start()
    try:
        place.ready("m", seconds=READY_WITHIN)
        key = place.manage("shell", "--verbosity", "0", "--command", KEY)
        with httpx2.Client(base_url=place.url, headers={"authorization": f"Bearer {key}"}, timeout=120) as client:
            answer = client.post("/v1/completions", json={**QUESTION, "model": "m"})
        well = answer.status_code == 200
        yield Finding(what=f"{launcher} answers", planned="200", seen=str(answer.status_code), well=well)
        yield Finding(what=f"{launcher} starts", planned="–", seen=f"in {time.monotonic() - began:.0f} s", well=None)
        replica = until(lambda: (row := now(place)) and row["memory_bytes"] and row, 60)
        predicted, measured = replica["predicted_bytes"], replica["memory_bytes"]
        error = predicted / measured - 1
        yield Finding(
            what=f"{launcher} {replica['version']} on {replica['devices']}, error {error:+.1%}",
            planned=mib(predicted),
            seen=mib(measured),
            well=abs(error) <= ERROR,
        )
    except AssertionError:
        replica = now(place) or {}
        yield Finding(
            what=launcher, planned="ready", seen=f"{replica.get('state')}: {replica.get('detail')}", well=False
        )
    finally:
        place.stop()
    left = [device for device in cards() if gpus.memory_held([device], set(place.processes()))]
    yield Finding(what=f"{launcher} left on the cards", planned="nothing", seen=str(len(left)), well=not left)


def now(place: Installation) -> dict[str, Any] | None:
    (model,) = json.loads(place.manage("models", "--json"))
    return next(iter(model["replicas"]), None)  # none before the supervisor has seen it


if __name__ == "__main__":
    sys.exit(main())
