"""The gateway over a real socket, in front of a fake engine that can misbehave."""

import concurrent.futures
import json
import socket
import threading
import time
from datetime import timedelta

import httpx2
import pytest
from django.utils import timezone

from apiproxy.dataplane.engine_pools import EnginePools
from apiproxy.dataplane.errors import ModelUnavailable, UnknownModel
from apiproxy.dataplane.upstream import Connection
from apiproxy.server.asgi import Application
from apiproxy.server.gateway_lock import SecondGateway
from modelregistry.models import Alias, ControllerClaim, Host, Replica, ReplicaShortage, ServedModel
from portal.keys.lifecycle import issue_key, revoke_key
from portal.quotas.models import Quota
from portal.usage.models import UsageRecord
from tests.apiproxy.connections import connect, head
from tests.apiproxy.errors import ERROR_KEYS, error
from tests.apiproxy.exposition import samples
from tests.engine import ANSWER, DONE, FINISH, SSE, chunk, event, token, unary, usage_event
from tests.waiting import eventually, until


def events(text: str) -> list[str]:
    assert text.endswith("\n\n")
    return [part.removeprefix("data: ") for part in text[:-2].split("\n\n")]


# --- keys and models


@pytest.mark.parametrize("header", [None, "", "Basic abc", "Bearer", "Bearer nonsense", "Bearer mdg_" + "a" * 38])
def test_a_wrong_key_is_refused_in_openai_form(counter, header):
    response = httpx2.get(f"{counter.url}/v1/models", headers={"authorization": header} if header is not None else {})
    assert response.status_code == 401
    assert error(response)["code"] == "invalid_api_key"


def test_a_revoked_key_is_refused_within_two_seconds(counter):
    assert counter.chat().status_code == 200
    revoke_key(counter.key_row)
    begun = time.monotonic()
    until(lambda: counter.chat().status_code == 401, 5)
    assert time.monotonic() - begun < 2


def test_a_new_key_works_at_once(counter, alice, research):
    for _ in range(5):
        _, key = issue_key(tenant=research, user=alice, name="new")
        assert counter.client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_a_header_that_several_callers_share_makes_none_of_them_another(counter, research, bob):
    """A proxy that signs in with Basic sends the same authorization for everybody."""
    other, text = issue_key(tenant=research, user=bob, name="other")
    counter.wait_for_catalogue()
    for key in (counter.key, text, counter.key):
        body = {"model": "fake", "messages": [], "user": key[:12]}
        headers = {"authorization": "Basic c2hhcmVk", "x-api-key": key}
        assert counter.client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    rows = [(row.key_id, row.end_user) for row in counter.usage(3)]
    mine, others = (counter.key_row.id, counter.key_row.prefix), (other.id, other.prefix)
    assert rows == [mine, others, mine]
    for wrong in ("", "mdg_wrong"):
        headers = {"authorization": "Basic c2hhcmVk", "x-api-key": wrong}
        assert counter.client.get("/v1/models", headers=headers).status_code == 401


def test_a_key_stops_when_its_owner_leaves_the_tenant(counter, alice, research):
    alice.memberships.get(tenant=research).delete()
    until(lambda: counter.chat().status_code == 401, 5)


def test_an_expired_key_is_refused_without_any_change_in_the_database(counter, alice, research):
    _, key = issue_key(
        tenant=research, user=alice, name="short", expires_at=timezone.now() + timezone.timedelta(seconds=3)
    )
    ask = {"url": f"{counter.url}/v1/models", "headers": {"authorization": f"Bearer {key}"}}
    until(lambda: httpx2.get(**ask).status_code == 200, 3)
    until(lambda: httpx2.get(**ask).status_code == 401, 5)


def test_models_lists_what_the_key_may_use(counter, alice, research, sales):
    from portal.keys.models import ModelAccess

    other = ServedModel.objects.create(name="secret", engine="external", url="http://127.0.0.1:1")
    ModelAccess.objects.create(model=other, tenant=sales)
    ServedModel.objects.create(name="second", engine="external", url="http://127.0.0.1:1", context=4096)
    until(lambda: len(counter.client.get("/v1/models").json()["data"]) == 2)
    listed = counter.client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert {model["id"] for model in listed["data"]} == {"fake", "second"}
    assert counter.client.get("/v1/models/second").json()["max_model_len"] == 4096
    assert error(counter.client.get("/v1/models/secret"))["code"] == "model_not_found"
    assert error(counter.chat(model="secret"))["message"] == error(counter.chat(model="secret"))["message"]
    assert counter.chat(model="secret").status_code == counter.chat(model="nonsense").status_code == 404


def test_an_alias_serves_as_a_name_and_moves_to_another_model_unnoticed(counter, fake_engine):
    other = ServedModel.objects.create(name="other", engine="external", url=fake_engine.url)
    Replica.objects.create(model=other, host=Host.objects.get(), state="ready", url=fake_engine.url)
    alias = Alias.objects.create(name="default", model=counter.model)
    counter.wait_for_catalogue()
    before = counter.chat(model="default")
    alias.model = other
    alias.save()
    counter.wait_for_catalogue()
    after = counter.chat(model="default")
    assert (before.status_code, after.status_code) == (200, 200)
    assert [row.model for row in counter.usage(2)] == ["fake", "other"]
    listed = {model["id"]: model.get("root") for model in counter.client.get("/v1/models").json()["data"]}
    assert listed == {"fake": None, "other": None, "default": "other"}
    shown = counter.client.get("/v1/models/default").json()
    assert (shown["id"], shown["root"]) == ("default", "other")


def test_an_alias_opens_no_model_that_the_key_may_not_use(counter, sales):
    from portal.keys.models import ModelAccess

    other = ServedModel.objects.create(name="secret", engine="external", url="http://127.0.0.1:1")
    ModelAccess.objects.create(model=other, tenant=sales)
    Alias.objects.create(name="default", model=other)
    counter.wait_for_catalogue()
    assert counter.chat(model="default").status_code == 404
    assert [model["id"] for model in counter.client.get("/v1/models").json()["data"]] == ["fake"]


def test_a_model_is_refused_from_the_day_on_which_it_retires(counter):
    today = timezone.localdate()
    counter.model.retires_on = today + timedelta(days=1)
    counter.model.save()
    Alias.objects.create(name="default", model=counter.model)
    counter.wait_for_catalogue()
    assert counter.chat().status_code == 200
    counter.model.retires_on = today
    counter.model.save()
    counter.wait_for_catalogue()
    refused = counter.chat(model="default")
    assert (refused.status_code, error(refused)["code"]) == (404, "model_not_found")
    assert today.isoformat() in error(refused)["message"]
    assert counter.client.get("/v1/models").json()["data"] == []
    assert counter.client.get("/v1/models/fake").status_code == 404


def test_a_key_of_one_model_cannot_use_another(counter, alice, research):
    other = ServedModel.objects.create(name="second", engine="external", url="http://127.0.0.1:1")
    _, key = issue_key(tenant=research, user=alice, name="one", allowed_models=[other])
    headers = {"authorization": f"Bearer {key}"}
    counter.wait_for_catalogue()
    assert counter.client.get("/v1/models/second", headers=headers).status_code == 200
    assert counter.client.get("/v1/models/fake", headers=headers).status_code == 404


# --- bad requests


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b'{"model": "fake", ', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"[1]", "invalid_json"),
        (b'{"messages": []}', "invalid_value"),
        (b'{"model": 7}', "invalid_value"),
        (b'{"model": "fake", "stream_options": 3}', "invalid_value"),
        (b'\xff\xfe{"model"', "invalid_json"),
    ],
)
def test_a_malformed_body_is_refused_and_reaches_no_engine(counter, body, code):
    response = counter.client.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert error(response)["code"] == code
    assert counter.engine.seen()["requests"] == []


def test_other_paths_and_methods_are_not_passed_on(counter):
    assert error(counter.client.post("/v1/pause", json={}))["code"] == "unknown_url"
    assert error(counter.client.get("/v1/chat/completions"))["code"] == "method_not_allowed"
    assert counter.client.get("/v1/chat/completions").status_code == 405
    assert counter.client.post("/v1/models", json={}).status_code == 405
    assert counter.engine.seen()["requests"] == []


def test_a_body_over_the_bound_is_refused_before_it_is_read(counter, settings):
    length = f"content-length: {settings.GATEWAY_MAX_BODY + 1}"
    with connect(counter.url) as connection:
        connection.sendall(head("POST", "/v1/embeddings", length, key=counter.key))
        answer = b""
        while b"}}" not in answer:
            answer += connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"request_too_large" in answer


def test_refusals_are_in_the_owners_language(counter, alice):
    refusal = UnknownModel("model_not_found", model="nope")
    assert error(counter.chat(model="nope"))["message"] == refusal.message("ja")
    alice.language = "en"
    alice.save()
    until(lambda: error(counter.chat(model="nope"))["message"] == refusal.message("en"))


# --- relaying


def test_a_unary_answer_comes_as_the_engine_gave_it_and_is_metered(counter):
    response = counter.chat(user="dify-user-7")
    assert response.json() == ANSWER
    (row,) = counter.usage()
    assert row.request_id == response.headers["x-request-id"]
    assert (row.prompt_tokens, row.completion_tokens, row.status, row.estimated) == (7, 5, "finished", False)
    assert (row.key, row.model, row.end_user) == (counter.key_row, "fake", "dify-user-7")


def test_unknown_fields_reach_the_engine_untouched(counter):
    more = {"chat_template_kwargs": {"enable_thinking": False}, "web_search": True, "日本語": None}
    counter.chat(**more)
    (seen,) = counter.engine.seen()["requests"]
    assert {name: seen["body"][name] for name in more} == more
    assert counter.key not in json.dumps(seen)


def test_a_stream_is_metered_by_the_engines_usage_which_the_client_did_not_ask_for(counter):
    with counter.stream() as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        got = events(response.read().decode())
    assert got[-1] == "[DONE]"
    assert all(json.loads(part)["choices"] and "usage" not in json.loads(part) for part in got[:-1])
    assert counter.engine.seen()["requests"][0]["body"]["stream_options"] == {"include_usage": True}
    (row,) = counter.usage()
    assert (row.prompt_tokens, row.completion_tokens, row.status, row.estimated) == (7, 3, "finished", False)
    assert row.first_token_ms is not None


def test_a_client_that_asks_for_usage_gets_its_chunk(counter):
    with counter.stream(stream_options={"include_usage": True}) as response:
        got = events(response.read().decode())
    assert json.loads(got[-2])["choices"] == []
    assert json.loads(got[-2])["usage"]["total_tokens"] == 10


def test_pieces_reach_the_client_while_the_engine_goes_on(counter):
    script = [{"send": SSE}, {"events": 1}, {"hang": True}]
    with counter.stream(script=script) as response:
        pieces = response.iter_text()  # held: an iterator that is dropped closes the connection
        assert next(pieces).startswith("data: ")
        assert counter.engine.seen()["running"] == 1


def test_a_stream_split_at_every_byte_and_with_crlf_is_put_right(counter):
    whole = (token(0) + token(1) + FINISH + usage_event(7, 2) + DONE).replace("\n", "\r\n")
    script = [{"send": SSE}, *({"send": chunk(byte)} for byte in whole), {"send": "0\r\n\r\n"}]
    with counter.stream(script=script) as response:
        text = response.read().decode()
    assert "\r" not in text
    assert [json.loads(part)["choices"][0]["delta"].get("content") for part in events(text)[:-1]] == [
        "t0 ",
        "t1 ",
        None,
    ]
    assert counter.usage()[0].completion_tokens == 2


# --- the client leaves


def test_an_aborted_stream_stops_the_engine_and_counts_what_it_made(counter):
    with counter.stream(script=[{"send": SSE}, {"events": 8}, {"hang": True}]) as response:
        pieces = response.iter_text()
        text = ""
        while text.count("data: ") < 8:
            text += next(pieces)
        begun = time.monotonic()
    until(lambda: counter.engine.seen()["left"] == 1)
    assert time.monotonic() - begun < 1
    (row,) = counter.usage()
    assert (row.status, row.estimated, row.completion_tokens) == ("aborted", True, 7)
    assert row.prompt_tokens > 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("script", [[{"hang": True}], [{"send": SSE}, {"hang": True}]])
def test_a_client_that_leaves_before_the_first_byte_stops_the_engine(counter, script, stream):
    body = {"model": "fake", "messages": [], "stream": stream, "script": script}
    with pytest.raises(httpx2.ReadTimeout):
        counter.client.post("/v1/chat/completions", json=body, timeout=0.3)
    until(lambda: counter.engine.seen()["left"] == 1, 1)
    (row,) = counter.usage()
    assert (row.status, row.estimated, row.completion_tokens) == ("aborted", True, 0)
    assert row.prompt_tokens > 0


def test_a_client_that_leaves_after_a_large_body_stops_the_engine(counter):
    content = json.dumps({"model": "fake", "script": [{"hang": True}], "messages": ["x" * 400_000]}).encode()
    host, port = counter.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {counter.key}\r\n"
        connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        until(lambda: counter.engine.seen()["running"] == 1)
    until(lambda: counter.engine.seen()["left"] == 1, 2)


# --- the engine fails


def test_an_engine_that_dies_in_a_stream_is_reported_by_an_error_event(counter):
    with counter.stream(script=[{"send": SSE}, {"events": 3}, {"reset": True}]) as response:
        got = events(response.read().decode())
    assert set(json.loads(got[-2])["error"]) == ERROR_KEYS
    assert got[-1] == "[DONE]"
    (row,) = counter.usage()
    assert (row.status, row.completion_tokens, row.estimated) == ("failed", 2, True)


@pytest.mark.parametrize("at_once", [False, True])
def test_done_after_an_engines_error_is_not_a_finish_and_its_words_are_kept_back(counter, at_once):
    crash = (
        'data: {"error": {"message": "EngineCore at /opt/vllm on http://10.0.0.9:8000 died", "code": 500}}\n\n' + DONE
    )
    apart = [{"send": SSE}, {"events": 3}, {"send": chunk(crash) + "0\r\n\r\n"}]
    script = [{"send": SSE + chunk(token(0) + token(1) + crash) + "0\r\n\r\n"}] if at_once else apart
    with counter.stream(script=script) as response:
        text = response.read().decode()
    assert "t1 " in text
    assert json.loads(events(text)[-2])["error"]["code"] == "engine_error"
    assert text.count("[DONE]") == 1
    assert "10.0.0.9" not in text
    assert counter.usage()[0].status == "failed"


SECRET = '{"message": "no memory at http://10.0.0.9:8000", "code": 500}'


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    "error", [f"event: error\ndata: {SECRET}\n\n", f"event:error\ndata:{SECRET}\n\n", f"error: {SECRET}\n\n"]
)
def test_an_error_that_is_one_by_its_name_is_kept_back(counter, path, n, error):
    for begun in (chunk(token(0)), ""):
        script = [{"send": SSE + begun}, {"send": chunk(error) + "0\r\n\r\n"}]
        body = {"model": "fake", "messages": [], "n": n, "max_tokens": 9, "stream": True, "script": script}
        answer = counter.client.post(path, json=body)
        assert "10.0.0.9" not in answer.text
        assert '"error"' in answer.text
    assert answer.status_code == 502  # nothing of an answer had come


@pytest.mark.parametrize("end", [[{"close": True}], [{"reset": True}], [{"send": "nonsense\r\n"}]])
def test_an_answer_that_is_complete_stays_so_when_its_engine_breaks_off(counter, end):
    script = [{"send": SSE}, {"events": 2}, {"send": chunk(FINISH + DONE)}, {"wait": 0.1}, *end]
    with counter.stream(script=script) as response:
        text = response.read().decode()
    assert text.endswith(FINISH + DONE)
    assert counter.usage()[0].status == "finished"


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ([{"reset": True}], 502),
        ([{"send": "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"}, {"close": True}], 502),
        ([{"send": "nonsense\r\n\r\n"}, {"close": True}], 502),
        ([{"send": unary(500, {"error": {"message": "CUDA error at /srv/vllm"}})}], 502),
        ([{"send": unary(401, {"error": "Unauthorized"})}], 502),
    ],
)
def test_an_engine_that_fails_before_its_first_byte_becomes_an_honest_status(counter, script, status):
    with counter.stream(script=script) as response:
        response.read()
        assert response.status_code == status
        assert error(response)["code"] == "engine_error"
        assert "/srv" not in response.text
    assert counter.usage()[0].status == "failed"


def test_an_engine_that_is_down_is_a_503_and_costs_nothing(counter):
    replica = Replica.objects.get()
    replica.url = "http://127.0.0.1:1"
    replica.save()
    counter.wait_for_catalogue()
    response = counter.chat()
    assert response.status_code == 503
    assert error(response)["code"] == "model_unavailable"
    assert not UsageRecord.objects.exists()


def test_another_replica_is_tried_when_one_refuses(counter):
    down = {"host": Host.objects.get(), "index": 1, "state": Replica.State.READY, "url": "http://127.0.0.1:1"}
    Replica.objects.create(model=counter.model, **down)
    counter.wait_for_catalogue()
    assert [counter.chat().status_code for _ in range(6)] == [200] * 6


def test_a_kept_alive_connection_that_the_engine_closes_is_not_a_failure(counter):
    for _ in range(3):
        answer = counter.chat(script=[{"send": unary(200, ANSWER)}, {"close": True}])
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (
            {
                "error": {
                    "code": 400,
                    "message": "too long",
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": 9,
                    "n_ctx": 8,
                }
            },
            "context_length_exceeded",
        ),
        (
            {
                "error": {
                    "message": "This model's maximum context length is 2048 tokens",
                    "type": "BadRequestError",
                    "param": None,
                }
            },
            "context_length_exceeded",
        ),
        (
            {"error": {"message": "temperature must be non-negative", "param": "temperature", "code": 400}},
            "invalid_value",
        ),
        ({"detail": "no"}, "invalid_value"),
    ],
)
def test_an_engines_refusal_is_translated(counter, body, code):
    response = counter.chat(script=[{"send": unary(400, body)}])
    assert response.status_code == 400
    assert error(response)["code"] == code
    assert counter.usage()[0].status == "refused"


def test_a_failure_after_tokens_were_made_is_not_to_be_retried(counter):
    """The SDK would ask again, and be metered again."""
    script = [{"send": SSE}, {"events": 3}, {"reset": True}]
    counter.model.engine, counter.model.path = "llama.cpp", "/m.gguf"
    counter.model.save()
    counter.wait_for_catalogue()
    response = counter.chat(script=script)
    assert (response.status_code, response.headers["x-should-retry"]) == (502, "false")
    assert len(counter.engine.seen()["requests"]) == 1
    assert "x-should-retry" not in counter.chat(script=[{"reset": True}]).headers


# --- heartbeats


def test_a_stream_that_does_not_begin_is_kept_alive(short_heartbeat, counter):
    script = [{"wait": 1.5}, {"send": SSE}, {"events": 2}, {"send": chunk(FINISH + usage_event(7, 2) + DONE)}]
    with counter.stream(script=[*script, {"send": "0\r\n\r\n"}]) as response:
        assert response.status_code == 200
        text = response.read().decode()
    beats = text.count(": waiting\n\n")
    assert beats >= 1
    assert text.startswith(": waiting\n\n" * beats + "data: {")
    assert text.endswith("data: [DONE]\n\n")
    (row,) = counter.usage()
    assert (row.status, row.completion_tokens, row.estimated) == ("finished", 2, False)
    assert row.first_token_ms >= 1400


@pytest.mark.parametrize(
    ("step", "code", "status"),
    [
        ({"reset": True}, "engine_error", "failed"),
        ({"send": unary(400, {"error": {"message": "bad top_p"}})}, "invalid_value", "refused"),
        ({"send": unary(200, ANSWER)}, "engine_error", "failed"),
    ],
)
def test_after_a_heartbeat_an_error_is_an_event(short_heartbeat, counter, step, code, status):
    with counter.stream(script=[{"wait": 1.5}, step]) as response:
        got = events(response.read().decode().replace(": waiting\n\n", ""))
    assert json.loads(got[0])["error"]["code"] == code
    assert got[1:] == ["[DONE]"]
    (row,) = counter.usage()
    assert row.status == status


def test_only_streams_get_heartbeats(short_heartbeat, counter):
    answer = counter.chat(script=[{"wait": 1.5}, {"send": unary(200, ANSWER)}])
    assert answer.json() == ANSWER


def test_a_client_that_leaves_during_heartbeats_stops_the_engine(short_heartbeat, counter):
    with counter.stream(script=[{"hang": True}]) as response:
        assert next(response.iter_text()) == ": waiting\n\n"
    until(lambda: counter.engine.seen()["left"] == 1, 1)
    assert counter.usage()[0].completion_tokens == 0


# --- limits


def test_a_quota_of_the_day_is_hard_and_says_when_it_returns(counter, research):
    Quota.objects.create(tenant=research, unit="requests", window="day", amount=3)
    counter.wait_for_catalogue()
    answers = [counter.chat() for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert error(answers[3])["code"] == "insufficient_quota"
    assert "JST" in error(answers[3])["message"]
    assert answers[3].headers["x-should-retry"] == "false"
    assert answers[3].headers["x-ratelimit-remaining-requests"] == "0"
    assert len(counter.usage(3)) == 3


def test_rate_headers_are_true(counter, alice):
    Quota.objects.create(user=alice, unit="requests", window="minute", amount=1000)
    counter.wait_for_catalogue()
    first, second = counter.chat().headers, counter.chat().headers
    assert int(first["x-ratelimit-remaining-requests"]) - int(second["x-ratelimit-remaining-requests"]) == 1
    assert first["x-ratelimit-reset-requests"].endswith("s")


def test_zero_blocks(counter):
    Quota.objects.create(key=counter.key_row, unit="tokens", window="month", amount=0)
    counter.wait_for_catalogue()
    assert counter.chat().status_code == 429


def test_a_quota_made_later_knows_what_was_used_before(counter, research):
    counter.chat()
    counter.usage(1)
    Quota.objects.create(tenant=research, unit="tokens", window="day", amount=12)
    counter.wait_for_catalogue()
    assert counter.chat().status_code == 429


# --- other


def test_what_an_event_looks_like_is_not_changed(counter):
    odd = event([{"index": 0, "delta": {"content": 'say "usage" and "error"'}, "finish_reason": None}])
    script = [{"send": SSE}, {"send": chunk(odd + FINISH + usage_event(1, 1) + DONE) + "0\r\n\r\n"}]
    with counter.stream(script=script) as response:
        assert response.read().decode().startswith(odd)


def test_probes_answer_without_a_key(counter):
    assert httpx2.get(f"{counter.url}/healthz").text == "ok\n"
    assert httpx2.get(f"{counter.url}/readyz").status_code == 200
    counter.chat()
    text = httpx2.get(f"{counter.url}/metrics").text
    assert 'madoguchi_tokens_total{model="fake",kind="completion"} 5' in text
    assert counter.key not in text


def test_a_refusal_after_heartbeats_is_an_event_of_the_stream(counter, monkeypatch):
    monkeypatch.setattr("apiproxy.dataplane.forwarding.HEARTBEAT", 0.1)

    has_heartbeats = threading.Event()

    async def wait_in_vain(*_: object, **more: object) -> Connection:
        await eventually(has_heartbeats.is_set, 30)
        raise ModelUnavailable("model_unavailable", model="fake")

    monkeypatch.setattr(EnginePools, "connect", wait_in_vain)
    with counter.stream() as response:
        pieces = response.iter_text()
        text = next(pieces)
        has_heartbeats.set()
        text += "".join(pieces)
    assert response.status_code == 200
    assert text.startswith(":")
    got = events(text)
    assert (json.loads(got[-2])["error"]["code"], got[-1]) == ("model_unavailable", "[DONE]")


def test_metrics_of_several_models_are_of_the_exposition_format(counter):
    ServedModel.objects.create(name="second", engine="vllm", task="embedding", path="/m")
    counter.wait_for_catalogue()
    found = samples(httpx2.get(f"{counter.url}/metrics").text)
    assert found["madoguchi_replicas_ready[model=fake]"] == 1
    assert found["madoguchi_replicas_ready[model=second]"] == 0


def test_metrics_have_the_figures_of_hosts_and_of_the_controller(counter):
    now = timezone.now()
    Host.objects.create(name="gpu-b", seen_at=now, watched_at=now, silent_since=now - timedelta(seconds=90))
    ControllerClaim.objects.create(number="n", term=7, holder="site", seen_at=now, moves=3)
    scaled = ServedModel.objects.create(name="scaled", engine="vllm", path="/m", replicas_max=2)
    ReplicaShortage.objects.create(model=scaled, wanted=2, since=now - timedelta(seconds=90), cause="no-room")
    found = samples(httpx2.get(f"{counter.url}/metrics").text)
    assert 80 < found["madoguchi_replica_shortage_seconds[model=scaled]"] < 600
    assert found["madoguchi_host_up[host=gpu-b]"] == 0
    assert 80 < found["madoguchi_host_silent_seconds[host=gpu-b]"] < 600
    assert found["madoguchi_host_maintenance[host=gpu-b]"] == 0
    assert found["madoguchi_host_replicas[host=gpu-b, state=ready]"] == 0
    states = [number for name, number in found.items() if "madoguchi_host_replicas" in name and "state=ready" in name]
    assert sum(states) == 1  # of the fake engine
    assert (found["madoguchi_controller_up[]"], found["madoguchi_controller_term[]"]) == (1, 7)
    assert found["madoguchi_replica_moves_total[]"] == 3


# --- the end of the server


def test_a_stream_that_outlasts_the_servers_patience_ends_with_an_error_event(counter):
    with counter.stream(script=[{"send": SSE}, {"events": 3}, {"hang": True}]) as response:
        pieces = response.iter_text()
        text = next(pieces)
        counter.server.should_exit = True
        text += "".join(pieces)
    got = events(text)
    assert json.loads(got[-2])["error"]["code"] == "shutting_down"
    assert got[-1] == "[DONE]"
    until(lambda: counter.engine.seen()["left"] == 1)
    (row,) = counter.usage()
    assert (row.status, row.completion_tokens) == ("failed", 2)


def test_a_call_without_an_answer_learns_that_the_server_restarts(counter):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(counter.chat, script=[{"hang": True}])
        until(lambda: counter.engine.seen()["running"] == 1)
        counter.server.should_exit = True
        response = waiting.result(20)
    assert response.status_code == 503
    assert error(response)["code"] == "shutting_down"


async def test_a_second_gateway_on_the_same_state_is_refused(counter):
    with pytest.raises(SecondGateway, match="REDIS_URL"):
        await Application().start()
    assert counter.chat().status_code == 200
