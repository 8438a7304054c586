"""Every text has its Japanese. After adding texts: the command at the top of django.po, then translate."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from django.core.management import call_command

from portal import settings
from tests.translations import TEXTS


@pytest.fixture(scope="module")
def extracted(tmp_path_factory) -> Path:
    """Return the catalogue as it would be after another run of makemessages, made beside the real one."""
    copy = tmp_path_factory.mktemp("texts")
    for part in ("portal", "modelregistry", "apiproxy", "templates"):
        ignored = shutil.ignore_patterns("migrations", "__pycache__", "*.mo", "static")
        shutil.copytree(settings.BASE_DIR / part, copy / part, ignore=ignored)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        patch.setattr("django.conf.settings.LOCALE_PATHS", [str(copy / "portal" / "locale")])
        call_command("makemessages", locale=["ja"], no_obsolete=True, no_wrap=True, no_location=True, verbosity=0)
    return copy / "portal" / "locale" / "ja" / "LC_MESSAGES" / "django.po"


def entries(catalogue: Path, *chosen: str) -> str:
    return subprocess.run(
        ["msgattrib", "--no-wrap", *chosen, catalogue], check=True, capture_output=True, text=True
    ).stdout


def test_no_text_is_without_its_japanese(extracted):
    assert entries(extracted, "--untranslated", "--no-fuzzy", "--no-obsolete") == ""


def test_no_translation_is_a_guess(extracted):
    assert entries(extracted, "--only-fuzzy") == ""
    assert entries(TEXTS, "--only-fuzzy") == ""


def test_placeholders_are_the_same_in_both_languages():
    subprocess.run(["msgfmt", "--check-format", "--output-file", "/dev/null", TEXTS], check=True)


MARKS = {"_", "gettext", "gettext_lazy", "ngettext", "ngettext_lazy", "pgettext", "npgettext"}


def hidden(source: str) -> list[int]:
    """Return lines with a text inside an f-string, where xgettext does not look: it would stay untranslated."""
    calls = (
        call
        for part in ast.walk(ast.parse(source))
        if isinstance(part, ast.JoinedStr)
        for call in ast.walk(part)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in MARKS
    )
    return [call.lineno for call in calls if isinstance(call.args[0], ast.Constant)]


def test_no_text_hides_in_an_f_string():
    assert hidden("f\"{_('lost')} {_(found)}\"") == [1]
    sources = [path for part in ("portal", "modelregistry") for path in (settings.BASE_DIR / part).rglob("*.py")]
    assert {str(path): lines for path in sources if (lines := hidden(path.read_text()))} == {}


# A colon or a comma of a template's own would be that of English sentences in Japanese ones: {% colon %}, {% comma %}.
ENGLISH_SEPARATOR = re.compile(r"forloop\.last %\}, \{% endif|(?:</a>|</b>|</strong>|\}\}): (?:\{\{|\{%)")


def test_templates_leave_separators_to_the_language():
    templates = (settings.BASE_DIR / "templates").rglob("*.html")
    found = {path.name: ENGLISH_SEPARATOR.findall(path.read_text()) for path in templates}
    assert {name: separators for name, separators in found.items() if separators} == {}
