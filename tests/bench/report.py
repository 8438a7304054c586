"""What a part of the measurement reports, and where it is written: sections of RESULTS.md between marks."""

import re
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = "| goal | wanted | reached | |\n|---|---|---|---|"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One that the project has set itself, and what was reached."""

    text: str
    wanted: str
    reached: str
    met: bool

    def line(self) -> str:
        return f"| {self.text} | {self.wanted} | {self.reached} | {'yes' if self.met else '**no**'} |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`name` is that of its section. `answered` and `recorded` are requests: of a true ledger they are equal."""

    name: str
    markdown: str
    goals: tuple[Goal, ...] = ()
    answered: int = 0
    recorded: int = 0


def table(columns: list[str], lines: list[list[str]]) -> str:
    """Markdown."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


EXACT = "every answer of these runs has its usage row, and only one"


def exactness(parts: list[Part]) -> Goal:
    answered, recorded = sum(part.answered for part in parts), sum(part.recorded for part in parts)
    return Goal(
        text=EXACT,
        wanted=f"{answered:,}",
        reached=f"{recorded:,}",
        met=all(part.answered == part.recorded for part in parts),
    )


def goals(parts: list[Part]) -> str:
    """Return Markdown: the table beside the goals. Of the ledger only if any call was answered."""
    found = [goal for part in parts for goal in part.goals]
    if any(part.answered for part in parts):
        found.append(exactness(parts))
    return "\n".join([HEAD, *(goal.line() for goal in found)])


def write(sections: dict[str, str], path: Path = RESULTS) -> None:
    """Replace these sections of the page. Raises SystemExit for one that the page does not have."""
    text = path.read_text()
    for name, markdown in sections.items():
        old = re.search(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", text, re.DOTALL)
        if old is None:
            raise SystemExit(f"{path} has no section {name}")
        text = f"{text[: old.start()]}{markdown}\n{text[old.end() :]}"
    path.write_text(text)


def merged(parts: list[Part], path: Path = RESULTS) -> str:
    """Return the table beside the goals with these parts' lines in it; the page's others stay."""
    section = re.search(r"<!-- goals -->\n(.*?)<!-- /goals -->", path.read_text(), re.DOTALL)
    old = section[1].splitlines() if section else []
    lines = {line.split(" | ")[0]: line for line in (*old, *goals(parts).splitlines()) if line.startswith("| ")}
    lines.pop(HEAD.split(" | ")[0])
    if exact := lines.pop(f"| {EXACT}", None):
        lines[f"| {EXACT}"] = exact  # the last
    return "\n".join([HEAD, *lines.values()])
