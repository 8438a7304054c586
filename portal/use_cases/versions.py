"""The history of a use case: its versions, and what each changed."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from django.utils.text import capfirst
from django.utils.translation import gettext

from portal.accounts.models import User
from portal.use_cases.content import LIMITS, UseCaseContent, content_of
from portal.use_cases.gallery import versions_for
from portal.use_cases.models import Language, TargetGroup, TaskKind, UseCase, UseCaseText, UseCaseVersion

SHOWN = 30  # the newest versions
# Lines of a text that are compared: two of 8,000 lines of a character each take a second.
MOST_LINES = 400
LINES_OF_CHANGE, LINES_OF_PAGE = 200, 1000
MAX_LINE = 200  # characters that are shown of one
MORE = (" ", "…")
State = UseCaseVersion.State


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedText:
    """A changed part: its lines, each with "+" (new), "-" (gone) or " " (as before) and the line."""

    label: str
    language: str  # "" for what both languages share
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionChanges:
    """`changes`: against the version before; empty for the first one."""

    version: UseCaseVersion
    is_first: bool
    changes: tuple[ChangedText, ...]


def read_history(reader: User, case: UseCase, *, all_states: bool) -> list[VersionChanges]:
    """Return the versions, newest first, without drafts of others; else than with `all_states` only published ones.

    Two queries.
    """
    found = (
        versions_for(reader, case).select_related("author", "decided_by").prefetch_related("texts").order_by("-number")
    )
    if not all_states:
        found = found.filter(state__in=(State.PUBLISHED, State.REPLACED), decided_at__isnull=False) | found.filter(
            state__in=(State.PUBLISHED, State.REPLACED), starter_sum__gt=""
        )
    newest = list(found[: SHOWN + 1])
    rows, left = [], LINES_OF_PAGE
    for at, version in enumerate(newest[:SHOWN]):
        before = content_of(newest[at + 1]) if at + 1 < len(newest) else None
        changes = tuple(find_changes(before, content_of(version), most=left)) if before else ()
        left -= min(left, sum(len(change.lines) for change in changes))
        rows.append(VersionChanges(version=version, is_first=before is None, changes=changes))
    return rows


def find_changes(before: UseCaseContent, after: UseCaseContent, *, most: int) -> Iterator[ChangedText]:
    """Yield what differs, with about so many lines in all; what there is no line left for has MORE only."""
    for (label, language, old), (_, _, new) in zip(_parts(before), _parts(after), strict=True):
        if old != new:
            lines = tuple(compare_lines(old, new)) if most > 0 else (MORE,)
            most -= len(lines)
            yield ChangedText(label=capfirst(label), language=language, lines=lines)


def _parts(content: UseCaseContent) -> Iterator[tuple[str, str, str]]:
    """Yield (label, language, text) of all parts, the same parts for every content."""
    labels = {field.name: str(field.verbose_name) for field in UseCaseText._meta.concrete_fields}
    general = UseCaseVersion._meta
    yield str(general.get_field("kind").verbose_name), "", str(dict(TaskKind.choices).get(content.kind, content.kind))
    known = dict(TargetGroup.choices)
    yield gettext("Who it is for"), "", "\n".join(str(known.get(code, code)) for code in content.departments)
    yield str(general.get_field("model").verbose_name), "", content.model
    texts = {text.language: text for text in content.texts}
    for language in Language.values:
        text = texts.get(language)
        for name in LIMITS:
            yield labels[name], language, getattr(text, name) if text else ""
        rows = [f"{one.name} · {one.label} · {one.kind}\n{one.example}" for one in text.variables] if text else []
        yield "{{…}}", language, "\n".join(rows)


def compare_lines(before: str, after: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of both with their marks, without what lies far from a change; MORE last if there is more."""
    old, new = before.splitlines(), after.splitlines()
    lines = list(difflib.unified_diff(old[:MOST_LINES], new[:MOST_LINES], lineterm="", n=1))[2:]
    shown = [line for line in lines if not line.startswith("@@")]
    for line in shown[:LINES_OF_CHANGE]:
        text = line[1:]
        yield line[0], text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}…"
    if len(shown) > LINES_OF_CHANGE or max(len(old), len(new)) > MOST_LINES:
        yield MORE
