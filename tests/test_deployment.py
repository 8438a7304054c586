"""With the settings that the installer leaves, filled in, Django has nothing against the deployment."""

import os
import re
import subprocess
import sys

from tests.installation import ROOT

LINE = re.compile(r"^#?([A-Z][A-Z_]+)=(.*)$", re.MULTILINE)
ELSEWHERE = {"MADOGUCHI_VAR", "MADOGUCHI_CACHE", "LDAP_CA_FILE"}  # places that this machine does not have


def check(tmp_path, **env: str) -> "subprocess.CompletedProcess[str]":
    """Return what `manage.py check --deploy` says of the settings of deploy/environment.example and these."""
    example = dict(LINE.findall((ROOT / "deploy" / "environment.example").read_text()))
    assert {"PUBLIC_URL", "DATABASE_URL", "LDAP_SERVER_URI"} <= example.keys()
    settings = {name: value for name, value in example.items() if name not in ELSEWHERE}
    ours = {name: os.environ[name] for name in ("PATH", "HOME")}
    return subprocess.run(
        [sys.executable, ROOT / "manage.py", "check", "--deploy", "--fail-level", "WARNING"],
        env={**ours, **settings, "MADOGUCHI_VAR": str(tmp_path), **env},
        capture_output=True,
        text=True,
    )


def test_settings_for_a_company_pass_the_check_of_a_deployment(tmp_path):
    done = check(tmp_path, REDIS_URL="redis://127.0.0.1:6379/0", GATEWAY_WORKERS="4")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_deployment_for_developers_does_not_pass(tmp_path):
    done = check(tmp_path, DEBUG="true")
    assert done.returncode != 0
    assert "security.W018" in done.stderr
