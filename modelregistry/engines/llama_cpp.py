"""llama.cpp, by one of three launchers: each is the same engine in another program, with another form of its options.

`llama-server` is llama.cpp's own server; `xllamacpp` the same out of a Python wheel, by the launcher beside this file;
`llama-cpp-python` is `python -m llama_cpp.server`. Pure.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelregistry.engines import llama_cpp_arguments, xllamacpp_launcher
from modelregistry.engines.arguments import ArgumentReader, Arguments, Options, read_arguments
from modelregistry.engines.base import (
    CallerIsolation,
    CommandParts,
    Engine,
    EngineEndpoint,
    MemoryGrant,
    MonitoringSpec,
    RegistrationProblem,
    Spec,
)
from modelregistry.engines.llama_cpp_arguments import (
    DEFAULT_SLOTS,
    PROMPTS_IN_RAM,
    LlamaCppPythonReader,
    LlamaCppReader,
    XllamacppReader,
)
from modelregistry.engines.option_listings import describe_command, help_options, read_description
from modelregistry.files.metadata import GGUF, ModelMetadata, gettext_noop
from modelregistry.memory import llama_cpp as memory
from modelregistry.memory.estimate import Demand, Prediction

if TYPE_CHECKING:
    from modelregistry.install.engine_environments import EngineEnvironment

XLLAMACPP_LAUNCHER = Path(__file__).with_name("xllamacpp_launcher.py")


class LlamaCpp(Engine):
    """A GGUF file, on GPUs or in RAM. The class itself is for any launcher; those below say where they differ."""

    name = "llama.cpp"
    launcher = "llama-server"  # speaks for the engine where the choice is left open
    title = "llama.cpp"
    model_format = GGUF
    logs_prompts = True
    sampling_members = {
        **Engine.sampling_members,
        "repetition_penalty": "repeat_penalty",
        "dry_multiplier": "dry_multiplier",
    }
    stops_unary = False
    inherited_prefixes = ("GGML_",)
    reader: type[ArgumentReader] = LlamaCppReader
    rules = llama_cpp_arguments.RULES

    def launchers(self) -> dict[str, Engine]:
        # A host's own build knows its GPU; the wheel runs on any CPU; llama-cpp-python serves one request at a time.
        return {one.launcher: one for one in (LlamaServer(), Xllamacpp(), LlamaCppPython())}

    def how_to_get(self, launcher: str = "") -> str:
        wanted = launcher or self.name
        return f"{wanted} is not on this host: `manage.py installengine {wanted}` installs it."

    def environment(self, *, cpu: bool = False) -> "EngineEnvironment | None":
        # It needs no compiler. Imported here, as that takes 30 ms that a gateway can do without.
        from modelregistry.install.engine_environments import XLLAMACPP

        return XLLAMACPP

    # --- Its command line

    def slots(self, spec: Spec) -> int | None:
        parallel = spec.arguments(self.launcher).number("--parallel")
        return max(parallel or 0, 0) or spec.slots or DEFAULT_SLOTS  # -1: it chooses, four

    def command(self, spec: Spec, endpoint: EngineEndpoint) -> CommandParts:
        parallel = self.slots(spec) or DEFAULT_SLOTS
        argv = ["--model", spec.path, "--alias", spec.name, "--host", endpoint.address, "--port", str(endpoint.port)]
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
        return CommandParts(options=argv, env={"LLAMA_API_KEY": endpoint.api_key})

    def isolation_options(self, spec: Spec, isolation: CallerIsolation) -> list[str]:
        if spec.task == "chat" and not isolation.shared_cache:
            return ["--no-cache-prompt"]  # but for requests that ask for it: the gateway's, for a model of one tenant
        return []

    # --- Its memory

    def predict(self, facts: ModelMetadata, demand: Demand) -> Prediction:
        return memory.predict(facts, demand)

    def keeps_model_in_ram(self, spec: Spec, program: Sequence[str]) -> bool:
        return self.runs_on_cpu(program) or spec.arguments(self.launcher).number("--n-gpu-layers") == 0

    # --- What models may be registered with it

    def check_registration(self, spec: Spec, url: str) -> Iterator[RegistrationProblem]:
        if spec.task == "transcription":
            yield RegistrationProblem(
                field="task",
                code="transcribes-by-chat",
                sentence=gettext_noop(
                    "llama.cpp transcribes with chat models that can hear (--mmproj): register it for chat."
                ),
            )

    def check_model(self, spec: Spec, facts: ModelMetadata, parsed: Arguments) -> Iterator[RegistrationProblem]:
        if spec.task == "embedding" and not facts.pooling and not parsed.has("--pooling", "--pooling-type"):
            # It would have a vector for each token, and answers each call with 400.
            yield RegistrationProblem(
                field="task",
                code="no-pooling",
                sentence=gettext_noop(
                    "The file does not say how a text becomes one vector. Set it in the arguments, for example "
                    "--pooling mean; see the model’s description."
                ),
            )

    def context_of(self, parsed: Arguments, slots: int | None) -> int:
        # Shared out to its requests.
        return _whole_context(parsed) // (max(parsed.number("--parallel") or 0, 0) or slots or DEFAULT_SLOTS)

    # --- What its models can do beyond their task

    def calls_tools(self, args: Sequence[str]) -> bool:
        # By the template's own form of calls; it ignores tools silently that a template does not know.
        return read_arguments(self.launcher, args).flag("--jinja") is True

    def sees_images(self, args: Sequence[str]) -> bool:
        # With the projector of the model.
        return bool(read_arguments(self.launcher, args).text("--mmproj"))

    def reasons(self, args: Sequence[str]) -> bool:
        # By default it is "auto" for every model, so only what an operator chose says something of this one.
        parsed = read_arguments(self.launcher, args)
        chosen = parsed.text("--reasoning-format") not in (None, "", "none", "auto")
        return chosen or parsed.text("--reasoning") == "on"


class LlamaServer(LlamaCpp):
    """llama.cpp's own server, compiled for this host."""

    command_variable = "LLAMA_SERVER_COMMAND"
    on_search_path = True
    installed_program = "llama-server"
    monitoring = MonitoringSpec(
        health="/health",
        metrics="/metrics",
        running="llamacpp:requests_processing",
        waiting="llamacpp:requests_deferred",
        work=(
            *("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
            "llamacpp:tokens_predicted_total",
        ),
        generated="llamacpp:tokens_predicted_total",
        version=("/props", "build_info"),
        prompt="llamacpp:prompt_tokens_total",
    )

    def environment(self, *, cpu: bool = False) -> "EngineEnvironment | None":
        from modelregistry.install.engine_environments import LLAMA_SERVER

        return LLAMA_SERVER

    def version_command(self, program: Sequence[str]) -> list[str]:
        return [program[0], "--version"]

    def read_version(self, output: str) -> str:
        # version: 6441 (5b74d6f), and since there are releases: version: 0.6.0 (build 11434, commit 5b74d6f)
        found = re.search(r"build (\d+),|version: (\d+) \(", output)
        return f"b{found[1] or found[2]}" if found else ""

    def options_command(self, program: Sequence[str], python: Path | None) -> list[str]:
        return [*program, "--help"]

    def read_options(self, output: str) -> list[dict[str, Any]]:
        return help_options(output)

    def command(self, spec: Spec, endpoint: EngineEndpoint) -> CommandParts:
        parts = super().command(spec, endpoint)
        # Neither pages of its own nor a look at the internet. (The wheel's server has neither.)
        return replace(parts, options=[*parts.options, "--no-webui", "--offline"])

    def memory_options(self, spec: Spec, grant: MemoryGrant) -> list[str]:
        if not grant.visible:
            # What it keeps of past conversations in RAM may grow to 8 GiB by default; the plan has no room for that.
            return ["--cache-ram", "0"]
        argv = ["--n-gpu-layers", "999", "--cache-ram", str(PROMPTS_IN_RAM)]
        if len(grant.visible) > 1:
            argv += ["--split-mode", "layer", "--tensor-split", ",".join("1" for _ in grant.visible)]
        return argv


class Xllamacpp(LlamaCpp):
    """The same server in a wheel, which is built for any CPU."""

    launcher = "xllamacpp"
    command_variable = "XLLAMACPP_PYTHON"
    packages = ("xllamacpp",)
    parser_is_ours = True
    monitoring = replace(LlamaServer.monitoring, version=("", ""))  # the wheel's server says "b0-unknown"
    reader = XllamacppReader

    def runs_on_cpu(self, program: Sequence[str]) -> bool:
        return super().runs_on_cpu(program) or "/engines/xllamacpp-" in program[0]

    def shipped_options(self) -> Options:
        return Options.of(xllamacpp_launcher.describe_options(), exact=True)

    def command(self, spec: Spec, endpoint: EngineEndpoint) -> CommandParts:
        # One second less than it is given, so that it ends by itself.
        head = [str(XLLAMACPP_LAUNCHER), "--grace", f"{max(endpoint.grace - 1, 0):g}"]
        return replace(super().command(spec, endpoint), head=head)

    def memory_options(self, spec: Spec, grant: MemoryGrant) -> list[str]:
        if grant.visible:
            return ["--n-gpu-layers", "999", "--cache-ram", str(PROMPTS_IN_RAM)]
        return ["--cache-ram", "0"]


class LlamaCppPython(LlamaCpp):
    """Bindings with a server of their own, which keeps no past conversations and puts all layers on GPUs by itself."""

    launcher = "llama-cpp-python"
    command_variable = "LLAMA_CPP_PYTHON"
    packages = ("llama-cpp-python",)
    # Anything under /v1 waits for (or, by default, ends) the running stream; this path alone never does.
    monitoring = MonitoringSpec(health="/openapi.json")
    reader = LlamaCppPythonReader
    rules = llama_cpp_arguments.PYTHON_RULES

    def environment(self, *, cpu: bool = False) -> "EngineEnvironment | None":
        from modelregistry.install.engine_environments import LLAMA_CPP_PYTHON

        return LLAMA_CPP_PYTHON

    def options_command(self, program: Sequence[str], python: Path | None) -> list[str]:
        return describe_command(self.launcher, python)

    def read_options(self, output: str) -> list[dict[str, Any]]:
        return read_description(output)

    def slots(self, spec: Spec) -> int | None:
        return 1

    def command(self, spec: Spec, endpoint: EngineEndpoint) -> CommandParts:
        argv = ["--model", spec.path, "--model_alias", spec.name]
        argv += ["--host", endpoint.address, "--port", str(endpoint.port), "--n_ctx", str(spec.context or 0)]
        # Else any other request ends a running stream early, as if it had finished.
        argv += ["--interrupt_requests", "false", "--n_gpu_layers", "-1"]
        # Else it keeps a number for each word of the vocabulary and each token of the context: 4 GB at 8,192 × 128,000.
        argv += ["--logits_all", "false"]
        if spec.task == "embedding":
            batch = str(max(spec.context or 8192, 512))
            argv += ["--embedding", "true", "--n_batch", batch, "--n_ubatch", batch]
        # Its settings read their own names from the environment.
        return CommandParts(head=["-m", "llama_cpp.server"], options=argv, env={"API_KEY": endpoint.api_key})

    def isolation_options(self, spec: Spec, isolation: CallerIsolation) -> list[str]:
        return []

    def serves(self, task: str) -> bool:
        return task != "rerank"

    def check_registration(self, spec: Spec, url: str) -> Iterator[RegistrationProblem]:
        yield from super().check_registration(spec, url)
        if spec.task == "rerank":
            yield RegistrationProblem(
                field="launcher",
                code="cannot-rerank",
                sentence=gettext_noop("llama-cpp-python cannot rerank; choose llama-server or xllamacpp."),
            )

    def context_of(self, parsed: Arguments, slots: int | None) -> int:
        return _whole_context(parsed)

    def calls_tools(self, args: Sequence[str]) -> bool:
        return False  # it calls a function only if its name is demanded


def _whole_context(parsed: Arguments) -> int:
    return parsed.number("--ctx-size", "-c", "--n-ctx") or 0
