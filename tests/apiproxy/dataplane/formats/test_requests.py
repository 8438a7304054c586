import contextlib
import json

import pytest

from apiproxy.dataplane import engine_errors
from apiproxy.dataplane.errors import MESSAGES, BadRequest, EngineFailed, Refusal
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import ENDPOINTS, RequestPolicy
from apiproxy.dataplane.stream.accumulators import ChunkAccumulator
from apiproxy.dataplane.token_usage import Tokens, read_tokens
from tests.apiproxy.served import SERVED
from tests.engine import event

CHAT = ENDPOINTS["/v1/chat/completions"]


def upstream(fields: dict, model: str = "m", **more) -> dict:
    call = requests.parse(json.dumps({"model": "m", **fields}).encode())
    return json.loads(requests.upstream_body(call, CHAT, model, force_stream=more.get("force_stream", False)))


def test_a_body_that_needs_no_change_is_not_touched():
    body = b'{ "model" : "m", "temperature":0.50, "x":[1,  2] }'
    call = requests.parse(body)
    assert requests.upstream_body(call, CHAT, "m", force_stream=False) is body


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": True},
        {"stream": True, "stream_options": {}},
        {"stream": True, "stream_options": {"include_usage": False}},
    ],
)
def test_usage_is_asked_for_in_every_stream(fields):
    assert upstream(fields) == {"model": "m", **fields, "stream_options": {"include_usage": True}}


def test_other_stream_options_stay():
    options = {"continuous_usage_stats": True}
    assert upstream({"stream": True, "stream_options": options})["stream_options"] == {**options, "include_usage": True}


def test_nothing_is_ever_sent_as_null():
    assert b"null" not in json.dumps(upstream({"stream": True})).encode()


@pytest.mark.parametrize("stream", [{}, {"stream": False}])
def test_a_unary_call_can_be_made_a_stream(stream):
    assert upstream(stream, force_stream=True) == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_model_can_have_another_name_at_the_engine():
    assert upstream({"x": 1}, model="org/other") == {"model": "org/other", "x": 1}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b'{"content":"the \\"usage\\": {\\"prompt_tokens\\": 99}","usage":{"prompt_tokens":1}}',
            1,
        ),
        (b'{"usage" : {"prompt_tokens": 2}, "timings": {}}', 2),
        (b'{"usage": null, "role": "usage"}', None),
        (b"not json", None),
        (b'{"usage": {"prompt_tokens": ', None),
    ],
)
def test_usage_is_found_in_unary_answers(body, expected):
    found = requests.find_usage(body)
    assert (found and found["prompt_tokens"]) == expected


NONSENSE: list = [-1, "7", 7.5, True, {}, [], 10**30, "many"]


@pytest.mark.parametrize("value", NONSENSE)
def test_m4_nonsense_in_usage_is_no_number(value):
    assert read_tokens({"prompt_tokens": value, "completion_tokens": 3}) is None
    assert read_tokens({"prompt_tokens": 3, "completion_tokens": value}) is None
    assert read_tokens({"input_tokens": 3, "output_tokens": value}) is None
    assert read_tokens({"total_tokens": value}) is None
    assert read_tokens(value) is None


@pytest.mark.parametrize("details", [*NONSENSE, ["cached_tokens"], "cached_tokens", {"cached_tokens": "x"}, 0, None])
def test_m4_nonsense_in_details_counts_as_nothing(details):
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    for name in ("prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details"):
        assert read_tokens({**usage, name: details}) == Tokens(prompt=5, completion=3)


def test_details_of_usage_are_read():
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 8},
    }
    assert read_tokens(usage) == Tokens(prompt=10, cached=4, completion=20, reasoning=8)


def refusal_of(status: int, body: bytes, path: str = CHAT.path) -> Refusal:
    return engine_errors.make_refusal(status, body, requests.parse(b'{"model": "m"}'), ENDPOINTS[path])


@pytest.mark.parametrize("status", [401, 403, 404, 500, 502])
def test_what_is_not_about_the_request_is_the_engines_failure(status):
    assert isinstance(refusal_of(status, b"{}"), EngineFailed)


def test_an_engines_sentence_goes_on_without_addresses_and_paths():
    body = b'{"error": {"message": "bad top_p, see http://10.1.2.3:8000/docs or /srv/models/a/config.json"}}'
    refusal = refusal_of(400, body)
    assert isinstance(refusal, BadRequest)
    message = refusal.message("en")
    assert "bad top_p" in message
    assert "10.1.2.3" not in message
    assert "/srv" not in message


def test_an_estimate_counts_prompt_and_answer():
    call = requests.parse(b'{"model":"m","max_tokens":50,"n":2,"prompt":"' + b"x" * 260 + b'"}')
    assert requests.estimate_tokens(call, CHAT, SERVED, RequestPolicy()) == pytest.approx(100 + 100, abs=5)


def test_a_clients_own_priority_is_taken_out_and_ours_put_in():
    for text in (
        '{"priority": -5, "model": "m", "a": 123456789012345678901234567890}',
        '{"priority":null,"model":"m"}',
    ):
        call = requests.parse(text.encode())
        assert "priority" not in json.loads(requests.upstream_body(call, CHAT, "m", force_stream=False))
        ours = json.loads(requests.upstream_body(call, CHAT, "m", force_stream=False, extra={"priority": 1}))
        assert {**json.loads(text), "priority": 1} == ours
    plain = requests.parse(b'{"model":"m"}')
    assert json.loads(requests.upstream_body(plain, CHAT, "m", force_stream=False, extra={"priority": 1})) == {
        "model": "m",
        "priority": 1,
    }


def test_g12_an_answer_that_was_put_together_has_the_members_of_one_that_was_not():
    """`logprobs: null`, which clients read without asking, and the last of llama.cpp's `timings`, which count up."""
    whole = ChunkAccumulator()
    for number in (1, 2):
        delta = [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]
        whole.feed(event(delta, timings={"predicted_n": number}).encode())
    answer = json.loads(whole.body({"completion_tokens": 2}))
    assert answer["choices"][0]["logprobs"] is None
    assert answer["timings"] == {"predicted_n": 2}
    with_logprobs = ChunkAccumulator()
    for word in ("a", "b"):
        logprobs = {"content": [{"token": word, "logprob": 0.0}]}
        delta = [{"index": 0, "delta": {"content": word}, "logprobs": logprobs, "finish_reason": None}]
        with_logprobs.feed(event(delta).encode())
    (choice,) = json.loads(with_logprobs.body(None))["choices"]
    assert [one["token"] for one in choice["logprobs"]["content"]] == ["a", "b"]


def test_every_refusal_can_be_written_in_both_languages():
    for texts in MESSAGES.values():
        assert set(texts) == {"en", "ja"}
    facts = {"path": "p", "method": "GET", "model": "m", "task": "chat", "detail": "d", "numbers": "", "limit": 1}
    facts |= {
        "scope": "key",
        "amount": "1",
        "unit": "tokens",
        "window": "day",
        "seconds": 1,
        "returns": "r",
        "day": "2026-11-22",
        "address": "192.0.2.1",
        "known": "k",
        "allowed": "",
        "least": "1",
        "most": "2",
        "sent": "3",
        "coding": "gzip",
        "encoding": "Shift_JIS",
        "right": "/v1",
        "minutes": 5,
        "prompt": 4,
        "answer": 5,
        "total": 9,
        "modes": "off",
        "id": "r1",
    }
    for text in MESSAGES:
        assert Refusal(text, param="x", **facts).message("ja") != Refusal(text, param="x", **facts).message("en")


@pytest.mark.parametrize(("codec", "name"), [("cp932", "Shift_JIS"), ("euc_jp", "EUC-JP")])
@pytest.mark.parametrize("before", [0, 1_000_000])
def test_an_encoding_is_guessed_by_the_text_around_its_first_wrong_byte_alone(codec, name, before):
    text = "日本語の文です。" * 1000
    body = b'{"model": "m", "x": "' + b"a" * before + b'", "y": "' + text.encode(codec)
    for end in (b'"}', b"\xff" * 1000):  # which belong to none of these encodings
        with pytest.raises(BadRequest) as raised:
            requests.parse(body + end)
        assert raised.value.facts["encoding"] == name


def assemble(*events: str, usage: dict | None = None) -> dict:
    assembly = ChunkAccumulator()
    for one in events:
        assembly.feed(one.encode())
    return json.loads(assembly.body(usage))


def delta(**fields) -> str:
    return event([{"index": 0, "delta": fields, "finish_reason": None}])


def test_a_stream_is_put_together_into_a_unary_answer():
    answer = assemble(
        delta(role="assistant", content=None),
        delta(content="Hel"),
        delta(content="lo"),
        event([{"index": 0, "delta": {}, "finish_reason": "stop"}], timings={"predicted_n": 2}),
        "data: [DONE]\n\n",
        usage={"total_tokens": 9},
    )
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {"index": 0, "logprobs": None, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}
    ]
    assert answer["usage"] == {"total_tokens": 9}
    assert answer["timings"] == {"predicted_n": 2}


def test_tool_calls_and_reasoning_are_put_together():
    def part(**call) -> str:
        return delta(tool_calls=[{"index": 0, **call}])

    answer = assemble(
        delta(role="assistant", content=None),
        delta(reasoning_content="hm"),
        part(id="call_1", type="function", function={"name": "weather", "arguments": ""}),
        part(function={"arguments": '{"city":'}),
        part(function={"arguments": '"Tokyo"}'}),
    )
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning_content"] == "hm"
    function = {"name": "weather", "arguments": '{"city":"Tokyo"}'}
    assert message["tool_calls"] == [{"id": "call_1", "type": "function", "function": function}]


def test_text_completions_and_logprobs_are_put_together():
    def part(text: str, logprob: float) -> str:
        more = {"tokens": [text], "token_logprobs": [logprob]}
        return event([{"index": 1, "text": text, "logprobs": more, "finish_reason": None}], object="text_completion")

    answer = assemble(part("a", -1.0), part("b", -2.0))
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == "ab"
    assert answer["choices"][0]["logprobs"] == {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0]}


def test_what_json_takes_and_a_faster_reader_refuses_is_read_all_the_same():
    call = requests.parse(b'{"model":"m","a":"\\ud83d","b":NaN,"c":123456789012345678901234567890}')
    assert call.model == "m"
    assert (
        json.loads(requests.upstream_body(call, CHAT, "n", force_stream=False))["c"] == 123456789012345678901234567890
    )
    exact = requests.parse(b'{"model":"m","c":1e400,"d":18446744073709551617}')
    assert b"18446744073709551617" in requests.upstream_body(exact, CHAT, "n", force_stream=False)


def test_changes_are_appended_to_what_came_and_count():
    """Of two members of a name vLLM and llama.cpp take the last."""
    body = b'{"model":"m","stream_options":null,"stream":true} \n'
    call = requests.parse(body)
    sent = requests.upstream_body(call, CHAT, "other", force_stream=False)
    assert sent.startswith(body.rstrip()[:-1])
    told = json.loads(sent)
    assert told == {"model": "other", "stream": True, "stream_options": {"include_usage": True}}


def test_g15_of_a_large_body_that_waits_little_is_kept():
    salt = {"cache_salt": "ours", "stream_options": {"include_usage": True}, "tools": [{"type": "function"}]}
    call = requests.parse(json.dumps({"model": "m", "x": [[]] * 30_000, "stop": [], **salt}).encode())
    call.drop_values()
    call.drop_values()
    assert len(repr(call.fields)) < 300
    assert call.fields["cache_salt"] == "ours"
    assert call.value("stream_options") == {"include_usage": True}
    assert call.fields["tools"]
    assert not call.fields["stop"]


def test_g15_a_large_body_is_encoded_again_by_the_fast_encoder(monkeypatch):
    body = json.dumps({"model": "m", "priority": 7, "prompt": list(range(20_000))}).encode()
    monkeypatch.setattr(requests, "decode_exactly", lambda body: pytest.fail("takes ten times as long"))
    call = requests.parse(body)
    call.drop_values()
    told = json.loads(requests.upstream_body(call, ENDPOINTS["/v1/completions"], "m", force_stream=False))
    assert told == {"model": "m", "prompt": list(range(20_000))}


def test_g15_many_numbers_that_only_the_slow_reader_takes_are_refused():
    body = b'{"model":"m","x":NaN,"prompt":[' + b",".join([b"1"] * 700_000) + b"]}"
    with pytest.raises(BadRequest):
        requests.parse(body)


@pytest.mark.parametrize("depth", [900, 1010, 5000, 100_000])
def test_json_nested_however_deep_is_read_or_refused(depth):
    body = b'{"model":"m","a":' + b"[" * depth + b"]" * depth + b"}"
    with contextlib.suppress(BadRequest):
        requests.upstream_body(requests.parse(body), CHAT, "other", force_stream=False)


def test_usage_is_found_in_an_answer_that_a_fast_reader_refuses():
    assert requests.find_usage(b'{"text":"\\ud83d","usage":{"prompt_tokens":3}}') == {"prompt_tokens": 3}
