"""`up` and `supervise` start only on a database that has exactly this code's migrations."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from modelregistry.schema import NOT_COMPARED, check_schema
from tests.installation import ROOT
from tests.output import lines_of
from tests.ports import unused_port

COMMANDS = pytest.mark.parametrize("command", ["up", "supervise"])


def manage(var: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MADOGUCHI_VAR": str(var)}
    # Ends by itself: a command that starts in spite of the schema fails the test here.
    return subprocess.run(
        [sys.executable, ROOT / "manage.py", *words], env=env, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def migrated(tmp_path_factory) -> Path:
    var = tmp_path_factory.mktemp("migrated")
    assert manage(var, "migrate", "--verbosity", "0").returncode == 0
    return var / "madoguchi.sqlite3"


@pytest.fixture
def var(tmp_path, migrated) -> Path:
    shutil.copy(migrated, tmp_path)
    return tmp_path


def change(var: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(var / "madoguchi.sqlite3")) as database, database:
        assert database.execute(statement).rowcount == 1


def error_of(var: Path, command: str) -> str:
    done = manage(var, command, *(["--port", str(unused_port())] if command == "up" else []))
    assert done.returncode == 1
    assert done.stderr.startswith("CommandError: ")
    return done.stderr


@COMMANDS
def test_it_refuses_a_database_that_lacks_a_migration_and_says_how_to_apply_it(var, command):
    change(var, "delete from django_migrations where app = 'modelregistry' and name = '0001_initial'")
    said = error_of(var, command)
    assert "(modelregistry.0001_initial)" in said
    assert ".venv/bin/python manage.py migrate" in said


@COMMANDS
def test_it_refuses_a_database_of_a_newer_version_and_says_how_to_get_that(var, command):
    change(var, "insert into django_migrations (app, name, applied) values ('keys', '0099_later', '2027-01-01')")
    said = error_of(var, command)
    assert "(keys.0099_later)" in said
    assert "git pull && make setup" in said


def test_of_many_migrations_it_names_a_few(tmp_path):
    said = error_of(tmp_path, "supervise")
    assert "(accounts.0001_initial, " in said
    assert ", …)" in said


@pytest.mark.django_db(transaction=True)
def test_it_takes_a_database_with_this_code_s_migrations():
    check_schema()


def test_a_database_that_is_away_prevents_no_start(tmp_path):
    """Nothing can be compared then; the process that starts waits for it as at any other time."""
    env = {**os.environ, "MADOGUCHI_VAR": str(tmp_path), "DATABASE_URL": f"postgres://m@127.0.0.1:{unused_port()}/m"}
    code = "from modelregistry.schema import check_schema; check_schema(); print('passed')"
    command = [sys.executable, ROOT / "manage.py", "shell", "--verbosity", "0", "--command", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "passed\n"), done.stderr
    assert lines_of(NOT_COMPARED, done.stderr)
