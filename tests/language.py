"""Hold docstrings, comments, messages, templates and documents to plain English: `python -m tests.language [path …]`.

Two rules. The docstring of a function begins with a verb in the imperative (ruff's D401 knows the wrong forms of verbs,
this knows what is no verb at all). And some words have one plainer word that is always used instead.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# What a sentence begins with when it lacks its verb.
NO_VERB = re.compile(
    r"a|about|after|all|also|an|and|another|any|as|at|back|before|both|by|each|either|else|every|everybody"
    r"|everyone|everything|exactly|few|first|for|four|from|half|he|her|his|how|i|if|in|instead|it|its|last"
    r"|members|most|my|neither|never|newest|no|nobody|none|not|nothing|of|off|on|one|only|or|other|our|ours"
    r"|over|several|she|so|some|somebody|someone|something|that|the|their|these|they|this|those|three|to"
    r"|today|two|until|up|we|what|whatever|when|where|whether|which|who|whoever|whole|whom|whose|why|with"
    r"|without|you|your|yours"
)
VERBS_IN_S = frozenset({"access", "address", "assess", "bias", "compress", "cross", "discuss", "dismiss", "express"})
VERBS_IN_S |= {"focus", "guess", "miss", "pass", "press", "process", "suppress", "toss"}

# Each with what to say instead.
PLAINER = {
    r"wish(?:es|ed|ing)?": "request, want",
    r"anew": "again",
    r"at present": "now, currently",
    r"somebody|someone": "name who: a caller, a person, an operator",
    r"nobody": "no one, or name who: no caller, no person",
    r"tell(?:s|ing)?|told": "report, show, say, record, notify",
    r"(?<!in )stands?(?! for\b)(?!-)(?! alone\b)|stood": "is, is in, remains",
    r"whom|whoever": "name who it is",
}
WORDS = re.compile(r"\b(?:" + "|".join(f"({pattern})" for pattern in PLAINER) + r")\b", re.IGNORECASE)


class Finding(NamedTuple):
    path: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def main(*paths: str) -> int:
    found = [finding for path in tracked(*paths) for finding in examine(path)]
    for finding in found:
        print(finding)
    return 1 if found else 0


def tracked(*paths: str) -> list[Path]:
    names = ("*.py", "*.md", "*.html", "*.txt")
    listed = subprocess.run(["git", "ls-files", "-z", *(paths or names)], cwd=ROOT, capture_output=True, check=True)
    files = [Path(name) for name in listed.stdout.decode().split("\0") if name]
    return [path for path in files if path.suffix in (".py", ".md", ".html", ".txt") and "migrations" not in path.parts]


def examine(path: Path) -> Iterator[Finding]:
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        spoken = python_texts(text, messages="tests" not in path.parts)
        yield from (Finding(path, line, what) for line, what in headless(text))
    else:
        spoken = enumerate(text.splitlines(), start=1)
    for line, words in spoken:
        for match in WORDS.finditer(words):
            better = list(PLAINER.values())[(match.lastindex or 1) - 1]
            yield Finding(path, line, f'"{match[0]}": {better}')


def headless(source: str) -> Iterator[tuple[int, str]]:
    """Yield docstrings of functions that do not begin with a verb. Tests, properties and constructors may."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith(("test_", "__init__")):
            continue
        if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        words = (ast.get_docstring(node) or "").split()
        if words and not is_verb(words[0]):
            yield node.body[0].lineno, f'docstring of {node.name} begins with "{words[0]}", not with a verb'


def is_verb(word: str) -> bool:
    bare = word.rstrip(",:;.")
    lower = bare.lower()
    if not re.fullmatch(r"[A-Z][a-z]+(?:-[a-z]+)?", bare) or NO_VERB.fullmatch(lower):
        return False
    return not lower.endswith("s") or lower in VERBS_IN_S


def python_texts(source: str, *, messages: bool) -> Iterator[tuple[int, str]]:
    """Yield the lines of comments and docstrings; with `messages` of every string that has words in it."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_text = token.type == tokenize.COMMENT or (
            token.type == tokenize.STRING and (token.string.lstrip("rRbBfF").startswith('"""') or messages)
        )
        if is_text and " " in token.string:
            yield from enumerate(token.string.splitlines(), start=token.start[0])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
