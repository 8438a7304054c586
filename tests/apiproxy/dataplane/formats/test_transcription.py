"""Recordings on their way to an engine: `/v1/audio/transcriptions` and `translations`, over real sockets."""

import contextlib
import hashlib
import io
import json
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import openai
import pytest

from apiproxy.dataplane import uploads
from apiproxy.dataplane.errors import MESSAGES
from modelregistry.models import Host, Replica, ServedModel
from tests import engine
from tests.apiproxy.connections import connect, head
from tests.apiproxy.errors import code
from tests.engine import DONE, HEARD, SSE, chunk, unary
from tests.installation import installed
from tests.waiting import at_rest, until

PATH = "/v1/audio/transcriptions"
MB = 1024 * 1024
SOUND = random.Random(7).randbytes(300_000)
BOUNDARY = "x-a-boundary"


@pytest.fixture
def model(counter) -> ServedModel:
    """Return a transcription model that its engine knows as whisper-large."""
    made = ServedModel.objects.create(
        name="ears", engine="external", task="transcription", url=counter.engine.url, upstream_model="whisper-large"
    )
    Replica.objects.create(model=made, host=Host.objects.get(), state="ready", url=counter.engine.url)
    counter.wait_for_catalogue()
    return made


@pytest.fixture
def sdk(counter, model) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{counter.url}/v1", api_key=counter.key, max_retries=0)


def post(counter, data: dict[str, str], sound: bytes = SOUND, path: str = PATH) -> httpx2.Response:
    return counter.client.post(path, data={"model": "ears", **data}, files={"file": ("a.mp3", sound)})


def part(name: str, value: bytes, filename: str = "") -> bytes:
    more = f'; filename="{filename}"' if filename else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


@contextlib.contextmanager
def begun_upload(counter, length: int) -> Iterator[socket.socket]:
    """Provide a connection that has sent the head of an upload of so many bytes."""
    fields = (f"content-type: {FORM['content-type']}", f"content-length: {length}")
    with connect(counter.url) as connection:
        connection.sendall(head("POST", PATH, *fields, key=counter.key))
        yield connection


# --- clients


def test_the_sdk_gets_its_text_and_the_engine_every_byte(counter, sdk):
    answer = sdk.audio.transcriptions.create(
        model="ears", file=("会議.mp3", SOUND), language="ja", timestamp_granularities=["word"]
    )
    assert answer.text == "hello there"
    (request,) = counter.engine.seen()["requests"]
    body = request["body"]
    assert body["model"] == "whisper-large"
    assert body["names"] == ["model", "language", "timestamp_granularities[]", "file"]
    assert (body["language"], body["timestamp_granularities[]"]) == ("ja", "word")
    assert body["file"] == {"name": "会議.mp3", "size": len(SOUND), "sha256": hashlib.sha256(SOUND).hexdigest()}
    (row,) = counter.usage()
    assert (row.endpoint, row.model, row.status) == (PATH, "ears", "finished")
    # Three seconds of sound and eleven letters, by the rule of apiproxy.dataplane.formats.transcription.
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (300, 4, True)


def test_the_sdk_streams_vllms_chunks_and_is_metered_by_the_engines_usage(counter, sdk):
    stream = sdk.audio.transcriptions.create(model="ears", file=("a.wav", io.BytesIO(SOUND)), stream=True)
    chunks = [event.model_dump() for event in stream]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "hello there!"
    assert not any(chunk.get("usage") for chunk in chunks)
    (row,) = counter.usage()
    assert (row.prompt_tokens, row.completion_tokens, row.estimated, row.status) == (304, 6, False, "finished")
    assert counter.engine.seen()["requests"][0]["body"]["stream_include_usage"] == "true"


def test_usage_that_was_asked_for_in_a_stream_comes(counter, sdk):
    more = {"stream_include_usage": "true"}
    stream = sdk.audio.transcriptions.create(model="ears", file=("a.wav", SOUND), stream=True, extra_body=more)
    assert [event.model_dump().get("usage") for event in stream][-1]["total_tokens"] == 310
    assert counter.engine.seen()["requests"][0]["body"]["names"].count("stream_include_usage") == 1


def test_the_sdk_streams_openais_events(counter, sdk):
    events = [
        {"type": "transcript.text.delta", "delta": "hello "},
        {"type": "transcript.text.delta", "delta": "there"},
        {
            "type": "transcript.text.done",
            "text": "hello there",
            "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 2, "total_tokens": 16},
        },
    ]
    script = [{"send": SSE}, *({"send": chunk(f"data: {json.dumps(event)}\n\n")} for event in events)]
    more = {"script": json.dumps([*script, {"send": "0\r\n\r\n"}])}
    stream = sdk.audio.transcriptions.create(model="ears", file=("a.wav", SOUND), stream=True, extra_body=more)
    *deltas, done = stream
    assert "".join(event.delta for event in deltas) == done.text == "hello there"
    (row,) = counter.usage()
    assert (row.prompt_tokens, row.completion_tokens, row.estimated, row.status) == (14, 2, False, "finished")


def test_translations_go_their_own_way(counter, sdk):
    with pytest.deprecated_call():  # OpenAI's own have no model for it any more
        assert sdk.audio.translations.create(model="ears", file=("a.wav", SOUND)).text == "hello there"
    assert counter.engine.seen()["requests"][0]["path"] == "/v1/audio/translations"


def test_curl_may_send_the_file_first_and_its_fields_after(counter, model, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(SOUND * 10)
    form = ["-F", f"file=@{path}", "-F", "stream=true", "-F", "model=ears", "-F", "user=hanako"]
    key = ["-H", f"Authorization: Bearer {counter.key}"]
    done = subprocess.run(
        ["curl", "-sS", "--no-buffer", f"{counter.url}{PATH}", *key, *form], capture_output=True, check=True, timeout=60
    )
    assert done.stdout.decode().endswith(DONE)
    body = counter.engine.seen()["requests"][0]["body"]
    assert body["file"]["sha256"] == hashlib.sha256(SOUND * 10).hexdigest()
    assert body["names"] == ["file", "stream", "model", "user", "stream_include_usage"]
    (row,) = counter.usage()
    assert (row.end_user, row.prompt_tokens) == ("hanako", 304)


SRT = "1\n00:00:00,000 --> 00:00:01,000\nhello\n"


@pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "application/x-subrip"])
def test_other_formats_come_as_they_are(counter, model, kind):
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(SRT)}\r\n\r\n"
    answer = post(counter, {"response_format": "srt", "script": json.dumps([{"send": head + SRT}])})
    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, SRT, kind)
    (row,) = counter.usage()
    # By the size of the recording, and of the text.
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (len(SOUND) // 160, 13, True)


# --- what is refused


@pytest.mark.parametrize(
    ("content", "headers", "expected"),
    [
        (b"{}", {"content-type": "application/json"}, "invalid_value"),
        (b"", {"content-type": "multipart/form-data"}, "invalid_value"),
        (END, FORM, "invalid_value"),
        (part("file", SOUND, "a.wav") + END, FORM, "invalid_value"),
        (part("model", b"ears") + part("file", SOUND, "a.wav"), FORM, "invalid_value"),
        (part("model", b"ears" * 999) + END, FORM, "invalid_value"),
        (b"no form at all", FORM, "invalid_value"),
        (part("x", b"") * 201 + part("model", b"ears") + END, FORM, "invalid_value"),
        (part("model", b"nobody") + part("file", SOUND, "a.wav") + END, FORM, "model_not_found"),
        (part("model", b"words") + part("file", SOUND, "a.wav") + END, FORM, "model_not_supported"),
    ],
)
def test_what_is_no_such_form_is_refused(counter, model, content, headers, expected):
    ServedModel.objects.create(name="words", engine="vllm", task="embedding", path="/m")
    counter.wait_for_catalogue()
    response = counter.client.post(PATH, content=content, headers=headers)
    assert response.status_code in (400, 404)
    assert code(response) == expected
    assert counter.engine.seen()["requests"] == []


def test_too_large_is_refused_before_and_while_it_is_read(counter, model, settings):
    most = counter.application.gateway.services.max_upload
    assert most == settings.GATEWAY_MAX_UPLOAD
    with begun_upload(counter, most + 1) as connection:
        assert b" 413 " in connection.recv(4096)
    gateway = counter.application.gateway
    gateway.services = replace(gateway.services, max_upload=MB)
    begin = part("model", b"ears") + part("file", b"", "a.wav")[:-2]

    def endless() -> Iterator[bytes]:  # chunked: without a length
        yield begin
        for _ in range(40):
            yield bytes(65536)

    response = counter.client.post(PATH, content=endless(), headers=FORM)
    assert (response.status_code, code(response)) == (413, "request_too_large")
    until(lambda: counter.engine.seen()["uploading"] == 0)
    assert counter.usage()[0].status == "refused"


def test_a_large_file_before_its_model_is_refused_and_holds_nothing_after(counter, model, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_HELD", MB)
    response = counter.client.post(
        PATH, content=part("file", bytes(2 * MB), "a.wav") + part("model", b"ears") + END, headers=FORM
    )
    assert response.status_code == 400
    assert (code(response), response.json()["error"]["param"]) == ("invalid_value", "model")
    assert response.json()["error"]["message"] == MESSAGES["model_too_late"]["ja"]
    small = part("file", SOUND, "a.wav") + part("model", b"ears") + END
    assert counter.client.post(PATH, content=small, headers=FORM).status_code == 200
    until(lambda: counter.application.budget.held == 0)


def test_g4_uploads_whose_model_is_not_known_draw_on_the_budget_of_their_key(small_memory, counter, model):
    late = part("file", bytes(6 * MB), "a.wav") + part("model", b"ears") + END
    assert counter.client.post(PATH, content=late, headers=FORM).status_code == 429
    early = part("model", b"ears") + part("file", bytes(6 * MB), "a.wav") + END
    assert counter.client.post(PATH, content=early, headers=FORM).status_code == 200
    until(lambda: counter.application.budget.held == 0)


def test_an_upload_that_stalls_is_given_up(counter, model, monkeypatch):
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 0.3)
    for sent in (b"--" + BOUNDARY.encode(), part("model", b"ears") + part("file", SOUND, "a.wav")[:-2]):
        with begun_upload(counter, MB) as connection:
            connection.sendall(sent)
            answer = connection.recv(4096)
        assert b" 408 " in answer
        assert b"request_timeout" in answer
    until(lambda: counter.engine.seen()["uploading"] == 0)


def test_an_engine_may_answer_before_the_upload_ends(counter, model):
    refusal = {"send": unary(400, {"error": {"message": "this is no sound", "type": "BadRequestError", "code": 400}})}
    script = {"reading": '{"answer": true}', "script": json.dumps([refusal, {"wait": 10}, {"close": True}])}
    response = post(counter, script, bytes(8 * MB))  # which a busy machine may take seconds to send
    assert response.status_code == 400
    assert "this is no sound" in response.text
    assert counter.usage()[0].status == "refused"
    assert post(counter, {}).status_code == 200  # the next one is not mixed up with what was left of it


def test_an_engine_without_such_a_path_is_reported(counter, model):
    response = post(counter, {"script": json.dumps([{"send": unary(404, {"detail": "Not Found"})}])})
    assert (response.status_code, code(response)) == (400, "path_not_supported")


# --- replicas


def test_another_replica_is_tried_only_while_nothing_was_sent(counter, model):
    first = Replica.objects.get(model=model)
    first.url = "http://127.0.0.1:1"
    first.save()
    Replica.objects.create(model=model, host=Host.objects.get(), index=1, state="ready", url=counter.engine.url)
    counter.wait_for_catalogue()
    assert [post(counter, {}).status_code for _ in range(4)] == [200] * 4
    first.url = counter.engine.url
    first.save()
    counter.wait_for_catalogue()
    before = len(counter.engine.seen()["requests"])
    assert post(counter, {"script": json.dumps([{"reset": True}])}).status_code == 502
    assert len(counter.engine.seen()["requests"]) == before + 1


# --- who leaves, who is slow


def test_a_client_that_leaves_during_its_upload_costs_nothing(counter, model):
    with begun_upload(counter, 9 * MB) as connection:
        connection.sendall(part("model", b"ears") + part("file", SOUND, "a.wav")[:-2])
        until(lambda: counter.engine.seen()["uploaded"] > 0)
    begun = time.monotonic()
    until(lambda: counter.engine.seen()["uploading"] == 0)
    assert time.monotonic() - begun < 1
    (row,) = counter.usage()
    assert (row.status, row.prompt_tokens, row.completion_tokens) == ("aborted", 0, 0)


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_leaves_during_the_answer_frees_the_engine(counter, model, stream):
    begin = [{"send": SSE}, {"send": chunk(HEARD[0])}, {"send": chunk(HEARD[1])}] if stream == "true" else []
    content = part("model", b"ears") + part("stream", stream.encode())
    content += part("script", json.dumps([*begin, {"hang": True}]).encode()) + part("file", SOUND, "a.wav") + END
    with begun_upload(counter, len(content)) as connection:
        connection.sendall(content)
        until(lambda: counter.engine.seen()["running"] == 1)
        if begin:
            assert b"hello" in connection.recv(4096)
    begun = time.monotonic()
    until(lambda: counter.engine.seen()["left"] == 1)
    assert time.monotonic() - begun < 1
    (row,) = counter.usage()
    assert (row.status, row.prompt_tokens, row.estimated) == ("aborted", len(SOUND) // 160, True)


def test_an_engine_that_stops_reading_is_given_up_by_the_first_bytes_time_out(counter, model):
    model.first_byte_timeout = 0.5
    model.save()
    counter.wait_for_catalogue()
    response = post(counter, {"reading": '{"stop": true}'}, bytes(16 * MB))
    assert (response.status_code, code(response)) == (504, "engine_timeout")
    until(lambda: counter.engine.seen()["uploading"] == 0)


def test_an_engine_that_reads_slowly_slows_the_client(counter, model):
    content = part("model", b"ears") + part("reading", b'{"stop": true}') + part("file", bytes(64 * MB), "a.wav") + END
    sent = 0

    def write(connection: socket.socket) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            while sent < len(content):
                sent += connection.send(content[sent : sent + 65536])

    with begun_upload(counter, len(content)) as connection:
        writer = threading.Thread(target=write, args=(connection,))
        writer.start()
        assert at_rest(lambda: sent) < 24 * MB  # what the buffers of four sockets hold
        connection.shutdown(socket.SHUT_RDWR)
        writer.join(20)


# --- memory


def memory(pid: int, what: str) -> int:
    """Return bytes; `what` is VmRSS, or VmHWM for the most so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) * 1024


def test_150_mb_pass_through_in_little_memory(tmp_path):
    size, piece = 150 * MB, random.Random(1).randbytes(MB)

    def content() -> Iterator[bytes]:
        yield part("model", b"plain") + part("file", b"", "a.wav")[:-2]
        for _ in range(150):
            yield piece
        yield b"\r\n" + END

    with engine.running() as fake, installed(tmp_path / "var") as installation:
        headers = {"authorization": f"Bearer {installation.furnish(fake.url)}", **FORM}
        installation.serve()
        until(installation.answers)
        url, pid = f"{installation.url}{PATH}", installation.process.pid
        small = part("model", b"plain") + part("file", SOUND, "a.wav") + END
        assert httpx2.post(url, content=small, headers=headers, timeout=60).status_code == 200
        before = memory(pid, "VmRSS")
        answer = httpx2.post(url, content=content(), headers=headers, timeout=120)
        assert answer.json() == engine.TRANSCRIPT
        assert memory(pid, "VmHWM") - before < 20 * MB
        file = fake.seen()["requests"][-1]["body"]["file"]
        assert (file["size"], file["sha256"]) == (size, hashlib.sha256(piece * 150).hexdigest())
