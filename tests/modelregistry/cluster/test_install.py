"""Engines on a host that has no Django."""

import subprocess
import sys

import pytest
from django.conf import settings

from modelregistry.cluster import install
from modelregistry.cluster.node_directory import NodeDirectory
from modelregistry.engines.registry import installable_engines


@pytest.fixture
def directory(tmp_path):
    made = NodeDirectory(
        path=tmp_path / "host",
        name="gpu1",
        address="127.0.0.1",
        cluster="127.0.0.1:6379",
        cache=str(tmp_path / "engines"),
    )
    made.save()
    (tmp_path / "stick").mkdir()
    return made


def test_what_a_folder_lacks_is_named_and_nothing_is_installed(directory, tmp_path, capsys):
    assert install.main([str(directory.path), "xllamacpp", "--from", str(tmp_path / "stick")]) == 1
    assert "xllamacpp==" in capsys.readouterr().err
    assert not installable_engines()["xllamacpp"].environment().installed(directory.engines)


def test_a_directory_that_is_no_hosts_is_refused(tmp_path, capsys):
    assert install.main([str(tmp_path), "xllamacpp"]) == 1
    assert "not the directory of a host" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["install", "join", "leave", "node_service", "fence", "host_server"])
def test_what_a_host_runs_needs_neither_django_nor_ray(command):
    assert import_without("django", "portal", "apiproxy", "ray", "cryptography", command=command) == (0, "")


def test_an_agent_which_rays_python_runs_needs_no_django():
    assert import_without("django", "portal", "apiproxy", "ray", command="agent") == (0, "")


def import_without(*packages, command):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        f"sys.modules.update(dict.fromkeys({packages!r}))\n"
        f"import modelregistry.cluster.{command}"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(settings.BASE_DIR)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr
