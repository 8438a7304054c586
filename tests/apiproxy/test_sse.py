import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiproxy import sse
from tests.engine import DONE, FINISH, event, token, usage_event

STREAM = (token(0) + token(1) + token(2) + FINISH + usage_event(7, 3) + DONE).encode()
WITHOUT_USAGE = (token(0) + token(1) + token(2) + FINISH + DONE).encode()


def reader(keep_usage: bool = False) -> sse.ChunkReader:
    return sse.ChunkReader(sse.Asked(usage=keep_usage), lambda error: b"data: replaced\n\n")


def fed(found: sse.Reader, pieces: list[bytes]) -> bytes:
    return b"".join(found.feed(piece) for piece in pieces)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


@given(st.lists(st.integers(min_value=0), max_size=20), st.booleans())
def test_however_a_stream_is_cut_the_client_gets_the_same(places, keep_usage):
    found = reader(keep_usage)
    assert fed(found, cut(STREAM, places)) == (STREAM if keep_usage else WITHOUT_USAGE)
    assert found.usage == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert found.done
    assert found.finished()
    assert found.events == 4


@given(st.lists(st.integers(min_value=0), max_size=20))
def test_crlf_becomes_lf_wherever_it_is_cut(places):
    assert fed(reader(), cut(STREAM.replace(b"\n", b"\r\n"), places)) == WITHOUT_USAGE


@given(st.binary(max_size=300), st.lists(st.integers(min_value=0), max_size=8))
def test_no_bytes_make_it_fail(data, places):
    fed(reader(), cut(data + b"\n\n", places))


def test_an_event_is_held_back_until_it_is_whole():
    found = reader()
    assert found.feed(token(0).encode()[:-1]) == b""
    assert found.feed(b"\n") == token(0).encode()


def test_a_character_cut_in_two_arrives_whole():
    text = event([{"index": 0, "delta": {"content": "窓口"}}]).encode().decode("unicode_escape").encode()
    for place in range(len(text)):
        assert fed(reader(), [text[:place], text[place:]]) == text


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
    fed(found, [token(0).encode(), DONE.encode()])
    assert found.done
    assert not found.finished()


def test_a_finish_reason_is_a_finish_for_engines_that_report_no_usage():
    found = reader()
    fed(found, [token(0).encode(), FINISH.encode(), DONE.encode()])
    assert found.finished()


def test_an_error_event_is_replaced():
    found = reader()
    assert found.feed(b'data: {"error": {"message": "at 10.0.0.1"}}\n\n') == b"data: replaced\n\n"
    assert not found.finished()


def test_comments_pass_and_are_not_counted():
    found = reader()
    assert found.feed(b": ping\n\n") == b": ping\n\n"
    assert found.events == 0


def test_an_event_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT", 1000)
    with pytest.raises(sse.EventTooLong):
        fed(reader(), [b"data: " + b"x" * 600] * 2)
