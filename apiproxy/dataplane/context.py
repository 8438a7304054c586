"""One call on its way through the gateway: who makes it, over which endpoint, and what it asks for."""

from dataclasses import dataclass, field

from apiproxy.dataplane.catalogue import Key, Model
from apiproxy.dataplane.client_address import ClientAddress
from apiproxy.dataplane.downstream import Client
from apiproxy.dataplane.formats.requests import Call, Endpoint
from apiproxy.dataplane.loops import UNWATCHED, LoopPolicy, Mode
from apiproxy.dataplane.prefix_routing import ExpectedCost, PromptPrefix
from apiproxy.dataplane.stream.loop_guard import LoopGuard
from apiproxy.dataplane.traces import TraceContext
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
    replica: int | None = None  # the id of the only one that it may go to, of a canary's call
    trace: TraceContext | None = None  # None: no traces are made
    guard: LoopGuard | None = field(default=None, init=False)
    presets: dict[str, float] = field(default_factory=dict, init=False)  # members that the model's presets change
    temperature: int | None = field(default=None, init=False)  # hundredths, as the engine gets it
    upload: Upload | None = field(default=None, init=False)  # what the engine is sent after the call's head
    prefix: PromptPrefix | None = field(default=None, init=False)  # if it matters which of several replicas reads it
    expected: ExpectedCost | None = field(default=None, init=False)  # what that was expected to cost where it went
    waited: float | None = field(default=None, init=False)  # seconds in the queue; None: it went at once
    loading: float = field(default=0.0, init=False)  # of these, while its model was being loaded
    restarting: float = field(default=0.0, init=False)  # seconds until an engine that died before it came was replaced
    head_sent: bool = field(default=False, init=False)  # the client has had the head of a stream, and heartbeats

    @property
    def seconds_waited(self) -> float | None:
        """Seconds before an engine had it; None: it went at once."""
        return self.waited if not self.restarting else (self.waited or 0.0) + self.restarting

    @property
    def request_bytes(self) -> int:
        """Bytes of the body, of an upload those that have come so far."""
        return self.call.size if self.upload is None else self.upload.received

    @property
    def end_user(self) -> str:
        """The person behind the key's program, as far as the key is believed: "" for none."""
        return self.caller.end_user or ("" if self.key.user_secret else self.call.end_user)

    @property
    def turn_name(self) -> str:
        """Whose turn the call takes among those of its key, if these have turns of their own; "" for none."""
        return self.caller.end_user_id or self.end_user

    @property
    def loop_policy(self) -> LoopPolicy:
        """What is done about word loops in this call's answer: the caller decides before the key, the key the model."""
        policy = self.model.loops
        if self.endpoint.costs != "prompt and answer" or self.call.fields.get("echo"):
            return UNWATCHED  # of an echo, no event says where the prompt ends and the answer begins
        if self.loops is not None:
            return LoopPolicy(self.loops, policy.least)
        return policy if self.key.guarded else UNWATCHED

    @property
    def streams(self) -> bool:
        """Whether the client is answered by a stream."""
        return self.call.stream and self.endpoint.streams
