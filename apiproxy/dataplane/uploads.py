"""Uploads (multipart/form-data) on their way to an engine, piece by piece, however large: never held whole.

The field `model` decides where the call goes and who may send it there. Clients that write the fields before the file
(openai-python, Dify, Open WebUI, everything that uses httpx or requests) are passed on from the file's first byte. What
comes before `model` is held in memory and nowhere else, because no recording may reach a disk: openai-node and OpenAI's
own curl example send `file` first, so up to MAX_HELD is held, which is OpenAI's own bound for a file; a larger file has
to come after its model's name.

A part goes on as it came, under the client's own boundary; only the value of `model` is replaced and, for streams,
`stream_include_usage` added. An upload cannot be replayed: once an engine has had a byte of it, no other can be tried.
"""

import asyncio
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from apiproxy.dataplane.catalogue import Limit
from apiproxy.dataplane.content_encoding import decode_body
from apiproxy.dataplane.downstream import Receive
from apiproxy.dataplane.errors import BadRequest, BodyTooLarge, BodyTooSlow, ClientDisconnected, Internal, Refusal
from apiproxy.dataplane.formats import transcription
from apiproxy.dataplane.formats.requests import Call, clean_end_user
from apiproxy.dataplane.memory_budget import MB
from apiproxy.dataplane.request_bodies import ArrivingBody, check_arriving
from apiproxy.dataplane.upstream import Connection
from apiproxy.dataplane.validation import MAX_MODEL_NAME, READERS, invalid_value

log = logging.getLogger("madoguchi.gateway")

# Bytes held of one upload until its model is known; all together draw on the memory budget.
MAX_HELD = 26 * MB
# Bytes written to an engine at a time: a slow one leaves most of 26 MB that were held where they are.
PIECE = 256 * 1024
# Seconds without a byte of an upload: a phone's connection may pause for a while, a slow loris for ever.
IDLE_SECONDS = 60.0
# A form has a dozen fields; each costs 20 µs to read.
MAX_PARTS = 200
# The fields that the gateway must know, and the longest value of one.
GATEWAY_FIELDS = frozenset({"model", "stream", "stream_include_usage", "user"})
SINGLE_FIELDS = frozenset({"stream", "stream_include_usage"})  # of two, engines take the first or the last
MAX_VALUE = 1024
# The longest value of any other: Whisper's prompts have 224 tokens.
MAX_TEXT = 16 * 1024

# What all parsers of forms read alike (RFC 7578, 4.2, which forbids `name*=utf-8''model`): some take the first of two
# names, some the last, and some undo escapes that others leave.
PARAMETER = re.compile(rb""";[ \t]*([\w\-*.]+)=("(?:[^"\\\r\n]|\\.)*"|[^\s";]+)[ \t]*""")
DISPOSITION = re.compile(rb"form-data[ \t]*(?:" + PARAMETER.pattern + rb")+", re.I)
NAME = re.compile(rb"[\w\-.\[\]]{1,100}")
PLAIN_ENCODINGS = frozenset({b"7bit", b"8bit", b"binary"})

BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")  # RFC 2046, 5.1.1


@dataclass(slots=True)
class Recording(Call):
    """A call with a file."""

    sound_bytes: int = 0  # size of the file; 0 until an engine has all of it and can begin to work

    @property
    def prompt_estimate(self) -> int:
        return transcription.estimate_sound_tokens(self.sound_bytes)


class Form:
    """Reads a form and rewrites it for an engine, sans I/O: `feed` it pieces, `take` what goes on."""

    def __init__(self, content_type: bytes) -> None:
        """Prepare to read a form with this content type. Raises BadRequest if it is not a form's."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not BOUNDARY.fullmatch(boundary):
            raise BadRequest("not_multipart", code="invalid_value")
        self.fields: dict[str, str] = {}
        self.file_begun = False
        self.size = 0  # bytes of the file so far
        self.ended = False
        self.waiting = 0  # bytes to take
        self._boundary = boundary
        self._out: list[bytearray | None] = []  # None: the model's name
        self._parts = 0
        self._name = b""
        self._is_file = False
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._head: list[bytes] = []
        self._value = bytearray()
        self._length = 0  # of a part that is no file
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    @property
    def model(self) -> str | None:
        return self.fields.get("model")

    def feed(self, piece: bytes) -> None:
        """Read a piece. Raises BadRequest if it does not belong to such a form."""
        if self.ended:
            return  # what follows the last boundary means nothing (RFC 2046)
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise BadRequest("invalid_form", code="invalid_value", detail="multipart") from error

    def finish(self) -> None:
        """Note that nothing more comes. Raises BadRequest if the form has not ended."""
        if not self.ended:
            raise BadRequest("invalid_form", code="invalid_value", detail="no final boundary")

    def take(self, model: str) -> bytes:
        """Return what may go on since the last time, under this name of the model."""
        out, self._out, self.waiting = self._out, [], 0
        return b"".join([model.encode() if part is None else part for part in out])

    def _emit(self, *parts: bytes | None) -> None:
        for part in parts:
            if part is None:
                self._out.append(None)
                continue
            self.waiting += len(part)
            if not self._out or self._out[-1] is None:
                self._out.append(bytearray())
            # Joined at once: the parser cuts where a boundary might begin, and a piece of one byte would take 42.
            self._out[-1] += part  # type: ignore[operator]

    # --- the parser calls

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BadRequest("invalid_form", code="invalid_value", detail="too many parts")
        self._name, self._is_file = b"", False
        self._header = (bytearray(), bytearray())
        self._head = []
        self._value = bytearray()
        self._length = 0  # of a part that is no file

    def _header_end(self) -> None:
        field, value = (bytes(part) for part in self._header)
        self._header = (bytearray(), bytearray())
        if field.lower() == b"content-disposition":
            if self._name:
                raise ambiguous_form("Content-Disposition")
            self._name, self._is_file = parse_disposition(value)
        elif field.lower() == b"content-transfer-encoding" and value.strip().lower() not in PLAIN_ENCODINGS:
            raise ambiguous_form("Content-Transfer-Encoding")
        self._head.append(field + b": " + value + b"\r\n")

    def _headers_finished(self) -> None:
        if not self._name:
            raise ambiguous_form("Content-Disposition")
        name = self._name.decode("latin-1")
        if name in SINGLE_FIELDS and name in self.fields:
            raise ambiguous_form(name)
        self.file_begun = self.file_begun or self._is_file
        self._emit(b"--" + self._boundary + b"\r\n", *self._head, b"\r\n")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._is_file:
            self.size += len(piece)
        elif self._name != b"file":  # a recording without a file's name is the engine's to judge
            self._add_field(self._name.decode("latin-1"), piece)
        if self._name != b"model":
            self._emit(piece)

    def _add_field(self, name: str, piece: bytes) -> None:
        """Collect a part that is not a file. Parts that no reader is for are bounded as well."""
        self._length += len(piece)
        if name in GATEWAY_FIELDS or name in READERS:
            self._value += piece
        most = MAX_VALUE if name in GATEWAY_FIELDS else MAX_TEXT
        if self._length > most:
            raise invalid_value("too_long", name[:MAX_MODEL_NAME], most=f"{most:,}", sent=f"{self._length:,}")

    def _part_end(self) -> None:
        name = self._name.decode("latin-1")
        if name == "model":
            self._emit(None)
        if name in GATEWAY_FIELDS and not self._is_file:
            self.fields[name] = self._value.decode(errors="replace").strip()
        elif not self._is_file and (reader := READERS.get(name)) is not None:
            # llama.cpp makes a chat of the form: a grammar kills it as it would there.
            reader(name, self._value.decode(errors="replace"))
        self._emit(b"\r\n")

    def _end(self) -> None:
        self.ended = True
        if is_true(self.fields, "stream") and not is_true(self.fields, "stream_include_usage"):
            disposition = b'Content-Disposition: form-data; name="stream_include_usage"'
            self._emit(b"--" + self._boundary + b"\r\n" + disposition + b"\r\n\r\ntrue\r\n")
        self._emit(b"--" + self._boundary + b"--\r\n")


def parse_disposition(value: bytes) -> tuple[bytes, bool]:
    """Return a part's name, and whether it is a file. Raises BadRequest for what could be read otherwise."""
    if not DISPOSITION.fullmatch(value.strip()):
        raise ambiguous_form("Content-Disposition")
    found = [(name.lower(), text) for name, text in PARAMETER.findall(value)]
    options = dict(found)
    name = options.get(b"name", b"").strip(b'"')
    others = [option for option, _ in found if option.startswith(b"name") and option != b"name"]
    misspelt = name.decode("latin-1").lower() in GATEWAY_FIELDS and name.decode("latin-1") not in GATEWAY_FIELDS
    if len(options) < len(found) or others or misspelt or not NAME.fullmatch(name):
        raise ambiguous_form("Content-Disposition")
    return name, b"filename" in options or b"filename*" in options


def ambiguous_form(what: str) -> BadRequest:
    return BadRequest("invalid_form", code="invalid_value", detail=what)


def is_true(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "").lower() in ("true", "1", "on", "yes")  # as FastAPI reads a form


class EngineExchange(Protocol):
    """The engine's answer, while the upload is on its way: a `relay.Exchange`."""

    heard_at: float
    now: Callable[[], float]

    def client_left(self) -> None: ...
    def cut_off(self, refusal: Refusal) -> bool: ...


class Upload:
    """One upload: `begin` it until its model is known, `start` it to an engine, `stop` it in any case.

    Until all of it has passed, it is the only reader of `receive`, and so the one to notice that the client has left.
    """

    def __init__(
        self,
        receive: Receive,
        headers: dict[bytes, bytes],
        arrival: ArrivingBody,
        limits: Sequence[Limit],
        *,
        most: int,
    ) -> None:
        """Prepare to read an upload.

        `most`: bytes of a body. `limits` of the caller, and `arrival`: see `request_bodies`. Raises BadRequest,
        UnknownCoding, OverRate, and BodyTooLarge where the length is given.
        """
        length = headers.get(b"content-length", b"0")
        # Its length in bytes; where that is not given (chunked), the most that OpenAI takes.
        self.expected = int(length) if length.isdigit() and int(length) else MAX_HELD
        self._most = most
        if length.isdigit() and int(length) > most:
            raise self._too_large()
        content_type = headers.get(b"content-type", b"")
        self._form = Form(content_type)
        self.content_type = content_type.decode("latin-1")
        coding = headers.get(b"content-encoding")
        self._receive = decode_body(receive, coding) if coding else receive
        self._read = 0
        self._more = True
        self._arrival = arrival
        self._share = arrival.share
        if self._share.owner.arriving:
            check_arriving(limits, self._share.owner.arriving)
        self._call: Recording | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def received(self) -> int:
        """Bytes of the body so far."""
        return self._read

    async def begin(self) -> Recording:
        """Read until it is known where the call goes; fields that follow the file may still change.

        Raises BadRequest, BodyTooLarge, OverMemory, BodyTooSlow and ClientDisconnected.
        """
        form = self._form
        self._share.owner.arriving += 1
        try:
            with self._arrival as arrival:
                while self._more and not (form.file_begun and form.model):
                    await self._read_piece()
                    arrival.note_progress()
                    self._reserve_memory()
        finally:
            self._share.owner.arriving -= 1
        if not form.model:
            raise BadRequest("missing_model", code="invalid_value", param="model")
        # Not a stream before all of it is there: a client that is still writing expects no heartbeats.
        self._call = Recording(
            body=b"",
            fields={},
            model=form.model,
            stream=False,
            asks_usage=False,
            end_user=clean_end_user(form.fields.get("user")),
        )
        return self._call

    def start(
        self, connection: Connection, answer: EngineExchange, model: str, on_complete: Callable[[Call], None]
    ) -> None:
        """Begin to pass the upload on as the body of the request just sent, under the model's name there.

        `on_complete(call)` is called with the complete call once the engine has all of it.
        """
        connection.expect_body()
        self._task = asyncio.create_task(self._pass_on(connection, answer, model, on_complete))

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # --- reading

    async def _read_piece(self) -> None:
        """Read one piece."""
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                message = await self._receive()
        except TimeoutError as error:
            raise BodyTooSlow("request_timeout", seconds=math.ceil(IDLE_SECONDS)) from error
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        piece: bytes = message.get("body", b"")
        self._read += len(piece)
        if self._read > self._most:
            raise self._too_large()
        self._form.feed(piece)
        self._more = message.get("more_body", False)
        if not self._more:
            self._form.finish()

    def _reserve_memory(self) -> None:
        """Count what waits for the model's name. Raises BadRequest if that is too much, and OverMemory."""
        waiting = self._form.waiting
        if waiting > MAX_HELD:
            raise BadRequest("model_too_late", code="invalid_value", param="model")
        self._share.take(waiting - self._share.held)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge("request_too_large", limit=self._most // MB)

    # --- passing on

    async def _pass_on(
        self, connection: Connection, answer: EngineExchange, model: str, on_complete: Callable[[Call], None]
    ) -> None:
        """Pass on the whole upload; if that fails, end the answer with the reason."""
        try:
            await self._write_body(connection, answer, model)
            on_complete(self._complete_call())
        except ClientDisconnected:
            answer.client_left()
        except Refusal as refusal:
            answer.cut_off(refusal)
        except Exception:  # a fault of ours: the client must not wait for a time-out
            log.exception("an upload could not be passed on")
            answer.cut_off(Internal())

    async def _write_body(self, connection: Connection, answer: EngineExchange, model: str) -> None:
        """Write the whole body, no faster than the engine takes it."""
        while True:
            held = self._form.take(model)
            for at in range(0, len(held), PIECE):
                await connection.write(frame_chunk(held[at : at + PIECE]))
                answer.heard_at = answer.now()  # the engine reads
            self._share.give_back(self._share.held)
            if not self._more:
                break
            await self._read_piece()
        await connection.write(b"0\r\n\r\n")
        connection.finish_body()

    def _complete_call(self) -> Recording:
        assert self._call is not None
        fields = self._form.fields
        return replace(
            self._call,
            stream=is_true(fields, "stream"),
            asks_usage=is_true(fields, "stream_include_usage"),
            end_user=clean_end_user(fields.get("user")),
            sound_bytes=self._form.size,
        )


def frame_chunk(piece: bytes) -> bytes:
    """Frame a piece in HTTP/1.1's chunked coding: the length of a rewritten form is known only at its end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)
