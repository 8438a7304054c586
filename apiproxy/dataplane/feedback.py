"""`POST /v1/feedback`: what a caller says about the answer to one of its requests. No engine is involved.

The body names a request by its id; whether it is the caller's own is known by its usage, so the database is asked, in a
thread. It holds no prompt and no answer, and nothing of it is logged.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple

import orjson

from apiproxy.dataplane.catalogue import Key
from apiproxy.dataplane.errors import BadRequest, BodyTooLarge, FeedbackUnavailable, OverRate, UnknownRequest
from apiproxy.dataplane.formats.requests import decode_json

PATH = "/v1/feedback"
MAX_BODY = 16 * 1024  # bytes; a comment of the greatest length has 6 kB
MAX_COMMENT = 1000  # characters
MAX_ID = 40
MAX_NUMBER = 10**15
MINUTE = 60.0  # seconds
PER_MINUTE = 60  # of one key, in one worker: a person presses no more thumbs

Outcome = Literal["recorded", "pending", "unknown", "old", "many"]
MEMBERS = frozenset({"request_id", "score", "comment", "model", "use_case", "use_case_version"})


class FeedbackNote(NamedTuple):
    """What was said, by which key."""

    key: int
    tenant: int
    user: int | None
    request_id: str
    score: int  # 1 or -1
    comment: str
    model: str  # under which it was called, "" if not said
    use_case: int  # an id, 0 if not said
    use_case_version: int


Record = Callable[[FeedbackNote], Awaitable[Outcome]]


async def record_nowhere(note: FeedbackNote) -> Outcome:
    """Refuse: for a gateway without a database. Raises FeedbackUnavailable."""
    raise FeedbackUnavailable("feedback_unavailable", headers={"retry-after": "30"})


class FeedbackDoor:
    """Reads, bounds and passes on what callers say. `record` blocks for seconds at most, see `Services`."""

    def __init__(self, record: Record, wall: Callable[[], float]) -> None:
        self._record = record
        self._wall = wall
        self._minute = 0.0  # when it began
        self._taken: Counter[int] = Counter()  # in this minute, by key

    def check_rate(self, key: Key) -> None:
        """Count one of the key's. Raises OverRate. Call it before the body is read."""
        now = self._wall()
        if not 0 <= now - self._minute < MINUTE:
            self._minute = now
            self._taken.clear()
        self._taken[key.id] += 1
        if self._taken[key.id] > PER_MINUTE:
            raise OverRate("feedback_rate", type="requests", headers={"retry-after": "60"}, amount=PER_MINUTE)

    async def take(self, key: Key, body: bytes) -> tuple[int, bytes]:
        """Return the status and the body of the answer. Raises Refusal."""
        note = parse_feedback(key, body)
        outcome = await self._record(note)
        if outcome == "unknown":
            raise UnknownRequest("request_not_found", param="request_id", id=note.request_id)
        if outcome == "old":
            raise BadRequest("request_too_old", param="request_id")
        if outcome == "many":
            raise OverRate("feedback_rate", type="requests", headers={"retry-after": "3600"}, amount=PER_MINUTE)
        answer = {"object": "feedback", "request_id": note.request_id, "score": note.score, "status": outcome}
        return (200 if outcome == "recorded" else 202), orjson.dumps(answer)


def check_length(headers: dict[bytes, bytes]) -> None:
    """Raise BodyTooLarge for a body of which the head says that it is too long, before it is read."""
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > MAX_BODY:
        raise BodyTooLarge("feedback_too_large", code="request_too_large", limit=MAX_BODY // 1024)


def parse_feedback(key: Key, body: bytes) -> FeedbackNote:
    """Return what a body says, with every value within its bounds. Raises BadRequest."""
    if len(body) > MAX_BODY:
        raise BodyTooLarge("feedback_too_large", code="request_too_large", limit=MAX_BODY // 1024)
    fields = decode_json(body)
    if not isinstance(fields, dict):
        raise BadRequest("not_an_object", code="invalid_json")
    for name in fields:
        if name not in MEMBERS:
            raise _refuse(str(name)[:40], "unknown member")
    score = fields.get("score")
    if isinstance(score, bool) or score not in (1, -1):
        raise _refuse("score", "1 or -1")
    return FeedbackNote(
        key=key.id,
        tenant=key.tenant,
        user=key.user,
        request_id=_read_id(fields.get("request_id")),
        score=int(score),
        comment=_read_text(fields, "comment", MAX_COMMENT),
        model=_read_text(fields, "model", 100),
        use_case=_read_number(fields, "use_case"),
        use_case_version=_read_number(fields, "use_case_version"),
    )


def _read_id(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID or not (value.isascii() and value.isprintable()):
        raise _refuse("request_id", "the id of a request")
    return value


def _read_text(fields: dict[str, Any], name: str, most: int) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _refuse(name, "a text")
    value = value.replace("\r\n", "\n").replace("\r", "\n")  # a line break is one character, as in the portal
    if "\0" in value:
        raise _refuse(name, "a text without the character U+0000")
    if len(value) > most:
        raise BadRequest("too_long", code="invalid_value", param=name, most=most, sent=len(value))
    return value.encode(errors="replace").decode()  # half a pair of surrogates is no text to a database


def _read_number(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MAX_NUMBER:
        raise _refuse(name, "a whole number")
    return value


def _refuse(param: str, detail: str) -> BadRequest:
    return BadRequest("invalid_value", param=param, detail=detail)
