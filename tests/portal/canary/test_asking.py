import json
from collections.abc import Iterable, Iterator
from itertools import count, repeat

import pytest

from portal.canary import asking
from portal.canary.asking import Busy, NotDone, StreamReader, split_lines
from portal.canary.judging import Answer
from portal.canary.models import CanaryRun


def delta(text: object, finish: str | None = None, name: str = "content") -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": {name: text}, "finish_reason": finish}]})


def read(lines: Iterable[str], clock: Iterator[float] | None = None) -> Answer:
    ticks = clock or count(0.0, 0.1)
    return StreamReader(next(ticks), lambda: next(ticks)).read(iter(lines))


def test_an_answer_is_put_together_and_measured():
    usage = 'data: {"choices": [], "usage": {"completion_tokens": 21}}'

    answer = read([": waiting", "", delta("Good "), delta("day"), delta("", "stop"), usage, "data: [DONE]"])

    assert (answer.text, answer.finish, answer.tokens, answer.error) == ("Good day", "stop", 21, "")
    assert 0 < answer.first_token_ms < answer.duration_ms
    assert answer.tokens_per_second is not None


def test_a_thought_counts_where_there_is_no_answer():
    assert read([delta("hm", name="reasoning_content"), delta("", "length"), "data: [DONE]"]).text == "hm"
    assert read([delta("hm", name="reasoning"), delta("yes"), "data: [DONE]"]).text == "yes"


def test_an_endless_answer_is_left():
    answer = read(repeat(delta("more " * 100)))

    assert answer.finish == "length"
    assert len(answer.text) < asking.MOST_BYTES + 1000


def test_an_answer_that_takes_for_ever_is_left():
    assert read(repeat(delta("x")), clock=count(0.0, 60.0)).finish == "length"


@pytest.mark.parametrize(
    "line",
    [
        "data: {",
        "data: []",
        'data: {"error": {"message": "no", "code": "engine_error"}}',
        'data: {"error": {}}',
    ],
)
def test_what_is_no_event_is_an_error(line):
    answer = read([delta("Good"), line, "data: [DONE]"])

    assert answer.finish == "error"
    assert answer.error


@pytest.mark.parametrize(
    "line",
    [
        'data: {"choices": 7}',
        'data: {"choices": [7, {"delta": 8}, {"delta": {"content": 9}, "finish_reason": 1}]}',
        'data: {"usage": {"completion_tokens": "many"}}',
        'data: {"usage": 3}',
    ],
)
def test_fields_of_another_type_are_left_out(line):
    assert read([delta("Good", "stop"), line, "data: [DONE]"]).text == "Good"


def test_a_stream_that_breaks_off_is_an_error():
    assert read([delta("Good")]).error


def test_what_no_database_takes_is_replaced():
    answer = read(['data: {"choices": [{"delta": {"content": "a\\ud800b\\u0000"}, "finish_reason": "stop"}]}'])

    assert answer.text == "a?b\ufffd"
    assert answer.digest


def test_tokens_that_an_engine_cannot_have_made_are_bounded():
    line = 'data: {"choices": [], "usage": {"completion_tokens": 99999999999999}}'

    assert read([delta("x", "stop"), line, "data: [DONE]"]).tokens == asking.MOST_TOKENS


@pytest.mark.parametrize("code", sorted(asking.GONE))
def test_an_engine_that_is_gone_says_nothing_about_the_model(code):
    with pytest.raises(NotDone) as found:
        read([delta("Good"), f'data: {{"error": {{"message": "", "code": "{code}"}}}}'])

    assert found.value.obstacle == CanaryRun.Obstacle.ENGINE


@pytest.mark.parametrize("code", sorted(asking.BUSY))
def test_a_stream_that_is_refused_in_the_queue_is_asked_again(code):
    with pytest.raises(Busy):
        read([f'data: {{"error": {{"message": "", "code": "{code}"}}}}'])


def test_lines_are_split_wherever_the_pieces_end_and_are_bounded():
    assert list(split_lines([b"on", b"e\r\ntw", b"o\n\xe6\x9d", b"\xb1\nrest"])) == ["one", "two", "東"]
    assert list(split_lines(repeat(b"x" * 1_000_000))) == []
