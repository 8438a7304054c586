"""What watches a stream on its way to the client, and may stop it.

An observer belongs to one call. It is fed by `relay.Exchange` with whole events, before the client has them. A call
without one keeps the fast path, on which most events are not even parsed; so observe what needs it alone.
"""

from typing import Protocol

from apiproxy.dataplane.errors import Refusal

# None: go on. A refusal: stop the engine and send the client this in place of the events and of all that follow.
Verdict = Refusal | None


class StreamObserver(Protocol):
    def feed(self, events: bytes) -> Verdict:
        """Look at whole events in the engine's format; those of an answer that is assembled for the client too."""
