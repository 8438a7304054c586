"""What the installer does with systemd's units, with a systemctl that writes down what it is asked."""

import importlib
import os
import shutil
import subprocess

import pytest

from tests.installation import ROOT

SYSTEMCTL = """#!/bin/sh
echo "$@" >>"{calls}"
case "$*" in {fails}) exit 1 ;; esac
"""
# As root, with a /run on which systemd has begun; the rest of the machine is only read.
SCRIPT = """
mount -t tmpfs none /run && mkdir -p /run/systemd/system && mount -t tmpfs none /etc && mkdir -p /etc/systemd/system
[ -z "$MASKED" ] || ln -s /dev/null "/etc/systemd/system/$MASKED"
exec /usr/bin/python3 -B -c '
import sys; from pathlib import Path; from versions import services; from versions.layout import Layout, Refused
try:
    services.restart(Layout(Path("/")), sys.argv[1:], systemd=True)
except Refused as error:
    sys.exit(str(error))
' "$@"
"""


@pytest.fixture
def restart(tmp_path):
    """Call with what systemctl fails at; returns how the restart ended and what systemctl was asked."""

    def restart(
        fails: str = "none", *changed: str, masked: str = ""
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        calls = tmp_path / "calls"
        (tmp_path / "systemctl").write_text(SYSTEMCTL.format(calls=calls, fails=fails))
        (tmp_path / "systemctl").chmod(0o755)
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        environment = {"PATH": f"{tmp_path}:{os.defpath}", "PYTHONPATH": str(ROOT / "deploy"), "MASKED": masked}
        command = ["unshare", *user, "--mount", "sh", "-c", SCRIPT, "sh", *changed]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done, calls.read_text().splitlines()

    return restart


def test_gateway_and_portal_are_reloaded_before_the_controller_restarts(restart):
    done, calls = restart()
    assert done.returncode == 0, done.stderr
    assert calls[0] == "daemon-reload"
    portal, supervisor = "reload-or-restart madoguchi-portal.service", "restart madoguchi-supervisor.service"
    assert calls.index(portal) < calls.index(supervisor)


def test_a_version_that_does_not_start_leaves_the_controller_as_it_is(restart):
    done, calls = restart("*madoguchi-portal.service")
    assert done.returncode == 1
    assert "madoguchi-portal.service" in done.stderr
    assert not [call for call in calls if call.startswith("restart")]


def test_the_head_of_a_cluster_is_never_restarted(restart):
    _, calls = restart()
    assert {call.split()[0] for call in calls if "madoguchi-head" in call} == {"is-active"}


def test_a_changed_unit_of_the_portal_is_named(restart):
    done, _ = restart("none", "madoguchi-portal.service", "madoguchi-supervisor.service")
    lines = [line for line in done.stdout.splitlines() if "systemctl restart" in line]
    assert [line.split()[0] for line in lines] == ["madoguchi-portal.service"]


def test_a_masked_unit_is_neither_enabled_nor_started(restart):
    done, calls = restart(masked="madoguchi-supervisor.service")
    assert done.returncode == 0, done.stderr
    assert not [call for call in calls if "madoguchi-supervisor.service" in call]
    assert [call for call in calls if "madoguchi-portal.service" in call]


def test_a_unit_that_the_operator_has_masked_stays_so(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "deploy")
    services, layouts = (importlib.import_module(f"versions.{name}") for name in ("services", "layout"))
    layout = layouts.Layout(tmp_path)
    shutil.copytree(ROOT / "deploy", layout.opt / "1.0.0" / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    masked = layout.units / "madoguchi-supervisor.service"
    masked.parent.mkdir(parents=True)
    masked.symlink_to("/dev/null")
    changed = services.copy_units(layout, "1.0.0")
    assert os.readlink(masked) == "/dev/null"
    assert "madoguchi-portal.service" in changed
    assert masked.name not in changed


def test_units_name_the_version_in_use():
    for name in ("portal", "supervisor", "head"):
        text = (ROOT / "deploy" / f"madoguchi-{name}.service").read_text()
        assert "WorkingDirectory=/opt/madoguchi/current\n" in text
