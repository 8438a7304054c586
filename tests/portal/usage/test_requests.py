"""The pages, the API and the command of single requests."""

import csv
import io
import json
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone, translation

from modelregistry.models import Replica
from portal.usage import refusals
from portal.usage.cause_texts import TEXTS, describe_cause
from portal.usage.causes import CODES, Cause
from portal.usage.models import UsageRecord
from portal.usage.request_views import COLUMNS, SHOWN
from tests.html import parse
from tests.pages import key_of, serve, service_key_of, use
from tests.portal.browsing import client_of, read

pytestmark = pytest.mark.django_db

WAITED = {"queued_ms": 4000, "loading_ms": 0, "prefill_ms": 500, "first_token_ms": 700, "duration_ms": 2700}
CALL = {**WAITED, "retries": 0, "stopped_by": "stop", "engine": "vllm 0.32.0", "tokens": (20, 40)}


def refuse(key, request_id: str, **more) -> None:
    facts = {"request_id": request_id, "at": timezone.now(), "model": "qwen", "endpoint": "/v1/chat/completions"}
    facts |= {"code": "insufficient_quota", "reason": "insufficient_quota", "scope": "tenant", "window": "day"}
    facts |= {"digest": "", "key": key.pk, "tenant": key.tenant_id, "user": key.user_id, "retry_after": 3600}
    refusals.add_refusals([{**facts, "waited_ms": None, **more}])


@pytest.fixture
def slow(alice, research) -> UsageRecord:
    return use(key_of(alice, research), model="qwen", **CALL)


def test_a_request_shows_its_causes_and_the_parts_of_its_time(alice, slow):
    shown = parse(read(client_of(alice), f"/requests/{slow.request_id}/"))
    assert [one["data-cause"] for one in shown.all("[data-cause]")] == ["waited_in_queue"]
    stages = {one["data-stage"]: int(one["data-ms"]) for one in shown.all("[data-stage]")}
    assert stages == {"queued": 4000, "lost": 200, "prefill": 500, "generating": 2000}
    drawn = [(one["class"], float(one["width"].rstrip("%"))) for one in shown.all("#timeline rect[x]")]
    assert drawn == [
        *(("stage-queued", 59.7), ("stage-lost", 2.99), ("stage-prefill", 7.46), ("stage-generating", 29.85)),
    ]
    assert shown.one("#timeline svg")["aria-label"]


def test_a_refused_request_shows_why_and_when_to_come_back(alice, research):
    refuse(key_of(alice, research), "req_refused")
    shown = parse(read(client_of(alice), "/requests/req_refused/"))
    assert [one["data-cause"] for one in shown.all("[data-cause]")] == ["quota_used_up"]
    assert not shown.all("#timeline")
    assert "1 hour" in " ".join(shown.one("#causes").text.split())


def test_an_answer_in_one_piece_has_no_parts_that_are_not_known(alice, research):
    row = use(key_of(alice, research), queued_ms=0, loading_ms=0, first_token_ms=900, duration_ms=900)
    stages = parse(read(client_of(alice), f"/requests/{row.request_id}/")).all("[data-stage]")
    assert [one["data-stage"] for one in stages] == ["working"]


def test_an_id_of_others_is_answered_as_one_that_does_not_exist(charlie, slow):
    client = client_of(charlie)
    theirs, unknown = (client.get(f"/requests/{one}/") for one in (slow.request_id, "req_unknown"))
    assert theirs.status_code == unknown.status_code == 404
    assert parse(theirs).one("main").text == parse(unknown).one("main").text
    found = [client.get("/requests/", {"id": one}) for one in (slow.request_id, "req_unknown")]
    assert [parse(one).one("#not-found").text for one in found] == [parse(found[0]).one("#not-found").text] * 2


def test_operators_see_on_which_replica_it_ran_others_do_not(alice, bob, olivia, research):
    model = serve("qwen")
    row = use(key_of(alice, research), model=model.name, replica_id=Replica.objects.get().pk, **CALL)
    links = {}
    for user in (alice, bob, olivia):
        facts = parse(read(client_of(user), f"/requests/{row.request_id}/")).one("#facts")
        links[user.username] = len(facts.all("[href^=/operations/]"))
    assert links == {"alice": 0, "bob": 0, "olivia": 1}


def test_a_request_is_found_by_its_id_and_in_the_list_of_its_scope(alice, bob, research, slow):
    refuse(key_of(alice, research, "other"), "req_refused")
    answer = client_of(alice).get("/requests/", {"id": f" {slow.request_id} "})
    assert answer.headers["location"] == f"/requests/{slow.request_id}/"
    for user, of in ((alice, "me"), (bob, "tenant:research")):
        rows = parse(read(client_of(user), f"/requests/?of={of}")).all("[data-request]")
        assert {one["data-request"] for one in rows} == {slow.request_id, "req_refused"}
    assert parse(read(client_of(bob), "/requests/")).all("[data-request]") == []
    assert client_of(bob).get("/requests/?of=all").status_code == 404


def test_the_list_is_in_the_order_of_arrival_and_says_whose_a_call_of_others_is(alice, bob, research, slow):
    refuse(key_of(alice, research, "other"), "req_waited", waited_ms=240_000)
    rows = parse(read(client_of(bob), "/requests/?of=tenant:research")).all("[data-request]")
    assert [one["data-request"] for one in rows] == [slow.request_id, "req_waited"]
    assert all(str(alice) in one.text for one in rows)


def test_admins_see_which_person_a_service_called_for(bob, research):
    record = use(service_key_of(research), end_user="yamada@example.com", **CALL)
    shown = parse(read(client_of(bob), f"/requests/{record.request_id}/"))
    assert "yamada@example.com" in shown.one("#end-user").text


def test_the_file_of_requests_has_their_timelines(alice, slow):
    text = b"".join(client_of(alice).get("/requests/export/").streaming_content).decode("utf-8-sig")
    [row] = csv.DictReader(io.StringIO(text))
    assert tuple(row) == COLUMNS
    assert (row["request_id"], row["queued_ms"], row["generating_ms"], row["engine"]) == (
        *(slow.request_id, "4000", "2000", "vllm 0.32.0"),
    )
    [same] = json.loads(b"".join(client_of(alice).get("/requests/export/?format=json").streaming_content))
    assert same["prefill_ms"] == 500


def test_the_api_explains_a_request_and_lists_the_latest(call, alice, bob, charlie, research, slow):
    refuse(key_of(alice, research, "other"), "req_refused", waited_ms=12)
    found = call(alice).get(f"requests/{slow.request_id}/")
    assert [(cause["code"], cause["effect"], cause["figures"]["ms"]) for cause in found["causes"]] == [
        ("waited_in_queue", "slow", 4000)
    ]
    assert (found["queued_ms"], found["generating_ms"], found["stopped_by"]) == (4000, 2000, "stop")
    refused = call(bob).get("requests/req_refused/")
    assert (refused["status"], refused["code"], refused["retry_after"]) == ("rejected", "insufficient_quota", 3600)
    assert call(charlie)("GET", f"requests/{slow.request_id}/").status_code == 404
    listed = call(bob).get("requests/?of=tenant:research")
    assert {one["request_id"] for one in listed} == {slow.request_id, "req_refused"}
    assert call(charlie).get("requests/") == []


def test_the_command_prints_the_timeline_and_the_causes(slow, capsys):
    call_command("request", slow.request_id, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["request_id"], found["causes"][0]["code"]) == (slow.request_id, "waited_in_queue")
    call_command("request", slow.request_id)
    out = capsys.readouterr().out
    assert "waited_in_queue" in out
    assert "4000" in out
    with pytest.raises(CommandError):
        call_command("request", "req_unknown")


def test_every_cause_has_words_in_both_languages():
    assert TEXTS.keys() == CODES
    figures = {"ms": 1200, "prompt": 9000, "tokens": 7, "looped": 3, "speed": 3.5, "usual_speed": 30.0}
    figures |= {"own": 1, "others": 2, "beside": 3, "usual_ms": 200, "code": "server_busy", "model": "m"}
    figures |= {"scope": "tenant", "window": "day", "retry_after": 3}
    for code in CODES:
        said = []
        for language in ("en", "ja"):
            with translation.override(language):
                text = describe_cause(Cause(code=code, effect="slow", figures=figures))
                said.append(text)
                assert "%" not in text.sentence
        assert said[0].sentence != said[1].sentence


def test_the_list_takes_as_many_queries_for_many_requests_as_for_one(alice, research, django_assert_max_num_queries):
    key, client = key_of(alice, research), client_of(alice)
    for n in range(60):
        use(key, at=timezone.now() - timedelta(seconds=n))
    with django_assert_max_num_queries(10):
        assert len(parse(read(client, "/requests/")).all("[data-request]")) == SHOWN
