"""What `deploy/install-host` does on a GPU host; its packages are those that `make rehearse` installs."""

import importlib

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
