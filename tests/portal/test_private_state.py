"""No other account of the machine reads anything of an installation's state."""

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from portal.environment import make_private_database, make_private_directory
from tests.installation import FRESH, ROOT, installed

WRITES = "from django.db import connection; connection.cursor().execute('create table t (x)')"


@pytest.fixture
def open_place() -> Iterator[Path]:
    """Provide a directory that every account may enter, unlike those of pytest."""
    place = Path(tempfile.mkdtemp(prefix="madoguchi-open-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def everything(place: Path) -> list[Path]:
    return [place, *place.rglob("*")]


def readable_by_others(paths: list[Path]) -> set[Path]:
    """Return what of these another user may list or read; as that user if root runs this, else by the modes."""
    if os.geteuid() != 0:
        return {path for path in paths if is_open(path)}
    nobody = pwd.getpwnam("nobody")
    script = 'while IFS= read -r path; do [ -r "$path" ] && echo "$path"; done; true'
    who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    asked = "".join(f"{path}\n" for path in paths)
    done = subprocess.run(["/bin/sh", "-c", script], input=asked, capture_output=True, text=True, cwd="/", **who)
    return {Path(line) for line in done.stdout.splitlines()}


def is_open(path: Path) -> bool:
    """Return whether the modes of this and of all directories above let every account read it."""
    entered = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return entered and bool(path.stat().st_mode & stat.S_IROTH)


def test_o6_another_account_reads_nothing_of_a_running_installation(open_place):
    var = open_place / "var"
    var.mkdir(mode=0o755)  # as systemd's StateDirectory and older versions left it
    old = var / "madoguchi.sqlite3"
    old.touch(mode=0o644)
    control = open_place / "control"
    control.touch(mode=0o644)
    with installed(var, FRESH) as installation:
        installation.start()
        paths = everything(var)
        assert {"madoguchi.sqlite3", "madoguchi.sqlite3-wal", "secret-key", "spool", "static"} <= {
            p.name for p in paths
        }
        assert readable_by_others([*paths, control]) == {control}
        assert stat.S_IMODE(var.stat().st_mode) == 0o700
        for end in ("", "-wal", "-shm"):
            assert stat.S_IMODE((var / f"madoguchi.sqlite3{end}").stat().st_mode) == 0o600


def test_o6_a_database_in_a_directory_of_others_is_private_from_its_first_byte(open_place):
    file = open_place / "company.sqlite3"
    env = {**os.environ, "MADOGUCHI_VAR": str(open_place / "var"), "DATABASE_URL": f"sqlite:///{file}"}
    command = [sys.executable, ROOT / "manage.py", "shell", "--verbosity", "0", "--command", WRITES]
    subprocess.run(command, env=env, check=True)
    assert file.stat().st_size > 0
    assert readable_by_others(everything(open_place)) == {open_place}


def test_o6_what_is_there_is_tightened_and_keeps_what_its_user_may(tmp_path):
    state, file = tmp_path / "state", tmp_path / "state" / "db"
    state.mkdir()
    state.chmod(0o755)
    for name in ("db", "db-wal"):
        (state / name).touch()
        (state / name).chmod(0o664)
    make_private_directory(state)
    make_private_database(file)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (state, file, state / "db-wal")] == [0o700, 0o600, 0o600]
    assert not (state / "db-shm").exists()


def test_o6_a_place_that_is_for_everybody_by_its_sticky_bit_stays(tmp_path):
    tmp_path.chmod(0o1777)
    make_private_directory(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777


@pytest.mark.parametrize("unit", sorted((ROOT / "deploy").glob("*.service")), ids=lambda path: path.name)
def test_o6_units_keep_the_state_directory_private(unit):
    lines = unit.read_text().splitlines()
    assert {"StateDirectoryMode=0700", "UMask=0077"} <= set(lines)
