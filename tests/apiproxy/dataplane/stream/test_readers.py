import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiproxy.dataplane.stream import readers
from apiproxy.dataplane.token_usage import Tokens, read_tokens
from tests.apiproxy.pieces import cut_pieces
from tests.engine import DONE, FINISH, event, token, usage_event

STREAM = (token(0) + token(1) + token(2) + FINISH + usage_event(7, 3) + DONE).encode()
WITHOUT_USAGE = (token(0) + token(1) + token(2) + FINISH + DONE).encode()


def reader(keep_usage: bool = False) -> readers.ChunkReader:
    return readers.ChunkReader(readers.StreamContext(wants_usage=keep_usage), lambda error: b"data: replaced\n\n")


def feed_pieces(found: readers.Reader, pieces: list[bytes]) -> bytes:
    return b"".join(found.feed(piece) for piece in pieces)


@given(st.lists(st.integers(min_value=0), max_size=20), st.booleans())
def test_however_a_stream_is_cut_the_client_gets_the_same(places, keep_usage):
    found = reader(keep_usage)
    assert feed_pieces(found, cut_pieces(STREAM, places)) == (STREAM if keep_usage else WITHOUT_USAGE)
    assert found.usage == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert found.done
    assert found.is_finished()
    assert found.events == 4


@given(st.lists(st.integers(min_value=0), max_size=20))
def test_crlf_becomes_lf_wherever_it_is_cut(places):
    assert feed_pieces(reader(), cut_pieces(STREAM.replace(b"\n", b"\r\n"), places)) == WITHOUT_USAGE


@given(st.binary(max_size=300), st.lists(st.integers(min_value=0), max_size=8))
def test_no_bytes_make_it_fail(data, places):
    feed_pieces(reader(), cut_pieces(data + b"\n\n", places))


def test_an_event_is_held_back_until_it_is_whole():
    found = reader()
    assert found.feed(token(0).encode()[:-1]) == b""
    assert found.feed(b"\n") == token(0).encode()


def test_a_character_cut_in_two_arrives_whole():
    text = event([{"index": 0, "delta": {"content": "窓口"}}]).encode().decode("unicode_escape").encode()
    for place in range(len(text)):
        assert feed_pieces(reader(), [text[:place], text[place:]]) == text


def test_null_usage_that_was_caused_by_our_asking_is_taken_out():
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}],"usage":null}\n\n'
    assert reader().feed(chunk) == b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    assert reader(keep_usage=True).feed(chunk) == chunk


def test_usage_on_every_chunk_is_read_from_the_last_and_taken_out():
    found = reader()
    for count in (1, 2):
        chunk = event([{"index": 0, "delta": {"content": "x"}}], usage={"completion_tokens": count}).encode()
        assert "usage" not in json.loads(found.feed(chunk)[6:])
    assert found.usage == {"completion_tokens": 2}
    assert found.events == 2


def test_done_alone_is_not_a_finish():
    found = reader()
    feed_pieces(found, [token(0).encode(), DONE.encode()])
    assert found.done
    assert not found.is_finished()


def test_a_finish_reason_is_a_finish_for_engines_that_report_no_usage():
    found = reader()
    feed_pieces(found, [token(0).encode(), FINISH.encode(), DONE.encode()])
    assert found.is_finished()


def test_an_answer_that_the_engine_gave_up_is_not_finished():
    found = reader()
    given_up = FINISH.encode().replace(b'"stop"', b'"abort"')
    assert given_up != FINISH.encode()
    feed_pieces(found, [token(0).encode(), given_up, DONE.encode()])
    assert found.done
    assert not found.is_finished()


def test_an_error_event_is_replaced():
    found = reader()
    assert found.feed(b'data: {"error": {"message": "at 10.0.0.1"}}\n\n') == b"data: replaced\n\n"
    assert not found.is_finished()


def test_comments_pass_and_are_not_counted():
    found = reader()
    assert found.feed(b": ping\n\n") == b": ping\n\n"
    assert found.events == 0


def test_an_event_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(readers, "MAX_EVENT", 1000)
    with pytest.raises(readers.EventTooLong):
        feed_pieces(reader(), [b"data: " + b"x" * 600] * 2)


# --- several answers


def make_reader(keep_usage: bool = False, n: int = 2, prompts: int = 1) -> readers.Reader:
    asked = readers.StreamContext(wants_usage=keep_usage, n=n, prompts=prompts)
    return readers.make_chunk_reader(asked, lambda error: b"data: replaced\n\n")


def part(index: int, text: str = "x", finish: str | None = None, **more) -> str:
    delta = {"content": text} if text else {}
    return event([{"index": index, "delta": delta, "finish_reason": finish}], **more)


def usage(prompt: int, completion: int, cached: int = 0) -> dict:
    details = {"cached_tokens": cached}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": details,
    }


# As llama.cpp sends it: the usage of the second answer in the midst of the first.
LLAMA_CHAT = (
    "".join(event([{"index": index, "delta": {"role": "assistant", "content": None}}]) for index in (1, 0))
    + part(1) + part(0) + part(1) + part(1, "", "stop") + event([], usage=usage(32, 2, 31))
    + part(0) + part(0) + part(0, "", "length") + event([], usage=usage(32, 3, 31)) + DONE
)  # fmt: skip
LLAMA_BATCH = (
    "data: null\n\n" + part(1) + part(0) + part(1, "", "length", usage=usage(7, 4))
    + part(0) + part(0, "", "length", usage=usage(3, 5)) + DONE
)  # fmt: skip
VLLM = part(0) + part(1) + part(0, "y", "stop") + part(1, "y", "stop") + event([], usage=usage(32, 40)) + DONE
CONTINUOUS = (
    part(0, usage=usage(32, 10)) + part(1, usage=usage(32, 20))
    + part(0, "", "stop", usage=usage(32, 15)) + part(1, "", "stop", usage=usage(32, 25))
    + event([], usage=usage(32, 40)) + DONE
)  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "shape", "expected"),
    [
        (LLAMA_CHAT, {}, usage(32, 5, 31)),
        (LLAMA_BATCH, {"n": 1, "prompts": 2}, usage(10, 9)),
        (VLLM, {}, usage(32, 40)),
        (CONTINUOUS, {}, usage(32, 40)),
    ],
)
def test_the_usage_of_several_answers_is_their_sum(stream, shape, expected):
    for keep_usage in (True, False):
        for size in (1, 7, len(stream)):
            found = make_reader(keep_usage, **shape)
            pieces = [stream[at : at + size].encode() for at in range(0, len(stream), size)]
            chunks = [json.loads(text[6:]) for text in feed_pieces(found, pieces).decode().split("\n\n")[:-2]]
            assert found.usage == expected
            assert found.count_usage(1) == (read_tokens(expected), False)
            assert found.is_finished()
            told = [chunk["usage"] for chunk in chunks if "usage" in chunk]
            assert told == ([expected] if keep_usage else [])
            assert [chunk for chunk in chunks if not chunk["choices"]] == (chunks[-1:] if keep_usage else [])


def test_an_engine_that_reports_too_little_is_counted():
    stream = part(0) * 5 + part(1) * 6 + part(0, "", "stop") + part(1, "", "stop") + event([], usage=usage(32, 5))
    found = make_reader()
    feed_pieces(found, [(stream + DONE).encode()])
    assert found.count_usage(1) == (Tokens(prompt=32, completion=11), True)


def test_several_answers_are_counted_until_one_is_reported():
    found = make_reader()
    feed_pieces(found, [(part(0) * 3 + part(1) * 4).encode()])
    assert found.count_usage(9) == (Tokens(prompt=9, completion=7), True)
    assert not found.is_finished()
    feed_pieces(found, [(part(0, "", "stop") + event([], usage=usage(32, 3))).encode()])
    assert found.count_usage(9) == (Tokens(prompt=32, completion=7), True)
    assert not found.is_finished()
