"""The check that refuses a migration which is no longer what databases have applied."""

from pathlib import Path

import pytest

from tests import migration_sums
from tests.installation import ROOT


@pytest.fixture
def project(tmp_path) -> Path:
    """Return a project with one migration, which is written down."""
    place = tmp_path / "portal" / "keys" / "migrations"
    place.mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    for name in ("__init__", "0001_initial"):
        (place / f"{name}.py").write_text(f"# {name}\n")
    (tmp_path / migration_sums.LIST).touch()
    migration_sums.main(["--add"], tmp_path)
    return tmp_path


def migration(project: Path, name: str = "0001_initial") -> Path:
    return project / "portal" / "keys" / "migrations" / f"{name}.py"


def test_the_project_s_own_migrations_are_as_they_were():
    assert migration_sums.read(ROOT)
    assert migration_sums.main([]) == 0


def test_migrations_that_are_as_they_were_pass(project, capsys):
    assert migration_sums.main([], project) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [[], ["--add"]], ids=["check", "add"])
def test_a_changed_migration_is_refused_and_stays_so(project, capsys, words):
    migration(project).write_text("# another\n")
    before = migration_sums.read(project)
    assert migration_sums.main(words, project) == 1
    said = capsys.readouterr().err
    assert said.startswith("portal/keys/migrations/0001_initial.py ")
    assert "manage.py makemigrations" in said
    assert migration_sums.read(project) == before


def test_a_migration_that_is_gone_is_refused(project, capsys):
    migration(project).unlink()
    assert migration_sums.main([], project) == 1
    assert capsys.readouterr().err.startswith("portal/keys/migrations/0001_initial.py ")


def test_a_new_migration_is_refused_until_it_is_added(project, capsys):
    migration(project, "0002_more").write_text("# more\n")
    assert migration_sums.main([], project) == 1
    assert "0002_more.py" in capsys.readouterr().err
    assert migration_sums.main(["--add"], project) == 0
    assert migration_sums.main([], project) == 0


def test_the_list_is_one_that_sha256sum_reads(project):
    (line,) = (project / migration_sums.LIST).read_text().splitlines()
    total, _, path = line.partition("  ")
    assert (len(total), path) == (64, "portal/keys/migrations/0001_initial.py")
