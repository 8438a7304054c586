"""A third engine, which exists in tests only: one class, and one row of the registry.

`python -m tests.modelregistry.engines.parrot COMMAND …` is `manage.py COMMAND …` in a product that has it.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from django.core.management import execute_from_command_line

from modelregistry.engines import registry
from modelregistry.engines.argument_rules import ArgumentRules, Range
from modelregistry.engines.arguments import Arguments, Options
from modelregistry.engines.base import (
    CommandParts,
    Engine,
    EngineEndpoint,
    MemoryGrant,
    MonitoringSpec,
    RegistrationProblem,
    Spec,
)
from modelregistry.files.metadata import GGUF, ModelMetadata, gettext_noop
from modelregistry.memory.estimate import MIB, Demand, Prediction, make_prediction

CLASS = "tests.modelregistry.engines.parrot.Parrot"
SERVER = Path(__file__).parents[1] / "llama_server.py"  # a substitute for its server as well
CACHE = 64 * MIB  # of each request
PROCESS = 20 * MIB


class Parrot(Engine):
    """Reads GGUF files, keeps all of it in RAM, and chats."""

    name = "parrot"
    title = "Parrot"
    launcher = "parrot-server"
    model_format = GGUF
    command_variable = "PARROT_COMMAND"
    monitoring = MonitoringSpec(
        health="/health",
        metrics="/metrics",
        running="llamacpp:requests_processing",
        work=("llamacpp:tokens_predicted_total",),
        generated="llamacpp:tokens_predicted_total",
        version=("/props", "build_info"),
    )
    rules = ArgumentRules(ranges={"--words": Range(least=1, most=100)})

    def shipped_options(self) -> Options:
        return Options.of([{"names": ["--words"], "kind": "int"}], exact=False)

    def slots(self, spec: Spec) -> int | None:
        return spec.slots or 2

    def supports_priority(self, task: str, args: Sequence[str]) -> bool:
        return True

    def command(self, spec: Spec, endpoint: EngineEndpoint) -> CommandParts:
        options = ["--model", spec.path, "--alias", spec.name, "--host", endpoint.address, "--port", str(endpoint.port)]
        return CommandParts(options=options, env={"LLAMA_API_KEY": endpoint.api_key})

    def memory_options(self, spec: Spec, grant: MemoryGrant) -> list[str]:
        return ["--memory", str(grant.cache)]

    def predict(self, facts: ModelMetadata, demand: Demand) -> Prediction:
        sequences = demand.slots or 1
        return make_prediction(
            weights=facts.weight_bytes,
            cache=CACHE * sequences,
            cache_least=CACHE * sequences,
            overhead=PROCESS,
            devices=1,
            context=demand.context or facts.context or 1024,
            sequences=sequences,
        )

    def keeps_model_in_ram(self, spec: Spec, program: Sequence[str]) -> bool:
        return True

    def check_registration(self, spec: Spec, url: str) -> Iterator[RegistrationProblem]:
        if spec.task != "chat":
            yield RegistrationProblem(field="task", code="only-chats", sentence=gettext_noop("A parrot only chats."))

    def check_model(self, spec: Spec, facts: ModelMetadata, parsed: Arguments) -> Iterator[RegistrationProblem]:
        if facts.architecture != "llama":
            yield RegistrationProblem(
                field="path", code="no-llama", sentence=gettext_noop("A parrot knows Llamas only.")
            )


if __name__ == "__main__":
    registry.ENGINES[Parrot.name] = CLASS
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
    execute_from_command_line(sys.argv)
