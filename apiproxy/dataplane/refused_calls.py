"""The last refused calls one by one, on the way to the database, so that their callers can look up why. No I/O.

Best effort, and bounded, for a flood of refusals must not become one of rows: of each key and reason the first few of a
minute are kept, and of each caller and of all together so many, so that one caller's flood hides no one else's. Calls
with keys that are not usable are counted apart: which of these were ours only the database knows, so many of them are
kept on the way there, of each address a few, and what comes from many keys at one address hides nothing of others. What
was noted since the last flush is lost if the process is killed, and what comes while the database is away beyond
MAX_WAITING. `rejection_counts` counts all of them.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from apiproxy.dataplane.catalogue import Key
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.errors import InvalidKey, Refusal

MINUTE = 60.0  # seconds
PER_KEY = 10  # calls of a key that are refused for the same reason in a minute
PER_CALLER = 60  # of a person with all their keys, or of a service key, for whichever reasons
PER_MINUTE = 600  # of all keys that are usable, in one worker
# Of keys that are not, most of which never were ours in a flood: those are left out by one query for all.
UNKNOWN_PER_MINUTE = 1000
UNKNOWN_PER_ADDRESS = 20
MAX_WAITING = 5000  # that wait for the database, about 500 bytes each


class RefusedCall(NamedTuple):
    """A call that reached no engine. Nothing of what it asked for but the model's name."""

    request_id: str
    at: float  # Unix seconds
    key: int | None
    digest: str  # of a key that is not usable; "": the key is known
    tenant: int | None
    user: int | None
    model: str  # its own name; "" if none that the key may use
    endpoint: str  # "" if none of ours
    code: str
    reason: str  # the row of errors.MESSAGES, finer than the code
    scope: str  # of the limit that was reached: "tenant", "user", "member", "key"; "": none was
    window: str  # of the same: "minute", "day", "month"
    retry_after: int | None  # seconds
    waited_ms: int | None  # in the queue; None: it was refused at once


class RefusedCalls:
    def __init__(self) -> None:
        self._calls: list[RefusedCall] = []
        self._minute = 0.0  # when it began
        self._noted: Counter[tuple[int | str, str]] = Counter()  # in this minute, by key and reason
        self._callers: Counter[tuple[str, int | str]] = Counter()  # in this minute
        self._all = self._unknown = 0  # in this minute, of usable keys and of others
        self._addresses: Counter[str] = Counter()  # the latter, by where they come from

    def note(
        self,
        refusal: Refusal,
        key: Key | None,
        request_id: str,
        context: RequestContext | None,
        now: float,
        address: str = "",
    ) -> None:
        """Keep the call, at `now` (Unix seconds), unless too many are kept. Without a key its digest must be known.

        `address`: from where it came, needed without a key.
        """
        digest = refusal.digest if key is None and isinstance(refusal, InvalidKey) else ""
        if key is None and not digest:
            return
        if not 0 <= now - self._minute < MINUTE:
            self._minute, self._all, self._unknown = now, 0, 0
            self._noted.clear()
            self._callers.clear()
            self._addresses.clear()
        caller = ("user", key.user) if key is not None and key.user is not None else ("key", key.id if key else digest)
        owner = (key.id if key is not None else digest, refusal.text)
        if len(self._calls) >= MAX_WAITING or (self._is_full(address) if key is None else self._all >= PER_MINUTE):
            return
        if self._noted[owner] >= PER_KEY or self._callers[caller] >= PER_CALLER:
            return
        self._noted[owner] += 1
        self._callers[caller] += 1
        if key is None:
            self._unknown += 1
            self._addresses[address] += 1
        else:
            self._all += 1
        waited = context.seconds_waited if context is not None else None
        self._calls.append(
            RefusedCall(
                request_id=request_id,
                at=now,
                key=key.id if key is not None else None,
                digest=digest,
                tenant=key.tenant if key is not None else None,
                user=key.user if key is not None else None,
                model=refusal.model,
                endpoint=context.endpoint.path if context is not None else "",
                code=refusal.code,
                reason=refusal.text,
                scope=str(refusal.facts.get("scope", "")),
                window=str(refusal.facts.get("window", "")),
                retry_after=read_seconds(refusal.headers.get("retry-after", "")),
                waited_ms=None if waited is None else round(waited * 1000),
            )
        )

    def _is_full(self, address: str) -> bool:
        return self._unknown >= UNKNOWN_PER_MINUTE or self._addresses[address] >= UNKNOWN_PER_ADDRESS

    def take(self) -> Sequence[RefusedCall]:
        """Return all that were noted since the last time."""
        calls, self._calls = self._calls, []
        return calls

    def give_back(self, calls: Sequence[RefusedCall]) -> None:
        """Take back calls that could not be written; `take` returns them again, with what came meanwhile."""
        self._calls = [*calls, *self._calls][:MAX_WAITING]


def read_seconds(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else None
