"""The protocol of a rehearsal: what was done, what was seen, how long it took, as a document in Markdown."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


class Deviation(Exception):
    """Something was not as the book says. The sentence says what was expected and what was seen."""


class StepFailed(Exception):
    """A step of the rehearsal failed; the sentence names it."""


@dataclass
class Step:
    """One row. `seen`: what was found, in the order in which it was found."""

    name: str
    seen: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def see(self, text: str) -> None:
        self.seen.append(text)


@dataclass
class Protocol:
    """All steps so far; `say` shows each as it begins and as it ends."""

    say: Callable[[str], None] = print
    clock: Callable[[], float] = time.monotonic
    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time what is done within. Raises StepFailed, which names the step, for whatever fails there."""
        row = Step(name)
        self.say(f"[{len(self.steps) + 1}] {name}")
        began = self.clock()
        try:
            yield row
        except Exception as error:
            raise StepFailed(f"Step {len(self.steps) + 1}, {name!r}, failed: {error}") from error
        row.seconds = self.clock() - began
        self.steps.append(row)
        self.say(f"    {row.seconds:.1f} s; {'; '.join(row.seen)}")

    def write(self, path: Path, date: str, facts: Mapping[str, str]) -> None:
        path.write_text(render(self.steps, date, facts))


def render(steps: list[Step], date: str, facts: Mapping[str, str]) -> str:
    """Return the document. `facts`: versions and whatever else the figures depend on."""
    lines = [
        "# The book, rehearsed",
        "",
        "`make rehearse` (as root) does on clean hosts what [OPERATIONS.md](OPERATIONS.md), [LDAP.md](LDAP.md) and",
        "[RAY.md](RAY.md) say, and writes this page. Hosts are containers that boot systemd, on a network of their own",
        "that leads nowhere. What is not as the book says ends the rehearsal.",
        "",
        f"Of {date}:",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "| | step | seconds | what was seen |",
        "|---|---|---|---|",
    ]
    for number, step in enumerate(steps, start=1):
        seen = "; ".join(step.seen).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {number} | {step.name} | {step.seconds:.1f} | {seen} |")
    return "\n".join([*lines, ""])
