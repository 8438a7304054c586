"""Programs of the tests' own begin outside pytest, where nothing has set Django up for them."""

import os
import re
import subprocess
import sys

import pytest

from tests.installation import ROOT

STARTED = re.compile(r'"""python -m (tests[\w.]+)')
PROGRAMS = sorted({found[1] for path in (ROOT / "tests").rglob("*.py") if (found := STARTED.match(path.read_text()))})


def test_programs_are_found():
    assert "tests.browser.screenshots" in PROGRAMS


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_can_be_started_by_itself(name, tmp_path):
    module = f"{name}.__main__" if (ROOT / name.replace(".", "/") / "__main__.py").exists() else name
    env = {key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"}
    env["MADOGUCHI_VAR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
