"""What clients rely on that no other file shows: statuses, ids, when to come back, and the openai SDK's view of it."""

import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx2
import openai
import pytest

from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.scheduler import Scheduler
from apiproxy.dataplane.wake_ups import LOADED_WITHIN
from modelregistry.failure_advice import NO_ROOM
from modelregistry.models import Replica, ServedModel, WakeRequest
from portal.keys.models import ApiKey
from portal.quotas.models import Quota
from tests.apiproxy.connections import connect, head
from tests.apiproxy.errors import error
from tests.apiproxy.served import SERVED
from tests.engine import ANSWER, DONE, FINISH, SSE, chunk, event, unary, usage_event
from tests.waiting import until


@pytest.fixture
def sdk(counter) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{counter.url}/v1", api_key=counter.key, max_retries=0)


@pytest.fixture
def short_timeouts(settings) -> None:
    """Give engines half a second for a stream's first byte, and two for a whole answer."""
    settings.GATEWAY_FIRST_BYTE_TIMEOUT, settings.GATEWAY_TOTAL_TIMEOUT = 0.5, 2.0


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_is_too_slow_is_a_504(short_timeouts, counter, stream):
    response = counter.chat(stream=stream, script=[{"hang": True}])
    assert response.status_code == 504
    assert error(response)["code"] == "engine_timeout"
    assert counter.usage()[0].status == "failed"


def test_a_fault_of_ours_is_a_500_with_an_id_and_without_its_words(counter, monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("at /srv/secret")

    monkeypatch.setattr(Scheduler, "acquire", broken)
    response = counter.chat()
    assert response.status_code == 500
    assert error(response)["code"] == "internal_error"
    assert "secret" not in response.text


def test_a_413_carries_an_id(counter, settings):
    fields = (f"x-api-key: {counter.key}", f"content-length: {settings.GATEWAY_MAX_BODY + 1}")
    with connect(counter.url) as connection:
        connection.sendall(head("POST", "/v1/embeddings", *fields))
        assert b"x-request-id: req_" in connection.recv(4096)


def test_a_model_that_takes_too_long_to_be_loaded_is_worth_coming_back_for(counter, monkeypatch):
    monkeypatch.setattr("apiproxy.dataplane.scheduler.MAX_WAIT", 1.0)
    Replica.objects.update(state=Replica.State.STARTING)
    Replica.objects.get().save()
    counter.wait_for_catalogue()
    response = counter.chat()
    assert response.status_code == 503
    assert error(response)["code"] == "model_loading"
    assert 0 < int(response.headers["retry-after"]) <= 60


def test_a_call_for_a_model_whose_room_others_keep_is_refused_at_once(counter):
    replica = Replica.objects.get()
    replica.state, replica.cause = Replica.State.FAILED, NO_ROOM
    replica.save()
    counter.wait_for_catalogue()
    response = counter.chat()
    assert response.status_code == 503
    assert error(response)["code"] == "model_without_room"
    assert not WakeRequest.objects.exists()


def test_a_request_to_wake_a_model_says_since_when_and_how_many_calls_wait(counter, monkeypatch):
    monkeypatch.setattr("apiproxy.server.asgi.WAKE_AGAIN", 0.5)
    replica = Replica.objects.get()
    replica.state = Replica.State.ASLEEP
    replica.save()
    counter.wait_for_catalogue()
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(counter.chat) for _ in range(3)]
        until(lambda: WakeRequest.objects.filter(calls=3).exists())
        first = WakeRequest.objects.get()
        until(lambda: WakeRequest.objects.get().at > first.at)
        assert WakeRequest.objects.get().since == first.since < first.at
        replica.state = Replica.State.READY
        replica.save()
        assert {answer.result().status_code for answer in answers} == {200}


def test_a_client_that_hangs_up_at_once_has_only_so_many_models_loaded(counter, monkeypatch):
    monkeypatch.setattr("apiproxy.dataplane.scheduler.MAX_LOADING", 1)
    replica = Replica.objects.get()
    other = ServedModel.objects.create(name="other", engine="external", url=counter.engine.url)
    Replica.objects.create(model=other, host=replica.host, state=Replica.State.ASLEEP)
    replica.state = Replica.State.ASLEEP
    replica.save()
    counter.wait_for_catalogue()
    with pytest.raises(httpx2.TimeoutException):
        counter.client.post("/v1/chat/completions", json={"model": counter.model.name, "messages": []}, timeout=0.5)
    until(lambda: not counter.application.gateway.queued)
    response = counter.chat(model="other")
    assert (response.status_code, error(response)["code"]) == (503, "too_many_loading")
    assert 0 < int(response.headers["retry-after"]) <= LOADED_WITHIN
    assert list(WakeRequest.objects.values_list("model", flat=True)) == [counter.model.pk]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_for_a_sleeping_model_wakes_it_and_is_answered(counter, stream):
    replica = Replica.objects.get()
    replica.state = Replica.State.ASLEEP
    replica.save()
    counter.wait_for_catalogue()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(counter.chat, stream=stream)
        until(WakeRequest.objects.exists)
        assert counter.engine.seen()["requests"] == []
        replica.state = Replica.State.READY
        replica.save()
        response = answer.result()
    assert response.status_code == 200
    assert float(response.headers["x-madoguchi-waited"]) > 0 or stream
    assert counter.usage()[0].status == "finished"


@pytest.mark.parametrize("amount", [0, 1])
@pytest.mark.parametrize("batch", [False, True])
def test_who_has_nothing_left_of_a_quota_wakes_no_model(counter, amount, batch):
    Quota.objects.create(key=counter.key_row, unit="requests", window="day", amount=amount)
    if batch:
        counter.key_row.key_class = ApiKey.Class.BATCH
        counter.key_row.save()
    counter.wait_for_catalogue()
    assert counter.chat().status_code == (200 if amount else 429)
    replica = Replica.objects.get()
    replica.state = Replica.State.ASLEEP
    replica.save()
    counter.wait_for_catalogue()
    response = counter.chat()
    assert (response.status_code, error(response)["code"]) == (429, "insufficient_quota")
    assert not WakeRequest.objects.exists()


@pytest.mark.parametrize(("unit", "amount"), [("requests", 1), ("tokens", 12)])
def test_a_minutes_limit_says_what_and_how_long(counter, unit, amount):
    Quota.objects.create(key=counter.key_row, unit=unit, window="minute", amount=amount)
    counter.wait_for_catalogue()
    assert counter.chat().status_code == 200
    response = counter.chat()
    found = error(response)
    assert (response.status_code, found["code"], found["type"]) == (429, "rate_limit_exceeded", unit)
    assert 0 < int(response.headers["retry-after"]) <= 60
    assert int(response.headers["retry-after-ms"]) == int(response.headers["retry-after"]) * 1000


def test_models_are_listed_whatever_the_engines_do(counter):
    counter.engine.process.kill()
    counter.engine.process.wait()
    assert [model["id"] for model in counter.client.get("/v1/models").json()["data"]] == ["fake"]


def test_the_end_user_is_kept_as_given_up_to_64_characters(counter):
    counter.chat(user="利用者" * 30)
    assert counter.usage()[0].end_user == ("利用者" * 30)[:64]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_every_name_of_the_bound_is_reserved_for(field):
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages"):
        call = requests.parse(json.dumps({"model": "m", field: 3}).encode())
        told = requests.max_tokens_members(
            call, requests.ENDPOINTS[path], SERVED, requests.RequestPolicy(), limited=lambda: True
        )
        assert (
            requests.estimate_tokens(call, requests.ENDPOINTS[path], SERVED, requests.RequestPolicy())
            == call.prompt_estimate + 3
        )
        assert {value for value in ({field: 3} | told).values() if value is not None} == {3}


# --- the openai SDK


def test_the_sdk_sees_errors_as_its_own_kinds(counter, sdk):
    ask = sdk.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(model="nope", messages=[])
    assert unknown.value.code == "model_not_found"
    assert unknown.value.request_id.startswith("req_")
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="mdg_wrong").models.list()
    stream = ask(
        model="fake",
        messages=[],
        stream=True,
        extra_body={"script": [{"send": SSE}, {"events": 2}, {"reset": True}]},
    )
    with pytest.raises(openai.APIError) as broken:
        list(stream)
    assert broken.value.code == "engine_error"


def test_the_sdk_does_not_try_again_where_tokens_or_a_quota_are_used_up(counter, sdk):
    Quota.objects.create(key=counter.key_row, unit="requests", window="day", amount=1)
    counter.wait_for_catalogue()
    patient = sdk.with_options(max_retries=2)
    assert patient.chat.completions.create(model="fake", messages=[]).choices[0].message.content == "hello"
    with pytest.raises(openai.RateLimitError) as over:
        patient.chat.completions.create(model="fake", messages=[])
    assert over.value.code == "insufficient_quota"
    text = counter.client.get("/metrics").text
    assert [line.split()[-1] for line in text.splitlines() if 'insufficient_quota"' in line] == ["1"]


def part(**call: Any) -> str:
    return event([{"index": 0, "delta": {"tool_calls": [{"index": 0, **call}]}, "finish_reason": None}])


CALLS = (
    event([{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}])
    + part(id="call_1", type="function", function={"name": "weather", "arguments": ""})
    + part(function={"arguments": '{"city":'})
    + part(function={"arguments": '"東京"}'})
    + FINISH.replace('"stop"', '"tool_calls"')
    + usage_event(7, 4)
    + DONE
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def test_the_sdk_reads_tool_calls_out_of_a_stream(counter, sdk):
    script = [{"send": SSE}, {"send": chunk(CALLS) + "0\r\n\r\n"}]
    fields = {"model": "fake", "messages": [], "tools": [WEATHER], "extra_body": {"script": script}}
    with sdk.chat.completions.stream(**fields) as events:
        answer = events.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls
    assert (call.id, call.function.name) == ("call_1", "weather")
    assert json.loads(call.function.arguments) == {"city": "東京"}
    assert counter.engine.seen()["requests"][0]["body"]["tools"] == [WEATHER]
    assert counter.usage()[0].completion_tokens == 4


def test_the_sdk_takes_floats_where_it_asked_for_base64(counter, sdk):
    """llama-cpp-python knows no base64."""
    answer = sdk.embeddings.create(model="fake", input="ping")
    assert answer.data[0].embedding == [0.1, 0.2]
    assert counter.engine.seen()["requests"][0]["body"]["encoding_format"] == "base64"


def test_the_ids_of_an_answer_and_its_usage_are_the_same_to_the_sdk(counter, sdk):
    body = {"script": [{"send": unary(200, ANSWER)}]}
    answer = sdk.chat.completions.create(model="fake", messages=[], extra_body=body)
    assert counter.usage()[0].request_id == answer._request_id


# --- line by line


DURATION = re.compile(r"(\d+h)?(\d+m)?\d+(\.\d+)?(ms|s)")


def test_the_six_rate_headers_are_there_and_durations_are_gos(counter):
    for unit, amount in (("requests", 10), ("tokens", 100_000)):
        Quota.objects.create(key=counter.key_row, unit=unit, window="minute", amount=amount)
    counter.wait_for_catalogue()
    counter.chat()
    found = counter.chat(max_tokens=5).headers
    assert [found[f"x-ratelimit-limit-{unit}"] for unit in ("requests", "tokens")] == ["10", "100000"]
    assert found["x-ratelimit-remaining-requests"] == "8"
    assert 90_000 < int(found["x-ratelimit-remaining-tokens"]) <= 100_000 - 12
    for unit in ("requests", "tokens"):
        assert DURATION.fullmatch(found[f"x-ratelimit-reset-{unit}"])


def test_a_days_quota_reports_the_true_time_until_midnight_of_the_tenant(counter):
    Quota.objects.create(key=counter.key_row, unit="requests", window="day", amount=1)
    counter.wait_for_catalogue()
    counter.chat()
    response = counter.chat()
    now = datetime.now(ZoneInfo("Asia/Tokyo"))
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    assert error(response)["code"] == "insufficient_quota"
    assert abs(int(response.headers["retry-after"]) - (midnight - now).total_seconds()) < 10
    assert response.headers["x-should-retry"] == "false"


def test_models_have_the_form_that_clients_read(counter):
    listed = counter.client.get("/v1/models")
    assert listed.headers["x-request-id"].startswith("req_")
    (model,) = listed.json()["data"]
    assert listed.json() == {"object": "list", "data": [model]}
    assert (model["id"], model["object"], model["owned_by"]) == ("fake", "model", "madoguchi")
    assert isinstance(model["created"], int)
    assert counter.client.get("/v1/models/fake").json() == model


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("script", [[{"send": unary(400, {"error": {"message": "no"}})}], [{"reset": True}]])
def test_an_error_is_json_whatever_was_asked_for(counter, script, stream):
    """Open WebUI takes a reply for a stream by its type alone."""
    response = counter.chat(script=script, stream=stream)
    assert response.headers["content-type"] == "application/json"
    assert error(response)["message"]


def test_a_stream_has_only_data_lines_and_nothing_caches_it(counter):
    with counter.stream(stream_options={"include_usage": True}) as response:
        text = response.read().decode()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"  # nginx passes each piece on at once
    assert "\r" not in text
    *chunks, last = text.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    assert all(line.startswith("data: {") and "\n" not in line for line in chunks)
    parts = [json.loads(line[6:]) for line in chunks]
    assert all("choices" in part for part in parts)
    with_choices = [part for part in parts if part["choices"]]
    assert with_choices[-1]["choices"][0]["finish_reason"] == "stop"
    assert not any(part["choices"][0]["finish_reason"] for part in with_choices[:-1])


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_very_small_bounds_reach_the_engine_as_they_are(counter, field):
    assert counter.chat(**{field: 1}).status_code == 200
    (seen,) = counter.engine.seen()["requests"]
    assert seen["body"][field] == 1


def test_what_dify_may_send_reaches_the_engine(counter):
    fields = {
        "tools": [WEATHER],
        "tool_choice": "auto",
        "functions": [{"name": "f", "parameters": {}}],
        "response_format": {"type": "json_object"},
        "stop": ["\n"],
        "chat_template_kwargs": {"enable_thinking": False},
        "enable_thinking": True,
        "thinking": {"type": "disabled"},
        "reasoning_effort": "low",
        "reasoning_format": "none",
        "web_search": False,
        "user": "u",
    }
    script = [{"send": unary(200, ANSWER)}]
    assert counter.chat(script=script, **fields).status_code == 200
    (seen,) = counter.engine.seen()["requests"]
    assert {name: seen["body"].get(name) for name in fields} == fields


def test_an_engine_hears_only_the_headers_that_it_needs(counter):
    """With an `X-Conversation-Id` llama.cpp goes on after its client has left; cookies are private."""
    headers = {"x-conversation-id": "7", "cookie": "session=1", "x-api-key": counter.key, "openai-organization": "o"}
    body = {"model": "fake", "messages": []}
    assert counter.client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    (seen,) = counter.engine.seen()["requests"]
    allowed = {"host", "authorization", "content-type", "content-length", "x-request-id", "accept-encoding"}
    assert set(seen["headers"]) <= allowed
    assert counter.key not in seen["headers"]["authorization"]


def test_an_engine_receives_the_request_id_as_a_uuid(counter):
    """llama-cpp-python answers 400 to a call whose `x-request-id` is none."""
    response = counter.client.post("/v1/chat/completions", json={"model": "fake", "messages": []})
    (seen,) = counter.engine.seen()["requests"]
    told = uuid.UUID(seen["headers"]["x-request-id"]).hex
    assert told.startswith(response.headers["x-request-id"].removeprefix("req_"))


def test_embeddings_are_asked_for_without_any_null(counter):
    body = {"model": "fake", "input": ["b", "a"]}
    response = counter.client.post("/v1/embeddings", json=body)
    assert response.json()["usage"]["total_tokens"] == 4
    (seen,) = counter.engine.seen()["requests"]
    assert seen["body"] == body


@pytest.mark.parametrize("path", ["pause", "invocations", "tokenize", "load", "scale_elastic_ep", "models/fake/x", ""])
def test_an_engines_control_paths_are_not_there(counter, path):
    for method in ("POST", "DELETE"):
        response = counter.client.request(method, f"/v1/{path}", json={})
        assert response.status_code in (404, 405)
        assert error(response)["message"]
    assert counter.engine.seen()["requests"] == []
