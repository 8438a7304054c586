"""The search over the whole site: what each package finds of its nouns is registered here, in its `apps.py`.

A finder gets a person and a text and returns the first of what this person may see; it decides that itself, through
`portal.accounts.permissions`, as the pages do that it links to.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise

LONGEST, SHORTEST = 100, 2  # characters of a text; a single letter is in everything
SHOWN = 8  # of each kind
MOST = 200  # of one kind that is asked for alone; who wants another one types more of it
# The text of an API key, of which only the beginning may be looked up: the rest is secret and is in no page.
KEY_TEXT = re.compile(r"\b(md[gm]_[0-9A-Za-z]{8})[0-9A-Za-z]{8,}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """One thing that was found. `code`: whether its title is a name that programs use."""

    title: str
    address: str
    detail: str = ""
    code: bool = False


Finder = Callable[[Any, str, int], Sequence[SearchResult]]  # person, text, at most so many


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchKind:
    """A kind of things that can be found. `order`: its place on the page, the smallest first."""

    name: str
    title: Promise
    order: int
    find: Finder


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSection:
    """What was found of one kind. `cut`: there is more of it."""

    kind: SearchKind
    results: tuple[SearchResult, ...]
    cut: bool


kinds: dict[str, SearchKind] = {}


def register(kind: SearchKind) -> None:
    """Add a kind of things that can be found. Registering it again replaces it."""
    kinds[kind.name] = kind


def clean_query(text: str) -> str:
    """Return what is looked for: without the secret part of a key, which a person may have pasted whole."""
    return KEY_TEXT.sub(r"\1", " ".join(text.split())[:LONGEST]).replace("\0", "")


def search(user: Any, text: str, only: str = "") -> list[SearchSection]:
    """Return what this person may see of what has the text, by kind. A fixed number of queries for each kind.

    `only`: the name of a kind, of which there are MOST then; of another name there is nothing.
    """
    wanted = clean_query(text)
    if len(wanted) < SHORTEST:
        return []
    most = MOST if only else SHOWN
    sections = []
    for kind in sorted(kinds.values(), key=lambda kind: kind.order):
        found = list(kind.find(user, wanted, most + 1)) if only in ("", kind.name) else []
        if found:
            sections.append(SearchSection(kind=kind, results=tuple(found[:most]), cut=len(found) > most))
    return sections
