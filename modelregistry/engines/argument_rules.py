"""What an engine's options may be given: numbers within which it works, what must be allowed first, and files.

Facts of vLLM 0.32 (its configuration classes, config/*.py, and attention backends) and of llama.cpp b11434 (what its
parser refuses, and the server's own help). They are bounds that no version widens by much, so they hold for those of
other versions as well. Pure.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

# The risks that an operator has to allow by name before an argument may bring them.
CODE = "remote-code"
OUTSIDE = "outside-access"


# --- Numbers


@dataclass(frozen=True, slots=True)
class Range:
    """`least` to `most`, both included but where `above` or `below` say otherwise. `also`: one more number, which
    stands for a choice of the engine's own; `step`: only its multiples.
    """

    least: float = -inf
    most: float = inf
    above: float = -inf
    below: float = inf
    also: int | None = None
    step: int = 0

    def allows(self, value: float) -> bool:
        """Return whether it is one of them; what is no number (NaN) never is."""
        if value == self.also:
            return True
        within = self.least <= value <= self.most and self.above < value < self.below
        return within and (not self.step or value % self.step == 0)

    @property
    def limits(self) -> tuple[str, ...]:
        """As a reader of any language understands them."""
        found = [
            f"≥ {self.least:g}" if self.least > -inf else "",
            f"> {self.above:g}" if self.above > -inf else "",
            f"≤ {self.most:g}" if self.most < inf else "",
            f"< {self.below:g}" if self.below < inf else "",
            f"= {self.also}" if self.also is not None else "",
            f"n × {self.step}" if self.step else "",
        ]
        return tuple(filter(None, found))


_NATURAL = Range(least=1)
_FROM_0 = Range(least=0)
_FROM_MINUS_1 = Range(least=-1)
_SHARE = Range(above=0, most=1)

_VLLM: Mapping[str, Range] = {
    "--gpu-memory-utilization": _SHARE,
    "--kv-cache-metrics-sample": _SHARE,
    "--watermark": Range(least=0, below=1),
    "--video-pruning-rate": Range(least=0, below=1),
    # Each attention backend for NVIDIA cards and CPUs takes multiples of this or of more.
    "--block-size": Range(least=16, step=16),
    "--max-model-len": Range(least=1, also=-1),
    "--max-logprobs": _FROM_MINUS_1,
    "--data-parallel-rpc-port": Range(least=1, most=65535),
    "--mm-encoder-fp8-scale-save-margin": Range(above=0),
    **dict.fromkeys(
        [
            *("--prefix-match-unit", "--mamba-block-size", "--replayssm-buffer-len", "--max-loras"),
            *("--safetensors-prefetch-num-threads", "--safetensors-prefetch-block-size", "--max-lora-cls-labels"),
            *("--offload-num-in-group", "--pipeline-parallel-size", "--tensor-parallel-size", "--data-parallel-size"),
            *("--prefill-context-parallel-size", "--decode-context-parallel-size", "--dp-sync-interval", "--nnodes"),
            *("--max-parallel-loading-workers", "--elastic-ep-max-dp-size", "--max-num-batched-tokens"),
            *("--max-num-scheduled-tokens", "--max-num-seqs", "--max-num-active-seqs", "--prefill-schedule-interval"),
            *("--stream-interval", "--kv-cache-memory-bytes", "--num-gpu-blocks-override"),
        ],
        _NATURAL,
    ),
    **dict.fromkeys(
        [
            *("--prefix-cache-retention-interval", "--mm-processor-cache-gb", "--mm-shm-cache-max-object-size-mb"),
            *("--mm-ipc-gpu-memory-gb", "--cpu-offload-gb", "--kv-offloading-size", "--offload-group-size"),
            *("--offload-prefetch-step", "--data-parallel-size-local", "--data-parallel-rank", "--ubatch-size"),
            *("--dbo-decode-token-threshold", "--dbo-prefill-token-threshold", "--node-rank", "--shutdown-timeout"),
            *("--long-prefill-token-threshold", "--max-num-queued-reqs", "--max-num-queued-tokens"),
        ],
        _FROM_0,
    ),
}
_LLAMA_CPP: Mapping[str, Range] = {
    "--parallel": Range(least=1, also=-1),
    "--prio": Range(least=-1, most=3),
    "--prio-batch": Range(least=0, most=3),
    "--batch-size": _NATURAL,
    "--sleep-idle-seconds": Range(least=1, also=-1),
    "--rope-scale": Range(above=0),
    "--n-predict": Range(least=-2),
    "--mirostat": Range(least=0, most=2),
    **dict.fromkeys(
        [
            *("--ctx-size", "--ubatch-size", "--n-cpu-moe", "--n-cpu-ffn", "--checkpoint-min-step", "--main-gpu"),
            *("--ctx-checkpoints", "--cache-reuse", "--timeout", "--spec-draft-n-max", "--spec-draft-n-min"),
            *("--spec-draft-n-cpu-moe", "--yarn-orig-ctx", "--rope-freq-base", "--rope-freq-scale"),
        ],
        _FROM_0,
    ),
    **dict.fromkeys(["--repeat-last-n", "--dry-penalty-last-n", "--reasoning-budget", "--cache-ram"], _FROM_MINUS_1),
}
_LLAMA_CPP_PYTHON: Mapping[str, Range] = {
    "--n-batch": _NATURAL,
    "--n-gpu-layers": _FROM_MINUS_1,
    **dict.fromkeys(
        ["--n-ctx", "--n-ubatch", "--main-gpu", "--cache-size", "--yarn-orig-ctx", "--rope-freq-base"], _FROM_0
    ),
}


def range_of(launcher: str, names: tuple[str, ...]) -> Range | None:
    """Return the numbers that an option by any of these names may be given; None: nothing is known of it."""
    table = {"vllm": _VLLM, "llama-cpp-python": _LLAMA_CPP_PYTHON}.get(launcher, _LLAMA_CPP)
    return next((table[name] for name in names if name in table), None)


# --- Programs and places

_RISKS_OF_VLLM: Mapping[str, str] = {
    **dict.fromkeys(
        [
            # Classes by their names, which are imported, and files of Python.
            *("--middleware", "--logits-processors", "--io-processor-plugin", "--model-class-overrides"),
            *("--worker-cls", "--worker-extension-cls", "--scheduler-cls", "--tool-parser-plugin"),
            *("--reasoning-parser-plugin", "--ec-manager-config"),
            # Python's logging makes objects of any class that its configuration names.
            *("--log-config-file", "--logging-config"),
        ],
        CODE,
    ),
    **dict.fromkeys(
        [
            *("--allowed-local-media-path", "--tool-server", "--kv-events-config", "--otlp-traces-endpoint"),
            *("--weight-transfer-config", "--kv-transfer-config", "--ec-transfer-config", "--profiler-config"),
            "--mm-encoder-fp8-scale-save-path",
        ],
        OUTSIDE,
    ),
}
_RISKS_OF_LLAMA_CPP: Mapping[str, str] = {
    # Tools that the server runs itself, a shell among them, and servers of tools that it starts.
    **dict.fromkeys(
        [
            *("--tools", "--tools-runtime", "--agent", "--mcp-servers-config", "--mcp-servers-json"),
            *("--ui-mcp-proxy", "--video-ffmpeg-dir"),
        ],
        CODE,
    ),
    **dict.fromkeys(
        [
            *("--media-path", "--slot-save-path", "--path", "--rpc", "--rpc-servers", "--log-prompts-dir"),
            *("--log-file", "--lookup-cache-dynamic"),
        ],
        OUTSIDE,
    ),
}
_OWN_EXECUTORS = frozenset(["mp", "ray", "uni", "external_launcher"])  # of vLLM; another value names a class


def risk_of(launcher: str, names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Return the risk that an option brings with these values; empty: none that is known."""
    if launcher != "vllm":
        return next((_RISKS_OF_LLAMA_CPP[name] for name in names if name in _RISKS_OF_LLAMA_CPP), "")
    last = values[-1] if values else ""
    if "--distributed-executor-backend" in names:
        return "" if last in _OWN_EXECUTORS else CODE
    if "--compilation-config" in names:
        return CODE if "." in str(_object(last).get("backend", "")) else ""
    if any(key.endswith("_connector_module_path") for key in _object(last)):
        return CODE
    return next((_RISKS_OF_VLLM[name] for name in names if name in _RISKS_OF_VLLM), "")


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


# --- Files

_FILES_OF_VLLM: Mapping[str, str] = {
    "--chat-template": "template",
    "--tool-parser-plugin": "file",
    "--reasoning-parser-plugin": "file",
    "--log-config-file": "file",
    "--mm-encoder-fp8-scale-path": "file",
    "--allowed-local-media-path": "folder",
    "--hf-config-path": "path",
    "--tokenizer": "path",
    "--generation-config": "path",
    "--spec-model": "path",
    "--speculative-config": "model",
    "--lora-modules": "named",
}
_FILES_OF_LLAMA_CPP: Mapping[str, str] = {
    **dict.fromkeys(
        [
            *("--mmproj", "--spec-draft-model", "--grammar-file", "--json-schema-file", "--lookup-cache-static"),
            *("--mcp-servers-config", "--ui-config-file", "--file", "--binary-file"),
            *("--clip-model-path", "--lora-path", "--lora-base", "--hf-tokenizer-config-path"),
        ],
        "file",
    ),
    "--chat-template-file": "template",
    **dict.fromkeys(["--lora", "--control-vector"], "files"),
    **dict.fromkeys(["--lora-scaled", "--control-vector-scaled"], "scaled"),
    **dict.fromkeys(["--media-path", "--slot-save-path", "--path", "--video-ffmpeg-dir"], "folder"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFile:
    """`kind`: "file", "template" (a file in Jinja), "folder", or "path" (either)."""

    path: str
    kind: str


def files_named(launcher: str, names: tuple[str, ...], values: tuple[str, ...]) -> Iterator[NamedFile]:
    """Yield the files that an option with these values makes its engine read. What may be a name on a hub is none."""
    table = _FILES_OF_VLLM if launcher == "vllm" else _FILES_OF_LLAMA_CPP
    kind = next((table[name] for name in names if name in table), "")
    for value in values if kind else ():
        yield from _READERS.get(kind, lambda text, kind=kind: _one(text, kind))(value)


def _one(value: str, kind: str) -> Iterator[NamedFile]:
    yield NamedFile(path=value, kind=kind)


def _template(value: str) -> Iterator[NamedFile]:
    if not set("{}\n") & set(value):  # else vLLM takes it for the template itself
        yield NamedFile(path=value, kind="template")


def _path(value: str) -> Iterator[NamedFile]:
    if value.startswith(("/", ".")):
        yield NamedFile(path=value, kind="path")


def _model(value: str) -> Iterator[NamedFile]:
    yield from _path(str(_object(value).get("model", "")))


def _named(value: str) -> Iterator[NamedFile]:
    """`name=path`, or an object with both."""
    yield from _path(str(_object(value).get("path", "")) if value.startswith("{") else value.partition("=")[2])


def _files(value: str) -> Iterator[NamedFile]:
    for path in value.split(","):
        yield NamedFile(path=path, kind="file")


def _scaled(value: str) -> Iterator[NamedFile]:
    for part in value.split(","):
        yield NamedFile(path=part.rpartition(":")[0] or part, kind="file")


_READERS = {
    "template": _template,
    "path": _path,
    "model": _model,
    "named": _named,
    "files": _files,
    "scaled": _scaled,
}
