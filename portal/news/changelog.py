"""What is new in this version and in earlier ones: CHANGELOG.md, which comes with the program."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from django.utils.safestring import SafeString

from portal.web.markdown import render_markdown

FILE = Path(__file__).resolve().parent.parent.parent / "CHANGELOG.md"
RELEASE = re.compile(r"^## \[(?P<version>[^\]]+)\](?: - (?P<day>.*))?$", re.MULTILINE)
# Lines of the file are wrapped; on a page they are not.
WRAPPED = re.compile(r"(?<!\n)\n(?![\n#*-]) *")
MOST_RELEASES = 10
MOST_CHARACTERS = 100_000  # of a release; the file is ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    version: str
    day: str  # as in the file
    html: SafeString


@cache  # the file is that of the running version
def read_releases() -> tuple[Release, ...]:
    """Return the releases, the latest first; none without the file."""
    try:
        text = FILE.read_text(encoding="utf-8")
    except OSError:
        return ()
    found = list(RELEASE.finditer(text))
    ends = [one.start() for one in found[1:]] + [len(text)]
    return tuple(
        Release(
            version=one["version"],
            day=one["day"] or "",
            html=render_markdown(WRAPPED.sub(" ", text[one.end() : end].strip()), most=MOST_CHARACTERS),
        )
        for one, end in list(zip(found, ends, strict=True))[:MOST_RELEASES]
    )
