"""How PostgreSQL's tools are reached, and which of them are refused."""

import pytest

from portal.backups import databases, encryption
from portal.backups.errors import BackupRefused


def test_the_password_is_passed_in_the_environment_with_all_else_that_libpq_knows():
    params = {
        "dbname": "madoguchi",
        "host": "db.example.co.jp",
        "user": "portal",
        "password": "a secret",
        "sslmode": "verify-full",
        "options": "-c jit=off",
        "connect_timeout": 5,
        "cursor_factory": object,  # of psycopg, not of libpq
        "port": None,
    }
    assert databases.libpq_variables(params) == {
        "PGDATABASE": "madoguchi",
        "PGHOST": "db.example.co.jp",
        "PGUSER": "portal",
        "PGPASSWORD": "a secret",
        "PGSSLMODE": "verify-full",
        "PGOPTIONS": "-c jit=off",
        "PGCONNECT_TIMEOUT": "5",
    }


@pytest.mark.parametrize(("version", "fits"), [("14.9", False), ("15.0", True), ("17.2 (Debian 17.2-1)", True)])
def test_a_client_that_is_older_than_the_server_is_refused(version, fits):
    said = f"pg_dump (PostgreSQL) {version}"
    assert databases.is_as_new_as(said, server=15) is fits


def test_a_program_that_is_missing_is_named_with_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupRefused, match="apt-get install age"):
        encryption.find_program("age")


def test_a_table_of_another_product_is_not_counted():
    with pytest.raises(BackupRefused):
        databases.count_rows(["keys_apikey; drop table keys_apikey"], lambda query: None)
