"""What is to be filled in in a use case: `{{name}}` in its prompts, and the form that people see for each of these.

Dify writes variables in the same way, so a prompt can be pasted there as it is.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _

MOST_VARIABLES = 8
# In both prompts together. A value of 4,000 characters in each makes 64,000, which its page shows in every example.
MOST_PLACES = 16
MAX_NAME, MAX_LABEL, MAX_VALUE = 30, 60, 4000
MOST_CHOICES, MAX_CHOICE = 12, 60
NAME = re.compile(r"[a-z][a-z0-9_]{0,29}")
PLACE = re.compile(r"\{\{\s*([a-z][a-z0-9_]{0,29})\s*\}\}")


class VariableKind(models.TextChoices):
    LINE = "line", _("one line")
    TEXT = "text", _("a text")
    CHOICE = "choice", _("a choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One thing to fill in. `example` is the value that the form begins with; of a choice, one of `choices`."""

    name: str
    label: str
    kind: str = VariableKind.LINE
    example: str = ""
    choices: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return it as it is stored."""
        return {
            **{"name": self.name, "label": self.label, "kind": self.kind, "example": self.example},
            "choices": list(self.choices),
        }


def read_variables(stored: Iterable[Mapping[str, Any]]) -> tuple[Variable, ...]:
    """Return the variables as `Variable.to_json` stored them."""
    return tuple(Variable(**{**one, "choices": tuple(one["choices"])}) for one in stored)


def find_names(*templates: str) -> list[str]:
    """Return the names in these texts in their order, each once."""
    return list(dict.fromkeys(name for template in templates for name in PLACE.findall(template)))


def count_places(*templates: str) -> int:
    return sum(len(PLACE.findall(template)) for template in templates)


def fill_in(template: str, values: Mapping[str, str]) -> str:
    """Return the text with these values; a place without a value, or after MOST_PLACES, stays as it is.

    In one pass: what looks like a place within a value is text.
    """
    return PLACE.sub(lambda match: values.get(match[1], match[0]), template, count=MOST_PLACES)


def example_values(variables: Iterable[Variable]) -> dict[str, str]:
    return {one.name: one.example for one in variables}


def read_values(variables: Iterable[Variable], posted: Mapping[str, str]) -> dict[str, str]:
    """Return what a person filled in, bounded; what is missing or no choice is the example."""
    return {one.name: _read_value(one, posted.get(f"v-{one.name}")) for one in variables}


def _read_value(variable: Variable, value: str | None) -> str:
    if value is None or (variable.kind == VariableKind.CHOICE and value not in variable.choices):
        return variable.example
    value = value[:MAX_VALUE].replace("\0", "")
    return " ".join(value.split()) if variable.kind == VariableKind.LINE else value
