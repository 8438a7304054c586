"""The door: whatever number, text or shape a client sends, nothing behind it counts with what no model can make."""

import json
from dataclasses import replace

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apiproxy.dataplane import validation
from apiproxy.dataplane.errors import BadRequest
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import ENDPOINTS, RequestPolicy
from apiproxy.dataplane.ledger import Spool
from apiproxy.dataplane.token_usage import MAX_TOKEN_COUNT
from portal.quotas.models import Quota
from tests.apiproxy.served import SERVED
from tests.engine import ANSWER, DONE, FINISH, SSE, chunk, event, unary, usage_event

CHAT = ENDPOINTS["/v1/chat/completions"]
SMALL = replace(SERVED, context=2048)
COUNTED = [
    "n",
    "best_of",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n_predict",
    "top_n",
    "dimensions",
]
# As text of a JSON, because Python writes 10**5000 no other way.
HUGE = ["1000000000000", "900000000000000000", "1" + "0" * 18, "1" + "0" * 400, "1e300", '"1' + "0" * 18 + '"', "1e999"]


def call(text: str) -> requests.Call:
    return requests.parse(('{"model":"m",' + text + "}").encode())


def refusal_of(text: str) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        call(text)
    assert caught.value.error("ja")["message"] != caught.value.error("en")["message"]
    assert caught.value.code == "invalid_value"
    return caught.value


def upstream(text: str, **more) -> dict:
    known = call(text)
    return json.loads(requests.upstream_body(known, CHAT, "m", force_stream=False, **more))


# --- numbers


@pytest.mark.parametrize("value", [*HUGE, "NaN", "Infinity", "-Infinity", "1.5", '"many"', '"1e3"', "[]", "{}", "-2"])
@pytest.mark.parametrize("name", COUNTED)
def test_m1_a_number_beyond_what_a_model_can_make_is_refused_by_name(name, value):
    refusal = refusal_of(f'"{name}": {value}')
    assert refusal.param == name
    assert refusal.facts["most"]
    assert len(refusal.message("en")) < 200


@pytest.mark.parametrize("value", ["3", "3.0", '"3"', '" 3 "', '"+3"', '"3.0"'])
@pytest.mark.parametrize("name", COUNTED)
def test_m1_what_engines_take_for_a_number_is_taken_for_it_and_sent_on_as_one(name, value):
    assert call(f'"{name}": {value}').value(name) == 3
    number = upstream(f'"{name}": {value}')[name]
    assert (type(number), number) == (int, 3)


@pytest.mark.parametrize("name", COUNTED)
def test_m1_what_is_not_said_is_not_refused(name):
    assert upstream(f'"{name}": null') == {"model": "m", name: None}


@pytest.mark.parametrize("text", ['"n":2,"max_tokens":1000000000', '"n":2,"max_tokens":2147483647', '"n":"2"'])
def test_m1_no_call_is_counted_for_more_than_the_models_context_for_each_answer(text):
    assert requests.estimate_tokens(call(text), CHAT, SMALL, RequestPolicy()) <= 2 * 2048
    assert requests.max_generated(call(text), CHAT, SMALL) <= 2 * 2048
    assert requests.max_generated(call(text), CHAT, SERVED) <= 2 * validation.MAX_CONTEXT


def test_m1_prompts_and_answers_are_bounded_together():
    prompts = json.dumps(["a"] * 100)
    assert call(f'"prompt": {prompts}, "n": 20').answers == 2000
    assert refusal_of(f'"prompt": {prompts}, "n": 21').param == "n"
    for name in ("prompt", "input", "documents", "texts", "text_1", "text_2", "content"):
        assert refusal_of(f'"{name}": {json.dumps(["a"] * 2049)}').param == name
        assert refusal_of(f'"{name}": {json.dumps([[1, 2]] * 2049)}').param == name


def test_m1_a_long_conversation_is_no_list_of_prompts():
    turns = [{"role": "user", "content": "hi"}, {"type": "function_call", "name": "f"}] * 3000
    call(f'"input": {json.dumps(turns)}')
    assert refusal_of(f'"input": {json.dumps([*turns, "a"])}').param == "input"


def test_t3_a_prompt_of_token_ids_is_one_prompt():
    assert call(f'"prompt": {json.dumps(list(range(5000)))}').prompts == 1
    assert call('"prompt": [[1, 2, 3], [4]]').prompts == 2
    assert call(f'"input": {json.dumps(list(range(5000)))}').prompts == 1


@pytest.mark.parametrize("text", ['"n": -5', '"n": 0', '"max_tokens": -7', '"max_tokens": 0', '"best_of": -1'])
def test_t3_no_number_makes_a_reservation_negative(text):
    refusal_of(text)


def test_t3_no_bound_is_no_negative_bound():
    assert requests.max_generated(call('"max_tokens": -1'), CHAT, SMALL) > 0


anything = st.one_of(
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.booleans(),
    st.none(),
    st.lists(st.integers(), max_size=3),
    st.integers().map(str),
    st.integers(0, 4000).map(lambda power: 10**power),
)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(validation.READERS)), anything, max_size=6),
    st.sampled_from(sorted(ENDPOINTS)),
)
def test_m1_whatever_passes_the_door_is_within_its_bounds(fields, path):
    try:
        known = requests.parse(json.dumps({**fields, "model": "m"}).encode())
    except BadRequest as refusal:
        refusal.error("ja")
        return
    endpoint = ENDPOINTS[path]
    assert 1 <= known.answers <= validation.MAX_INPUTS
    for model in (SERVED, SMALL):
        most = known.answers * (model.context or validation.MAX_CONTEXT)
        assert 0 <= requests.max_generated(known, endpoint, model) <= most
        assert 0 <= requests.estimate_tokens(known, endpoint, model, RequestPolicy()) <= max(most, MAX_TOKEN_COUNT)
    told = json.loads(requests.upstream_body(known, endpoint, "m", force_stream=False))
    for name in set(COUNTED) & set(told):
        assert told[name] is None or type(told[name]) is int


# --- what is recorded


@pytest.mark.parametrize("n", ["1000000", "900000000000000000", "1" + "0" * 18, "1" + "0" * 400])
def test_m1_an_absurd_number_of_answers_costs_its_caller_a_refusal_and_nothing_else(counter, n):
    for unit, window in (("tokens", "day"), ("concurrent", "")):
        Quota.objects.create(key=counter.key_row, unit=unit, window=window, amount=1_000_000 if window else 1)
    counter.wait_for_catalogue()
    body = f'{{"model":"fake","messages":[],"n":{n},"max_tokens":15,"script":[{{"hang":true}}]}}'
    response = counter.client.post("/v1/chat/completions", content=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")
    answer = counter.chat()  # nothing stayed reserved
    assert answer.status_code == 200
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 990_000
    assert [row.completion_tokens for row in counter.usage()] == [5]


def claiming_usage(tokens: int) -> list[dict]:
    """Return an engine's answer with this usage."""
    return [{"send": unary(200, {**ANSWER, "usage": {"prompt_tokens": tokens, "completion_tokens": tokens}})}]


def test_m7_an_aborted_call_is_never_recorded_beyond_its_models_context(counter):
    counter.model.context = 2048
    counter.model.save()
    counter.wait_for_catalogue()
    assert counter.chat(script=claiming_usage(2048)).status_code == 200  # the pace: thousands of tokens a second
    body = {"model": "fake", "messages": [], "n": 128, "max_tokens": 10**9, "script": [{"hang": True}]}
    with pytest.raises(httpx2.TimeoutException):
        counter.client.post("/v1/chat/completions", json=body, timeout=1)
    row = counter.usage(2)[1]
    assert row.status == "aborted"
    assert 0 < row.completion_tokens <= 128 * 2048


def test_m7_a_call_that_cannot_be_recorded_is_recorded_as_failed_and_holds_nothing(counter, monkeypatch):
    """Whatever else may be wrong in what is recorded: the reservation returns, the call ends, there is a row."""
    Quota.objects.create(key=counter.key_row, unit="concurrent", window="", amount=1)
    counter.wait_for_catalogue()
    honest = Spool.close_call

    def choosy(spool, usage):
        if usage.completion_tokens:
            raise OverflowError
        honest(spool, usage)

    monkeypatch.setattr(Spool, "close_call", choosy)
    assert counter.chat().status_code >= 500
    monkeypatch.undo()
    assert counter.chat().status_code == 200
    assert [row.status for row in counter.usage(2)] == ["failed", "finished"]


def test_m4_no_engine_is_believed_that_it_made_more_than_the_model_can(counter):
    counter.model.engine, counter.model.path, counter.model.context = "vllm", "/models/fake", 2048
    counter.model.save()
    counter.wait_for_catalogue()
    assert counter.chat(script=claiming_usage(10**6)).status_code == 200
    assert counter.chat(script=claiming_usage(1000)).status_code == 200
    boast, honest = counter.usage(2)
    assert (boast.prompt_tokens + boast.completion_tokens, boast.estimated) == (2048, True)
    assert (honest.prompt_tokens, honest.completion_tokens, honest.estimated) == (1000, 1000, False)


def test_m1_sums_of_the_largest_records_can_be_reported(counter):
    """Two of 9e18 made the usage of the whole company a 500 for ever."""
    for _ in range(3):
        assert counter.chat(script=claiming_usage(MAX_TOKEN_COUNT)).status_code == 200
    for row in counter.usage(3):
        assert max(row.prompt_tokens, row.completion_tokens) <= MAX_TOKEN_COUNT


# --- what is reserved is what the engine obeys

LLAMA_CPP = replace(SMALL, stops_unary=False)


def obeyed_bound(model, path: str, body: dict) -> object:
    """Return the bound that an engine obeys, as vLLM 0.32 and llama.cpp b11549 were seen to read their members."""
    own = ENDPOINTS[path].bound_names
    before = () if model.stops_unary or path == "/v1/messages" else ("n_predict", "max_completion_tokens", "max_tokens")
    if path == "/v1/responses":
        before = before[:2]
    return next((body[name] for name in (*before, *own) if body.get(name) is not None), None)


@pytest.mark.parametrize("model", [SMALL, LLAMA_CPP, replace(SMALL, external=True), replace(LLAMA_CPP, external=True)])
@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"max_tokens": 1, "n_predict": 60}),
        ("/v1/chat/completions", {"max_tokens": 60, "max_completion_tokens": 1}),
        ("/v1/chat/completions", {"max_tokens": "7"}),
        ("/v1/chat/completions", {"max_tokens": 10**9}),
        ("/v1/chat/completions", {"max_tokens": -1, "n_predict": 60}),
        ("/v1/chat/completions", {"n_predict": 60}),
        ("/v1/chat/completions", {"max_tokens": 60, "n_predict": -1}),
        ("/v1/chat/completions", {"max_tokens": 60.0}),
        ("/v1/completions", {"max_tokens": 1, "max_completion_tokens": 60}),
        ("/v1/messages", {"max_completion_tokens": 1, "max_tokens": 60}),
        ("/v1/responses", {"max_tokens": 1, "max_output_tokens": 60}),
        ("/v1/responses", {"max_output_tokens": 1, "n_predict": 60, "max_completion_tokens": 50}),
    ],
)
def test_m2_the_engine_obeys_what_was_reserved(model, limited, path, fields):
    endpoint, known = ENDPOINTS[path], requests.parse(json.dumps({"model": "m", **fields}).encode())
    members = requests.max_tokens_members(known, endpoint, model, RequestPolicy(), limited=lambda: limited)
    body = json.loads(requests.upstream_body(known, endpoint, "m", force_stream=False, extra=members))
    reserved = requests.reserved_answer_tokens(known, endpoint, model, RequestPolicy())
    assert obeyed_bound(model, path, body) == reserved <= 2048
    assert requests.estimate_tokens(known, endpoint, model, RequestPolicy()) >= reserved


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("fields", [{}, {"max_tokens": None}, {"max_tokens": -1}, {"n_predict": -1}])
def test_m2_under_a_limit_of_tokens_no_answer_is_without_bound(path, fields):
    endpoint, known = ENDPOINTS[path], requests.parse(json.dumps({"model": "m", **fields}).encode())
    for model in (SERVED, LLAMA_CPP):
        members = requests.max_tokens_members(
            known, endpoint, model, RequestPolicy(default_answer=100), limited=lambda: True
        )
        body = json.loads(requests.upstream_body(known, endpoint, "m", force_stream=False, extra=members))
        assert (
            obeyed_bound(model, path, body)
            == requests.reserved_answer_tokens(known, endpoint, model, RequestPolicy(default_answer=100))
            == 100
        )
        # Without one the answer may go on until the context ends, as everywhere.
        assert requests.max_tokens_members(known, endpoint, model, RequestPolicy(), limited=lambda: False) == {}


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_m1_a_protocol_without_a_word_for_several_answers_gives_one(path):
    known = call('"n": 2, "best_of": 2, "max_tokens": 5')
    for model in (SERVED, LLAMA_CPP):
        members = requests.max_tokens_members(known, ENDPOINTS[path], model, RequestPolicy(), limited=lambda: False)
        body = json.loads(requests.upstream_body(known, ENDPOINTS[path], "m", force_stream=False, extra=members))
        assert not {"n", "best_of"} & body.keys()
        assert requests.max_tokens_members(known, CHAT, SERVED, RequestPolicy(), limited=lambda: False) == {}


def test_m2_one_open_call_leaves_its_colleagues_their_quota(counter):
    counter.model.context = 2048
    counter.model.save()
    Quota.objects.create(key=counter.key_row, unit="tokens", window="month", amount=20_000)
    counter.wait_for_catalogue()
    with counter.stream(max_tokens=10**9, script=[{"send": SSE}, {"events": 1}, {"hang": True}]) as stream:
        next(stream.iter_lines())
        assert counter.chat().status_code == 200
    bounds_told = [seen["body"].get("max_tokens") for seen in counter.engine.seen()["requests"]]
    assert bounds_told[0] == 2048


def test_m2_an_answer_without_bound_gets_one_where_tokens_are_limited(counter, settings):
    assert counter.chat().status_code == 200
    Quota.objects.create(key=counter.key_row, unit="tokens", window="month", amount=20_000)
    counter.wait_for_catalogue()
    assert counter.chat().status_code == 200
    free, limited = (seen["body"] for seen in counter.engine.seen()["requests"])
    assert not {"max_tokens", "max_completion_tokens"} & free.keys()
    assert limited["max_completion_tokens"] == settings.GATEWAY_DEFAULT_MAX_TOKENS


# --- types


@pytest.mark.parametrize("value", [1, 1.0, "true", "True", "1", "yes", "on"])
def test_m3_what_an_engine_takes_for_a_stream_is_metered_as_one(counter, value):
    script = [{"send": SSE}, {"events": 20}, {"send": chunk(FINISH + usage_event(7, 2000) + DONE) + "0\r\n\r\n"}]
    answer = counter.chat(stream=value, script=script)
    assert answer.headers["content-type"].startswith("text/event-stream")
    (seen,) = counter.engine.seen()["requests"]
    assert (seen["body"]["stream"], seen["body"]["stream_options"]) == (True, {"include_usage": True})
    assert [row.completion_tokens for row in counter.usage()] == [2000]


@pytest.mark.parametrize("value", [0, "false", "off", "no"])
def test_m3_what_an_engine_takes_for_no_stream_is_none(value):
    assert not call(f'"stream": {json.dumps(value)}').stream
    assert upstream(f'"stream": {json.dumps(value)}')["stream"] is False


@pytest.mark.parametrize("value", ["maybe", 2, -1, 0.5, [], {}, "", "truee"])
def test_m3_what_is_neither_true_nor_false_is_refused_by_name(value):
    assert refusal_of(f'"stream": {json.dumps(value)}').param == "stream"
    options = json.dumps({"include_usage": value})
    assert refusal_of(f'"stream_options": {options}').param == "stream_options.include_usage"


def test_m3_usage_is_asked_for_whatever_a_client_calls_no():
    body = upstream('"stream": true, "stream_options": {"include_usage": "false"}')
    assert body["stream_options"] == {"include_usage": True}
    assert not call('"stream": true, "stream_options": {"include_usage": "false"}').asks_usage


NONSENSE: list = [
    {"prompt_tokens": -7, "completion_tokens": -5},
    {"prompt_tokens": "7", "completion_tokens": "5"},
    {"prompt_tokens": 10**30, "completion_tokens": 5},
    {},
    "many",
    None,
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("usage", NONSENSE)
def test_m4_nonsense_in_an_engines_usage_makes_no_answer_free(counter, usage, stream):
    words = "".join(f"word{number} " for number in range(200))  # no loop
    unary_answer = {**ANSWER, "choices": [{**ANSWER["choices"][0], "message": {"content": words}}], "usage": usage}
    end = event([], usage=usage) + FINISH + DONE
    script = [{"send": unary(200, unary_answer)}]
    if stream:
        script = [{"send": SSE}, {"events": 300}, {"send": chunk(end) + "0\r\n\r\n"}]
    assert counter.chat(stream=stream, script=script).status_code == 200
    (row,) = counter.usage()
    assert (row.estimated, row.status) == (True, "finished")
    assert row.prompt_tokens > 0
    assert 250 < row.completion_tokens < 700


@pytest.mark.parametrize(
    "details", [["cached_tokens"], "cached_tokens", 7, {"cached_tokens": "x"}, {"cached_tokens": -1}]
)
def test_m4_odd_details_of_usage_cost_no_answer(counter, details):
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": details}
    answer = counter.chat(script=[{"send": unary(200, {**ANSWER, "usage": usage})}])
    assert answer.status_code == 200
    (row,) = counter.usage()
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.estimated) == (7, 0, 5, False)


# --- shapes


@pytest.mark.parametrize("name", ["MODEL", "Max_Tokens", "STREAM", "N", "\u017ftream", "Messages", "Cache_Salt"])
def test_g6_a_member_that_differs_in_case_alone_is_refused_by_name(name):
    assert refusal_of(f'"{name}": 1').param == name


def test_g6_an_engine_that_we_do_not_know_is_sent_each_member_once():
    for text in ('"n": 1, "n": 2', '"\\u006e": 1, "n": 2', '"n": 1, "\\u006e": 2'):
        known = call(text)
        body = requests.upstream_body(known, CHAT, "m", force_stream=False, re_encode=True)
        pairs = json.loads(body, object_pairs_hook=list)
        assert dict(pairs)["n"] == known.n == 2
        assert len(pairs) == 2


def test_g6_what_a_fast_writer_refuses_is_sent_once_as_well():
    known = call('"a": "\\ud83d", "b": 1e400, "n": 1, "n": 2')
    pairs = json.loads(
        requests.upstream_body(known, CHAT, "m", force_stream=False, re_encode=True), object_pairs_hook=list
    )
    assert [name for name, _ in pairs] == ["model", "a", "b", "n"]


@pytest.mark.parametrize("depth", [101, 900, 1010, 100_000])
@pytest.mark.parametrize("name", ["messages", "tools", "response_format", "x"])
@pytest.mark.parametrize("kind", ["[]", '{"a":}', '["😀", {"a":}, "\\ud83d"]'])
def test_g6_json_nested_too_deep_is_refused_before_anything_is_done(depth, name, kind):
    begin, end = (kind[:1], kind[1:]) if kind == "[]" else kind.split(":", 1)
    begin += ":" if kind != "[]" else ""
    if depth < 255 and name in validation.SCHEMA_MEMBERS:
        depth = 255
    with pytest.raises(BadRequest) as caught:
        call(f'"{name}":' + begin * depth + "1" + end * depth)
    assert caught.value.code == "invalid_json"


def test_g6_what_people_nest_is_taken():
    for depth, name in ((95, "x"), (250, "tools")):
        known = call(f'"{name}":' + "[" * depth + "]" * depth)
        requests.upstream_body(known, CHAT, "other", force_stream=True)


def test_g14_known_poisons_end_here():
    for name in ("grammar", "guided_grammar"):
        assert refusal_of(f'"{name}": "root ::= {"(" * 100_000}"').param == name
        assert refusal_of(f'"{name}": "root ::= {"(" * 101}"').facts["sent"] == "101"
        call(f'"{name}": {json.dumps(GRAMMAR)}')
    assert refusal_of(f'"structured_outputs": {{"grammar": "{"[" * 200}"}}').param == "structured_outputs.grammar"
    assert refusal_of(f'"structured_outputs": {{"regex": "{"a" * 5000}"}}').param == "structured_outputs.regex"
    assert refusal_of(f'"guided_regex": "{"(a" * 200}"').param == "guided_regex"


def test_g14_a_schema_as_text_is_bounded_as_well():
    for template in ('"guided_json": %s', '"structured_outputs": {"json": %s}', '"json_schema": %s'):
        for poison in ('{"a":' * 101, "[" * 60_000, " " * 65_537):
            refusal_of(template % json.dumps(poison))
        call(template % json.dumps('{"type": "object", "properties": {"a": {"type": "string"}}}'))


@pytest.mark.parametrize("name", ["tools", "response_format", "text", "structured_outputs"])
def test_g14_the_expressions_of_schemas_are_bounded_as_well(name):
    for poison in ("(" * 101, "a" * 4097):
        for schema in ({"pattern": poison}, {"patternProperties": {poison: {}}}, {"\u0070attern": poison}):
            value = {"type": "json_schema", "schema": {"properties": {"a": schema}}}
            refusal = refusal_of(f'"{name}": {json.dumps([value] if name == "tools" else value)}')
            assert refusal.param.startswith(f"{name}…pattern")
    fine = [{"pattern": "^[a-z]+(-[a-z]+)*$", "patternProperties": None}, {"pattern": {"type": "string"}}]
    call(f'"{name}": {json.dumps(fine)}')


GRAMMAR = 'root ::= "a" ("b" | [c-d]{2,3})*\n' * 50


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("response_format", {"json_schema": {"schema": {"enum": [str(number) for number in range(2500)]}}}),
        ("json_schema", {"properties": {f"p{number}": {"type": "string"} for number in range(1100)}}),
        ("json_schema", {"description": "x" * 70_000}),
        ("response_format", {"json_schema": {"schema": {"const": "\ud83d" * 20_000}}}),
        ("tools", [{"type": "function", "function": {"name": f"f{number}"}} for number in range(513)]),
        ("tools", [{"type": "function", "function": {"name": "f", "description": "x" * 1_100_000}}]),
        ("stop", ["a"] * 65),
        ("guided_regex", "a" * 4097),
        ("stop", "a" * 1025),
        ("stop", ["a" * 1025]),
        ("stop_token_ids", list(range(1025))),
        ("bad_words", ["a"] * 1025),
        ("logit_bias", {str(number): 1 for number in range(1025)}),
        ("guided_choice", ["a"] * 1025),
        ("samplers", ["top_k"] * 65),
        ("dry_sequence_breakers", ["a" * 1025]),
        ("logprob_token_ids", list(range(129))),
        ("model", "m" * 257),
    ],
)
def test_g14_lists_texts_and_schemas_have_stated_sizes(name, value):
    with pytest.raises(BadRequest) as caught:
        requests.parse(json.dumps({"model": "m", name: value}).encode())
    refusal = caught.value
    assert (refusal.code, refusal.param) == ("invalid_value", name)
    assert refusal.facts["most"].replace(",", "") in refusal.message("ja").replace(",", "")
    assert refusal.facts["sent"] in refusal.message("en")


@pytest.mark.parametrize("name", ["top_logprobs", "prompt_logprobs", "n_probs", "logprobs"])
@pytest.mark.parametrize("value", [21, 1_000_000, -1, "21"])
def test_g15_no_token_comes_with_more_than_twenty_alternatives(name, value):
    assert refusal_of(f'"{name}": {json.dumps(value)}').param == name
    call(f'"{name}": 20')
    call('"logprobs": true, "top_logprobs": 0')


@pytest.mark.parametrize("name", sorted(validation.GATEWAY_ONLY))
def test_g14_a_client_has_no_say_in_whose_work_an_engine_does_first(name):
    for value in ("1", "null", '"x"', "{}"):
        assert upstream(f'"{name}": {value}, "x": 1') == {"model": "m", "x": 1}


@pytest.mark.parametrize("blank", ["", " ", "\t ", "\n"])
def test_g15_blanks_hide_no_names_from_the_bound(blank):
    names = ",".join(f'"{number}"{blank}:1' for number in range(600_000))
    with pytest.raises(BadRequest) as refused:
        requests.parse(f'{{"model":"m","x":{{{names}}}}}'.encode())
    assert refused.value.text == "too_many_values"
