"""`Engine`: what the product asks of an engine, one class for each; and the values that go to and fro. Pure.

What an engine was seen to do is written beside what follows from it, in its own module.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from modelregistry.engines import arguments
from modelregistry.engines.argument_rules import ArgumentRules
from modelregistry.engines.arguments import ArgparseReader, ArgumentReader, Arguments, Options
from modelregistry.files.metadata import CHECKPOINT, ModelMetadata
from modelregistry.host_port import join_host_port
from modelregistry.memory.estimate import Demand, Prediction, Unpredictable

if TYPE_CHECKING:
    from modelregistry.install.engine_environments import EngineEnvironment

# What an engine gets of our environment. Not the rest: it holds the database's and the directory's passwords. Nor
# llama.cpp's LLAMA_ARG_*: they would change what was planned, unseen; a model's arguments say the same. Nor Ray's
# RAY_*, which on a host of a cluster say where its token and certificates are.
INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
INHERITED_PREFIXES = (
    *("LC_", "XDG_", "CUDA_", "NVIDIA_", "NCCL_", "HIP_", "ROCR_", "HSA_", "AMD_", "OMP_", "MKL_", "KMP_"),
    *("HF_", "TORCH", "PYTORCH_", "TRITON_", "TOKENIZERS_", "GLOO_", "SAFETENSORS_"),
)

# How a model sleeps: its engine is stopped, or keeps its processes (vLLM's sleep mode) and gives back its GPUs' memory.
# At level 1 its weights wait in RAM, at level 2 they are read again.
STOP, LEVEL_1, LEVEL_2 = "stop", "level1", "level2"


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
    sleep: str = STOP  # what becomes of its engine when nothing calls it: STOP, LEVEL_1 or LEVEL_2
    nodes: int = 1  # hosts over which one replica is split, a rank on each
    rank: int = 0  # of these, which this is; rank 0 answers
    hosts: tuple[str, ...] = ()  # the names of these hosts, by rank; empty: not known yet, or one host alone

    def arguments(self, launcher: str) -> Arguments:
        """Read the operator's arguments as this launcher does."""
        return arguments.read_arguments(launcher, self.args)

    def cards(self, launcher: str) -> int:
        """Return over how many GPUs one replica is split, by an argument if there is one, else by the field."""
        return self.arguments(launcher).number("--tensor-parallel-size") or self.tensor_parallel

    def stages(self, launcher: str) -> int:
        """Return into how many parts its layers are split (pipeline parallel), each over `cards` GPUs."""
        return self.arguments(launcher).number("--pipeline-parallel-size") or 1

    def fingerprint(self) -> str:
        """Return a hash that changes only when a running engine is no longer what is wanted."""
        values = asdict(self)
        if not self.version:
            del values["version"]  # came later: what runs since before is still what is wanted
        if self.sleep == STOP:
            del values["sleep"]
        if self.nodes == 1:
            del values["nodes"], values["rank"], values["hosts"]
        return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEndpoint:
    """Where one engine listens, what it wants to be shown, and how many seconds it may take to stop.

    `master`: of an engine over several hosts, the address and port at which rank 0 waits for the others.
    """

    address: str
    port: int
    api_key: str
    grace: float
    master: tuple[str, int] = ("", 0)

    @property
    def url(self) -> str:
        return f"http://{join_host_port(self.address, self.port)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerIsolation:
    """What keeps the callers of an engine apart, and away from the network that it is in.

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
class EngineCommand:
    """What to execute. The API key is in the environment only: a command line can be read by every user of the host.

    `filtered`: its output may hold callers' words, so `log_filter` is in front of its log.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    filtered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringSpec:
    """Where an engine reports its state. A metric's value is the sum over its labels.

    `health` can be asked at any time, also of a busy engine. Without `metrics` only the CPU time of its processes
    shows whether it works.
    """

    health: str
    metrics: str = ""
    running: str = ""
    waiting: str = ""
    work: tuple[str, ...] = ()  # counters that grow with every request
    generated: str = ""  # the one of tokens that it made
    cache_used: str = ""  # the part of the memory for contexts that is in use
    version: tuple[str, str] = ("", "")  # the path that reports it, and the name there
    prompt: str = ""  # the counter of prompt tokens; "": it cannot be compared with what the gateway recorded
    counts_cached: bool = False  # among `prompt`, those that were found in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationProblem:
    """Why a model cannot be registered so. `field`: of ServedModel; `sentence` and `values`: for `gettext`."""

    field: str
    code: str  # for programs; does not change with the wording
    sentence: str
    values: Mapping[str, object] = dataclass_field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class CommandParts:
    """What an engine's class says of its command line: `head` comes first, `env` is added to what it inherits."""

    head: list[str] = dataclass_field(default_factory=list)
    options: list[str] = dataclass_field(default_factory=list)
    env: dict[str, str] = dataclass_field(default_factory=dict)


class Engine:
    """One kind of engine, as one launcher runs it. A class of its own says where it differs from this one.

    The base is an engine of which nothing is known: it serves OpenAI's API at /v1 and reports
    its health at /health; nothing is known of its command line and of its memory.
    """

    name = ""  # as models are registered with it
    title = ""  # as people read it, for `gettext`
    launcher = ""  # the program that runs it, as it is stored and reported
    external = False  # it runs elsewhere: it has a URL, and nothing here starts, plans or stops it
    spans_hosts = False  # one replica of it can be split over several hosts
    model_format = CHECKPOINT  # of its models' files: CHECKPOINT or GGUF

    # --- Its program
    command_variable = ""  # of the environment, by which an operator names the program
    on_search_path = False  # its launcher is also looked for on PATH
    installed_program = "python"  # of an installation of ours, under bin/
    packages: tuple[str, ...] = ()  # any of which an installation holds, and which has its version
    parser_is_ours = False  # what it takes is known without asking it

    # --- How it behaves
    monitoring = MonitoringSpec(health="/health")
    logs_prompts = False  # its output may hold callers' words
    # Its names for the parameters of `modelregistry.sampling`.
    sampling_members: ClassVar[Mapping[str, str]] = {
        name: name for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty")
    }
    stops_unary = True  # it stops computing an answer in one piece when its client leaves
    inherited_prefixes: tuple[str, ...] = ()  # of variables that only it reads
    planned_variables: tuple[str, ...] = ()  # of the environment, which would override what the plan gives it
    error_lines: tuple[str, ...] = ()  # patterns of the lines that name a cause, before `_ERROR_LINE`

    # --- Its arguments
    reader: type[ArgumentReader] = ArgparseReader
    rules = ArgumentRules()

    def launchers(self) -> dict[str, "Engine"]:
        """Return the engine as each of its launchers runs it, in the order in which they are preferred."""
        return {self.launcher: self}

    @property
    def only_launcher(self) -> str:
        """The launcher that runs it; empty where there is a choice."""
        launchers = list(self.launchers())
        return launchers[0] if len(launchers) == 1 else ""

    def as_run_by(self, launcher: str) -> "Engine":
        """Return the engine as this launcher runs it; where it is left open, as the preferred one does."""
        launchers = self.launchers()
        return launchers.get(launcher) or next(iter(launchers.values()))

    # --- Its program

    def program(self, path: Path) -> tuple[str, ...]:
        """Return what is executed of an installation of ours. `path`: its `installed_program`."""
        return (str(path),)

    def runs_on_cpu(self, program: Sequence[str]) -> bool:
        """Return whether this program is a build for CPUs that we installed; others use a GPU if they can."""
        return "+cpu/" in program[0]

    def how_to_get(self, launcher: str = "") -> str:
        """Return the sentence for a host that has no program for it. `launcher`: the one that is wanted, if any."""
        return f"{launcher or self.name} is not on this host."

    def environment(self, *, cpu: bool = False) -> "EngineEnvironment | None":
        """Return what `manage.py installengine` installs (`cpu`: for CPUs); None: it cannot."""
        return None

    def version_command(self, program: Sequence[str]) -> list[str]:
        """Return the command that prints the program's version; empty: it is that of its packages, if it has any."""
        return []

    def read_version(self, output: str) -> str:
        """Return the version that the command printed."""
        return output.strip()

    def options_command(self, program: Sequence[str], python: Path | None) -> list[str]:
        """Return the command that prints the options of this program; empty: there is none. `python`: its own."""
        return []

    def read_options(self, output: str) -> list[dict[str, Any]]:
        """Return the options that the command printed, as `Options.of` takes them."""
        return []

    def shipped_options(self) -> Options:
        """Return the table of its options that comes with the product."""
        return arguments.load_table(self.launcher)

    # --- Its command line

    def slots(self, spec: Spec) -> int | None:
        """Return how many requests it works on at a time; None: as many as its memory allows."""
        return spec.slots

    def planned_slots(self, spec: Spec) -> int | None:
        """Return for how many requests the plan has to have room; None: the engine's own choice."""
        return self.slots(spec)

    def supports_priority(self, task: str, args: Sequence[str]) -> bool:
        """Return whether it takes waiting requests by the `priority` that they come with."""
        return False

    def ends_loops(self, version: str) -> bool:
        """Return whether this version of it can end an answer that repeats itself (vLLM's `repetition_detection`)."""
        return False

    def sleep_levels(self) -> tuple[str, ...]:
        """Return how its models can sleep; all but STOP keep their processes."""
        return (STOP,)

    def explain_no_sleep(self, program: Sequence[str], version: str) -> str:
        """Return why this program cannot sleep, as a code of `failure_advice`; empty: it can.

        `version`: empty if it is not known.
        """
        return "sleep-unknown"

    def sleep_options(self, spec: Spec) -> CommandParts:
        """Return what it needs to be able to sleep as the model is to."""
        return CommandParts()

    def predict_asleep(self, prediction: Prediction) -> Prediction:
        """Return what it takes of its devices while it sleeps. `prediction`: awake."""
        return prediction

    def command(self, spec: Spec, endpoint: EngineEndpoint) -> CommandParts:
        """Return how it is started, whatever memory it gets. An external engine, which is never started, has none."""
        raise NotImplementedError

    def isolation_options(self, spec: Spec, isolation: CallerIsolation) -> list[str]:
        """Return the options that keep its callers apart."""
        return []

    def memory_options(self, spec: Spec, grant: MemoryGrant) -> list[str]:
        """Return the options that hold it to what the plan gives it."""
        return []

    def own_options(self, program: Sequence[str]) -> CommandParts:
        """Return what is added last, beside the operator's own, to a program that we installed."""
        return CommandParts()

    def build_command(
        self,
        spec: Spec,
        program: tuple[str, ...],
        endpoint: EngineEndpoint,
        environment: Mapping[str, str],
        grant: MemoryGrant | None = None,
        isolation: CallerIsolation = CallerIsolation(),
    ) -> EngineCommand:
        """Build the whole command, from our own `environment`.

        The operator's arguments come last, and options that they set are left out of ours.

        `grant` None: what it will take could not be predicted, so the engine takes what it takes by itself.
        """
        parts, sleep = self.command(spec, endpoint), self.sleep_options(spec)
        options = parts.options + self.isolation_options(spec, isolation) + sleep.options
        if grant:
            planned = self.memory_options(spec, grant)
            options = arguments.drop_overridden(
                self.launcher, options, arguments.read_arguments(self.launcher, planned)
            )
            options += planned
        operators = spec.arguments(self.launcher)
        own = self.own_options(program)
        options = [*arguments.drop_overridden(self.launcher, options, operators), *own.options]
        inherited = self._inherited_environment(environment) | _prepend_path(program, environment)
        env = inherited | parts.env | sleep.env | own.env
        if grant:
            env |= {"CUDA_VISIBLE_DEVICES": ",".join(grant.visible), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # NVML's order
            env = {name: value for name, value in env.items() if name not in self.planned_variables}
        given = arguments.render(self.launcher, operators, spec.args)
        return EngineCommand(argv=(*program, *parts.head, *options, *given), env=env, filtered=self.logs_prompts)

    def _inherited_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        prefixes = INHERITED_PREFIXES + self.inherited_prefixes
        return {
            name: value
            for name, value in environment.items()
            if name in INHERITED or (name.startswith(prefixes) and not name.endswith("_COMMAND"))
        }

    # --- Its memory

    def predict(self, facts: ModelMetadata, demand: Demand) -> Prediction:
        """Return what it takes of its devices. Raises Unpredictable where that is unknown."""
        raise Unpredictable(())

    def fill_share(self, formula: Prediction, demand: Demand, card: int) -> Prediction:
        """Return the prediction where an operator's argument gives it a part of each card (of `card` bytes)."""
        return formula

    def keeps_model_in_ram(self, spec: Spec, program: Sequence[str]) -> bool:
        """Return whether its model lies in RAM, whatever GPUs there are."""
        return self.runs_on_cpu(program)

    # --- What models may be registered with it

    def serves(self, task: str) -> bool:
        """Return whether this launcher can be taken for the task, where the choice is left open."""
        return True

    def check_registration(self, spec: Spec, url: str) -> Iterator[RegistrationProblem]:
        """Yield what is wrong by the fields alone: no file is looked at."""
        yield from ()

    def check_model(self, spec: Spec, facts: ModelMetadata, parsed: Arguments) -> Iterator[RegistrationProblem]:
        """Yield what is asked of these files that they cannot give. `parsed`: the arguments."""
        yield from ()

    def check_arguments(self, parsed: Arguments, slots: int | None) -> Iterator[RegistrationProblem]:
        """Yield the options that conflict with each other."""
        yield from ()

    def context_of(self, parsed: Arguments, slots: int | None) -> int:
        """Return tokens of one request as the arguments say; 0: they do not."""
        return 0

    # --- What its models can do beyond their task

    def calls_tools(self, args: Sequence[str]) -> bool:
        """Return whether it answers with calls of the client's functions (`tools` of the chat API).

        An engine is not asked: it may not be running. What an operator did not turn on is taken for absent, so that no
        caller relies on what may not work.
        """
        return False

    def sees_images(self, args: Sequence[str]) -> bool:
        """Return whether it takes images."""
        return False

    def reasons(self, args: Sequence[str]) -> bool:
        """Return whether it thinks before it answers, and sends its thoughts apart from the answer."""
        return False

    # --- Its failures

    def last_telling_line(self, log: str) -> str:
        """Return the line of a failed engine's log that says most about the cause; empty for an empty log."""
        # A limit that vLLM could not raise is logged at each start, with an "OSError: " of its own.
        lines = [line.strip() for line in log.splitlines() if line.strip() and "Found ulimit of" not in line]
        for pattern in (*self.error_lines, _ERROR_LINE):
            for line in lines:
                if re.search(pattern, line):
                    return line
        return lines[-1] if lines else ""


# llama-cpp-python prints llama.cpp's lines without their letter, and a traceback that says less after them.
_ERROR_LINE = r"error(?: loading model)?: |\w+Error: |Exception: | E \w+"


def _prepend_path(program: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Put what lies beside the program first: engines that compile kernels call the `ninja` of their environment."""
    if not Path(program[0]).is_absolute():
        return {}
    return {"PATH": os.pathsep.join([str(Path(program[0]).parent), environment.get("PATH", os.defpath)])}
