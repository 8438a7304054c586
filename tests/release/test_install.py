"""Installing, upgrading and going back, by the real installer with real bundles and no network."""

import fcntl
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import tarfile
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from deploy.release import bundle
from tests.ports import unused_port
from tests.release.bundles import derive, sign
from tests.release.hosts import COMMAND, DATABASE, Host
from tests.waiting import until

REVERSIBLE = """
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = [("modelregistry", "{last}")]
    operations = [migrations.CreateModel("Rehearsed", [("id", models.BigAutoField(primary_key=True))])]
"""
# Cannot be undone, and fails until the settings say otherwise.
FAILING = """
import os
from django.db import migrations

def work(apps, editor):
    if not os.environ.get("REHEARSAL"):
        raise ValueError("not now")

class Migration(migrations.Migration):
    dependencies = [("modelregistry", "9000_table")]
    operations = [migrations.RunPython(work)]
"""
# The first test makes the hosts: half a minute of a processor, of which others have their share.
pytestmark = pytest.mark.timeout(400)
TABLE, WORK = "modelregistry/migrations/9000_table.py", "modelregistry/migrations/9001_work.py"


@pytest.fixture(scope="session")
def table(first):
    rows = json.loads((first / "migrations.json").read_text())
    last = [row["name"] for row in rows if row["app"] == "modelregistry"][-1]
    return REVERSIBLE.format(last=last)


@pytest.fixture(scope="session")
def second(first, table, tmp_path_factory):
    """Return a bundle of the next version, with a migration that can be undone."""
    return derive(first, tmp_path_factory.mktemp("second"), "1.0.1", {TABLE: table})


@pytest.fixture(scope="session")
def third(first, table, tmp_path_factory):
    """Return a bundle of the version after it, with one more that fails and cannot be undone."""
    return derive(first, tmp_path_factory.mktemp("third"), "1.0.2", {TABLE: table, WORK: FAILING})


@pytest.fixture(scope="session")
def upgraded_host(interrupted_host, second, tmp_path_factory):
    host = interrupted_host.copy(tmp_path_factory.mktemp("upgraded") / "host")
    planned = host.run(second / "deploy" / "install", "--plan")
    assert (planned.returncode, host.current) == (0, "1.0.0")
    assert "modelregistry.9000_table" in planned.stdout
    done = host.run(second / "deploy" / "install")
    assert done.returncode == 0, done.stderr
    return host


@pytest.fixture
def upgraded(upgraded_host, tmp_path):
    return upgraded_host.copy(tmp_path / "host")


@contextmanager
def serving(host: Host):
    """Start what the unit of the portal starts, and yield its address."""
    port = unused_port()
    command = [host.root / COMMAND, "up", "--no-supervisor", "--port", str(port)]
    with (host.root / "up.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: is_ready(port) or process.poll() is not None)
        assert process.poll() is None, (host.root / "up.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def lead_back(host: Host) -> None:
    """Let the host be one of several, on which the version of the database is not installed yet."""
    (host.opt / "current").unlink()
    (host.opt / "current").symlink_to("1.0.0")


def is_ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def changed(first: Path, to: Path) -> Path:
    """Return a copy of the bundle whose files may be replaced."""
    shutil.copytree(first, to, copy_function=os.link)
    return to


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


# --- A first installation ---------------------------------------------------------------------------------------
def test_one_that_was_killed_at_each_step_is_whole_in_the_end(interrupted_host, first):
    assert interrupted_host.current == "1.0.0"
    rows = json.loads(interrupted_host.manage("migrations"))
    assert rows
    assert all(row["applied"] for row in rows)
    pinned = (first / "requirements.txt").read_text().splitlines()
    python = interrupted_host.opt / "current" / ".venv" / "bin" / "python"
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True).stdout
    assert len(json.loads(listed)) == len(pinned)


def test_settings_that_were_filled_in_are_kept(interrupted_host):
    code = "from django.conf import settings; print(settings.TIME_ZONE)"
    assert interrupted_host.manage("shell", "--verbosity", "0", "--command", code) == "Europe/Berlin"


def test_state_and_settings_are_closed_to_others(interrupted_host):
    def mode(place: str) -> int:
        return stat.S_IMODE((interrupted_host.root / place).stat().st_mode)

    assert mode("var/lib/madoguchi") == 0o700
    assert mode("etc/madoguchi/environment") & 0o007 == 0
    assert mode("opt/madoguchi/1.0.0/manage.py") & 0o022 == 0


def test_units_and_command_are_in_place_and_name_the_version_in_use(interrupted_host):
    units = interrupted_host.root / "etc" / "systemd" / "system"
    for name in ("madoguchi-portal.service", "madoguchi-supervisor.service"):
        assert "/opt/madoguchi/current" in (units / name).read_text()
    assert interrupted_host.manage("version").split()[1] == "1.0.0"


def test_an_image_has_the_version_and_neither_settings_nor_units(interrupted_host, first, tmp_path):
    image = Host(tmp_path)
    image.opt.mkdir(parents=True)
    (image.opt / "1.0.0").symlink_to(interrupted_host.opt / "1.0.0")
    done = image.run(first / "deploy" / "install", "--image", "--sum", bundle.sum_of(first / bundle.MANIFEST))
    assert (done.returncode, done.stderr) == (0, "")
    assert image.current == "1.0.0"
    assert not image.environment.exists()
    assert not (image.root / "etc" / "systemd").exists()
    assert not list((image.root / "var" / "lib" / "madoguchi").iterdir())


def test_what_was_installed_serves_pages_in_both_languages_with_their_files(interrupted_host):
    with serving(interrupted_host) as url:
        for language in ("ja", "en"):
            asked = Request(f"{url}/sign-in/", headers={"Accept-Language": language, "Host": "localhost"})
            with urlopen(asked) as answer:
                page = answer.read().decode()
            assert f'lang="{language}"' in page
        style = page.partition('rel="stylesheet" href="')[2].partition('"')[0]
        with urlopen(f"{url}{style}") as answer:
            assert "text/css" in answer.headers["Content-Type"]


def test_a_second_run_changes_nothing(host, first):
    before = {path: path.lstat().st_mtime_ns for path in (host.opt / "1.0.0").rglob("*")}
    done = host.run(first / "deploy" / "install")
    assert done.returncode == 0, done.stderr
    assert {path: path.lstat().st_mtime_ns for path in (host.opt / "1.0.0").rglob("*")} == before
    assert (host.current, host.previous) == ("1.0.0", "")


# --- Upgrade and rollback ---------------------------------------------------------------------------------------
def test_an_upgrade_is_beside_the_version_before_and_migrates(upgraded_host):
    assert (upgraded_host.current, upgraded_host.previous) == ("1.0.1", "1.0.0")
    assert upgraded_host.manage("version").split()[1] == "1.0.1"
    assert "modelregistry_rehearsed" in upgraded_host.tables()
    assert (upgraded_host.opt / "1.0.0" / "manage.py").exists()


def test_an_older_version_is_not_installed_over_a_newer_one(upgraded, first):
    done = upgraded.run(first / "deploy" / "install")
    assert done.returncode != 0
    assert "modelregistry.9000_table" in done.stderr
    assert upgraded.current == "1.0.1"


@pytest.mark.parametrize("step", ["", "[1/3]", "[2/3]", "[3/3]"])
def test_a_rollback_goes_back_with_the_database_also_after_an_interruption(upgraded, step):
    rollback = upgraded.opt / "current" / "deploy" / "rollback"
    if step:
        upgraded.interrupt(rollback, step)
    done = upgraded.run(upgraded.opt / "1.0.1" / "deploy" / "rollback")
    assert done.returncode == 0, done.stderr
    assert (upgraded.current, upgraded.previous) == ("1.0.0", "")
    assert "modelregistry_rehearsed" not in upgraded.tables()
    assert "9000_table" not in upgraded.migrations()


def test_a_rollback_that_is_only_planned_names_migrations_and_changes_nothing(upgraded):
    done = upgraded.run(upgraded.opt / "current" / "deploy" / "rollback", "--plan")
    assert done.returncode == 0
    assert "modelregistry.9000_table" in done.stdout
    assert (upgraded.current, "9000_table" in upgraded.migrations()) == ("1.0.1", True)


def report_elsewhere(host: Host, version: str, *, seconds: float = 0.0, kind: str = "gateway") -> None:
    """Have another machine of the site have reported so long ago that it runs this version."""
    at = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=seconds)
    with closing(sqlite3.connect(host.root / DATABASE)) as database, database:
        database.execute(f"insert into apiproxy_{kind}machine values ('elsewhere', ?, ?)", (version, str(at)))


@pytest.mark.parametrize(("kind", "named"), [("gateway", "(1.0.1)"), ("controller", "(1.0.1, controller)")])
def test_a_rollback_is_refused_while_another_machine_runs_the_newer_version_unless_that_is_named(upgraded, kind, named):
    report_elsewhere(upgraded, "1.0.1", kind=kind)
    rollback = upgraded.opt / "1.0.1" / "deploy" / "rollback"
    refused = upgraded.run(rollback)
    assert refused.returncode != 0
    assert f"elsewhere {named}" in refused.stderr
    assert (upgraded.current, "9000_table" in upgraded.migrations()) == ("1.0.1", True)
    done = upgraded.run(rollback, "--break-other-machines")
    assert done.returncode == 0, done.stderr
    assert (upgraded.current, "9000_table" in upgraded.migrations()) == ("1.0.0", False)


@pytest.mark.parametrize(("version", "seconds"), [("1.0.0", 0.0), ("1.0.1", 120.0)], ids=["older", "stopped"])
def test_a_rollback_goes_on_beside_a_machine_that_needs_nothing_of_the_newer_version(upgraded, version, seconds):
    report_elsewhere(upgraded, version, seconds=seconds)
    done = upgraded.run(upgraded.opt / "1.0.1" / "deploy" / "rollback")
    assert done.returncode == 0, done.stderr
    assert upgraded.current == "1.0.0"


def test_without_a_version_before_there_is_no_rollback(host):
    done = host.run(host.opt / "current" / "deploy" / "rollback")
    assert (done.returncode != 0, host.current) == (True, "1.0.0")


def test_a_failed_migration_leaves_the_version_before_and_its_schema(interrupted_host, third, table, tmp_path):
    host = interrupted_host.copy(tmp_path / "host", whole=True)
    host.place(third, "1.0.2", "1.0.0", {TABLE: table, WORK: FAILING})
    install, before = third / "deploy" / "install", host.migrations()
    done = host.run(install)
    assert done.returncode != 0
    assert "modelregistry.9001_work, CANNOT BE UNDONE" in done.stdout
    assert (host.current, host.migrations()) == ("1.0.0", before)
    assert "modelregistry_rehearsed" not in host.tables()
    with serving(host):  # it checks that the schema is its own
        pass
    # What was wrong is mended: the same command goes on, and what cannot be undone is named by the rollback.
    with host.environment.open("a") as settings:
        settings.write("REHEARSAL=on\n")
    assert host.run(install).returncode == 0
    assert host.current == "1.0.2"
    refused = host.run(host.opt / "current" / "deploy" / "rollback")
    assert refused.returncode != 0
    assert "modelregistry.9001_work" in refused.stderr
    assert (host.current, "9000_table" in host.migrations()) == ("1.0.2", True)


def test_a_failed_migration_leaves_what_another_machine_had_applied(upgraded_host, third, tmp_path):
    host = upgraded_host.copy(tmp_path / "host", whole=True)
    lead_back(host)
    host.place(third, "1.0.2", "1.0.1", {WORK: FAILING})
    before = host.migrations()
    done = host.run(third / "deploy" / "install")
    assert done.returncode != 0
    assert "9000_table" in before
    assert (host.current, host.migrations()) == ("1.0.0", before)


def test_a_database_that_a_version_which_is_not_here_has_migrated_is_refused(upgraded, first):
    lead_back(upgraded)
    done = upgraded.run(first / "deploy" / "install")
    assert done.returncode == 1
    assert "modelregistry.9000_table" in done.stderr
    assert upgraded.current == "1.0.0"


# Of a machine on which the reload of gateway and portal fails.
NOT_STARTING = """#!/usr/bin/python3 -B
import sys
from pathlib import Path
sys.path.insert(0, "{bundle}/deploy")
from versions import installing, layout, services

def restart(*words, **options):
    raise services.NotStarted("not started")

services.restart = restart
try:
    installing.main(sys.argv[1:], Path("{bundle}"))
except layout.Refused as error:
    sys.exit(str(error))
"""


@pytest.fixture
def install_in_vain(tmp_path):
    """Call with a host and a bundle; returns how its installer ended, as gateway and portal do not start."""

    def install(host: Host, made: Path) -> subprocess.CompletedProcess[str]:
        program = tmp_path / "install"
        program.write_text(NOT_STARTING.format(bundle=made))
        program.chmod(0o755)
        return host.run(program)

    return install


def test_a_version_that_does_not_start_is_taken_back_with_its_migrations(
    interrupted_host, second, table, install_in_vain, tmp_path
):
    host = interrupted_host.copy(tmp_path / "host", whole=True)
    host.place(second, "1.0.1", "1.0.0", {TABLE: table})
    before = host.migrations()
    done = install_in_vain(host, second)
    assert done.returncode == 1
    assert (host.current, host.previous, host.migrations()) == ("1.0.0", "", before)
    assert host.run(second / "deploy" / "install").returncode == 0
    assert (host.current, host.previous) == ("1.0.1", "1.0.0")


def test_a_version_that_does_not_start_stays_if_a_migration_cannot_be_undone(
    upgraded_host, third, install_in_vain, tmp_path
):
    host = upgraded_host.copy(tmp_path / "host", whole=True)
    host.place(third, "1.0.2", "1.0.1", {WORK: FAILING})
    with host.environment.open("a") as settings:
        settings.write("REHEARSAL=on\n")
    done = install_in_vain(host, third)
    assert done.returncode == 1
    assert "modelregistry.9001_work" in done.stderr
    assert (host.current, host.previous, "9001_work" in host.migrations()) == ("1.0.2", "1.0.1", True)


def test_a_database_that_is_away_leaves_the_version_before(upgraded, second):
    lead_back(upgraded)
    with upgraded.environment.open("a") as settings:
        settings.write("DATABASE_URL=postgres://madoguchi@127.0.0.1:1/madoguchi\n")
    done = upgraded.run(second / "deploy" / "install")
    assert (done.returncode, upgraded.current) == (1, "1.0.0")


def test_old_versions_are_removed_on_request_but_not_one_that_a_process_uses(upgraded):
    prune = upgraded.opt / "current" / "deploy" / "prune"
    shutil.copytree(upgraded.opt / "1.0.0", upgraded.opt / "0.9.0", symlinks=True, copy_function=os.link)
    shutil.copytree(upgraded.opt / "1.0.0" / "deploy", upgraded.opt / "0.8.0" / "deploy")
    with subprocess.Popen(["sleep", "60"], cwd=upgraded.opt / "0.9.0") as process:
        assert upgraded.run(prune, "--plan").returncode == 0
        assert (upgraded.opt / "0.8.0").exists()
        assert upgraded.run(prune).returncode == 0
        process.kill()
    assert sorted(path.name for path in upgraded.opt.glob("[0-9]*")) == ["0.9.0", "1.0.0", "1.0.1"]
    assert upgraded.run(prune).returncode == 0
    assert sorted(path.name for path in upgraded.opt.glob("[0-9]*")) == ["1.0.0", "1.0.1"]


# --- What is refused before anything is changed -----------------------------------------------------------------
def refused(bundle_path: Path, tmp_path: Path, *words: str) -> str:
    """Return why the bundle is refused; asserts that nothing was written."""
    host = Host(tmp_path / "untouched")
    host.root.mkdir()
    done = host.run(bundle_path / "deploy" / "install", *words)
    assert done.returncode == 1, done.stdout
    assert not [*host.root.iterdir()]
    return done.stderr


def test_a_changed_byte(first, tmp_path):
    made = changed(first, tmp_path / "bundle")
    (wheel,) = (made / "product").iterdir()
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    replace(wheel, bytes(content))
    assert f"product/{wheel.name}" in refused(made, tmp_path)


def test_a_file_too_many_and_one_too_few(first, tmp_path):
    made = changed(first, tmp_path / "bundle")
    (made / "wheels" / "other-1.0-py3-none-any.whl").write_text("")
    (made / "sbom.json").unlink()
    said = refused(made, tmp_path)
    assert "wheels/other-1.0-py3-none-any.whl" in said
    assert "sbom.json" in said


def test_a_manifest_without_the_expected_sum(first, tmp_path):
    assert refused(first, tmp_path, "--sum", "0" * 64)


def test_the_expected_sum_is_accepted(first, tmp_path):
    total = bundle.sum_of(first / bundle.MANIFEST)
    host = Host(tmp_path)
    assert host.run(first / "deploy" / "install", "--plan", "--sum", total).returncode == 0


def test_an_installed_version_is_no_bundle(host):
    done = host.run(host.opt / "current" / "deploy" / "install")
    assert done.returncode == 1
    assert "madoguchi-VERSION.tar" in done.stderr


def test_an_archive_is_unpacked_below_opt_for_as_long_as_the_installer_runs(archive, first, tmp_path):
    shutil.copy(archive, tmp_path)
    (tmp_path / first.name).mkdir()
    host = Host(tmp_path / "host")
    done = host.run(first / "deploy" / "install", tmp_path / archive.name, "--plan")
    assert done.returncode == 0, done.stderr
    assert not [*(tmp_path / first.name).iterdir(), *host.opt.iterdir()]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../bashrc", tarfile.REGTYPE),
        ("/tmp/bashrc", tarfile.REGTYPE),
        ("madoguchi-1.0.0/link", tarfile.SYMTYPE),
        ("madoguchi-1.0.0/link", tarfile.LNKTYPE),
        ("madoguchi-1.0.0/pipe", tarfile.FIFOTYPE),
        ("madoguchi-1.0.0/twice", tarfile.REGTYPE),
        ("bashrc", tarfile.REGTYPE),
    ],
    ids=["above", "absolute", "symbolic link", "hard link", "pipe", "twice", "beside its directory"],
)
def test_an_archive_with_something_else_than_files_below_its_directory(first, tmp_path, name, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "madoguchi-1.0.0.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("madoguchi-1.0.0/twice"))
        tar.addfile(member)
    host = Host(tmp_path / "host")
    done = host.run(first / "deploy" / "install", tmp_path / "madoguchi-1.0.0.tar", "--plan")
    assert done.returncode == 1
    assert done.stderr.startswith("install: ")
    assert "madoguchi-1.0.0.tar" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["host", "madoguchi", "madoguchi-1.0.0.tar", "opt"]


def test_a_link_in_place_of_a_file(first, tmp_path):
    made = changed(first, tmp_path / "bundle")
    (made / "sbom.json").unlink()
    (made / "sbom.json").symlink_to(first / "sbom.json")
    assert f"{made}/sbom.json" in refused(made, tmp_path)


@pytest.mark.parametrize("place", ["open", "open/bundle", "open/bundle/wheels"])
def test_a_directory_in_which_others_can_exchange_files(first, tmp_path, place):
    (tmp_path / "open").mkdir()
    made = changed(first, tmp_path / "open" / "bundle")
    (tmp_path / place).chmod(0o777)
    assert f"{tmp_path / place}." in refused(made, tmp_path)


def test_an_archive_that_is_not_what_the_file_beside_it_says(archive, first, tmp_path):
    copy = tmp_path / archive.name
    copy.write_bytes(archive.read_bytes()[:-1] + b"x")
    shutil.copy(archive.with_name(f"{archive.name}.sha256"), tmp_path)
    done = Host(tmp_path / "host").run(first / "deploy" / "install", copy, "--plan")
    assert done.returncode == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [copy.name, f"{copy.name}.sha256"]


@pytest.mark.parametrize(
    "described",
    [{"python": "3.99"}, {"machine": "vax"}, {"libraries": ["libnone.so.9"]}, {"format": 99}],
    ids=lambda described: next(iter(described)),
)
def test_a_bundle_for_another_machine(first, tmp_path, described):
    made = changed(first, tmp_path / "bundle")
    text = (made / "bundle.json").read_bytes()
    replace(made / "bundle.json", text)
    sign(made, described)
    (value,) = described.values()
    named = value[0] if isinstance(value, list) else str(value)
    assert named in refused(made, tmp_path) or "format" in described


def test_another_bundle_of_a_version_that_is_installed(host, first, tmp_path):
    made = changed(first, tmp_path / "bundle")
    replace(made / "bundle.json", (made / "bundle.json").read_bytes())
    sign(made, {"commit": "f" * 40})
    assert host.run(made / "deploy" / "install").returncode == 1
    assert host.description("1.0.0")["commit"] != "f" * 40


@pytest.mark.parametrize("line", ["NAME", "A B=c", "NAME='open", "NAME=two words"])
def test_settings_that_cannot_be_read_are_named_by_their_line(host, first, line):
    number = len(host.environment.read_text().splitlines()) + 1
    with host.environment.open("a") as settings:
        settings.write(f"{line}\n")
    done = host.run(first / "deploy" / "install")
    assert done.returncode == 1
    assert f"line {number}" in done.stderr


def test_two_at_once(host, first):
    """The one that holds the lock here is this test."""
    with (host.opt / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = host.run(first / "deploy" / "install")
    assert done.returncode == 1
    assert done.stderr.startswith("install:")
