"""`Database` logs a lost connection, whichever call meets it; what the server refuses is known to who asked."""

import logging
import sqlite3

import psycopg
import pytest
from django.db import OperationalError

from modelregistry.supervisor.database import DATABASE_AWAY, DATABASE_BACK, Database, take_turn


def lost() -> None:
    raise OperationalError("the connection is lost") from psycopg.OperationalError()


def lacking() -> None:
    raise OperationalError("no such table: b") from sqlite3.OperationalError()


def refused() -> None:
    raise OperationalError("it takes too long") from psycopg.errors.QueryCanceled()


def shut_down() -> None:
    raise OperationalError("the server shuts down") from psycopg.errors.AdminShutdown()


@pytest.fixture
def database():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelregistry.supervisor.database.connections.close_all", lambda: None)
        database = Database()
        yield database
        database.close()


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.DEBUG, "modelregistry.supervisor.database")
    return lambda: [record.msg for record in caplog.records]


@pytest.mark.parametrize("fault", [lost, shut_down])
async def test_the_first_call_that_meets_a_lost_connection_has_it_logged_once(database, lines, fault):
    assert [await database.ask(one) for one in (fault, fault)] == [None, None]
    assert lines() == [DATABASE_AWAY]
    assert await database.ask(lambda: 1) == 1
    assert lines() == [DATABASE_AWAY, DATABASE_BACK]


async def test_a_table_that_sqlite_lacks_is_no_lost_connection(database, lines):
    assert await database.ask(lacking) is None
    assert lines() == []


async def test_an_error_that_the_server_sends_is_no_lost_connection(database, lines):
    assert await database.ask(refused) is None
    assert lines() == []


async def test_a_turn_that_the_server_refuses_is_seen_in_the_log(database, caplog, lines):
    async def work() -> None:
        await database.run(refused)

    await take_turn(work, 0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    caplog.clear()

    async def work_without() -> None:
        await database.run(lost)

    await take_turn(work_without, 0)
    assert [record.levelname for record in caplog.records] == ["ERROR", "DEBUG"]
