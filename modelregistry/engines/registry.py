"""The engines that Madoguchi knows, one row each. No other code branches on the engine.

A class is imported when it is first needed: an engine plans its memory with `modelregistry.memory` and reads its files
with `modelregistry.files`, which themselves look engines up here.
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelregistry.engines.base import Engine

# The name of an engine, as models are registered with it, and its class.
ENGINES: dict[str, str] = {
    "vllm": "modelregistry.engines.vllm.Vllm",
    "llama.cpp": "modelregistry.engines.llama_cpp.LlamaCpp",
    "external": "modelregistry.engines.external.External",
}
# For rows that a later release wrote: an engine of which nothing is known, so it is never started.
UNKNOWN = "modelregistry.engines.base.Engine"


def engine_named(name: str) -> "Engine":
    """Return the engine that a model is registered with."""
    return _make_engine(ENGINES.get(name, UNKNOWN))


def launched_by(launcher: str) -> "Engine":
    """Return the engine as this launcher runs it. "": an external engine, which nothing here launches."""
    return _by_launcher().get(launcher) or _make_engine(UNKNOWN)


def engine_for(model_format: str) -> "Engine":
    """Return the first engine that is started here and reads this form of files."""
    return next(engine for engine in all_engines() if not engine.external and engine.model_format == model_format)


def all_engines() -> list["Engine"]:
    """Return one of each kind, in the order in which people choose."""
    return [_make_engine(path) for path in ENGINES.values()]


def all_launchers() -> list[str]:
    """Return the launchers of all engines that are started here, in the order in which they are preferred."""
    return [launcher for launcher in _by_launcher() if launcher]


def command_variables() -> dict[str, str]:
    """Return the variables of the environment by which operators name programs, by launcher."""
    by_launcher = {launcher: launched_by(launcher).command_variable for launcher in all_launchers()}
    return {launcher: variable for launcher, variable in by_launcher.items() if variable}


def installable_engines() -> dict[str, "Engine"]:
    """Return what can be installed, by the name that an operator says: of an engine, or of one of its launchers."""
    named = {
        name: one for engine in all_engines() for name, one in (engine.launchers() | {engine.name: engine}).items()
    }
    return {name: one for name, one in named.items() if one.environment()}


def external_engines() -> list[str]:
    """Return the names of the engines that run elsewhere."""
    return [engine.name for engine in all_engines() if engine.external]


def _by_launcher() -> dict[str, "Engine"]:
    return {launcher: one for engine in all_engines() for launcher, one in engine.launchers().items()}


@cache
def _make_engine(path: str) -> "Engine":
    module, _, name = path.rpartition(".")
    made: Engine = getattr(import_module(module), name)()
    return made
