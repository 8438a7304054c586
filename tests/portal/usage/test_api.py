"""Usage and the audit log in the API: the same scopes and numbers as on their pages."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from portal.audit.models import AuditEvent
from portal.keys import lifecycle
from portal.usage import rejections
from tests.pages import key_of, service_key_of, use
from tests.portal.recorded import clear_audit_log

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 19, 6, 20, tzinfo=UTC)


@pytest.fixture
def call(call, time_machine):
    """Provide the caller on a day of November."""
    time_machine.move_to(NOW, tick=False)
    return call


@pytest.fixture
def used(call, alice, bob, charlie, research, sales):
    """Record what people used, in tokens: Alice 15 and 150, a service 30, Charlie elsewhere 1,500."""
    laptop, service = key_of(alice, research), service_key_of(research)
    use(laptop, tokens=(10, 5), first_token_ms=200, duration_ms=1200)
    use(laptop, tokens=(100, 50), at=NOW - timedelta(days=3), model="gemma", end_user="=evil")
    use(service, tokens=(20, 10), status="failed")
    use(key_of(charlie, sales, "c"), tokens=(1000, 500))
    hour = NOW.replace(minute=0)
    rejections.add_rejections(
        {rejections.RejectionTotals(hour, research.pk, alice.pk, laptop.pk, "qwen", "rate_limit_exceeded"): 7}
    )
    return {"laptop": laptop, "service": service}


def test_totals_by_scope(call, used, alice, bob, charlie, olivia):
    for user, of, tokens in (
        (alice, "me", 165),
        (bob, "me", 0),
        (bob, "tenant:research", 195),
        (olivia, "tenant:research", 195),
        (olivia, "all", 1695),
        (charlie, "me", 1500),
    ):
        assert call(user).get(f"usage/?of={of}")["total_tokens"] == tokens
    for user, of in ((alice, "tenant:research"), (alice, "all"), (bob, "tenant:sales"), (bob, "all"), (olivia, "x")):
        for path in ("usage/", "usage/series/", "usage/groups/"):
            assert call(user)("GET", f"{path}?of={of}").status_code == 404


def test_all_that_a_period_tells(call, used, bob):
    seen = call(bob).get("usage/?of=tenant:research")
    assert {name: seen[name] for name in ("requests", "first", "last", "people", "tokens_per_second")} == {
        **{"requests": 3, "first": "2026-11-01", "last": "2026-11-19", "people": 1, "tokens_per_second": 5.0}
    }
    assert (seen["before"], seen["change"]) == (0, None)
    assert 0.15 <= seen["first_tokens"]["half"] <= 0.2
    assert [(one["name"], one["requests"]) for one in seen["without_answer"]] == [
        ("rate_limit_exceeded", 7),
        ("failed", 1),
    ]
    assert call(bob).get("usage/?of=tenant:research&period=last-month")["requests"] == 0
    answer = call(bob)("GET", "usage/?period=next-month")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "#/period")


def test_a_part_of_it(call, used, bob, charlie):
    def tokens(query: str) -> int:
        return call(bob).get(f"usage/?of=tenant:research&{query}")["total_tokens"]

    assert (tokens("model=gemma"), tokens("user=alice"), tokens("user=service")) == (150, 165, 30)
    assert tokens(f"key={used['service'].prefix}") == 30
    assert tokens("end_user=%3Devil") == 150
    for nothing in ("user=charlie", "user=nobody", "key=mdg_12345678"):
        assert call(bob)("GET", f"usage/?of=tenant:research&{nothing}").status_code == 404


def test_over_time(call, used, alice, bob):
    seen = call(alice).get("usage/series/?period=14")
    assert (seen["unit"], [(row["slot"], row["model"], row["total_tokens"]) for row in seen["rows"]]) == (
        "day",
        [("2026-11-16", "gemma", 150), ("2026-11-19", "qwen", 15)],
    )
    hours = call(bob).get("usage/series/?of=tenant:research&period=today")
    assert (hours["unit"], hours["rows"][0]["slot"], hours["rows"][0]["total_tokens"]) == (
        *("hour", "2026-11-19T15:00:00+09:00"),
        45,
    )
    assert call(bob).get("usage/series/?of=tenant:research&period=fiscal-year")["unit"] == "month"


def test_by_thing(call, used, bob, olivia):
    def seen(user, query: str):
        return [(row["id"], row["total_tokens"]) for row in call(user).get(f"usage/groups/?{query}")["results"]]

    assert seen(bob, "of=tenant:research") == [("gemma", 150), ("qwen", 45)]
    assert seen(bob, "of=tenant:research&by=user") == [("alice", 165), ("service", 30)]
    assert seen(bob, "of=tenant:research&by=key") == [(used["laptop"].prefix, 165), (used["service"].prefix, 30)]
    assert seen(olivia, "of=all&by=tenant") == [("sales", 1500), ("research", 195)]
    assert call(olivia).get("usage/groups/?of=all&by=key&page_size=2&page=2")["count"] == 3
    assert call(bob)("GET", "usage/groups/?of=tenant:research&by=tenant").status_code == 400


def test_whose_usage_one_may_look_at(call, alice, bob, olivia, research):
    assert [one["of"] for one in call(alice).get("usage/scopes/")] == ["me"]
    assert [one["of"] for one in call(bob).get("usage/scopes/")] == ["me", "tenant:research"]
    assert [one["of"] for one in call(olivia).get("usage/scopes/")] == ["me", "all", "tenant:research"]


def test_groups_ask_as_much_for_many_as_for_few(call, bob, research, django_assert_max_num_queries):
    for number in range(30):
        use(service_key_of(research, f"service {number}"), end_user=f"user {number}")
    for by in ("key", "user", "end_user", "model"):
        caller = call(bob)
        with django_assert_max_num_queries(12):
            caller.get(f"usage/groups/?of=tenant:research&by={by}")


# --- the audit log


def test_the_audit_log_is_searched_by_who_may(call, alice, bob, charlie, olivia, research, sales):
    key = key_of(alice, research, "laptop")
    lifecycle.revoke_key(key, because="lost", by=alice)
    key_of(charlie, sales, "other")

    def seen(user, query=""):
        return [(row["action"], row["object"]) for row in call(user).get(f"audit/?{query}")["results"]]

    revoked, added = (f"key.{verb}" for verb in ("revoke", "add"))
    for user in (alice, bob, olivia):
        assert [action for action, _ in seen(user, "what=key&text=laptop")] == [revoked, added]
    assert seen(charlie, "text=laptop") == [] == seen(bob, "text=other")
    assert [action for action, _ in seen(olivia, "tenant=sales&what=key")] == [added]
    assert call(bob)("GET", "audit/?tenant=sales").status_code == 400
    row = call(alice).get("audit/?what=key&text=laptop")["results"][0]
    assert (row["after"]["revoked_because"], row["via"], row["tenant"]) == ("lost", "command", "research")


def test_the_audit_log_comes_in_pages_by_the_last_row_seen(call, olivia, research):
    now = timezone.now()
    clear_audit_log()
    rows = [AuditEvent(at=now, action="x.y", object_kind="x", object_id=str(n), via="command") for n in range(120)]
    AuditEvent.objects.bulk_create(rows)
    caller, seen, mark = call(olivia), [], ""
    while mark is not None:
        page = caller.get(f"audit/?before={mark.replace('+', '%2B')}")
        seen += [int(row["id"]) for row in page["results"] if row["kind"] == "x"]
        mark = page["older"]
    assert seen == list(range(119, -1, -1))


@pytest.mark.parametrize("query", ["since=0001-01-01", "until=9999-12-31", "what=x", "since=tomorrow"])
def test_odd_days_are_refused_and_odd_marks_are_none(call, olivia, query):
    assert call(olivia)("GET", f"audit/?{query}").status_code == 400
    assert call(olivia)("GET", "audit/?before=2026_x").status_code == 200


def test_days_of_the_audit_log_are_those_of_the_reader(call, alice, research):
    call(alice)
    event = AuditEvent.objects.filter(object_kind="user", object_id=str(alice.pk)).latest("pk")
    assert event.at.date().isoformat() == "2026-11-19"
    assert call(alice).get("audit/?since=2026-11-19&until=2026-11-19")["results"]
    assert call(alice).get("audit/?since=2026-11-20")["results"] == []
