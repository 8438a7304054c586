"""When, from where and with what a key was last used. On PostgreSQL: see test_rollups."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, transaction

from portal.keys import last_used
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey
from tests.pages import use

NOON = datetime(2026, 11, 22, 3, tzinfo=UTC)


@pytest.fixture
def keys(research, alice) -> list[ApiKey]:
    return [issue_key(tenant=research, user=alice, name=str(n))[0] for n in range(3)]


def seen(key: ApiKey) -> tuple[datetime | None, str | None, str]:
    key.refresh_from_db()
    return key.last_used_at, key.last_used_from, key.last_used_with


def note(last: dict) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        last_used.record_use(last, cursor)


def call(at: datetime = NOON, address: str = "10.0.0.1", client: str = "curl/8") -> dict:
    return {"started_at": at, "address": address, "client": client}


def test_all_of_it_is_of_the_newest_call(keys):
    note({keys[0].pk: call()})
    note({keys[0].pk: call(NOON - timedelta(microseconds=1), "10.0.0.2", "older")})
    assert seen(keys[0]) == (NOON, "10.0.0.1", "curl/8")
    note({keys[0].pk: call(NOON + timedelta(microseconds=1), "2001:db8::1", "newer")})
    assert seen(keys[0]) == (NOON + timedelta(microseconds=1), "2001:db8::1", "newer")


def test_each_key_gets_its_own_and_others_none(keys):
    note({keys[0].pk: call(address="10.0.0.1"), keys[1].pk: call(address="10.0.0.2"), 999: call()})
    assert [seen(key)[1] for key in keys] == ["10.0.0.1", "10.0.0.2", None]


def test_what_is_not_known_is_empty(keys):
    note({keys[0].pk: call(address="", client="")})
    assert seen(keys[0]) == (NOON, None, "")


def test_a_batch_is_one_statement_whatever_its_keys(keys, django_assert_num_queries):
    with transaction.atomic(), django_assert_num_queries(1), connection.cursor() as cursor:
        last_used.record_use({key.pk: call() for key in keys}, cursor)


def test_of_a_batch_the_newest_call_counts_and_rows_without_an_origin_will_do(keys):
    use(keys[0], at=NOON, address="10.0.0.1", client="curl/8")
    use(keys[0], at=NOON - timedelta(hours=1), address="10.0.0.9", client="late")
    use(keys[1], at=NOON)
    assert [seen(key) for key in keys[:2]] == [(NOON, "10.0.0.1", "curl/8"), (NOON, None, "")]
