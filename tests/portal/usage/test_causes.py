"""Causes by rows, without a gateway; who sees which calls; refused calls that are kept and deleted."""

from datetime import timedelta

import pytest
from django.core.management import call_command
from django.utils import timezone

from modelregistry.supervisor import tasks
from portal.keys.models import ApiKey
from portal.usage import refusals
from portal.usage.calls import explain_call, find_call, read_usual
from portal.usage.causes import CallTimeline, Surroundings, UsualFigures, explain
from portal.usage.models import RefusedRequest, UsageRecord
from portal.usage.records import record_usage
from tests.pages import key_of
from tests.portal.usage.record_rows import NOON, row

pytestmark = pytest.mark.django_db


def timeline(**more) -> CallTimeline:
    facts = {"request_id": "r", "began": NOON, "key": 1, "user": 1, "tenant": 1, "model": "m", "endpoint": "/v1/x"}
    facts |= {"status": "finished", "stopped_by": "stop", "queued_ms": 0, "loading_ms": 0, "retries": 0}
    return CallTimeline(**{**facts, **more})


def codes(call: CallTimeline, **around) -> list[str]:
    return [cause.code for cause in explain(call, Surroundings(**around))]


def refusal(request_id: str, key: ApiKey | None, **more) -> dict:
    facts = {"request_id": request_id, "at": timezone.now(), "model": "m", "endpoint": "/v1/chat/completions"}
    facts |= {"code": "model_busy", "reason": "model_busy", "scope": "", "window": "", "digest": ""}
    owner = (
        {"key": key.pk, "tenant": key.tenant_id, "user": key.user_id}
        if key
        else dict.fromkeys(("key", "tenant", "user"))
    )
    return {**facts, **owner, "retry_after": 5, "waited_ms": None, **more}


def test_what_took_longest_comes_after_what_ended_the_call():
    call = timeline(
        stopped_by="length", queued_ms=900, loading_ms=5000, first_token_ms=40, prefill_ms=40, duration_ms=90
    )
    assert codes(call, others=3) == ["cut_at_limit", "model_was_asleep", "waited_behind_others"]


def test_slow_is_only_what_is_slower_than_usual():
    slow = timeline(first_token_ms=3000, prefill_ms=3000, duration_ms=9000, completion_tokens=60, prompt_tokens=50)
    usual = UsualFigures(calls=9, start_ms=2900, speed=10, prompt_tokens=50, completion_tokens=60)
    assert codes(slow, usual=usual) == ["nothing_unusual"]
    assert codes(slow, usual=UsualFigures(calls=9, start_ms=300, speed=40)) == ["slow_engine", "slow_start"]
    assert codes(timeline(first_token_ms=9000, duration_ms=9000)) == ["nothing_unusual"]  # in one piece


def test_a_prompt_that_the_engine_knew_is_not_long():
    call = {"first_token_ms": 3000, "prefill_ms": 3000, "duration_ms": 3100, "prompt_tokens": 9000}
    assert codes(timeline(**call)) == ["long_prompt"]
    assert codes(timeline(**call, cached_tokens=8900)) == ["slow_start"]


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        ("finished", "timeline_unknown"),
        ("aborted", "client_left"),
        ("interrupted", "gateway_restarted"),
        ("failed", "engine_failed"),
        ("refused", "engine_refused"),
        ("looped", "loop_repeated"),
    ],
)
def test_rows_of_older_gateways_are_explained_as_far_as_they_say(research, status, cause):
    record_usage([row("old", status=status, tenant_id=research.pk)])
    record = UsageRecord.objects.get()
    assert (record.queued_ms, record.stopped_by, record.retries) == (None, "", None)
    call = find_call("old")
    assert [found.code for found in explain_call(call).causes] == [cause]


def test_usual_is_the_median_of_enough_complete_answers(research):
    rows = [row(f"r{n}", tenant_id=research.pk, started_at=NOON + timedelta(seconds=n), queued_ms=n) for n in range(9)]
    failed = row("bad", tenant_id=research.pk, status="failed", queued_ms=9000)
    record_usage([*rows[:7], failed])
    assert read_usual("m", NOON + timedelta(hours=1)) == UsualFigures(calls=7)
    record_usage(rows[7:])
    usual = read_usual("m", NOON + timedelta(hours=1))
    assert (usual.calls, usual.queued_ms, usual.prompt_tokens) == (9, 4, 7)
    assert read_usual("m", NOON + timedelta(days=9)).calls == 0


def test_people_see_their_own_calls_admins_those_of_their_tenant_operators_all(alice, bob, charlie, olivia, research):
    key = key_of(alice, research)
    record_usage([row("mine", key_id=key.pk, user_id=alice.pk, tenant_id=research.pk)])
    refusals.add_refusals([refusal("refused", key)])
    for request_id in ("mine", "refused"):
        for person, sees in ((alice, True), (bob, True), (charlie, False), (olivia, True)):
            assert (find_call(request_id, person) is not None) == sees
    key.user = None  # a service's: no person's own
    record_usage([row("service", key_id=key.pk, user_id=None, tenant_id=research.pk)])
    assert find_call("service", alice) is None
    assert find_call("service", bob) is not None


@pytest.mark.parametrize("request_id", ["", " ", "x" * 41, "a\0b", "a\udcff", "unknown"])
def test_what_is_no_id_is_not_found(research, request_id):
    assert find_call(request_id) is None


def test_a_call_of_a_key_that_has_ended_is_explained_by_that(alice, research):
    key = key_of(alice, research)
    of_digest = {"code": "invalid_api_key", "reason": "invalid_api_key", "model": "", "digest": key.digest}
    refusals.add_refusals(
        [refusal("stopped", None, **of_digest), refusal("not ours", None, **{**of_digest, "digest": "0"})]
    )
    ApiKey.objects.update(expires_at=timezone.now())
    refusals.add_refusals([refusal("expired", None, **of_digest)])
    ApiKey.objects.update(revoked_at=timezone.now())
    refusals.add_refusals([refusal("revoked", None, **of_digest)])
    assert find_call("not ours") is None
    for request_id in ("stopped", "expired", "revoked"):
        call = find_call(request_id, alice)
        assert [found.code for found in explain_call(call).causes] == [f"key_{request_id}"]


def test_what_a_key_was_refused_for_before_it_ended_stays_the_cause(alice, research):
    key = key_of(alice, research)
    ApiKey.objects.update(revoked_at=timezone.now())
    ended = refusal("ended", key) | {"code": "invalid_api_key", "reason": "invalid_api_key"}
    refusals.add_refusals([refusal("busy", key), ended])
    causes = {name: explain_call(find_call(name, alice)).causes[0].code for name in ("busy", "ended")}
    assert causes == {"busy": "model_busy", "ended": "key_revoked"}


def test_writing_refused_calls_again_changes_nothing(alice, research):
    rows = [refusal("a", key_of(alice, research))]
    refusals.add_refusals(rows)
    refusals.add_refusals([{**rows[0], "code": "engine_busy"}])
    assert RefusedRequest.objects.get().code == "model_busy"


def test_refused_calls_are_deleted_after_a_week_and_the_oldest_of_too_many(alice, research, monkeypatch, capsys):
    key, now = key_of(alice, research), timezone.now()
    ages = {"old": timedelta(days=7, minutes=1), "a": timedelta(days=6), "b": timedelta(hours=2), "c": timedelta(0)}
    refusals.add_refusals([refusal(name, key, at=now - age) for name, age in ages.items()])
    monkeypatch.setattr(refusals, "MOST", 2)
    call_command("prunerefusals")
    assert set(RefusedRequest.objects.values_list("request_id", flat=True)) == {"b", "c"}
    [task] = [one for one in tasks.registered_tasks() if one.name == "prunerefusals"]
    assert (task.every, task.argv) == (timedelta(hours=1), ("prunerefusals",))
