"""The courses: one TOML file each in `courses/`, with both languages. Their steps are seen done, see `progress`."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from django.utils.translation import get_language

FOLDER = Path(__file__).parent / "courses"
NAMES = ("everyone", "developers")  # in the order in which they are listed
# What a step may be recognised by; `progress` says how.
CODES = (
    "signed-in", "playground", "practised", "feedback", "use-case", "three-models", "helped", "key", "curl", "openai",
    "stream", "embedding", "dify", "openwebui", "quota",
)  # fmt: skip
SAMPLES = ("curl", "python", "stream", "embedding", "dify", "openwebui")  # what `samples` makes


@dataclass(frozen=True, slots=True, kw_only=True)
class StepText:
    """What a step says in one language. `text` is Markdown; `seen` says how the step is recognised."""

    title: str
    learn: str
    text: str
    seen: str
    prompt: str = ""  # to try in the playground
    link: str = ""  # the words of the link to the step's page


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseStep:
    """`page`: the name of an address of the portal, or "". An `optional` step is not needed to finish the course."""

    code: str
    minutes: int
    ja: StepText
    en: StepText
    page: str = ""
    sample: str = ""  # one of SAMPLES, or ""
    optional: bool = False

    @property
    def text(self) -> StepText:
        return self.ja if is_japanese() else self.en


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    name: str
    minutes: int
    titles: dict[str, str]
    leads: dict[str, str]
    steps: tuple[CourseStep, ...]

    @property
    def title(self) -> str:
        return self.titles["ja" if is_japanese() else "en"]

    @property
    def lead(self) -> str:
        return self.leads["ja" if is_japanese() else "en"]


def is_japanese() -> bool:
    """Return whether the page is in Japanese."""
    return (get_language() or "ja").startswith("ja")


@cache
def all_courses() -> dict[str, Course]:
    """Return the courses by their names. Raises ValueError for a file that is wrong."""
    return {name: read_course(name, tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8"))) for name in NAMES}


def read_course(name: str, found: dict[str, Any]) -> Course:
    """Return the course that a file describes. Raises ValueError."""
    try:
        steps = tuple(_read_step(dict(one)) for one in found["steps"])
        titles, leads = ({language: found[language][part] for language in ("ja", "en")} for part in ("title", "lead"))
        course = Course(name=name, minutes=found["minutes"], titles=titles, leads=leads, steps=steps)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from error
    codes = [step.code for step in steps]
    if not codes or len(set(codes)) < len(codes) or not set(codes) <= set(CODES):
        raise ValueError(f"{name}: each step has one of these codes, and none twice: {', '.join(CODES)}")
    if any(step.sample not in ("", *SAMPLES) for step in steps):
        raise ValueError(f"{name}: a sample is one of {', '.join(SAMPLES)}")
    return course


def _read_step(found: dict[str, Any]) -> CourseStep:
    return CourseStep(**{**found, "ja": StepText(**found["ja"]), "en": StepText(**found["en"])})
