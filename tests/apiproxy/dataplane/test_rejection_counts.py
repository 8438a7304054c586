"""Refused calls are counted by key, hour and reason, and reach the database without a row each."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import httpx2
import pytest
from django.utils import timezone

from apiproxy.bridge import catalogue_loader
from apiproxy.dataplane import rejection_counts as counting
from apiproxy.dataplane.ledger import DatabaseUnavailable
from apiproxy.dataplane.rejection_counts import RejectionCounts, RejectionGroup
from modelregistry.models import Alias, ServedModel
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey, ModelAccess
from portal.quotas.models import Quota
from portal.usage import rejections, report
from portal.usage.models import RejectionHour
from portal.usage.periods import Period
from portal.usage.rejections import RejectionTotals
from tests.engine import unary
from tests.waiting import until

NOON = datetime(2026, 11, 22, 3, tzinfo=UTC)  # in Tokyo
KEY = SimpleNamespace(id=1, tenant=2, user=3)


# --- in memory


def test_calls_of_one_quarter_and_reason_are_one_count():
    counts = RejectionCounts()
    for seconds in (0, 899, 900):
        counts.count(KEY, "m", "insufficient_quota", 7200.0 + seconds)
    counts.count(KEY, "", "invalid_json", 7200.0)
    assert counts.take() == {
        RejectionGroup(7200, 2, 3, 1, "m", "insufficient_quota"): 2,
        RejectionGroup(8100, 2, 3, 1, "m", "insufficient_quota"): 1,
        RejectionGroup(7200, 2, 3, 1, "", "invalid_json"): 1,
    }
    assert counts.take() == {}


def test_what_could_not_be_written_is_counted_on():
    counts = RejectionCounts()
    counts.count(KEY, "m", "c", 0)
    taken = counts.take()
    counts.count(KEY, "m", "c", 1)
    counts.give_back(taken)
    assert list(counts.take().values()) == [2]


def test_memory_is_bounded_however_long_the_database_is_away(monkeypatch):
    monkeypatch.setattr(counting, "MAX_GROUPS", 3)
    counts = RejectionCounts()
    for hour in range(5):
        counts.count(KEY, "m", "c", 3600.0 * hour)
    counts.count(KEY, "m", "c", 0)
    assert list(counts.take().values()) == [2, 1, 1]


# --- in the database


def make_totals(hour: datetime = NOON, code: str = "insufficient_quota", **more) -> RejectionTotals:
    return RejectionTotals(**{"hour": hour, "tenant": 1, "user": None, "key": 1, "model": "m", "code": code, **more})


@pytest.mark.django_db
def test_counts_are_added_to_what_is_there():
    rejections.add_rejections({make_totals(): 2, make_totals(code="model_not_found", model=""): 1})
    rejections.add_rejections({make_totals(): 3})
    found = {(row.hour, row.code, row.model): row.requests for row in RejectionHour.objects.all()}
    assert found == {(NOON, "insufficient_quota", "m"): 5, (NOON, "model_not_found", ""): 1}


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["Asia/Tokyo", "Asia/Kolkata"])
def test_pages_read_the_days_of_a_calendar(name, django_assert_num_queries):
    rejections.add_rejections({make_totals(NOON + timedelta(hours=n)): 1 for n in range(-30, 30)})
    day = date(2026, 11, 22)
    scope = SimpleNamespace(rejections=RejectionHour.objects.filter(tenant=1))
    with django_assert_num_queries(1):
        found = report.count_rejections(scope, Period(name="", first=day, last=day), ZoneInfo(name))
    assert {(slot.date(), slot.hour): number for (slot, _code), number in found.items()} == {
        (day, hour): 1 for hour in range(24)
    }


# --- from calls


def read_counts() -> dict[tuple[int, str, str], int]:
    counts = Counter()  # an hour may turn during a test
    for row in RejectionHour.objects.all():
        counts[row.key_id, row.code, row.model] += row.requests
    return counts


def test_calls_that_are_refused_are_counted_by_why_and_others_are_not(counter, sales):
    hidden = ServedModel.objects.create(name="hidden", engine="external", url="http://127.0.0.1:1")
    ModelAccess.objects.create(model=hidden, tenant=sales)
    Alias.objects.create(name="default", model=counter.model)
    counter.wait_for_catalogue()
    assert counter.chat().status_code == 200
    for _ in range(2):
        assert counter.client.post("/v1/chat/completions", content=b"{").status_code == 400
    assert counter.chat(model="hidden").status_code == counter.chat(model="nonsense").status_code == 404
    assert counter.client.get("/v1/nothing").status_code == 404
    Quota.objects.create(key=counter.key_row, unit="requests", window="day", amount=0)
    counter.wait_for_catalogue()
    assert counter.chat().status_code == counter.chat(model="default").status_code == 429
    key = counter.key_row.pk
    expected = {
        (key, "invalid_json", ""): 2,
        (key, "model_not_found", ""): 2,
        (key, "unknown_url", ""): 1,
        (key, "insufficient_quota", "fake"): 2,
    }
    until(lambda: read_counts() == expected)
    row = RejectionHour.objects.get(code="insufficient_quota")
    assert (row.tenant_id, row.user_id) == (counter.key_row.tenant_id, counter.key_row.user_id)
    assert timezone.now() - row.hour < timedelta(hours=1, minutes=1)


def test_a_call_that_an_engine_refused_is_usage_and_not_counted_here(counter):
    assert counter.chat(script=[{"send": unary(400, {"error": {"message": "no"}})}]).status_code == 400
    counter.client.post("/v1/chat/completions", content=b"{")
    until(lambda: read_counts() == {(counter.key_row.pk, "invalid_json", ""): 1})
    assert [row.status for row in counter.usage(1)] == ["refused"]


def test_unknown_keys_are_not_counted(counter):
    for text in ("mdg_nonsense", counter.key[:-1]):
        assert httpx2.get(f"{counter.url}/v1/models", headers={"authorization": f"Bearer {text}"}).status_code == 401
    counter.client.get("/v1/nothing")
    until(lambda: read_counts() == {(counter.key_row.pk, "unknown_url", ""): 1})


def test_a_foreign_network_is_shown_to_the_keys_owner(counter):
    counter.key_row.networks = ["10.0.0.0/8"]
    counter.key_row.save()
    counter.wait_for_catalogue()
    assert counter.chat().status_code == 403
    until(lambda: read_counts() == {(counter.key_row.pk, "network_not_allowed", ""): 1})


def test_a_database_that_is_away_loses_no_count(counter, monkeypatch):
    def unavailable(counts) -> None:
        tried.append(dict(counts))
        raise DatabaseUnavailable

    tried: list[dict] = []
    write = catalogue_loader.record_rejections
    monkeypatch.setattr(catalogue_loader, "record_rejections", unavailable)
    counter.client.get("/v1/nothing")
    until(lambda: tried)
    counter.client.get("/v1/nothing")
    until(lambda: any(sum(counts.values()) == 2 for counts in tried))  # the hour may have turned between the two
    monkeypatch.setattr(catalogue_loader, "record_rejections", write)
    until(lambda: read_counts() == {(counter.key_row.pk, "unknown_url", ""): 2})


def test_what_was_counted_is_written_when_the_gateway_ends(counter):
    counter.client.get("/v1/nothing")
    counter.server.should_exit = True
    until(lambda: read_counts() == {(counter.key_row.pk, "unknown_url", ""): 1})


def test_a_person_learns_of_no_model_that_they_may_not_use(counter, sales, research):
    """The name of a hidden model in a count would reveal that there is one."""
    hidden = ServedModel.objects.create(name="hidden", engine="external", url="http://127.0.0.1:1")
    ModelAccess.objects.create(model=hidden, tenant=sales)
    row, text = issue_key(tenant=research, service="Dify", name="Dify")
    assert ApiKey.objects.get(pk=row.pk).user_id is None
    counter.wait_for_catalogue()
    headers = {"authorization": f"Bearer {text}"}
    body = {"model": "hidden", "messages": []}
    assert counter.client.post("/v1/chat/completions", json=body, headers=headers).status_code == 404
    until(lambda: read_counts() == {(row.pk, "model_not_found", ""): 1})
