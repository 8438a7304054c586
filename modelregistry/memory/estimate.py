"""How much memory an engine will take, and how much one takes. Bytes, everywhere. Pure but for `held`.

What a model takes on each of its devices = weights + cache + overhead:

- weights: what the files hold, split evenly over the devices of a tensor-parallel model;
- cache: keys and values of all tokens that may be remembered at a time. Engines take it whole at their start;
- overhead: what the engine itself needs: its libraries, processes, the driver's context, graphs, and the space for one
  batch. Constants of each launcher, measured, and corrected by what was measured on this host.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from modelregistry.engines import arguments
from modelregistry.engines.arguments import Arguments
from modelregistry.engines.registry import launched_by
from modelregistry.files import bounds
from modelregistry.files.metadata import ModelMetadata
from modelregistry.process.shim import Identity
from modelregistry.wire_bounds import Name

if TYPE_CHECKING:
    from modelregistry.engines.base import Spec

MIB = 2**20
GIB = 2**30
# No host has so much, so a plan does not distinguish larger sums: whatever is asked for, it fits into 63 bits.
MOST_BYTES = 1 << 56


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is to be started. `context` in tokens per request, None: the model's own; `slots` None: the engine's own.

    It is split over `tensor_parallel` × `stages` devices, on `nodes` hosts; this is one `rank` of them.
    """

    launcher: str
    task: str
    kind: str = "gpu"  # of the devices: "gpu" or "ram"
    context: int | None = None
    slots: int | None = None
    tensor_parallel: int = 1
    args: tuple[str, ...] = ()
    stages: int = 1
    nodes: int = 1
    rank: int = 0

    @classmethod
    def of(cls, spec: "Spec", launcher: str, kind: str) -> "Demand":
        return cls(
            launcher=launcher,
            task=spec.task,
            kind=kind,
            context=spec.context,
            slots=launched_by(launcher).planned_slots(spec),
            tensor_parallel=spec.cards(launcher),
            args=spec.args,
            stages=spec.stages(launcher),
            nodes=spec.nodes,
            rank=spec.rank,
        )

    @property
    def devices(self) -> int:
        """How many devices it takes in all, on all of its hosts."""
        return self.tensor_parallel * self.stages

    @property
    def devices_here(self) -> int:
        """How many devices it takes on each of its hosts."""
        return max(1, self.devices // self.nodes)

    @property
    def arguments(self) -> Arguments:
        """What the operator said, as this launcher reads it."""
        return arguments.read_arguments(self.launcher, self.args)

    def argument(self, *names: str) -> str | None:
        """Return the text of a value that the operator gave."""
        return self.arguments.text(*names)

    def number(self, *names: str) -> int | None:
        return self.arguments.number(*names)

    def has(self, *names: str) -> bool:
        """Return whether it was turned on, or given a value."""
        return self.arguments.flag(*names) is True


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Bytes on each of `devices` devices; `total` is their sum there, `rule_of_thumb` 1.5 × the weights there.

    `cache_least`: with less the engine would not do (vLLM may be given less than it wants). `context`, `sequences`: for
    how many requests of how many tokens the cache is. `batch`, `parallel`: how many tokens and requests vLLM computes
    at a time; 0: of another engine. `apart`: of the overhead, what vLLM has taken before it looks how much is free
    (CUDA's context, the buffers of links between cards). `host`: of a model on GPUs, bytes of RAM that it takes beside
    them. `read`: bytes of files that pass through RAM while it loads; the kernel takes them back. `droppable`: of the
    total, what the kernel can take back without harm (a file that was copied from). `open`: how large
    its cache is is unknown, so it gets what is left of its cards. `basis`: "formula"; "corrected" by
    what others with this engine took; "measured": this very model took so much before.
    """

    weights: int
    cache: int
    cache_least: int
    overhead: int
    total: int
    rule_of_thumb: int
    devices: int
    context: int
    sequences: int
    batch: int = 0
    parallel: int = 0
    apart: int = 0
    host: int = 0
    read: int = 0
    droppable: int = 0
    open: bool = False
    basis: Name = "formula"


class Unpredictable(Exception):
    """What a model takes is unknown.

    Its files do not say `missing`, by names of config.json, and nor does the class that they name.
    """

    def __init__(self, missing: tuple[str, ...]) -> None:
        super().__init__(", ".join(missing))
        self.missing = missing


def predict(facts: ModelMetadata, demand: Demand) -> Prediction:
    """Predict by the formulas alone.

    Raises Unpredictable for a model in RAM whose cache is unknown; one on cards gets what is left of them, which its
    engine measures itself.
    """
    if facts.missing and demand.kind == "ram":
        raise Unpredictable(facts.missing)
    return launched_by(demand.launcher).predict(facts, demand)


def make_prediction(
    *,
    weights: int,
    cache: int,
    cache_least: int,
    overhead: int,
    devices: int,
    context: int,
    sequences: int,
    batch: int = 0,
    parallel: int = 0,
    apart: int = 0,
    host: int = 0,
    read: int = 0,
    droppable: int = 0,
    open: bool = False,
    basis: str = "formula",
) -> Prediction:
    """Make a prediction, with the sums that follow from its parts, each within MOST_BYTES."""
    weights, cache, cache_least, overhead = map(_bounded, (weights, cache, cache_least, overhead))
    return Prediction(
        weights=weights,
        cache=cache,
        cache_least=cache_least,
        overhead=overhead,
        total=weights + cache + overhead,
        rule_of_thumb=weights * 3 // 2,
        devices=devices,
        context=context,
        sequences=sequences,
        batch=batch,
        parallel=parallel,
        apart=apart,
        host=_bounded(host),
        read=read,
        droppable=droppable,
        open=open,
        basis=basis,
    )


def _bounded(size: int) -> int:
    return min(max(size, 0), MOST_BYTES)


def bounded_context(tokens: int) -> int:
    """Return the tokens of one request, within what any model can read."""
    return min(max(tokens, 1), bounds.CONTEXT)


def with_cache(need: Prediction, cache: int) -> Prediction:
    """Return the same with another cache, in whole MiB, and no less than will do."""
    cache = max(cache // MIB * MIB, need.cache_least)
    return replace(need, cache=cache, total=need.weights + cache + need.overhead)


# --- What is taken --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMemory:
    """RAM of some processes.

    `taken`: with the pages of files that they have mapped (weights above all), those that several of them share counted
    once. `fixed`: of this, what the kernel can neither drop nor read again.
    """

    taken: int
    fixed: int


def measure_held(processes: Iterable[Identity]) -> HeldMemory:
    """Measure what these processes hold now. Those that are gone hold nothing.

    What they share with others of the host is theirs all the same (unlike in Pss): so a second replica of the same file
    does not make the first one smaller. Both engines fill their cache at their start, so it is resident from then on.
    Blocks for some milliseconds per 10 GB: the kernel walks their page tables.
    """
    fixed = 0
    files: dict[tuple[str, ...], _Area] = {}
    for who in processes:
        for area in _areas(who.pid):
            fixed += area.anonymous
            # Of a file that several have mapped each has its own pages in use; the most of one is near all of them.
            if area.file and (area.file not in files or area.of_file > files[area.file].of_file):
                files[area.file] = area
    fixed += sum(area.of_file for area in files.values() if area.in_memory)
    return HeldMemory(taken=fixed + sum(area.of_file for area in files.values() if not area.in_memory), fixed=fixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Area:
    """One of a process's mappings: resident bytes of its own, and of the file behind it.

    `file`: what identifies it, None: of no file. `in_memory`: a file without a disk (shared memory).
    """

    anonymous: int
    of_file: int
    file: tuple[str, ...] | None
    in_memory: bool


_HEAD = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S{4} ([0-9a-f]+) (\S+) (\d+) *(.*)")
_NO_DISK = ("/dev/shm/", "/memfd:", "/dev/zero", "/SYSV")  # noqa: S108 -- only compared


def _areas(pid: int) -> Iterator[_Area]:
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines()
    except OSError:
        return
    head: re.Match[str] | None = None
    sizes: dict[str, int] = {}
    for line in lines:
        if next_head := _HEAD.match(line):
            if head:
                yield _area(head, sizes)
            head, sizes = next_head, {}
        elif line.endswith(" kB"):
            name, _, value = line.partition(":")
            sizes[name] = int(value.split()[0]) * 1024
    if head:
        yield _area(head, sizes)


def _area(head: re.Match[str], sizes: Mapping[str, int]) -> _Area:
    offset, device, inode, path = head.groups()
    anonymous = sizes.get("Anonymous", 0)
    return _Area(
        anonymous=anonymous,
        of_file=sizes.get("Rss", 0) - anonymous,
        file=(device, inode, offset) if inode != "0" else None,
        in_memory=path.startswith(_NO_DISK),
    )


# --- Learning from what was measured --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one start took, beside what the formulas alone had said of it. `device`: a GPU's name, or "RAM"."""

    fingerprint: str
    launcher: str
    version: str
    device: str
    weights: int
    cache: int
    overhead: int
    measured: int

    @property
    def difference(self) -> int:
        return self.measured - (self.weights + self.cache + self.overhead)

    @property
    def sensible(self) -> bool:
        """Not of a start that was looked at too early, or of a device that counts something else."""
        predicted = self.weights + self.cache + self.overhead
        return predicted * 0.4 <= self.measured <= predicted * 2.5


def fingerprint(facts: ModelMetadata, demand: Demand, prediction: Prediction) -> str:
    """Return the same for whatever takes the same memory: of the files' facts, what was asked for.

    And the cache given.
    """
    asked = asdict(demand)
    # Came later: what was measured before is of this start as well. Each rank has other layers; the first and the last
    # have the embedding and the output too.
    for name, usual in (("stages", 1), ("nodes", 1), ("rank", 0)):
        if asked[name] == usual:
            del asked[name]
    parts = [asdict(facts), asked, prediction.cache]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def apply_measurements(
    prediction: Prediction, past: Iterable[Measured], *, mark: str, launcher: str, version: str, device: str
) -> Prediction:
    """Correct by what this very start took before, else by the median error of the formulas for this engine.

    `mark`: its `fingerprint`. `version` "": not known yet, so any. Measurements that make no sense are left out, and
    what others took changes the overhead by no more than half of it, or half a GiB.
    """
    alike = [
        one
        for one in past
        if (one.launcher, one.device) == (launcher, device) and version in ("", one.version) and one.sensible
    ]
    own = [one for one in alike if one.fingerprint == mark]
    if own:
        total = own[-1].measured
        known = prediction.weights + prediction.cache
        # An engine that takes less than its files and its cache: then these were overrated.
        weights = prediction.weights if total >= known else max(0, total - prediction.cache)
        return replace(prediction, weights=weights, overhead=max(0, total - known), total=total, basis="measured")
    if not alike:
        return prediction
    bound = max(prediction.overhead // 2, GIB // 2)
    by = round(min(max(median(one.difference for one in alike), -bound), bound))
    overhead = max(prediction.overhead // 4, prediction.overhead + by)
    total = prediction.weights + prediction.cache + overhead
    return replace(prediction, overhead=overhead, total=total, basis="corrected")
