"""The use cases that Madoguchi brings along: one TOML file each in `starters/`, with both languages.

Loading is idempotent. A file that has changed makes a new version, unless people have edited the case meanwhile; one
that operators hid stays hidden.
"""

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils import timezone

from portal.use_cases import publishing
from portal.use_cases.content import TextContent, UseCaseContent, check_content
from portal.use_cases.models import Language, UseCase, UseCaseVersion
from portal.use_cases.variables import Variable

FOLDER = Path(__file__).parent / "starters"
State = UseCaseVersion.State


def starter_files() -> list[Path]:
    return sorted(FOLDER.glob("*.toml"))


def read_starter(path: Path) -> UseCaseContent:
    """Return the case that a file describes. Raises UseCaseRefused for one that could not be published."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    content = UseCaseContent(
        kind=data["kind"],
        departments=tuple(data["departments"]),
        texts=tuple(_read_text(language, data[language]) for language in Language.values),
    )
    check_content(content)
    return content


def _read_text(language: str, data: Mapping[str, Any]) -> TextContent:
    fields = {name: str(value).strip() for name, value in data.items() if name != "variables"}
    return TextContent(language=language, **fields, variables=tuple(_read_variables(data.get("variables", ()))))


def _read_variables(rows: list[dict[str, Any]]) -> Iterator[Variable]:
    for row in rows:
        row = {**row, "example": row.get("example", "").strip(), "choices": tuple(row.get("choices", ()))}
        yield Variable(**row)


def load_starters() -> list[str]:
    """Load what is new or changed, and return the names of these files."""
    return [path.stem for path in starter_files() if load_starter(path)]


@transaction.atomic
def load_starter(path: Path) -> bool:
    """Load one file; return whether there was anything to do."""
    content = read_starter(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    case, is_new = UseCase.objects.select_for_update().get_or_create(
        starter=path.stem, defaults={"name": content.name, "is_company_wide": True}
    )
    newest = case.versions.order_by("number").last()
    if newest is not None and newest.starter_sum in ("", digest):
        return False
    number = newest.number + 1 if newest else 1
    version = publishing.write_version(
        case, content, number=number, author=None, state=State.PUBLISHED, starter_sum=digest
    )
    case.versions.filter(state=State.PUBLISHED).exclude(pk=version.pk).update(state=State.REPLACED)
    case.current, case.name = version, content.name
    if is_new:
        case.published_at = timezone.now()
    case.save(update_fields=["current", "name", "published_at"])
    return True
