"""Importing settings writes nothing; an installation's secrets are made when they are first used, once."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from portal.environment import load_secret, write_secret
from tests.installation import ROOT
from tests.ports import unused_port

NOWHERE = "/proc/madoguchi"  # not even root can make it
SECRETS = "from django.conf import settings; print(settings.SECRET_KEY, settings.API_KEY_SECRET)"
BOTH = {"secret-key", "api-key-secret"}


def run(var: Path | str, *words: str, settings: str = "portal.settings") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MADOGUCHI_VAR": str(var), "DJANGO_SETTINGS_MODULE": settings}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("module", ["portal.settings", "apiproxy.server.gateway_settings"])
def test_importing_settings_leaves_nothing_behind(tmp_path, module):
    done = run(tmp_path / "var", "-c", f"import {module}")
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_check_passes_where_nothing_can_be_written():
    done = run(NOWHERE, "manage.py", "check", "--fail-level", "WARNING")
    assert done.returncode == 0, done.stderr


def test_up_says_that_it_cannot_write():
    done = run(NOWHERE, "manage.py", "up", "--port", str(unused_port()))
    assert done.returncode == 1
    assert done.stderr.startswith("CommandError:")
    assert f" {NOWHERE} (MADOGUCHI_VAR)" in done.stderr


def test_portal_gateway_and_supervisor_read_the_secrets_that_the_first_of_them_made(tmp_path):
    var = tmp_path / "var"
    pages, gateway = (
        run(var, "-c", SECRETS, settings=of) for of in ("portal.settings", "apiproxy.server.gateway_settings")
    )
    supervisor = run(var, "manage.py", "shell", "--verbosity", "0", "--command", SECRETS)
    assert pages.stdout == gateway.stdout == supervisor.stdout != ""
    assert {path.name for path in var.iterdir()} >= BOTH
    assert pages.stdout.split() == [(var / name).read_text() for name in ("secret-key", "api-key-secret")]


def test_up_makes_them_before_it_starts_anything(tmp_path):
    run(tmp_path / "var", "manage.py", "up", "--port", str(unused_port()))  # refused: there is no schema
    assert {path.name for path in (tmp_path / "var").iterdir()} >= BOTH


def test_many_that_use_a_secret_first_at_the_same_time_get_the_same(tmp_path):
    file = tmp_path / "var" / "secret"
    held = [load_secret(file) for _ in range(16)]
    assert not file.exists()
    with ThreadPoolExecutor(16) as pool:
        assert {str(secret) for secret in pool.map(str, held)} == {file.read_text()}
    assert [path.name for path in file.parent.iterdir()] == ["secret"]


def test_who_writes_a_secret_last_leaves_the_first_one(tmp_path):
    write_secret(tmp_path / "secret")
    first = (tmp_path / "secret").read_text()
    write_secret(tmp_path / "secret")
    assert (tmp_path / "secret").read_text() == first
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_secret_that_is_there_is_a_plain_string(tmp_path):
    """The gateway reads it for every call."""
    str(load_secret(tmp_path / "secret"))
    assert type(load_secret(tmp_path / "secret")) is str
