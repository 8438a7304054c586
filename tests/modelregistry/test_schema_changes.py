"""`manage.py migrations`: what is applied, what can be undone, and the way back to another version's schema."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.installation import ROOT, prepared
from tests.ports import unused_port

LATEST = ("use_cases", "0005_hidden_by_author")


def manage(var: Path, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "manage.py", "migrations", *words],
        env={**os.environ, "MADOGUCHI_VAR": str(var), **env},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def var(tmp_path) -> Path:
    shutil.copytree(prepared(), tmp_path / "var", ignore=shutil.ignore_patterns("*secret*"))
    return tmp_path / "var"


def rows(var: Path, *words: str) -> list[dict[str, object]]:
    done = manage(var, *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def older(var: Path, *without: tuple[str, str]) -> Path:
    """Return the list of a version that lacks these migrations."""
    kept = [row for row in rows(var) if (row["app"], row["name"]) not in without]
    path = var / "older.json"
    path.write_text(json.dumps(kept))
    return path


def applied(var: Path) -> set[tuple[str, str]]:
    return {(str(row["app"]), str(row["name"])) for row in rows(var) if row["applied"]}


def test_each_migration_is_listed_after_those_that_it_needs(var):
    listed = rows(var)
    names = [(row["app"], row["name"]) for row in listed]
    assert names.index(("keys", "0001_initial")) > names.index(("accounts", "0001_initial"))
    assert names.index(("usage", "0002_word_loops")) == names.index(("usage", "0001_initial")) + 1
    assert all(row["applied"] for row in listed)


def test_without_a_database_it_lists_what_this_version_has(tmp_path):
    done = manage(tmp_path, "--no-database", DATABASE_URL=f"postgres://a@127.0.0.1:{unused_port()}/b")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    assert listed
    assert not any(row["applied"] for row in listed)


def test_those_that_delete_columns_are_marked(var):
    marked = {(row["app"], row["name"]) for row in rows(var) if row["deletes"]}
    assert ("modelregistry", "0010_controller") in marked
    assert ("modelregistry", "0001_initial") not in marked


def test_it_undoes_what_an_older_version_lacks_and_nothing_else(var):
    before = applied(var)
    without = (LATEST, ("use_cases", "0004_proposals_below_drafts"), ("status", "0002_notified"))
    done = manage(var, "--back-to", older(var, *without))
    assert done.returncode == 0, done.stderr
    assert before - applied(var) == set(without)
    again = manage(var, "--back-to", var / "older.json")
    assert (again.returncode, again.stdout) == (0, "")


def apply_a_later_one(var: Path) -> None:
    with contextlib.closing(sqlite3.connect(var / "madoguchi.sqlite3")) as database, database:
        database.execute(
            "insert into django_migrations (app, name, applied) values ('keys', '0999_later', '2027-01-01')"
        )


def test_it_names_the_applied_ones_that_it_does_not_know(var):
    assert json.loads(manage(var, "--unknown").stdout) == []
    apply_a_later_one(var)
    assert json.loads(manage(var, "--unknown").stdout) == ["keys.0999_later"]


def test_it_undoes_nothing_if_the_database_has_one_that_it_does_not_know(var):
    apply_a_later_one(var)
    before = applied(var)
    done = manage(var, "--back-to", older(var, LATEST))
    assert done.returncode == 1
    assert "keys.0999_later" in done.stderr
    assert applied(var) == before
