"""What does not agree with what must be: a code for tests, and a sentence for who reads the report."""

from typing import NamedTuple


class Discrepancy(NamedTuple):
    code: str
    text: str

    def __str__(self) -> str:
        return self.text
