"""How llama.cpp and llama-cpp-python read their arguments, and what is known of them. Pure.

Facts of llama.cpp b11434: what its parser (common/arg.cpp) refuses, and the server's own help.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from modelregistry.engines.argument_rules import (
    CODE,
    FROM_0,
    FROM_MINUS_1,
    NATURAL,
    OUTSIDE,
    ArgumentRules,
    Range,
)
from modelregistry.engines.arguments import (
    ArgparseReader,
    ArgumentFault,
    ArgumentReader,
    Arguments,
    Given,
    is_negative,
    joined_option,
    replace_underscores,
    shipped_options,
    stray_fault,
)

# Requests at a time if the operator does not say: enough for a small team, and its KV cache still fits beside the
# weights.
DEFAULT_SLOTS = 4
# MiB of RAM in which its server keeps past conversations of a model that is on GPUs; its own choice is 8,192.
PROMPTS_IN_RAM = 2048

_RANGES: Mapping[str, Range] = {
    "--parallel": Range(least=1, also=-1),
    "--prio": Range(least=-1, most=3),
    "--prio-batch": Range(least=0, most=3),
    "--batch-size": NATURAL,
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
        FROM_0,
    ),
    **dict.fromkeys(["--repeat-last-n", "--dry-penalty-last-n", "--reasoning-budget", "--cache-ram"], FROM_MINUS_1),
}
_RANGES_OF_PYTHON: Mapping[str, Range] = {
    "--n-batch": NATURAL,
    "--n-gpu-layers": FROM_MINUS_1,
    **dict.fromkeys(
        ["--n-ctx", "--n-ubatch", "--main-gpu", "--cache-size", "--yarn-orig-ctx", "--rope-freq-base"], FROM_0
    ),
}

# --- Programs and places

_RISKS: Mapping[str, str] = {
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

_FILES: Mapping[str, str] = {
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
_UNPLANNED = frozenset(
    [
        *("--mmproj", "--mmproj-url", "--spec-draft-model", "--spec-draft-hf", "--spec-type", "--lora"),
        *("--lora-scaled", "--control-vector", "--control-vector-scaled", "--override-tensor"),
        *("--n-cpu-ffn", "--rpc", "--device", "--main-gpu", "--tensor-split", "--split-mode"),
        *("--op-offload", "--kv-unified-per-slot", "--ctx-checkpoints"),
        *("--lora-path", "--clip-model-path", "--draft-model", "--rpc-servers", "--offload-kqv", "--cache"),
    ]
)
RULES = ArgumentRules(ranges=_RANGES, risks=_RISKS, files=_FILES, unplanned=_UNPLANNED)
PYTHON_RULES = replace(RULES, ranges=_RANGES_OF_PYTHON)


class LlamaCppReader(ArgumentReader):
    """Reads as common_params_parse_ex of llama.cpp's common/arg.cpp: names as they are, a value is what comes next."""

    reads_by_stoi = True

    def read(self, args: Sequence[str]) -> None:
        at = 0
        while at < len(args):
            at += self._read_option(args, at)

    def _read_option(self, args: Sequence[str], at: int) -> int:
        """Read an option and return how many words it took."""
        arg = args[at]
        name, equals, value = arg.partition("=")
        if not arg.startswith("-") or joined_option(arg, self.options):
            self.faults.append(stray_fault(arg, self.options))
            self.given.append(Given(name=arg, written=arg, option=None))
            return 1
        name = replace_underscores(name)
        option = self.options.by_name.get(name)
        if option is None:
            return self._read_unknown(args, at, name, value if equals else None)
        count = int(option.values) if option.values.isdigit() else 1  # "?" and "+" are argparse's
        values = ((value,) if equals else ()) + tuple(args[at + 1 : at + 1 + count - bool(equals)])
        if count == 0 and equals:
            self.faults.append(ArgumentFault(code="needless-value", arg=arg))
        if len(values) < count:
            self.faults.append(ArgumentFault(code="no-value", arg=arg))
        self.given.append(
            Given(name=name, written=arg, option=option, values=values[:count], on=name not in option.off)
        )
        return 1 + max(0, count - bool(equals))

    def _read_unknown(self, args: Sequence[str], at: int, name: str, value: str | None) -> int:
        """Read an option of another version: what follows is its value unless it looks like an option."""
        if self.options.exact:
            self.faults.append(ArgumentFault(code=self.code_of_unknown(name), arg=args[at]))
        following = args[at + 1 : at + 2]
        takes = value is None and bool(following) and (not following[0].startswith("-") or is_negative(following[0]))
        values = (value,) if value is not None else tuple(following) if takes else ()
        if value is not None and not name.startswith("--"):
            values = ()  # `-x=1` is handed on as it is
        self.given.append(Given(name=name, written=args[at], option=None, values=values))
        return 1 + takes

    def code_of_unknown(self, name: str) -> str:
        """Return the code of the `ArgumentFault` for an option that is not in the exact table."""
        return "unknown"


class XllamacppReader(LlamaCppReader):
    """Reads as xllamacpp, which takes a part of what llama-server does."""

    def code_of_unknown(self, name: str) -> str:
        """Say where the option is known."""
        return "elsewhere" if name in shipped_options("llama-server").by_name else "unknown"


class LlamaCppPythonReader(ArgparseReader):
    """Reads as llama-cpp-python's settings: Python's argparse."""

    @classmethod
    def render(cls, arguments: Arguments, args: Sequence[str]) -> tuple[str, ...]:
        """Return them with `_` in every name."""
        found: list[str] = []
        for one in arguments.given:
            name = one.name.replace("-", "_").replace("__", "--", 1)
            found += [name if one.option or one.values else one.written, *one.values]
        return tuple(found)
