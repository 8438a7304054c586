"""What a gateway is built from. `apiproxy.server.asgi` builds one of these for its process, tests build others."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.cors import Origins
from apiproxy.dataplane.crash_suspects import CrashSuspects
from apiproxy.dataplane.feedback import Record, record_nowhere
from apiproxy.dataplane.formats.requests import RequestPolicy
from apiproxy.dataplane.ledger import Spool
from apiproxy.dataplane.limits.local import Admission
from apiproxy.dataplane.memory_budget import MemoryBudget
from apiproxy.dataplane.metrics import Metrics
from apiproxy.dataplane.shared_queue import SharedQueue
from apiproxy.dataplane.stream.loop_guard import LoopGuard
from apiproxy.dataplane.stream.observers import StreamObserver
from apiproxy.dataplane.throughput import ThroughputEstimator
from apiproxy.dataplane.traces import TraceExporter
from apiproxy.dataplane.wake_ups import WakeUp


def watch_for_loops(context: RequestContext) -> LoopGuard | None:
    """Return what watches the call's answer; None: it goes through as it comes."""
    policy = context.loop_policy
    if policy.mode == "off":
        return None
    context.guard = LoopGuard(policy)
    return context.guard


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    # Of a key's text, as the catalogue may know it, the likeliest first; none: it cannot be a key.
    digests: Callable[[str], Sequence[str]]
    refresh: Callable[[], Awaitable[None]]  # makes the catalogue as new as is cheap; an unknown key waits for it
    limits: Admission
    spool: Spool
    metrics: Metrics
    budget: MemoryBudget  # by ids of keys
    policy: RequestPolicy
    max_body: int  # bytes
    max_upload: int  # bytes
    origins: Origins  # of pages that may call from a browser
    proxies: int  # proxies of ours in front, which are believed where a caller comes from
    suspects: CrashSuspects
    request_wake_up: Callable[[WakeUp], None]  # has a sleeping model loaded
    shared_queue: SharedQueue | None = None  # with other gateways, if these may share the engines
    observe: Callable[[RequestContext], StreamObserver | None] = watch_for_loops  # what watches a call's stream
    record_feedback: Record = record_nowhere
    traces: TraceExporter | None = None
    throughput: ThroughputEstimator = field(default_factory=ThroughputEstimator)
    wall: Callable[[], float] = time.time  # Unix seconds
    clock: Callable[[], float] = time.monotonic  # seconds
