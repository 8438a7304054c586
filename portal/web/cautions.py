"""What a page asks about once before it saves it, since it may not be meant. The API and commands only name it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caution:
    """`code` names it for programs; `sentence` says in the reader's language what will happen."""

    code: str
    sentence: str
