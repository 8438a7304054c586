"""Readers of what others send, with all kinds of bytes in pieces of every size: the same facts, no fault of ours."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apiproxy.dataplane import engine_errors
from apiproxy.dataplane.errors import BadRequest, Refusal
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import ENDPOINTS
from apiproxy.dataplane.stream import readers
from apiproxy.dataplane.upstream import HEAD_TOO_LARGE, Address, Broken, Connection, Pool
from apiproxy.dataplane.validation import GATEWAY_ONLY, READERS
from tests.apiproxy.pieces import cut_pieces
from tests.apiproxy.served import SERVED
from tests.engine import DONE, FINISH, event

places = st.lists(st.integers(min_value=0), max_size=30)


# --- event streams

TEXTS = st.one_of(st.text(max_size=12), st.sampled_from(['"usage"', "[DONE]", "data: {", 'data:\n\n"error"', "窓口🙂"]))
USAGE = st.fixed_dictionaries({"prompt_tokens": st.integers(0, 99), "completion_tokens": st.integers(0, 99)})


def write_event(fields: dict[str, Any], raw: bool) -> bytes:
    """Write an event as engines do: with or without blanks, in UTF-8 or escaped."""
    separators = (",", ":") if raw else None
    text = json.dumps(fields, ensure_ascii=not raw, separators=separators)
    return b"data: " + text.encode(errors="backslashreplace") + b"\n\n"


def choice(content: str, finish: str | None, index: int) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": content}, "finish_reason": finish}]}


chunks = st.builds(choice, TEXTS, st.sampled_from([None, None, None, "stop"]), st.integers(0, 1))
fields = st.one_of(
    chunks,
    st.builds(lambda chunk, usage: {**chunk, "usage": usage}, chunks, st.none() | USAGE),
    st.builds(lambda usage: {"choices": [], "usage": usage}, USAGE),
    st.builds(lambda text: {"error": {"message": text}}, TEXTS),
    st.builds(lambda text: {"type": "response.output_text.delta", "delta": text}, TEXTS),
    st.builds(lambda usage: {"type": "response.completed", "response": {"usage": usage}}, USAGE),
    st.builds(lambda text: {"type": "content_block_delta", "delta": {"text": text}}, TEXTS),
    st.builds(lambda usage: {"type": "message_start", "message": {"usage": usage}}, USAGE),
    st.just({"type": "message_stop"}),
)
events = st.one_of(
    st.builds(write_event, fields, st.booleans()),
    st.sampled_from(
        [b": ping\n\n", DONE.encode(), b"data: null\n\n", b"data: nonsense\n\n", b"event: x\ndata: {}\n\n"]
    ),
)
kinds = st.sampled_from(
    [
        lambda asked, on_error: readers.make_chunk_reader(readers.StreamContext(wants_usage=asked), on_error),
        lambda asked, on_error: readers.make_chunk_reader(readers.StreamContext(wants_usage=asked, n=2), on_error),
        lambda asked, on_error: readers.ResponsesReader(readers.StreamContext(wants_usage=asked), on_error),
        lambda asked, on_error: readers.MessagesReader(readers.StreamContext(wants_usage=asked), on_error),
    ]
)


def read_facts(reader: readers.Reader, pieces: list[bytes]) -> dict[str, Any]:
    through = b"".join(reader.feed(piece) for piece in pieces)
    return {
        "through": through,
        "usage": reader.usage,
        "events": reader.events,
        "done": reader.done,
        "error": reader.error,
        "used": reader.count_usage(5),
    }


@settings(max_examples=500, deadline=None)
@given(kinds, st.booleans(), st.lists(events, max_size=8), places, st.booleans())
@example(kinds.elements[0], False, [write_event(choice("data: {", None, 0), True)] * 2 + [DONE.encode()], [], False)
def test_how_a_stream_is_cut_changes_nothing_that_is_read_of_it(kind, asked, stream, at, crlf):
    def replace_error(error: object) -> bytes:
        return b"data: replaced\n\n"

    if isinstance(kind(asked, replace_error), readers.ChunkReader):  # whose protocol has no names of events
        stream = [event for event in stream if not event.startswith(b"event:")]
    whole = read_facts(kind(asked, replace_error), stream)  # an event at a time
    data = b"".join(stream)
    if crlf:
        data = data.replace(b"\n", b"\r\n")
    assert read_facts(kind(asked, replace_error), cut_pieces(data, at)) == whole


@settings(max_examples=500, deadline=None)
@given(kinds, st.booleans(), st.lists(st.one_of(events, st.binary(max_size=40)), max_size=8), places)
def test_no_stream_makes_a_reader_fail(kind, asked, stream, at):
    reader = kind(asked, lambda error: b"data: replaced\n\n")
    read_facts(reader, cut_pieces(b"".join(stream), at))
    reader.is_finished()


def test_every_place_of_a_stream_is_a_place_to_cut_it():
    text = event([{"index": 0, "delta": {"content": "窓口"}, "finish_reason": None}]).encode().decode("unicode_escape")
    data = (text + FINISH + DONE).encode()
    for place in range(len(data)):
        reader = readers.make_chunk_reader(readers.StreamContext(wants_usage=False), lambda error: b"")
        assert read_facts(reader, [data[:place], data[place:]])["through"] == data
        assert reader.is_finished()


# --- requests

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    "model",
    "stream",
    "stream_options",
    "user",
    "n",
    "prompt",
    "input",
    "max_tokens",
    "messages",
    "usage",
    "query",
]
bodies = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda value: json.dumps(value).encode(), anything),
    st.builds(
        lambda value, ascii: json.dumps({"model": "m", **value}, ensure_ascii=ascii).encode(errors="replace"),
        st.dictionaries(st.sampled_from(NAMES), anything, max_size=5),
        st.booleans(),
    ),
)


@settings(max_examples=500, deadline=None)
@given(bodies, st.sampled_from(sorted(ENDPOINTS)), st.booleans())
def test_every_body_is_a_call_or_a_bad_request(body, path, force):
    try:
        call = requests.parse(body)
    except BadRequest as refusal:
        refusal.error("ja")
        return
    endpoint = ENDPOINTS[path]
    assert call.model
    assert isinstance(call.end_user.encode(), bytes)
    assert requests.estimate_tokens(call, endpoint, SERVED, requests.RequestPolicy()) >= 0
    sent = json.loads(requests.upstream_body(call, endpoint, "theirs", force_stream=force))
    assert sent["model"] == "theirs"
    mine = {name: value for name, value in json.loads(body).items() if name not in READERS and name not in GATEWAY_ONLY}
    assert json.dumps({name: sent[name] for name in mine}) == json.dumps(mine)  # NaN is not equal to itself


@settings(max_examples=300, deadline=None)
@given(st.integers(100, 599), bodies, st.sampled_from(sorted(ENDPOINTS)))
def test_every_answer_of_an_engine_is_metered_and_every_error_reported(status, body, path):
    call = requests.parse(b'{"model": "m"}')
    tokens, _ = requests.read_used_tokens(body, call, ENDPOINTS[path])
    assert tokens.total >= 0
    refusal = engine_errors.make_refusal(status, body, call, ENDPOINTS[path])
    assert isinstance(refusal, Refusal)
    assert json.dumps(refusal.error("ja"))


# --- answers over a connection


class Transport:
    """What a connection needs of one."""

    closing = False

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    close = abort

    def write(self, data: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Listener:
    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.ends: list[object] = []

    def head(self, status, headers) -> None:
        assert not self.status
        self.status = status

    def data(self, piece) -> None:
        assert self.status
        self.body += piece

    def chunk(self, framed, start) -> None:
        self.data(framed[start:-2])

    def end(self) -> None:
        self.ends.append("end")

    def failed(self, error) -> None:
        assert isinstance(error, Broken)
        self.ends.append(error)


def receive_answer(pieces: list[bytes]) -> tuple[Listener, Connection]:
    """Receive an answer in these pieces, after which the engine closes."""
    connection, transport, listener = Connection(Pool(Address.parse("http://x"), lambda: 0.0)), Transport(), Listener()
    connection.connection_made(transport)
    connection.request(b"GET / HTTP/1.1\r\n\r\n", listener)
    for piece in pieces:
        if piece and not transport.closing:
            connection.data_received(piece)
    connection.connection_lost(None)
    assert len(listener.ends) == 1, "an answer ends once"
    return listener, connection


def frame_answer(status: int, body: list[bytes], how: str, before: bytes) -> bytes:
    whole = b"".join(body)
    head = b"HTTP/1.1 %d X\r\ncontent-type: x\r\n" % status
    if how == "length":
        return before + head + b"content-length: %d\r\n\r\n" % len(whole) + whole
    if how == "chunked":
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in body if part)
        return before + head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    return before + head + b"\r\n" + whole


answers = st.builds(
    frame_answer,
    st.sampled_from([200, 201, 400, 404, 500, 503]),
    st.lists(st.binary(max_size=30), max_size=4),
    st.sampled_from(["length", "chunked", "close"]),
    st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 2]),
)


@settings(max_examples=500, deadline=None)
@given(answers, places)
def test_how_an_answer_is_cut_does_not_change_what_is_received(answer, at):
    whole, _ = receive_answer([answer])
    assert whole.ends == ["end"]
    pieces, _ = receive_answer(cut_pieces(answer, at))
    assert (pieces.status, pieces.body, pieces.ends) == (whole.status, whole.body, whole.ends)


@settings(max_examples=500, deadline=None)
@given(answers, st.integers(min_value=0), places)
def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(answer, place, at):
    place %= len(answer)
    whole, _ = receive_answer([answer])
    broken, _ = receive_answer(cut_pieces(answer[:place], at))
    lengthless = b"content-length" not in answer and b"chunked" not in answer
    if broken.ends == ["end"] and not lengthless:
        assert broken.body == whole.body  # only what follows the last byte was missing
    assert whole.body.startswith(broken.body)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.one_of(answers, st.binary(max_size=60), st.just(b"HTTP/1.1 200 OK\r\n")), max_size=4), places)
def test_whatever_an_engine_sends_the_call_ends_once(stream, at):
    receive_answer(cut_pieces(b"".join(stream), at))


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\n\r\n"])
def test_a_head_without_end_is_bounded(end):
    listener, _ = receive_answer(
        [b"HTTP/1.1 200 OK\r\n", *[b"x-%d: %b\r\n" % (at, b"y" * 4000) for at in range(100)], end]
    )
    assert str(listener.ends[0]) == HEAD_TOO_LARGE
