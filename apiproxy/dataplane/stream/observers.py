"""What watches a stream on its way to the client, and may stop it.

An observer belongs to one call. It is fed by `relay.Exchange` with whole events, before the client has them.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from apiproxy.dataplane.errors import Refusal


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """End an answer here, as if it had reached its bound of tokens: the client gets a well-formed end, no error."""

    notice: dict[str, Any] = field(default_factory=dict)  # what the end says of the reason
    choice: int = 0  # which of several answers; the others go on


class StreamObserver(Protocol):
    @property
    def may_stop(self) -> bool:
        """Whether `feed` ever returns an `EarlyStop`."""

    def feed(self, events: bytes, /) -> Refusal | EarlyStop | None:
        """Look at whole events in the engine's format, also at those of an answer that is assembled for the client.

        It is called for nearly every token, so it takes no more than half a microsecond (tests/bench/RESULTS.md).
        Return None to go on, or how to stop. A refusal takes the place of these events and of all that follow; with a
        `EarlyStop`, an end in the API's own form follows them.
        """

    def ended_itself(self, choice: int, /) -> None:
        """Note that this answer was not stopped: it has ended by itself, in the events that were looked at."""
