"""What watches a stream on its way to the client, and may stop it.

An observer belongs to one call. It is fed by `relay.Exchange` with whole events, before the client has them. A call
without one keeps the fast path, on which most events are not even parsed; so observe what needs it alone.
"""

from typing import Protocol

from apiproxy.dataplane.errors import Refusal


class StreamObserver(Protocol):
    def feed(self, events: bytes) -> Refusal | None:
        """Look at whole events in the engine's format, also at those of an answer that is assembled for the client.

        Return None to go on, or a refusal to stop the engine: the client is sent it in place of these events and of all
        that follow.
        """
