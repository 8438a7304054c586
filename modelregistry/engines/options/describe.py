"""Prints what an engine's own argument parser takes, as JSON: one object for each option. Starts nothing.

Executed by the Python of the engine's environment (3.10 or newer), so it imports nothing of ours:
`python -I describe.py vllm|llama-cpp-python`.
"""

import argparse
import json
import runpy
import sys
from importlib import import_module
from typing import Any

KINDS = {
    **{"int": "int", "float": "float", "human_readable_int": "size", "human_readable_int_or_auto": "size-or-auto"},
    **{"loads": "json", "parse_dataclass": "json", "_parse_bool_arg": "bool"},
}


class Described(Exception):
    """Carries the parser out of a program that would go on and serve."""


def vllm_parser() -> argparse.ArgumentParser:
    serve = import_module("vllm.entrypoints.cli.serve")
    try:
        utils = import_module("vllm.utils.argparse_utils")
    except ImportError:  # before 0.12
        utils = import_module("vllm.utils")
    commands = utils.FlexibleArgumentParser().add_subparsers()
    made: argparse.ArgumentParser = serve.cmd_init()[0].subparser_init(commands)
    return made


def llama_cpp_python() -> argparse.ArgumentParser:
    # Its module makes the parser and at once serves by what that read.
    def carry_parser(parser: Any, *args: Any, **kwargs: Any) -> Any:
        raise Described(parser)

    setattr(argparse.ArgumentParser, "parse_args", carry_parser)  # noqa: B010 -- or mypy would mind
    try:
        runpy.run_module("llama_cpp.server", run_name="__main__")
    except Described as found:
        parser: argparse.ArgumentParser = found.args[0]
        return parser
    raise SystemExit("llama_cpp.server made no parser")


def value_kind(function: Any) -> str:
    """Return how a function reads a value, by its name, or by the name of the function that it wraps."""
    name = getattr(function, "__name__", "")
    if name in KINDS:
        return KINDS[name]
    inner = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return next((found for each in inner if callable(each) and (found := value_kind(each)) != "text"), "text")


def describe_option(action: argparse.Action) -> dict[str, Any]:
    words = [name.replace("_", "-") for name in action.option_strings]
    off = [name for name in words if name.startswith("--no-") and "--" + name[5:] in words]
    values = {"None": "1", "*": "+"}.get(str(action.nargs), str(action.nargs))
    described = {"names": [name for name in words if name not in off], "off": off, "values": values}
    if values != "0":
        described["kind"] = value_kind(action.type)
        described["choices"] = [str(choice) for choice in action.choices or ()]
    return described


def main(launcher: str) -> None:
    parser = {"vllm": vllm_parser, "llama-cpp-python": llama_cpp_python}[launcher]()
    # Marked, since engines print what they like when they are imported.
    print("OPTIONS " + json.dumps([describe_option(action) for action in parser._actions if action.option_strings]))


if __name__ == "__main__":
    main(sys.argv[1])
