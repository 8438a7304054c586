"""Why an engine failed, as far as its last words tell, and what an operator can do about it.

The patterns are of lines that the engines really wrote (tests/modelregistry/failures/) or, for what needs a GPU, of
the sentences in their sources. The first pattern that a log has wins, so the particular stand before the general.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

# code -> one sentence for the operator.
ADVICE: Mapping[str, "StrOrPromise"] = {
    "gpu-memory": _(
        "The GPU’s memory was not enough: choose a shorter context, fewer parallel requests, a smaller quantisation or"
        " more GPUs, or stop what else holds its memory."
    ),
    "host-memory": _(
        "The machine’s memory (RAM) was not enough: choose a smaller model, a shorter context or fewer parallel"
        " requests, or stop another model."
    ),
    "cache-memory": _(
        "The memory left beside the weights is too little for one request of this context: choose a shorter context,"
        " or give the model more memory."
    ),
    "state-memory": _(
        "Each request of this model keeps a state of fixed size, and there is memory for fewer of them than it is to"
        " work on at a time: choose fewer parallel requests, or give it more memory."
    ),
    "does-not-fit": _("By the plan it does not fit into the memory: make it smaller, stop another model, or force it."),
    "port-in-use": _("The port was in use: it will be tried on another one. If it happens again, change ENGINE_PORTS."),
    "missing-file": _("A file of the model is missing: check the path, and whether the disk is mounted on this host."),
    "bad-files": _("The model’s files cannot be read or are incomplete: copy them again and compare their sizes."),
    "no-permission": _(
        "A file may not be read: give the user that runs Madoguchi the right to read the model’s files."
    ),
    "disk-full": _("A disk is full: free some space, then restart the model."),
    "unknown-quantisation": _(
        "The engine does not know this quantisation, or not on this hardware: take another quantisation of the model,"
        " or a newer engine."
    ),
    "unknown-architecture": _("The engine does not know this kind of model: take a newer engine, or another model."),
    "context-too-long": _(
        "The context is longer than the model allows: lower it to the model’s own, or leave it empty."
    ),
    "bad-argument": _(
        "The engine does not know one of the additional arguments: check their spelling and its version."
    ),
    "remote-code": _(
        "The model brings program code of its own: allow “remote-code” for it if you trust where it came from."
    ),
    "not-local": _(
        "It wanted something from the internet, where engines may not go: put all files into the model’s directory."
    ),
    "no-gpu": _(
        "The engine found no GPU: check with nvidia-smi that the driver works, or install the engine’s build for CPUs."
    ),
    "driver": _(
        "The GPU’s driver is too old for this engine, or does not fit it: update the driver or take another build."
    ),
    "old-gpu": _("This GPU cannot run the engine’s programs for this model: take another quantisation or data type."),
    "split": _("The model cannot be split over so many GPUs: choose a number that divides its attention heads."),
    "shared-memory": _("The shared memory (/dev/shm) is too small: enlarge it; in a container, with --shm-size."),
    "no-engine": _("This host has no such engine: install it with “manage.py installengine”, or name its program."),
    "too-slow": _("It did not answer in time: if the log shows that it was still loading, raise ENGINE_START_TIMEOUT."),
}

_PATTERNS: tuple[tuple[str, str], ...] = (
    ("shared-memory", r"</torch_\S+>.*No space left|insufficient shared memory|/dev/shm\S*: No space left"),
    ("disk-full", r"No space left on device|Errno 28\b|Disk quota exceeded"),
    ("gpu-memory", r"OutOfMemoryError|CUDA out of memory|cudaMalloc failed: out of memory|CUDA error: out of memory"),
    ("gpu-memory", r"Free memory on device .* is less than desired GPU memory utilization"),
    ("gpu-memory", r"No available memory for the cache blocks|(?:unable|failed) to allocate CUDA\d* buffer"),
    ("state-memory", r"max_num_seqs \(\d+\) exceeds available Mamba cache blocks"),
    ("cache-memory", r"larger than the (?:maximum number of tokens that can be stored in|available) KV cache"),
    ("cache-memory", r"To serve at least one request with the model|estimated maximum model length"),
    ("host-memory", r"Available memory on node \d+ .* is less than requested memory"),
    ("host-memory", r"Cannot allocate memory|can't allocate memory|DefaultCPUAllocator|std::bad_alloc|MemoryError"),
    (
        "host-memory",
        r"insufficient memory \(attempted|(?:unable|failed) to allocate (?:CPU )?buffer",
    ),
    ("port-in-use", r"Address already in use|couldn't bind HTTP server socket|EADDRINUSE"),
    ("remote-code", r"contains custom code which must be executed|pass the argument `trust_remote_code=True`"),
    ("context-too-long", r"max_model_len \(\d+\) is greater than the derived max_model_len"),
    ("split", r"must be divisible by tensor parallel size|divisible by tensor_parallel_size"),
    ("old-gpu", r"no kernel image is available|Min(?:imum)? capability: "),
    ("driver", r"driver version is insufficient|driver on your system is too old|forward compatibility was attempted"),
    ("no-gpu", r"no CUDA-capable device|No CUDA GPUs are available|Failed to infer device type"),
    ("no-gpu", r"Found no NVIDIA driver"),
    ("unknown-quantisation", r"[Uu]nknown quantization|quantization method .* not supported|Invalid quantization"),
    (
        "unknown-quantisation",
        r"quantization.*(?:not supported|not yet supported|unsupported)|invalid ggml type|unknown type",
    ),
    ("unknown-architecture", r"unknown model architecture|does not recognize this architecture"),
    (
        "unknown-architecture",
        r"Model architectures .* (?:are not supported|failed to be inspected)|unknown pre-tokenizer type",
    ),
    ("no-permission", r"Permission denied|Errno 13\b"),
    ("bad-argument", r"unrecognized arguments|invalid argument:|argument -\S+: |invalid choice|expected one argument"),
    (
        "not-local",
        r"gated repo|Cannot access gated|LocalEntryNotFoundError|offline mode is enabled|Name or service not known",
    ),
    ("not-local", r"Connection error|MaxRetryError|Couldn't reach"),
    (
        "missing-file",
        r"HFValidationError|No such file or directory|FileNotFoundError|Errno 2\b|Cannot find any model weights",
    ),
    (
        "bad-files",
        r"SafetensorError|tensor .* data is not within the file bounds|corrupted or incomplete|failed to read",
    ),
    ("bad-files", r"invalid magic|GGUF file|Error while deserializing|JSONDecodeError|UnpicklingError"),
)
_KNOWN = tuple((code, re.compile(pattern)) for code, pattern in _PATTERNS)
# vLLM writes it at each start: a limit that it could not raise.
_HARMLESS = re.compile(r"Found ulimit of .* failed to automatically increase")


def cause(log: str) -> str:
    """A code of ADVICE for what an engine wrote before it failed; empty: not a known cause."""
    text = "\n".join(line for line in log.splitlines() if not _HARMLESS.search(line))
    return next((code for code, pattern in _KNOWN if pattern.search(text)), "")
