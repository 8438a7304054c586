"""One call on its way through the gateway: who makes it, over which endpoint, and what it asks for."""

from dataclasses import dataclass, field

from apiproxy.dataplane.catalogue import Key, Model
from apiproxy.dataplane.client_address import ClientAddress
from apiproxy.dataplane.downstream import Client
from apiproxy.dataplane.formats.requests import Call, Endpoint
from apiproxy.dataplane.loops import UNWATCHED, LoopPolicy, Mode
from apiproxy.dataplane.stream.loop_guard import LoopGuard
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
    loops: Mode | None = None  # what the caller wants done about word loops; None: what the model's policy says
    guard: LoopGuard | None = field(default=None, init=False)
    presets: dict[str, float] = field(default_factory=dict, init=False)  # members that the model's presets change
    temperature: int | None = field(default=None, init=False)  # hundredths, as the engine gets it
    upload: Upload | None = field(default=None, init=False)  # what the engine is sent after the call's head
    head_sent: bool = field(default=False, init=False)  # the client has had the head of a stream, and heartbeats

    @property
    def request_bytes(self) -> int:
        """Bytes of the body, of an upload those that have come so far."""
        return self.call.size if self.upload is None else self.upload.received

    @property
    def loop_policy(self) -> LoopPolicy:
        """What is done about word loops in this call's answer: the caller decides before the key, the key the model."""
        policy = self.model.loops
        if self.endpoint.costs != "prompt and answer":
            return UNWATCHED
        if self.loops is not None:
            return LoopPolicy(self.loops, policy.least)
        return policy if self.key.guarded else UNWATCHED

    @property
    def streams(self) -> bool:
        """Whether the client is answered by a stream."""
        return self.call.stream and self.endpoint.streams
