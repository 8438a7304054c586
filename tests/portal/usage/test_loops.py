"""Word loops in usage: counted once, by model, in every report."""

import io
import json
from csv import DictReader
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core.management import call_command

from portal.usage.live import UsageSnapshot, usage_view
from portal.usage.models import UsageDay, UsageHour, UsageMonth, UsageTenantDay
from portal.usage.recent_usage import read_recent_usage
from tests.html import has, one_of
from tests.pages import key_of, use
from tests.portal.usage.answers import AT, answered

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 19, 6, 20, tzinfo=UTC)
LOOPS = {"looped": 2, "looped_tokens": 700, "saved_tokens": 5000}


@pytest.fixture(autouse=True)
def used(alice, charlie, research, sales, time_machine):
    """Record two loops of Alice's with qwen beside a finished answer, one of Charlie's, and none with gemma."""
    time_machine.move_to(NOW, tick=False)
    laptop, other = key_of(alice, research), key_of(charlie, sales, "c")
    use(laptop, tokens=(10, 500), status="looped", looped_tokens=400, saved_tokens=5000)
    use(laptop, tokens=(10, 400), status="looped", looped_tokens=300)
    use(laptop, tokens=(10, 20))
    use(laptop, tokens=(10, 20), status="failed")
    use(laptop, tokens=(10, 20), model="gemma")
    use(other, tokens=(10, 100), status="looped", looped_tokens=50)
    return laptop


def loops_of(row: dict[str, Any]) -> dict[str, int]:
    return {name: int(row[name]) for name in LOOPS}


NONE = dict.fromkeys(LOOPS, 0)


def test_the_command_prints_them_by_model():
    out = io.StringIO()
    call_command("usage", "--by", "model", "--json", stdout=out)
    rows = {row["model"]: loops_of(row) for row in json.loads(out.getvalue())}
    assert rows == {"gemma": NONE, "qwen": {"looped": 3, "looped_tokens": 750, "saved_tokens": 5000}}


def test_the_api_has_them_in_totals_series_and_groups(call, alice):
    assert loops_of(call(alice).get("usage/")) == LOOPS
    series = call(alice).get("usage/series/")["rows"]
    assert {row["model"]: loops_of(row) for row in series} == {"gemma": NONE, "qwen": LOOPS}
    for by in ("model", "key"):
        groups = call(alice).get(f"usage/groups/?by={by}")["results"]
        assert loops_of(groups[0]) == LOOPS


@pytest.mark.parametrize("by", ["", "by=model", "by=key", "by=detail"])
@pytest.mark.parametrize("form", ["", "json"])
def test_every_file_has_them(client, alice, by, form):
    client.force_login(alice)
    text = client.get(f"/usage/export/?format={form}&{by}").getvalue().decode("utf-8-sig")
    rows = json.loads(text) if form else list(DictReader(io.StringIO(text)))
    assert {name: sum(loops_of(row)[name] for row in rows) for name in LOOPS} == LOOPS


def test_the_page_tells_ones_own_by_model(client, alice, bob):
    client.force_login(alice)
    page = client.get("/usage/")
    assert page.context["loops"] == [{"name": "qwen", "answers": 3, **LOOPS}]
    assert has(page, "#loops table")
    assert one_of(page, ".groups [data-looped]")["data-looped"] == "2"
    client.force_login(bob)
    assert not has(client.get("/usage/"), "#loops")


def test_a_day_by_hours_from_records_or_sums_has_them(client, alice, olivia):
    for user, of, looped in ((alice, "me", 2), (olivia, "all", 3)):
        client.force_login(user)
        assert client.get(f"/usage/?of={of}&period=today").context["totals"]["looped"] == looped


def test_recent_usage_has_them(alice):
    recent = read_recent_usage(UsageDay.objects.filter(user=alice), ZoneInfo("Asia/Tokyo"), NOW)
    assert loops_of(recent.today) == LOOPS


def test_a_loop_is_not_an_answer_that_is_missing(client, alice):
    view = usage_view(UsageSnapshot(number=1, at=AT, answers=(answered(5, status="looped"),)), None)
    assert [(row["requests"], row["unanswered"]) for row in view.models] == [(1, 0)]
    client.force_login(alice)
    assert client.get("/usage/").context["failed_requests"] == 1


def test_all_sums_agree():
    for model in (UsageDay, UsageMonth, UsageHour, UsageTenantDay):
        found = list(model.objects.values_list(*LOOPS))
        assert [sum(column) for column in zip(*found, strict=True)] == [3, 750, 5000]
