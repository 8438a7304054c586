"""The form on its way, sans I/O: however it is cut, the same bytes go on."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiproxy.dataplane.errors import BadRequest
from apiproxy.dataplane.formats import transcription
from apiproxy.dataplane.formats.transcription import TranscriptReader
from apiproxy.dataplane.stream.readers import StreamContext
from apiproxy.dataplane.token_usage import Tokens
from apiproxy.dataplane.uploads import Form
from tests.engine import DONE, HEARD, SILENT, transcript_event

BOUNDARY = b"b0undary"
TYPE = b"multipart/form-data; boundary=" + BOUNDARY


def part(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return (
        b"--"
        + BOUNDARY
        + b'\r\nContent-Disposition: form-data; name="'
        + name
        + b'"'
        + more
        + b"\r\n\r\n"
        + value
        + b"\r\n"
    )


END = b"--" + BOUNDARY + b"--\r\n"
FILE = b'; filename="a.wav"\r\nContent-Type: audio/wav'
# What nearly is a boundary, inside a file.
SOUND = b"RIFF\r\n--b0undar\r\n--b0undary\r--\r\n\r\n--" + bytes(range(256)) + b"\r"


def pass_pieces(body: bytes, cuts: list[int], model: str = "there") -> tuple[bytes, Form]:
    """Return what goes on of a body that comes in pieces, taken after each, and the form."""
    form = Form(TYPE)
    out = b""
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        form.feed(body[start:end])
        out += form.take(model)
    form.finish()
    return out, form


BODY = (
    part(b"prompt", "会議".encode()) + part(b"model", b"here") + part(b"file", SOUND, FILE) + part(b"user", b"me") + END
)


@pytest.mark.parametrize(("name", "most"), [(b"language", 16_384), (b"prompt", 16_384), (b"user", 1024)])
def test_g14_no_field_of_a_form_is_longer_than_a_text_is(name, most):
    Form(TYPE).feed(part(name, b"(" * most) + END)
    with pytest.raises(BadRequest) as caught:
        Form(TYPE).feed(part(name, b"(" * (most + 1)) + END)
    assert caught.value.param == name.decode()
    Form(TYPE).feed(part(b"file", SOUND * 100, FILE) + END)


@pytest.mark.parametrize(
    ("name", "value"), [(b"grammar", b"root ::= " + b"(" * 101), (b"n_predict", b"99999999999"), (b"n", b"1000000")]
)
def test_g14_what_a_form_says_is_bounded_as_in_a_chat(name, value):
    """llama.cpp makes a chat of it."""
    with pytest.raises(BadRequest) as caught:
        Form(TYPE).feed(part(name, value) + END)
    assert caught.value.param == name.decode()
    Form(TYPE).feed(part(b"grammar", b'root ::= ("a")*') + part(b"n", b"1") + part(b"response_format", b"json") + END)


def test_only_the_models_name_is_changed():
    out, form = pass_pieces(BODY, [])
    assert out == BODY.replace(b"here", b"there")
    assert form.fields == {"model": "here", "user": "me"}
    assert form.size == len(SOUND)


@pytest.mark.parametrize("cut", range(len(BODY)))
def test_a_form_cut_at_any_byte_goes_on_the_same(cut):
    assert pass_pieces(BODY, [cut])[0] == BODY.replace(b"here", b"there")


@given(st.binary(max_size=400), st.lists(st.integers(0, 600), max_size=20))
def test_any_sound_in_any_pieces_arrives_whole(sound, cuts):
    body = part(b"model", b"here") + part(b"file", sound, FILE) + END
    if b"\r\n--" + BOUNDARY in sound:
        return
    out, form = pass_pieces(body, sorted(min(cut, len(body)) for cut in cuts))
    assert out == body.replace(b"here", b"there", 1)
    assert form.size == len(sound)


@given(st.binary(max_size=300))
def test_anything_else_is_refused_or_passed_but_never_a_fault(body):
    form = Form(TYPE)
    try:
        form.feed(b"--" + BOUNDARY + body)
        form.finish()
    except BadRequest:
        pass


def test_a_stream_is_asked_for_its_usage_behind_all_else():
    body = part(b"model", b"here") + part(b"file", SOUND, FILE) + part(b"stream", b"true")
    out, _ = pass_pieces(body + END, [])
    assert out == body.replace(b"here", b"there") + part(b"stream_include_usage", b"true") + END
    asked = body + part(b"stream_include_usage", b"True") + END
    assert pass_pieces(asked, [])[0] == asked.replace(b"here", b"there")


def test_every_name_of_a_model_is_replaced_and_a_part_has_one_name():
    twice = part(b"model", b"here") + part(b"model", b"forbidden") + part(b"file", SOUND, FILE) + END
    assert b"forbidden" not in pass_pieces(twice, [])[0]
    two_names = b'\r\nContent-Disposition: form-data; name="model"'
    with pytest.raises(BadRequest):
        Form(TYPE).feed(part(b"x", b"forbidden", two_names) + END)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Disposition: form-data; name*=utf-8''model",
        b"Content-Disposition: form-data; name*0=mo; name*1=del",
        b"Content-Disposition: form-data; name=\"x\"; name*=utf-8''model",
        b'Content-Disposition: form-data; name="x"; name="model"',
        b'Content-Disposition: form-data; NAME="x"; name="model"',
        b'Content-Disposition: form-data; name="mo\\del"',
        b'Content-Disposition: form-data; name="mod%65l"',
        b'Content-Disposition: form-data; name="Model"',
        b'Content-Disposition: form-data; name="model',
        b"Content-Disposition: form-data",
        b'Content-Disposition: attachment; name="model"',
        b'Content-Disposition: form-data; name="x"\r\nContent-Disposition: form-data; name="model"',
        b'Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: base64',
        b"Content-Type: text/plain",
    ],
)
def test_g17_a_part_whose_name_could_be_read_otherwise_is_refused(head):
    body = b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\nforbidden\r\n"
    with pytest.raises(BadRequest):
        Form(TYPE).feed(part(b"model", b"here") + body + part(b"file", SOUND, FILE) + END)


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="timestamp_granularities[]"',
        b"content-disposition: form-data; name=language",
        b'Content-Disposition: form-data;name="file";filename="a \\"b\\"; c.wav"',
        'Content-Disposition: form-data; name="file"; filename="会議.wav"'.encode(),
        b'Content-Disposition: form-data; name="file"; filename="_.wav"; filename*=UTF-8\'\'%E4%BC%9A.wav',
        b'Content-Disposition: form-data; name="file"; filename=""\r\nContent-Transfer-Encoding: binary',
    ],
)
def test_g17_names_as_clients_write_them_go_on(head):
    body = part(b"model", b"here") + b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\nvalue\r\n" + END
    assert pass_pieces(body, [])[0] == body.replace(b"here", b"there")


def test_g17_what_engines_would_read_from_either_of_two_is_refused():
    with pytest.raises(BadRequest):
        Form(TYPE).feed(part(b"stream", b"true") + part(b"stream", b"false") + END)


def test_g4_a_file_that_the_parser_cuts_into_bytes_takes_no_more_memory_than_its_size():
    form = Form(TYPE)
    form.feed(part(b"file", b"", FILE)[:-2])
    tracemalloc.start()
    try:
        form.feed(b"\r\n\r" * 700_000)
        assert tracemalloc.get_traced_memory()[1] < 4 * form.waiting
    finally:
        tracemalloc.stop()


def test_what_waits_for_the_models_name_is_counted():
    form = Form(TYPE)
    form.feed(part(b"file", SOUND, FILE))
    assert form.waiting >= len(SOUND)
    assert (form.file_begun, form.model) == (True, None)
    form.take("x")
    assert form.waiting == 0


# --- what it costs


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"text": "abcdef", "usage": {"type": "duration", "seconds": 2}}', (Tokens(prompt=200, completion=2), True)),
        (
            b'{"text": "abcdef", "usage": {"type": "tokens", "input_tokens": 9, "output_tokens": 4}}',
            (Tokens(prompt=9, completion=4), False),
        ),
        (b'{"text": "abcdef", "duration": "1.5", "segments": []}', (Tokens(prompt=150, completion=2), True)),
        (b'{"text": "abcdef"}', (Tokens(prompt=77, completion=2), True)),
        (b'{"text": "abcdef", "duration": "nan"}', (Tokens(prompt=77, completion=2), True)),
        (b"abcdef\n", (Tokens(prompt=77, completion=2), True)),
        (b"{ he said", (Tokens(prompt=77, completion=3), True)),
        (b"", (Tokens(prompt=77), True)),
    ],
)
def test_an_answer_costs_what_it_reports_or_what_its_size_makes_likely(body, expected):
    assert transcription.read_used_tokens(body, 77) == expected


def read(*events: str) -> TranscriptReader:
    reader = TranscriptReader(StreamContext(wants_usage=False), lambda _: b"")
    for event in events:
        reader.feed(event.encode())
    return reader


def test_the_end_of_a_stream_is_seen_in_either_protocol():
    assert read(*HEARD, SILENT, DONE).is_finished()
    assert read(*HEARD, SILENT, DONE).count_usage(77) == (Tokens(prompt=77, completion=3), True)
    assert not read(*HEARD, DONE).is_finished()
    assert not read(*HEARD, 'data: {"error": {"message": "x"}}\n\n', DONE).is_finished()
    delta = 'data: {"type": "transcript.text.delta", "delta": "transcript.text.done"}\n\n'
    assert not read(delta, delta, DONE).is_finished()
    done = 'event: transcript.text.done\ndata: {"type": "transcript.text.done", "text": "x"}\n\n'
    assert read(delta, delta, done).is_finished()
    assert read(delta, delta, done).count_usage(77) == (Tokens(prompt=77, completion=2), True)
    seconds = 'data: {"type": "transcript.text.done", "usage": {"type": "duration", "seconds": 4}}\n\n'
    assert read(delta, seconds).count_usage(77) == (Tokens(prompt=400, completion=1), True)


def test_usage_of_vllms_stream_counts():
    usage = transcript_event([], usage={"prompt_tokens": 304, "completion_tokens": 6})
    assert read(*HEARD, SILENT, usage, DONE).count_usage(77) == (Tokens(prompt=304, completion=6), False)
