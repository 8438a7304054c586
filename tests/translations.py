"""Japanese for tests. The compiled catalogue is not in the repository: it is made when it is older than the texts."""

import os
import subprocess
from pathlib import Path

import pytest
from django.utils.translation.reloader import translation_file_changed

from portal import settings

TEXTS = settings.LOCALE_PATHS[0] / "ja" / "LC_MESSAGES" / "django.po"


def compile_catalogue() -> None:
    compiled = TEXTS.with_suffix(".mo")
    if compiled.exists() and compiled.stat().st_mtime >= TEXTS.stat().st_mtime:
        return
    draft = compiled.with_name(f"{compiled.name}.{os.getpid()}")
    subprocess.run(["msgfmt", "--output-file", draft, TEXTS], check=True)
    draft.replace(compiled)  # at once, for test processes that run side by side
    translation_file_changed(None, Path(compiled))


@pytest.fixture(scope="session", autouse=True)
def japanese() -> None:
    """Import this into a module whose tests read Japanese."""
    compile_catalogue()
