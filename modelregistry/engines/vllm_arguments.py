"""How vLLM reads its arguments (vllm/utils/argparse_utils.py), and what is known of them. Pure.

Facts of vLLM 0.32: its configuration classes, config/*.py, and attention backends.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modelregistry.engines.argument_rules import (
    CODE,
    FROM_0,
    FROM_MINUS_1,
    NATURAL,
    OUTSIDE,
    SHARE,
    ArgumentRules,
    Range,
    json_object,
)
from modelregistry.engines.arguments import (
    ArgparseReader,
    ArgumentFault,
    Arguments,
    dashed_name,
    is_negative,
    parse_human_number,
)

_RANGES: Mapping[str, Range] = {
    "--gpu-memory-utilization": SHARE,
    "--kv-cache-metrics-sample": SHARE,
    "--watermark": Range(least=0, below=1),
    "--video-pruning-rate": Range(least=0, below=1),
    # Each attention backend for NVIDIA cards and CPUs takes multiples of this or of more.
    "--block-size": Range(least=16, step=16),
    "--max-model-len": Range(least=1, also=-1),
    "--max-logprobs": FROM_MINUS_1,
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
        NATURAL,
    ),
    **dict.fromkeys(
        [
            *("--prefix-cache-retention-interval", "--mm-processor-cache-gb", "--mm-shm-cache-max-object-size-mb"),
            *("--mm-ipc-gpu-memory-gb", "--cpu-offload-gb", "--kv-offloading-size", "--offload-group-size"),
            *("--offload-prefetch-step", "--data-parallel-size-local", "--data-parallel-rank", "--ubatch-size"),
            *("--dbo-decode-token-threshold", "--dbo-prefill-token-threshold", "--node-rank", "--shutdown-timeout"),
            *("--long-prefill-token-threshold", "--max-num-queued-reqs", "--max-num-queued-tokens"),
        ],
        FROM_0,
    ),
}

# --- Programs and places

_RISKS: Mapping[str, str] = {
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
_OWN_EXECUTORS = frozenset(["mp", "ray", "uni", "external_launcher"])  # another value names a class


def _risk_of_value(names: tuple[str, ...], value: str) -> str | None:
    if "--distributed-executor-backend" in names:
        return "" if value in _OWN_EXECUTORS else CODE
    if "--compilation-config" in names:
        return CODE if "." in str(json_object(value).get("backend", "")) else ""
    return CODE if any(key.endswith("_connector_module_path") for key in json_object(value)) else None


_FILES: Mapping[str, str] = {
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
_UNPLANNED = frozenset(
    [
        *("--enable-lora", "--lora-modules", "--default-mm-loras", "--speculative-config", "--spec-model"),
        *("--spec-method", "--kv-transfer-config", "--ec-transfer-config", "--hf-overrides"),
        *("--data-parallel-size", "--decode-context-parallel-size"),
        *("--prefill-context-parallel-size", "--num-gpu-blocks-override", "--enable-dbo", "--enable-eplb"),
        *("--offload-group-size", "--mm-ipc-gpu-memory-gb"),
        *("--api-server-count", "--diffusion-config", "--engram-config"),
    ]
)
RULES = ArgumentRules(ranges=_RANGES, risks=_RISKS, risk_of_value=_risk_of_value, files=_FILES, unplanned=_UNPLANNED)


class VllmReader(ArgparseReader):
    """Reads as vLLM's FlexibleArgumentParser: what it changes before argparse sees it."""

    words_for_nothing = ("", "None")  # for no value, where none is allowed

    def read(self, args: Sequence[str]) -> None:
        words, written = _spell_out_levels([dashed_name(arg) for arg in args], args)
        words, written, faults = _keys_of_json(words, written)
        self.faults += faults
        self.read_words(words, written)

    @classmethod
    def render(cls, arguments: Arguments, args: Sequence[str]) -> tuple[str, ...]:
        """Return them as the operator wrote them: vLLM takes every spelling itself."""
        return tuple(args)


def _spell_out_levels(words: Sequence[str], written: Sequence[str]) -> tuple[list[str], list[str]]:
    """Write `-O2`, `-O=2` and `-O 2` out as the level of optimisation."""
    new: list[tuple[str, str]] = []
    for at, word in enumerate(words):
        if word.startswith("-O") and word != "-O":
            level = word[3:] if word[2] == "=" else word[2:]
            new += [("--optimization-level", written[at]), (level, level)]
        elif word == "-O" and words[at + 1 : at + 2] in (["0"], ["1"], ["2"], ["3"]):
            new.append(("--optimization-level", written[at]))
        else:
            new.append((word, written[at]))
    return [word for word, _ in new], [spelt for _, spelt in new]


def _keys_of_json(words: Sequence[str], written: Sequence[str]) -> tuple[list[str], list[str], list[ArgumentFault]]:
    """Put `--a.b=c`, `--a.b c` and `--a.b+ c,d` together to one `--a {"b": …}` behind all others, as vLLM does."""
    kept: list[tuple[str, str]] = []
    made: dict[str, dict[str, Any]] = {}
    faults: list[ArgumentFault] = []
    at = 0
    while at < len(words):
        name, equals, value = words[at].partition("=")
        if not name.startswith("-") or "." not in name or is_negative(name):
            kept.append((words[at], written[at]))
            at += 1
            continue
        if not equals:
            if at + 1 == len(words):
                faults.append(ArgumentFault(code="no-value", arg=written[at]))
                break
            at += 1
            value = words[at]
        at += 1
        option, *keys = name.removesuffix("+").split(".")
        _merge(made.setdefault(option, {}), keys, value.split(",") if name.endswith("+") else _json_or_text(value))
    for option, keyed in made.items():
        kept += [(option, option), (json.dumps(keyed), json.dumps(keyed))]
    return [word for word, _ in kept], [spelt for _, spelt in kept], faults


def _merge(into: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = into.get(key)
        if not isinstance(inner, dict):
            inner = into[key] = {}
        into = inner
    before = into.get(keys[-1])
    into[keys[-1]] = before + value if isinstance(before, list) and isinstance(value, list) else value


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        number = parse_human_number(text)
        return text if number is None else number
