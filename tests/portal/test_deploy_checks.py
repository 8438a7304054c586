"""Django's checks of an installation that is set up as deploy/OPERATIONS.md says."""

import os
import re
import subprocess
import sys

from django.conf import settings


def test_p8_an_installation_by_the_book_passes_django_s_own_checks(tmp_path):
    env = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")},
        **{"MADOGUCHI_VAR": str(tmp_path / "var"), "PUBLIC_URL": "https://llm.example.co.jp", "TRUSTED_PROXIES": "1"},
        "ALLOWED_HOSTS": "llm.example.co.jp",
    }
    command = [sys.executable, settings.BASE_DIR / "manage.py", "check", "--deploy"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"\((\w+\.[WE]\d+)\)", done.stdout + done.stderr) == []
