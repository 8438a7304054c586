"""One call on its way through the gateway: who makes it, over which endpoint, and what it asks for."""

from dataclasses import dataclass, field

from apiproxy.dataplane.catalogue import Key, Model
from apiproxy.dataplane.client_address import ClientAddress
from apiproxy.dataplane.downstream import Client
from apiproxy.dataplane.formats.requests import Call, Endpoint
from apiproxy.dataplane.uploads import Upload


@dataclass(slots=True, eq=False)
class RequestContext:
    """Made once, when the caller is authenticated; `call` and `model` are set when the body (or its head) is read."""

    request_id: str
    endpoint: Endpoint
    key: Key
    caller: ClientAddress
    client: Client
    call: Call = field(init=False)  # of an upload, what its head says until all of it has been read
    model: Model = field(init=False)  # as the catalogue has it, looked up again after a wait
    upload: Upload | None = field(default=None, init=False)  # what the engine is sent after the call's head
    head_sent: bool = field(default=False, init=False)  # the client has had the head of a stream, and heartbeats

    @property
    def request_bytes(self) -> int:
        """Bytes of the body, of an upload those that have come so far."""
        return self.call.size if self.upload is None else self.upload.received

    @property
    def streams(self) -> bool:
        """Whether the client is answered by a stream."""
        return self.call.stream and self.endpoint.streams
