"""The engines that we can start: their command lines, their environment, and how they tell how they are. Pure.

An engine is known by its `launcher`, the program that runs it: `vllm`, or for llama.cpp one of `llama-server`,
`xllamacpp` (llama.cpp's own server out of a Python wheel) and `llama-cpp-python` (`python -m llama_cpp.server`).
What each of them was seen to do is told beside the argument that follows from it.
"""

import json
import os
import re
import shlex
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from modelregistry.engines import arguments
from modelregistry.engines.arguments import Arguments
from modelregistry.engines.version_trials import Installed

# In the order in which they are taken when nobody says which: a host's own build knows its GPU; the wheel runs on
# any CPU; llama-cpp-python serves one request at a time.
LLAMA_CPP_LAUNCHERS = ("llama-server", "xllamacpp", "llama-cpp-python")
LAUNCHERS = ("vllm", *LLAMA_CPP_LAUNCHERS)
# Of llama.cpp, if the operator does not say: enough for a small team, and its KV cache still fits beside the weights.
DEFAULT_SLOTS = 4
# MiB of RAM in which llama.cpp's server keeps past conversations of a model that is on GPUs; its own choice is 8,192.
PROMPTS_IN_RAM = 2048
LEAST_CACHE = 2**20  # bytes; not 0, which could be taken for nothing said
XLLAMACPP_LAUNCHER = Path(__file__).with_name("xllamacpp_launcher.py")
# An environment's own scripts hold the path of their Python, so vLLM's command is started by its module.
VLLM_MODULE = ("-m", "vllm.entrypoints.cli.main")
VLLM_GUARD = Path(__file__).with_name("vllm_guard")  # on the PYTHONPATH of a vLLM that we installed
# What an engine gets of our environment. Not the rest: it holds the database's and the directory's passwords. Nor
# llama.cpp's LLAMA_ARG_*: they would change what was planned, unseen; a model's arguments say the same.
INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
INHERITED_PREFIXES = (
    *("LC_", "XDG_", "CUDA_", "NVIDIA_", "NCCL_", "HIP_", "ROCR_", "HSA_", "AMD_", "OMP_", "MKL_", "KMP_", "GGML_"),
    *("VLLM_", "HF_", "TORCH", "PYTORCH_", "TRITON_", "TOKENIZERS_", "RAY_", "GLOO_", "SAFETENSORS_"),
)


class NoLauncher(LookupError):
    """This host has no program for the engine. The message says how to get one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is to be served. `context` in tokens per request, `slots` in requests at a time; None = the engine's own."""

    engine: str
    name: str
    path: str
    launcher: str = ""
    task: str = "chat"
    context: int | None = None
    slots: int | None = None
    args: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()  # indices; empty: where there is room
    tensor_parallel: int = 1
    overcommit: bool = False
    allowed_risks: tuple[str, ...] = ()
    generation: int = 0  # of restarts that operators asked for
    version: str = ""  # of the engine, to which it is pinned; empty: the newest that has proven itself

    def arguments(self, launcher: str) -> Arguments:
        """What the operator said more, as this launcher reads it."""
        return arguments.read_arguments(launcher, self.args)

    def cards(self, launcher: str) -> int:
        """Over how many GPUs one replica is split: as the field says, unless an argument says it instead."""
        return self.arguments(launcher).number("--tensor-parallel-size") or self.tensor_parallel

    def fingerprint(self) -> str:
        """Change exactly when a running engine no longer is what is wanted."""
        values = asdict(self)
        if not self.version:
            del values["version"]  # came later: what runs since before is still what is wanted
        return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where one engine listens, what it wants to be shown, and how many seconds it may take to stop."""

    address: str
    port: int
    api_key: str
    grace: float

    @property
    def url(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerIsolation:
    """What keeps the callers of an engine apart, and away from the network that it stands in.

    `media_domains`: from where it may fetch what a message points at. `shared_cache`: whether what it keeps of prompts
    is for all of them; see `apiproxy.dataplane.formats.requests.cache_members`.
    """

    media_domains: tuple[str, ...] = ()
    shared_cache: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGrant:
    """What the memory plan gives an engine. An argument of the operator's about the same wins over it.

    `visible`: its GPUs as CUDA_VISIBLE_DEVICES has them; none: it lives in RAM. `cache`: bytes of KV cache on each
    device, 0: it has none. `fraction`: of each card's memory, what weights and cache take. `context`: tokens of a
    request, `batch` and `parallel`: tokens and requests that vLLM computes at a time, 0: not planned.
    """

    visible: tuple[str, ...] = ()
    cache: int = 0
    fraction: float = 0.0
    context: int = 0
    batch: int = 0
    parallel: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to execute. The API key is in the environment only: a command line can be read by everybody on the host.

    `filtered`: its output may hold callers' words, so `log_filter` stands before its log.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    filtered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringSpec:
    """How an engine tells how it is. A metric's value is the sum over its labels.

    `health` can be asked at any time, also of a busy engine. Without `metrics` only the CPU time of its processes
    tells whether it works.
    """

    health: str
    metrics: str = ""
    running: str = ""
    waiting: str = ""
    work: tuple[str, ...] = ()  # counters that grow with every request
    generated: str = ""  # the one of tokens that it made
    cache_used: str = ""  # the part of the memory for contexts that is in use
    version: tuple[str, str] = ("", "")  # the path that tells it, and the name there


_LLAMA_SERVER = MonitoringSpec(
    health="/health",
    metrics="/metrics",
    running="llamacpp:requests_processing",
    waiting="llamacpp:requests_deferred",
    work=("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total", "llamacpp:tokens_predicted_total"),
    generated="llamacpp:tokens_predicted_total",
    version=("/props", "build_info"),
)
MONITORING: Mapping[str, MonitoringSpec] = {
    "vllm": MonitoringSpec(
        health="/health",
        metrics="/metrics",
        running="vllm:num_requests_running",
        waiting="vllm:num_requests_waiting",
        work=("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
        generated="vllm:generation_tokens_total",
        cache_used="vllm:kv_cache_usage_perc",
        version=("/version", "version"),
    ),
    "llama-server": _LLAMA_SERVER,
    "xllamacpp": replace(_LLAMA_SERVER, version=("", "")),  # the wheel's server says "b0-unknown"
    # Anything under /v1 waits for (or, by default, ends) the running stream; this path alone never does.
    "llama-cpp-python": MonitoringSpec(health="/openapi.json"),
}


def find_engines(commands: Mapping[str, str], cache: Path, search_path: str) -> dict[str, tuple[str, ...]]:
    """Return the program of each launcher that this host has: as told, else in the cache, else on the search path.

    For the two Python modules the program is a Python that can import them. Looks at the disk, starts nothing.
    """
    found = {}
    for launcher in LAUNCHERS:
        if program := _told(commands.get(launcher, "")) or _cached(launcher, cache) or _on_path(launcher, search_path):
            found[launcher] = program
    return found


def _told(command: str) -> tuple[str, ...]:
    return tuple(shlex.split(command))


def _cached(launcher: str, cache: Path) -> tuple[str, ...]:
    return next((one.program for one in installed_versions(launcher, cache)), ())


def installed_versions(launcher: str, cache: Path) -> list[Installed]:
    """Return the versions of it that we installed, the newest first. Looks at the disk."""
    program = launcher if launcher == "llama-server" else "python"
    found = [path for path in cache.glob(f"engines/{launcher}-[0-9]*/bin/{program}") if path.exists()]
    return [
        Installed(
            launcher=launcher,
            version=path.parts[-3].removeprefix(f"{launcher}-"),
            stamp=_stamp(path),
            program=program_of(launcher, path),
        )
        for path in sorted(found, key=_version, reverse=True)
    ]


def all_installed(cache: Path) -> list[Installed]:
    return [one for launcher in LAUNCHERS for one in installed_versions(launcher, cache)]


def group_versions(there: Iterable[Installed]) -> dict[str, list[str]]:
    """Group installations by launcher, in the order in which they come."""
    found: dict[str, list[str]] = {}
    for one in there:
        found.setdefault(one.launcher, []).append(one.version)
    return found


def group_stamps(there: Iterable[Installed]) -> dict[str, dict[str, str]]:
    """Return the stamp of each installation by launcher and version."""
    found: dict[str, dict[str, str]] = {}
    for one in there:
        found.setdefault(one.launcher, {})[one.version] = one.stamp
    return found


def default_versions(found: Mapping[str, tuple[str, ...]], there: Iterable[Installed]) -> dict[str, str]:
    """Return which installation each launcher's usual program is; "": none of ours, operators named it."""
    versions = {one.program: one.version for one in there}
    return {launcher: versions.get(program, "") for launcher, program in found.items()}


def _stamp(program: Path) -> str:
    """Change when it is installed anew: an installation appears by one rename of what was made for it."""
    directory = os.stat(program.parents[1])
    return f"{directory.st_ino} {directory.st_mtime_ns}"


def program_of(launcher: str, path: Path) -> tuple[str, ...]:
    """What is executed of an installation of ours: its server, or its Python."""
    return (str(path), *(VLLM_MODULE if launcher == "vllm" else ()))


def _version(program: Path) -> tuple[bool, list[int]]:
    # vLLM's build for GPUs is installed only where there is one, so it comes before the build for CPUs.
    name = program.parts[-3]
    return "+cpu" not in name, [int(number) for number in re.findall(r"\d+", name)]


def _on_path(launcher: str, search_path: str) -> tuple[str, ...]:
    program = shutil.which(launcher, path=search_path) if launcher in ("vllm", "llama-server") else None
    return (program,) if program else ()


def choose_launcher(
    spec: Spec, found: Mapping[str, tuple[str, ...]], *, prefer: Sequence[str] = (), avoid: Collection[str] = ()
) -> str:
    """Return the launcher for this model, as told or the first that the host has. Raises NoLauncher.

    Where nobody says which, those of `prefer` come first, in that order, and those of `avoid` last.
    """
    if spec.engine == "vllm":
        candidates: Sequence[str] = ("vllm",)
    elif spec.launcher:
        candidates = (spec.launcher,)
    else:
        candidates = [name for name in LLAMA_CPP_LAUNCHERS if spec.task != "rerank" or name != "llama-cpp-python"]
    first = [name for name in prefer if name in candidates]
    last = [name for name in candidates if name in avoid]
    for launcher in [*first, *(name for name in candidates if name not in avoid), *last]:
        if launcher in found:
            return launcher
    if spec.engine == "vllm":
        raise NoLauncher(
            "vLLM is not on this host: `manage.py installengine vllm` installs it (with --cpu, its build for CPUs), or "
            "name the one that is there in VLLM_COMMAND."
        )
    wanted = spec.launcher or "llama.cpp"
    raise NoLauncher(f"{wanted} is not on this host: `manage.py installengine {wanted}` installs it.")


def parallel_slots(spec: Spec, launcher: str) -> int | None:
    """Return how many requests the engine works on at a time; None: as many as its memory allows (vLLM)."""
    said = spec.arguments(launcher)
    if launcher == "vllm":
        return said.number("--max-num-seqs") or spec.slots
    if launcher == "llama-cpp-python":
        return 1
    return max(said.number("--parallel") or 0, 0) or spec.slots or DEFAULT_SLOTS  # -1: it chooses, four


def supports_priority(launcher: str, task: str, args: Sequence[str]) -> bool:
    """Return whether the engine, started by `command`, takes waiting requests by the `priority` that they come with."""
    policy = arguments.read_arguments(launcher, args).text("--scheduling-policy")
    return launcher == "vllm" and task == "chat" and policy in (None, "priority")


def build_command(
    spec: Spec,
    launcher: str,
    program: tuple[str, ...],
    place: Endpoint,
    environment: Mapping[str, str],
    grant: MemoryGrant | None = None,
    walls: CallerIsolation = CallerIsolation(),
) -> Command:
    """How to start it, from our own `environment`. The operator's arguments come last, and what they say is left out of
    ours.

    `grant` None: what it will take could not be predicted, so the engine takes what it takes by itself.
    """
    build = {
        "vllm": _vllm,
        "llama-server": _llama_server,
        "xllamacpp": _xllamacpp,
        "llama-cpp-python": _llama_cpp_python,
    }
    head, options, env = build[launcher](spec, place)
    options += _walled(spec, launcher, walls)
    if grant:
        planned = _GRANTED[launcher](spec, grant)
        options = [*arguments.without(launcher, options, arguments.read_arguments(launcher, planned)), *planned]
    operators = spec.arguments(launcher)
    options = arguments.without(launcher, options, operators)
    if program[1:] == VLLM_MODULE:
        # Not for a program that an operator named: it may run in a container, which has no such file. Beside those of
        # the operator: vLLM takes several.
        options, env = [*options, "--middleware", "madoguchi_guard.Guard"], env | {"PYTHONPATH": str(VLLM_GUARD)}
    env = _inherited(environment) | _path(program, environment) | env
    if grant:
        env |= {"CUDA_VISIBLE_DEVICES": ",".join(grant.visible), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # NVML's order
        # One value for all models of the host, which vLLM would take before our own for this one.
        env.pop("VLLM_CPU_KVCACHE_SPACE", None)
    given = arguments.render(launcher, operators, spec.args)
    return Command(argv=(*program, *head, *options, *given), env=env, filtered=spec.engine == "llama.cpp")


def _path(program: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, str]:
    """What lies beside the program comes first: engines that compile kernels call the `ninja` of their environment."""
    if not Path(program[0]).is_absolute():
        return {}
    return {"PATH": os.pathsep.join([str(Path(program[0]).parent), environment.get("PATH", os.defpath)])}


def _inherited(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name in INHERITED or (name.startswith(INHERITED_PREFIXES) and not name.endswith("_COMMAND"))
    }


Parts = tuple[list[str], list[str], dict[str, str]]  # what comes first, our options, our environment


def _vllm(spec: Spec, place: Endpoint) -> Parts:
    argv = ["--served-model-name", spec.name, "--host", place.address, "--port", str(place.port)]
    # Each health check would be a line in the log. Its description of itself is open to everybody.
    argv += ["--disable-uvicorn-access-log", "--disable-fastapi-docs"]
    if spec.context:
        argv += ["--max-model-len", str(spec.context)]
    if spec.slots:
        argv += ["--max-num-seqs", str(spec.slots)]
    if spec.task == "chat":
        # By priority: calls of people before those of batch keys. Alike ones in the order in which they came, as ever.
        argv += ["--enable-prompt-tokens-details", "--scheduling-policy", "priority"]
    elif spec.task != "transcription":
        argv += ["--runner", "pooling"]
    if "remote-code" in spec.allowed_risks:
        argv += ["--trust-remote-code"]
    if "pickle" not in spec.allowed_risks:
        argv += ["--load-format", _load_format(Path(spec.path))]
    env = {
        "VLLM_API_KEY": place.api_key,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # an allowed place may point anywhere
    }
    return ["serve", spec.path], argv, env


def _walled(spec: Spec, launcher: str, walls: CallerIsolation) -> list[str]:
    if launcher == "vllm":
        # None would mean all of them; this one nobody has (RFC 2606). vLLM 0.11.1 and later.
        return ["--allowed-media-domains", *(walls.media_domains or ("none.invalid",))]
    if launcher in ("llama-server", "xllamacpp") and spec.task == "chat" and not walls.shared_cache:
        return ["--no-cache-prompt"]  # but for requests that ask for it: the gateway's, for a model of one tenant
    return []


def _load_format(directory: Path) -> str:
    """Never vLLM's default ("auto"), which falls back to pickles: one may be put there after the files were checked.

    Mistral's own form has other names for the same weights; vLLM prefers it where it is, and so its configuration.
    """
    return "mistral" if any(directory.glob("consolidated*.safetensors")) else "safetensors"


def _llama_server(spec: Spec, place: Endpoint) -> Parts:
    argv, env = _llama_cpp(spec, place, "llama-server")
    # Neither pages of its own nor a look at the internet. (The wheel's server has neither.)
    return [], [*argv, "--no-webui", "--offline"], env


def _llama_cpp(spec: Spec, place: Endpoint, launcher: str) -> tuple[list[str], dict[str, str]]:
    parallel = parallel_slots(spec, launcher) or DEFAULT_SLOTS
    argv = ["--model", spec.path, "--alias", spec.name, "--host", place.address, "--port", str(place.port)]
    argv += ["--metrics", "--parallel", str(parallel)]
    if spec.context:
        # -c is the sum over the slots.
        argv += ["--ctx-size", str(spec.context * parallel)]
    else:
        # The model's own context, as one pool: each request may use all of it while others are short.
        argv += ["--ctx-size", "0", "--kv-unified"]
    if spec.task != "chat":
        # A whole input must fit one micro-batch (512 by default), else it is answered with 500. llama.cpp itself
        # reserves no more than the context needs.
        batch = str(max(spec.context or 8192, 512))
        argv += ["--batch-size", batch, "--ubatch-size", batch]
        argv += ["--embeddings" if spec.task == "embedding" else "--reranking"]
    return argv, {"LLAMA_API_KEY": place.api_key}


def _xllamacpp(spec: Spec, place: Endpoint) -> Parts:
    argv, env = _llama_cpp(spec, place, "xllamacpp")
    # One second less than it is given, so that it ends by itself.
    return [str(XLLAMACPP_LAUNCHER), "--grace", f"{max(place.grace - 1, 0):g}"], argv, env


def _llama_cpp_python(spec: Spec, place: Endpoint) -> Parts:
    argv = ["--model", spec.path, "--model_alias", spec.name]
    argv += ["--host", place.address, "--port", str(place.port), "--n_ctx", str(spec.context or 0)]
    # Else any other request ends a running stream early, as if it had finished.
    argv += ["--interrupt_requests", "false", "--n_gpu_layers", "-1"]
    # Else it keeps a number for each word of the vocabulary and each token of the context: 4 GB at 8,192 × 128,000.
    argv += ["--logits_all", "false"]
    if spec.task == "embedding":
        batch = str(max(spec.context or 8192, 512))
        argv += ["--embedding", "true", "--n_batch", batch, "--n_ubatch", batch]
    # Its settings read their own names from the environment.
    return ["-m", "llama_cpp.server"], argv, {"API_KEY": place.api_key}


def _vllm_granted(spec: Spec, grant: MemoryGrant) -> list[str]:
    argv = []
    if (cards := spec.cards("vllm")) > 1:
        argv += ["--tensor-parallel-size", str(cards)]
    # What it would choose itself depends on the card, and is four to eight times what is planned for on a large one.
    planned = {
        "--max-model-len": grant.context,
        "--max-num-seqs": grant.parallel,
        "--max-num-batched-tokens": grant.batch,
    }
    for name, value in planned.items():
        if value:
            argv += [name, str(value)]
    if spec.arguments("vllm").says("--gpu-memory-utilization") or spec.arguments("vllm").says(
        "--kv-cache-memory-bytes"
    ):
        return argv  # one of them decides what the other would
    if grant.fraction:
        # Only looked at: is so much free? With the fraction alone the cache would be what a measurement at its start
        # leaves over, which others that start on the same card meanwhile disturb.
        argv += ["--gpu-memory-utilization", f"{grant.fraction:.4f}"]
    if grant.cache or not grant.fraction:
        # Also for an encoder, which has no cache: on a CPU vLLM wants 92 % of the RAM to be free if nothing is said.
        argv += ["--kv-cache-memory-bytes", str(max(grant.cache, LEAST_CACHE))]  # vLLM 0.11 and later
    return argv


def _llama_server_granted(spec: Spec, grant: MemoryGrant) -> list[str]:
    if not grant.visible:
        # What it keeps of past conversations in RAM may grow to 8 GiB by default; the plan has no room for that.
        return ["--cache-ram", "0"]
    argv = ["--n-gpu-layers", "999", "--cache-ram", str(PROMPTS_IN_RAM)]
    if len(grant.visible) > 1:
        argv += ["--split-mode", "layer", "--tensor-split", ",".join("1" for _ in grant.visible)]
    return argv


def _xllamacpp_granted(spec: Spec, grant: MemoryGrant) -> list[str]:
    if grant.visible:
        return ["--n-gpu-layers", "999", "--cache-ram", str(PROMPTS_IN_RAM)]
    return ["--cache-ram", "0"]


def _llama_cpp_python_granted(spec: Spec, grant: MemoryGrant) -> list[str]:
    return []  # it keeps no past conversations, and puts all layers on the GPUs that it sees


_GRANTED = {
    "vllm": _vllm_granted,
    "llama-server": _llama_server_granted,
    "xllamacpp": _xllamacpp_granted,
    "llama-cpp-python": _llama_cpp_python_granted,
}


def on_cpu(launcher: str, program: Sequence[str]) -> bool:
    """Return whether this program is one of those builds for CPUs that we install ourselves; others use a GPU if they
    can.
    """
    return "+cpu/" in program[0] or (launcher == "xllamacpp" and "/engines/xllamacpp-" in program[0])


def last_telling_line(launcher: str, log: str) -> str:
    """Return the line of a failed engine's log that says most about the cause; empty for an empty log."""
    # A limit that vLLM could not raise is told at each start, with an "OSError: " of its own.
    lines = [line.strip() for line in log.splitlines() if line.strip() and "Found ulimit of" not in line]
    patterns = [
        # vLLM: the first error of a worker is the cause, what follows are its consequences
        *([re.compile(r"\((?:Worker|EngineCore)[^)]*\) ERROR .*\w+Error: ")] if launcher == "vllm" else []),
        # The same of its front: pydantic's words
        *([re.compile(r"^Value error, ")] if launcher == "vllm" else []),
        # llama-cpp-python prints llama.cpp's lines without their letter, and a traceback that says less after them.
        re.compile(r"error(?: loading model)?: |\w+Error: |Exception: | E \w+"),
    ]
    for pattern in patterns:
        for line in lines:
            if pattern.search(line):
                return line
    return lines[-1] if lines else ""
