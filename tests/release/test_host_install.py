"""What `deploy/install-host` does on a GPU host; its packages are those that `make rehearse` installs."""

import importlib
import os
import subprocess
from dataclasses import dataclass

import pytest

from tests.installation import ROOT
from tests.release.hosts import Host


@pytest.mark.timeout(400)  # makes the bundle
def test_a_bundle_without_ray_is_refused_and_leaves_nothing(first, tmp_path):
    host = Host(tmp_path / "host")
    done = host.run(first / "deploy" / "install-host")
    assert done.returncode == 1
    assert 'WITH="ray"' in done.stderr
    assert not host.opt.exists()


def test_the_unit_runs_the_version_that_current_leads_to(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "deploy")
    installing = importlib.import_module("versions.host_installing")
    layout = installing.HostLayout(tmp_path)
    (layout.opt / "1.0.0").mkdir(parents=True)
    (layout.opt / "1.0.0" / "deploy").symlink_to(ROOT / "deploy")
    layout.link("current", "1.0.0")
    installing.put_unit(layout)
    unit = (layout.units / "madoguchi-host.service").read_text()
    assert "\nWorkingDirectory=/opt/madoguchi-host/current\n" in unit
    assert "\nExecStart=/opt/madoguchi-host/current/.venv/bin/python " in unit
    assert "/srv/" not in unit


SYSTEMCTL = """#!/bin/sh
echo "$@" >>"{place}/calls"
case "$1" in
is-active) exit {inactive} ;;
restart) [ ! -e {place}/broken ] || [ "$(readlink /opt/madoguchi-host/current)" != 2.0.0 ] || echo 0 >"{place}/pid" ;;
reset-failed) echo 7 >"{place}/pid" ;;
show) cat "{place}/pid" ;;
esac
"""
# As root, on a machine of its own on which systemd runs.
SCRIPT = """
for place in /run /etc /opt; do mount -t tmpfs none $place; done
mkdir -p /run/systemd/system /etc/systemd/system /opt/madoguchi-host
for version in 1.0.0 2.0.0; do
    mkdir -p /opt/madoguchi-host/$version/.venv /opt/madoguchi-host/$version/modelregistry/install/locks/ray
    cp -r "$DEPLOY" /opt/madoguchi-host/$version/deploy
done
ln -s 1.0.0 /opt/madoguchi-host/current
echo "ray==2.60.0 \\\\" >/opt/madoguchi-host/1.0.0/modelregistry/install/locks/ray/ray.lock
echo "version = $PYTHON" >/opt/madoguchi-host/1.0.0/.venv/pyvenv.cfg
/usr/bin/python3 -B -c '
import sys; from pathlib import Path; from versions import host_installing; from versions.bundles import Bundle
from versions.layout import HostLayout, Refused
layout, bundle = HostLayout(Path("/")), Bundle(Path(sys.argv[1]), {"version": "2.0.0"}, "sum")
host_installing.make_places = host_installing.make_version = lambda *_: None  # 80 s of packages
host_installing.WATCHED = 1.0
try:
    later = sys.argv[2:] == ["--restart-later"]
    if not later:
        host_installing.check_cluster(bundle, layout)
    host_installing.install(bundle, layout, restart_later=later)
except Refused as error:
    print(error, file=sys.stderr)
' "$@"
readlink /opt/madoguchi-host/current >"$PLACE/current"
readlink /opt/madoguchi-host/previous >"$PLACE/previous" || true
"""


@dataclass
class Upgraded:
    """What an upgrade from 1.0.0, with Ray 2.60.0, to 2.0.0 came to."""

    said: str
    error: str
    calls: list[str]  # of systemctl
    current: str
    previous: str


@pytest.fixture
def upgrade(tmp_path):
    def upgrade(
        *words: str, ray: str = "2.60.0", python: str = "", broken: bool = False, running: bool = True
    ) -> Upgraded:
        programs = tmp_path / "bin"
        programs.mkdir()
        systemctl = programs / "systemctl"
        systemctl.write_text(SYSTEMCTL.format(place=tmp_path, inactive=0 if running else 3))
        systemctl.chmod(0o755)
        (tmp_path / "pid").write_text("7\n")
        (tmp_path / "calls").touch()
        if broken:
            (tmp_path / "broken").touch()
        wheels = tmp_path / "bundle" / "engines" / "ray"
        wheels.mkdir(parents=True)
        (wheels / f"ray-{ray}-cp311-cp311-manylinux2014_x86_64.whl").touch()
        ours = ["/usr/bin/python3", "-c", "import platform; print(platform.python_version())"]
        environment = {
            "PATH": f"{programs}:{os.defpath}",
            "PYTHONPATH": str(ROOT / "deploy"),
            "DEPLOY": str(ROOT / "deploy"),
            "PLACE": str(tmp_path),
            "PYTHON": python or subprocess.run(ours, capture_output=True, text=True, check=True).stdout.strip(),
        }
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        command = ["unshare", *user, "--mount", "sh", "-ec", SCRIPT, "sh", tmp_path / "bundle", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        links = [(tmp_path / name).read_text().strip() for name in ("current", "previous")]
        return Upgraded(done.stdout, done.stderr, (tmp_path / "calls").read_text().splitlines(), *links)

    return upgrade


def test_a_version_with_the_same_ray_is_switched_to_and_its_service_restarts(upgrade):
    done = upgrade()
    assert (done.error, done.current, done.previous) == ("", "2.0.0", "1.0.0")
    assert "restart madoguchi-host.service" in done.calls


@pytest.mark.parametrize("other", [{"ray": "2.61.0"}, {"python": "3.10.1"}])
def test_another_ray_or_python_is_refused_while_the_service_runs(upgrade, other):
    done = upgrade(**other)
    assert "--restart-later" in done.error
    assert done.current == "1.0.0"
    assert [call.split()[0] for call in done.calls] == ["is-active"]


def test_another_ray_that_is_to_restart_later_leaves_the_running_service_as_it_is(upgrade):
    done = upgrade("--restart-later", ray="2.61.0")
    assert (done.error, done.current) == ("", "1.0.0")
    assert not done.calls
    assert "systemctl stop madoguchi-host.service" in done.said


def test_another_ray_is_switched_to_once_the_service_was_stopped(upgrade):
    done = upgrade(ray="2.61.0", running=False)
    assert (done.error, done.current) == ("", "2.0.0")
    assert not [call for call in done.calls if call.startswith(("restart", "start"))]


def test_a_version_whose_service_does_not_go_on_is_left_for_the_one_before(upgrade):
    done = upgrade(broken=True)
    assert "Version 2.0.0 does not run. Version 1.0.0 is in use again." in done.error
    assert (done.current, done.previous) == ("1.0.0", "")
    assert done.calls.count("restart madoguchi-host.service") == 2


def test_old_versions_of_a_host_are_removed_but_not_those_in_use_or_before_or_of_a_process(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "deploy")
    pruning, layouts = (importlib.import_module(f"versions.{name}") for name in ("pruning", "layout"))
    host, site = layouts.HostLayout(tmp_path), layouts.Layout(tmp_path)
    for version in ("0.8.0", "0.9.0", "1.0.0", "2.0.0"):
        host.version(version).mkdir(parents=True)
    site.version("0.8.0").mkdir(parents=True)
    host.link("previous", "1.0.0")
    host.link("current", "2.0.0")
    with subprocess.Popen(["sleep", "60"], cwd=host.version("0.9.0")) as process:
        pruning.main(["--host", "--root", str(tmp_path)])
        process.kill()
    assert sorted(path.name for path in host.opt.glob("[0-9]*")) == ["0.9.0", "1.0.0", "2.0.0"]
    assert site.version("0.8.0").exists()
