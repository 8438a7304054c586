"""Notifications: written once, read in the reader's language."""

import re
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from django.db import transaction

from portal.accounts.models import Membership
from portal.accounts.permissions import admins_of, operators
from portal.notifications import types
from portal.notifications.models import Notice
from portal.notifications.types import KINDS
from portal.quotas.units import CONCURRENT, REQUESTS, TOKENS
from portal.web.notify import notify
from tests.conftest import person
from tests.portal.notifications import sentences

pytestmark = pytest.mark.django_db

AT = datetime(2026, 11, 30, 10, 0, tzinfo=ZoneInfo("Asia/Tokyo"))
# One of every kind, with its facts.
TOLD = {
    "key-expires": {"key": "laptop", "prefix": "mdg_AbCdEfGh", "tenant": "研究部", "days": 7, "at": AT},
    "key-expired": {"key": "laptop", "prefix": "mdg_AbCdEfGh", "tenant": "研究部", "at": AT},
    "key-revoked": {"key": "laptop", "prefix": "mdg_AbCdEfGh", "tenant": "研究部", "by": "Bob", "because": "unused"},
    "management-key-expires": {"key": "script", "prefix": "mdm_AbCdEfGh", "days": 7, "at": AT},
    "management-key-found": {"key": "script", "prefix": "mdm_AbCdEfGh"},
    "responsible-left": {"key": "Dify", "prefix": "mdg_AbCdEfGh", "tenant": "研究部", "person": "Alice"},
    "membership-ended": {"tenant": "研究部", "keys": 2},
    "engine-version-failed": {
        "model": "qwen", "host": "gpu-01", "engine": "vllm", "version": "0.33.0", "cause": "driver", "detail": "died",
    },
    "model-down": {"model": "qwen", "reason": "failed", "at": AT},
    "model-up": {"model": "qwen", "at": AT, "ended_at": AT},
    "host-silent": {"host": "gpu-01", "at": AT},
    "host-back": {"host": "gpu-01", "at": AT, "ended_at": AT},
    "replicas-moved": {"host": "gpu-01", "moved": ["qwen #0 → gpu-02"], "silent": True, "at": AT},
    "booking-trouble": {
        "host": "gpu-01", "cause": "booking-held", "replicas": ["qwen #0"], "others": ["GPU 0: 60.0 GB"], "at": AT,
    },
    "disk-nearly-full": {"host": "gpu-01", "directory": "/models", "free_gb": 12.3, "at": AT},
    "gpu-xid": {"host": "gpu-01", "device": "0", "code": 79, "count": 2, "at": AT},
    "certificate-ends": {"host": "gpu-01", "ends_at": AT, "at": AT},
    "spool-growing": {"host": "site", "megabytes": 12, "at": AT},
    "controller-replaced": {"holder": "site-2", "before": "site-1", "term": 8, "at": AT},
    "backup-overdue": {"at": AT, "hours": 26, "error": "no room"},
    "canary-failed": {"model": "qwen", "host": "gpu-01", "findings": ["empty", "slow"]},
    "canary-passed": {"model": "qwen", "host": "gpu-01"},
    "quota-near": {
        "of": "tenant", "owner": "研究部", "unit": "tokens", "window": "day", "model": "", "amount": 1_000_000,
        "percent": 83, "renews_at": AT,
    },
    "quota-reached": {
        "of": "you", "owner": "", "unit": "requests", "window": "month", "model": "qwen", "amount": 500,
        "renews_at": AT,
    },
    "request-asked": {
        "asker": "Alice", "tenant": "研究部", "unit": "concurrent", "window": "", "model": "", "amount": 8,
        "previous_amount": 4, "reason": "a course",
    },
    "request-decided": {
        "by": "Bob", "unit": "tokens", "window": "minute", "model": "", "amount": 9000, "granted": 6000, "note": "",
    },
    "break-glass-used": {"account": "emergency", "address": "10.0.0.7", "at": AT},
    "use-case-proposed": {"title": "議事録を作る", "by": "Alice"},
    "use-case-published": {"title": "議事録を作る", "by": "Bob"},
    "use-case-returned": {"title": "議事録を作る", "by": "Bob", "note": "an example, please"},
    "use-case-replaced": {"title": "議事録を作る", "by": "Bob", "state": "published"},
    "use-case-hidden": {"title": "議事録を作る", "by": "Bob"},
    "feedback-digest": {"tenant": "研究部", "up": 9, "down": 1, "comments": 2, "at": AT},
    "directory-trouble": {"problem": "away", "detail": "", "at": AT},
    "directory-group": {"group": "cn=a,dc=b", "settings": "LDAP_OPERATOR_GROUP", "problem": "missing", "now": ""},
    "last-operator-kept": {"person": "olivia"},
    "budget-near": {"tenant": "研究部", "spent": 83_000, "yen": 100_000, "percent": 83},
    "budget-reached": {"tenant": "研究部", "spent": 100_000, "yen": 100_000, "percent": 100},
    "seminar-over": {"title": "はじめての AI", "course": "everyone"},
    "seminar-invited": {"title": "", "course": "everyone", "by": "Bob", "at": AT},
    "seminar-moved": {"title": "", "course": "developers", "at": AT, "until": AT},
    "tip-no-call": {},
    "tip-away": {},
}  # fmt: skip


def stored(alice, kind: str) -> dict:
    """Return the facts as a reader gets them back."""
    notify([alice], kind, "one", **TOLD[kind])
    return Notice.objects.get(user=alice, kind=kind).facts


def test_what_is_told_is_there_for_each_who_was_told(alice, bob):
    notify([alice, bob], "membership-ended", "research", path="/settings/", tenant="研究部", keys=0)
    assert {notice.user for notice in Notice.objects.all()} == {alice, bob}
    notice = alice.notices.get()
    assert (notice.kind, notice.path, notice.facts) == (
        "membership-ended",
        "/settings/",
        {"tenant": "研究部", "keys": 0},
    )
    assert notice.read_at is None


def test_the_same_is_told_once_and_something_else_again(alice, bob):
    notify([alice], "membership-ended", "research", tenant="研究部", keys=0)
    notify([alice, alice, bob], "membership-ended", "research", tenant="研究部", keys=5)
    notify([alice], "membership-ended", "sales", tenant="営業部", keys=0)
    assert sorted(alice.notices.values_list("ref", flat=True)) == ["research", "sales"]
    assert alice.notices.get(ref="research").facts["keys"] == 0
    assert bob.notices.count() == 1


def test_what_the_caller_takes_back_was_not_told(alice):
    with transaction.atomic():
        notify([alice], "membership-ended", "research", tenant="研究部", keys=0)
        transaction.set_rollback(True)
    assert not alice.notices.exists()


def test_telling_costs_one_query_however_many_are_told(research, django_assert_num_queries):
    people = [person(f"p{number}", research) for number in range(5)]
    with django_assert_num_queries(1):
        notify(people, "membership-ended", "research", tenant="研究部", keys=0)


def test_nobody_to_tell_is_nothing_to_do(django_assert_num_queries):
    with django_assert_num_queries(0):
        notify([], "membership-ended", "research", tenant="研究部", keys=0)


@pytest.mark.parametrize(
    ("kind", "facts", "named"),
    [
        ("gossip", {}, "gossip"),
        ("membership-ended", {"tenant": "研究部"}, "keys"),
    ],
)
def test_what_could_not_be_read_is_not_told(alice, kind, facts, named):
    with pytest.raises(ValueError, match=named):
        notify([alice], kind, "x", **facts)


def test_every_kind_has_an_example_here():
    assert set(TOLD) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_read_in_both_languages(alice, kind):
    facts = stored(alice, kind)
    english, japanese = (
        f"{sentences.title(kind, language, **facts)}. {sentences.text(kind, language, **facts)}"
        for language in ("en", "ja")
    )
    assert "%" not in english.replace("83%", "").replace("(100%)", "")
    for value in facts.values():
        japanese = japanese.replace(str(value), "")
    assert re.findall(r"[A-Za-z]{2,} [a-z]{2,}", japanese) == []  # a part that is not translated


DAY, MINUTE = types.format_day({"at": AT.isoformat()}), types.format_minute({"at": AT.isoformat()})


@pytest.mark.parametrize(
    ("kind", "changed", "parts"),
    [
        ("key-expires", {}, ["7", "laptop (mdg_AbCdEfGh…)", "研究部", DAY]),
        ("key-expires", {"days": 1}, ["laptop", DAY]),
        ("key-expired", {}, [DAY, "401"]),
        ("key-revoked", {}, ["Bob", "laptop (mdg_AbCdEfGh…)", "研究部", "401", "unused"]),
        ("membership-ended", {}, ["研究部", "2"]),
        ("membership-ended", {"keys": 0}, ["研究部"]),
        ("quota-near", {}, ["研究部", "83%", TOKENS.format_amount(1_000_000, "day"), MINUTE]),
        ("quota-reached", {}, [REQUESTS.format_amount(500, "month"), "qwen", "429"]),
        ("quota-reached", {"of": "key", "owner": "Dify"}, ["Dify"]),
        ("request-asked", {}, ["Alice", "研究部", CONCURRENT.format_amount(8, ""), "4", "a course"]),
        ("request-decided", {}, ["Bob", TOKENS.format_amount(6_000, "minute")]),
        ("request-decided", {"granted": None, "note": "ask in May"}, ["Bob", "9,000", "ask in May"]),
        ("break-glass-used", {}, ["emergency", MINUTE, "10.0.0.7"]),
        ("directory-trouble", {"detail": "timeout"}, ["timeout"]),
    ],
)
def test_a_notice_says_what_matters(alice, kind, changed, parts):
    facts = {**stored(alice, kind), **changed}
    words = f"{sentences.title(kind, 'en', **facts)}. {sentences.text(kind, 'en', **facts)}"
    assert [part for part in parts if part not in words] == []


def test_what_ends_tomorrow_is_not_said_in_days(alice):
    facts = stored(alice, "key-expires")
    days = {number: sentences.title("key-expires", "en", **{**facts, "days": number}) for number in (1, 2)}
    assert [str(number) in title for number, title in days.items()] == [False, True]


def test_a_leak_is_spelled_out_where_a_reason_would_be(alice):
    facts = stored(alice, "key-revoked")
    plain = sentences.text("key-revoked", "ja", **{**facts, "because": ""})
    leaked = sentences.text("key-revoked", "ja", **{**facts, "because": "leaked"})
    assert leaked.startswith(plain)
    assert leaked != plain
    assert "leaked" not in leaked


def test_what_was_granted_and_what_was_refused_read_otherwise(alice):
    facts = stored(alice, "request-decided")
    for say in (sentences.title, sentences.text):
        assert say("request-decided", "en", **facts) != say("request-decided", "en", **{**facts, "granted": None})


def test_admins_of_a_tenant_are_its_own_who_are_still_here(research, sales, alice, bob, olivia):
    left = person("left", research, role="admin", is_active=False)
    Membership.objects.create(user=alice, tenant=sales, role="admin")
    assert list(admins_of(research)) == [bob]
    assert left not in admins_of(research)
    assert list(operators()) == [olivia]
