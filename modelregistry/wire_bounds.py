"""How much a host may send in one field: `Annotated[str, AtMost(200)]`, which `hostside.wire` enforces."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True)
class AtMost:
    """Characters of a text, entries of a list or mapping."""

    number: int


Name = Annotated[str, AtMost(300)]
Line = Annotated[str, AtMost(5_000)]
