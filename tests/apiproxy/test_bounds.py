"""The door: whatever number, text or shape a client sends, nothing behind it counts with what no model can make."""

import json

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apiproxy import bounds, protocol
from apiproxy.errors import BadRequest
from apiproxy.ledger import Spool
from apiproxy.protocol import ENDPOINTS
from apiproxy.tokens import MOST_TOKENS
from portal.metering.models import Quota
from tests.engine import ANSWER, unary

CHAT = ENDPOINTS["/v1/chat/completions"]
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


def call(text: str) -> protocol.Call:
    return protocol.parse(('{"model":"m",' + text + "}").encode())


def refused(text: str) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        call(text)
    assert caught.value.error("ja")["message"] != caught.value.error("en")["message"]
    assert caught.value.code == "invalid_value"
    return caught.value


def sent(text: str, **more) -> dict:
    known = call(text)
    return json.loads(protocol.upstream_body(known, CHAT, "m", force_stream=False, **more))


# --- numbers


@pytest.mark.parametrize("value", [*HUGE, "NaN", "Infinity", "-Infinity", "1.5", '"many"', '"1e3"', "[]", "{}", "-2"])
@pytest.mark.parametrize("name", COUNTED)
def test_m1_a_number_beyond_what_a_model_can_make_is_refused_by_name(name, value):
    refusal = refused(f'"{name}": {value}')
    assert refusal.param == name
    assert refusal.facts["most"]
    assert len(refusal.message("en")) < 200


@pytest.mark.parametrize("value", ["3", "3.0", '"3"', '" 3 "', '"+3"', '"3.0"'])
@pytest.mark.parametrize("name", COUNTED)
def test_m1_what_engines_take_for_a_number_is_taken_for_it_and_sent_on_as_one(name, value):
    assert call(f'"{name}": {value}').value(name) == 3
    number = sent(f'"{name}": {value}')[name]
    assert (type(number), number) == (int, 3)


@pytest.mark.parametrize("name", COUNTED)
def test_m1_what_is_not_said_is_not_refused(name):
    assert sent(f'"{name}": null') == {"model": "m", name: None}


@pytest.mark.parametrize("text", ['"n":2,"max_tokens":1000000000', '"n":2,"max_tokens":2147483647', '"n":"2"'])
def test_m1_no_call_is_counted_for_more_than_the_models_context_for_each_answer(text):
    assert protocol.estimate(call(text), CHAT, 2048) <= 2 * 2048
    assert protocol.most_generated(call(text), CHAT, 2048) <= 2 * 2048
    assert protocol.most_generated(call(text), CHAT) <= 2 * bounds.LONGEST


def test_m1_prompts_and_answers_are_bounded_together():
    prompts = json.dumps(["a"] * 100)
    assert call(f'"prompt": {prompts}, "n": 20').answers == 2000
    assert refused(f'"prompt": {prompts}, "n": 21').param == "n"
    for name in ("prompt", "input", "documents", "texts", "text_1", "text_2", "content"):
        assert refused(f'"{name}": {json.dumps(["a"] * 2049)}').param == name
        assert refused(f'"{name}": {json.dumps([[1, 2]] * 2049)}').param == name


def test_t3_a_prompt_of_token_ids_is_one_prompt():
    assert call(f'"prompt": {json.dumps(list(range(5000)))}').prompts == 1
    assert call('"prompt": [[1, 2, 3], [4]]').prompts == 2
    assert call(f'"input": {json.dumps(list(range(5000)))}').prompts == 1


@pytest.mark.parametrize("text", ['"n": -5', '"n": 0', '"max_tokens": -7', '"max_tokens": 0', '"best_of": -1'])
def test_t3_no_number_makes_a_reservation_negative(text):
    refused(text)


def test_t3_no_bound_is_no_negative_bound():
    assert protocol.most_generated(call('"max_tokens": -1'), CHAT, 2048) > 0


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
    st.dictionaries(st.sampled_from(sorted(bounds.READERS)), anything, max_size=6), st.sampled_from(sorted(ENDPOINTS))
)
def test_m1_whatever_passes_the_door_is_within_its_bounds(fields, path):
    try:
        known = protocol.parse(json.dumps({**fields, "model": "m"}).encode())
    except BadRequest as refusal:
        refusal.error("ja")
        return
    endpoint = ENDPOINTS[path]
    assert 1 <= known.answers <= bounds.MOST_INPUTS
    for context in (None, 512):
        most = known.answers * (context or bounds.LONGEST)
        assert 0 <= protocol.most_generated(known, endpoint, context) <= most
        assert 0 <= protocol.estimate(known, endpoint, context) <= max(most, MOST_TOKENS)
    told = json.loads(protocol.upstream_body(known, endpoint, "m", force_stream=False))
    for name in set(COUNTED) & set(told):
        assert told[name] is None or type(told[name]) is int


# --- what is recorded


@pytest.mark.parametrize("n", ["1000000", "900000000000000000", "1" + "0" * 18, "1" + "0" * 400])
def test_m1_an_absurd_number_of_answers_costs_its_caller_a_refusal_and_nothing_else(counter, n):
    for unit, window in (("tokens", "day"), ("concurrent", "")):
        Quota.objects.create(key=counter.key_row, unit=unit, window=window, amount=1_000_000 if window else 1)
    counter.informed()
    body = f'{{"model":"fake","messages":[],"n":{n},"max_tokens":15,"script":[{{"hang":true}}]}}'
    response = counter.client.post("/v1/chat/completions", content=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")
    answer = counter.chat()  # nothing stayed reserved
    assert answer.status_code == 200
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 990_000
    assert [row.completion_tokens for row in counter.usage()] == [5]


def boasting(tokens: int) -> list[dict]:
    """An engine's answer with this usage."""
    return [{"send": unary(200, {**ANSWER, "usage": {"prompt_tokens": tokens, "completion_tokens": tokens}})}]


def test_m7_an_aborted_call_is_never_recorded_beyond_its_models_context(counter):
    counter.model.context = 2048
    counter.model.save()
    counter.informed()
    assert counter.chat(script=boasting(2048)).status_code == 200  # the pace: thousands of tokens a second
    body = {"model": "fake", "messages": [], "n": 128, "max_tokens": 10**9, "script": [{"hang": True}]}
    with pytest.raises(httpx2.TimeoutException):
        counter.client.post("/v1/chat/completions", json=body, timeout=1)
    row = counter.usage(2)[1]
    assert row.status == "aborted"
    assert 0 < row.completion_tokens <= 128 * 2048


def test_m7_a_call_that_cannot_be_recorded_is_recorded_as_failed_and_holds_nothing(counter, monkeypatch):
    """Whatever else may be wrong in what is recorded: the reservation returns, the call ends, there is a row."""
    Quota.objects.create(key=counter.key_row, unit="concurrent", window="", amount=1)
    counter.informed()
    honest = Spool.close

    def choosy(spool, usage):
        if usage.completion_tokens:
            raise OverflowError
        honest(spool, usage)

    monkeypatch.setattr(Spool, "close", choosy)
    assert counter.chat().status_code >= 500
    monkeypatch.undo()
    assert counter.chat().status_code == 200
    assert [row.status for row in counter.usage(2)] == ["failed", "finished"]


def test_m1_sums_of_the_largest_records_can_be_told(counter):
    """Two of 9e18 made the usage of the whole company a 500 for ever."""
    for _ in range(3):
        assert counter.chat(script=boasting(MOST_TOKENS)).status_code == 200
    for row in counter.usage(3):
        assert max(row.prompt_tokens, row.completion_tokens) <= MOST_TOKENS
