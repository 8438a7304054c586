"""The life of a request: authenticate, read, schedule, admit, forward, settle, record.

A plain ASGI callable. It never touches the database: keys, models and replicas come from the catalogue in memory, usage
goes to the spool. What happens when a neighbour is away:

- database: the last catalogue stays in force, usage waits in the spool; nothing else changes;
- engine: another replica is tried once, then 503; a stream that had begun ends with an error event. What an engine has
  begun to work on goes to no other: it may be what the engine dies of (see `crash_suspects`);
- disk: no new work (503) until the spool can be written again;
- client: the engine is stopped, and what it had generated is metered.
"""

import asyncio
import logging
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from apiproxy.dataplane import access_log, feedback, forwarding, media_urls, sampling
from apiproxy.dataplane.auth import Authenticator, bearer_text
from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.call_meter import CallMeter
from apiproxy.dataplane.catalogue import Catalogue, Key, Model, Replica
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.crash_inquiry import CrashInquiry
from apiproxy.dataplane.crash_suspects import MEMORY, PROOF
from apiproxy.dataplane.downstream import Client, Receive, Scope, Send, client_of
from apiproxy.dataplane.engine_pools import EnginePools
from apiproxy.dataplane.engine_requests import must_stream_upstream
from apiproxy.dataplane.errors import (
    BadRequest,
    ClientDisconnected,
    Internal,
    InvalidKey,
    Language,
    MeteringUnavailable,
    ModelUnavailable,
    Refusal,
    UnknownModel,
    UnknownPath,
    WrongMethod,
    release_frames,
)
from apiproxy.dataplane.executor import DaemonExecutor
from apiproxy.dataplane.fairness import FairnessLog
from apiproxy.dataplane.feedback import FeedbackDoor
from apiproxy.dataplane.formats import requests, transcription
from apiproxy.dataplane.formats.api_formats import CHAT, MESSAGES, ApiFormat
from apiproxy.dataplane.formats.requests import ENDPOINTS, Call, Endpoint
from apiproxy.dataplane.forwarding import Forwarder, NotTaken, OpenCalls
from apiproxy.dataplane.host_watch import Heartbeat
from apiproxy.dataplane.limits.units import Consumption
from apiproxy.dataplane.loops import MODES, Mode, read_mode
from apiproxy.dataplane.metrics import Gauge, WorkerState
from apiproxy.dataplane.queue_snapshot import QueueSnapshot
from apiproxy.dataplane.reachability import Reachability
from apiproxy.dataplane.refused_calls import RefusedCalls
from apiproxy.dataplane.rejection_counts import RejectionCounts
from apiproxy.dataplane.relay import Exchange
from apiproxy.dataplane.request_bodies import RequestBodies
from apiproxy.dataplane.room import EngineLoad
from apiproxy.dataplane.routes import find_intended_path, normalise_path
from apiproxy.dataplane.scheduler import Lease, Scheduler
from apiproxy.dataplane.services import Services
from apiproxy.dataplane.stream.observers import StreamObserver
from apiproxy.dataplane.traces import read_trace
from apiproxy.dataplane.uploads import Upload
from apiproxy.dataplane.upstream import Header
from apiproxy.dataplane.wake_ups import WakeUp

log = logging.getLogger("madoguchi.gateway")

# Bytes of a body above which a thread reads it: 340,000 empty lists of a megabyte take 0.2 s.
LARGE = 128 * 1024

LOOPS_HEADER = b"x-madoguchi-loops"
REPLICA_HEADER = b"x-madoguchi-replica"  # an id; heeded in a canary's calls alone
WAITED_HEADER = b"x-madoguchi-waited"  # seconds in the queue, of a call that did not go at once
RESTARTS = 2  # how often a call that no engine has had is queued again; each may wait as long as any call
RESTART_SEEN = 5.0  # seconds within which the catalogue lacks an engine that died: a supervisor looks each second
LASTING = frozenset({"day", "month"})  # windows that end later than any call waits
JSON: Header = (b"content-type", b"application/json")


class Gateway:
    """The gateway of one worker. Its methods from `replace` on are called by `apiproxy.server.asgi`."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.catalogue = Catalogue(revision=-1)
        self.rejections = RejectionCounts()
        self.refused_calls = RefusedCalls()
        self.wall, clock = services.wall, services.clock
        self._clock = clock
        self._is_crossed = bool(services.origins)
        self._auth = Authenticator(services, catalogue=lambda: self.catalogue, wall=lambda: self.wall())
        self._bodies = RequestBodies(most=services.max_body, budget=services.budget, clock=clock)
        self._feedback = FeedbackDoor(services.record_feedback, lambda: self.wall())
        self._loop = asyncio.get_running_loop()
        self._replaced: asyncio.Future[None] = self._loop.create_future()  # ends when there is another catalogue
        self._parser = DaemonExecutor("bodies")
        self._request_ids = RequestIds()
        self._open_calls: OpenCalls = {}
        balancer = self._balancer = Balancer()
        pools = self._pools = EnginePools(clock)
        reachability = self.reachability = Reachability(
            balancer, pools, self._open_calls, catalogue=lambda: self.catalogue, clock=clock
        )
        self._inquiry = CrashInquiry(
            services, reachability, balancer, pools, self._open_calls, catalogue=lambda: self.catalogue
        )
        self._forwarder = Forwarder(
            services,
            balancer,
            pools,
            reachability,
            self._inquiry,
            self._open_calls,
            record_rejection=self._record_call_rejection,
        )
        self.fairness = FairnessLog(lambda: self.wall())
        self._scheduler = Scheduler(
            balancer,
            find_model=lambda name: self.catalogue.models.get(name),
            find_called_model=self._find_called_model,
            request_wake_up=services.request_wake_up,
            is_gone=reachability.is_gone,
            is_looked_after=reachability.is_looked_after,
            clock=clock,
            check_quota=self._check_quota,
            memory=services.budget.total // 8,
            fairness=self.fairness,
            shared=services.shared_queue,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = client_of(scope, receive, send)
        request_id = self._request_ids.new()
        headers = dict(scope["headers"])
        path, endpoint = find_endpoint(scope["path"])
        api_format = endpoint.api_format if endpoint else CHAT
        if self._is_crossed or api_format is MESSAGES:
            client.always = self._common_headers(api_format, headers, request_id)
        language: Language = "ja" if headers.get(b"accept-language", b"").startswith(b"ja") else "en"
        key: Key | None = None
        context: RequestContext | None = None
        try:
            if endpoint is None:
                check_base_url(path)
            if scope["method"] == "OPTIONS":  # browsers ask without a key what they may ask
                client.answer(200, self._options(path, headers, request_id), b"")
                await client.sent()
                return
            text = bearer_text(headers)
            key = self._auth.find_used_key(text) or await self._auth.find_key(text)
            language = key.language
            caller = self._auth.locate(key, scope, headers)
            if endpoint is None or scope["method"] != "POST":
                status, body = await self._answer_itself(path, scope["method"], key, headers, receive)
                client.answer(status, [JSON, (b"x-request-id", request_id.encode())], body)
            else:
                replica = read_replica(headers) if key.canary else None
                loops = read_loop_mode(headers, scope["headers"])
                context = RequestContext(request_id, endpoint, key, caller, client, loops=loops, replica=replica)
                serve = self._serve_upload if endpoint.costs == "sound" else self._serve_body
                await serve(context, headers, receive)
        except Refusal as refusal:
            release_frames(refusal)
            address = "" if key is not None else self._auth.find_origin(scope, headers).address
            self._record_rejection(refusal, key, request_id, context, address)
            send_refusal(client, refusal, api_format, language, request_id)
        except ClientDisconnected as left:
            release_frames(left)
            log.debug("%s: the client left before its request was complete", request_id)
        except Exception as error:  # nothing that a client sends may show it our stack
            log.exception("call %s", request_id, extra={"facts": {"request_id": request_id}})
            release_frames(error)
            send_refusal(client, Internal(), api_format, language, request_id)
        await client.sent()

    def _common_headers(self, api_format: ApiFormat, headers: dict[bytes, bytes], request_id: str) -> list[Header]:
        """Return the headers of whatever is answered to a page of another origin, or to one of Anthropic's SDKs."""
        common = self.services.origins.headers(headers.get(b"origin")) if self._is_crossed else []
        return [*common, (b"request-id", request_id.encode())] if api_format is MESSAGES else common

    def _record_rejection(
        self, refusal: Refusal, key: Key | None, request_id: str, context: RequestContext | None, address: str = ""
    ) -> None:
        """Count and log a refusal. The usage of a call that reached an engine shows it already.

        `address`: from where it came, of a call without a usable key.
        """
        self.services.metrics.count_rejection(refusal.code)
        if refusal.logged:
            return
        access_log.log_rejection(request_id, key.id if key else None, refusal)
        if key is not None:  # a flood of made-up keys is counted for no one
            self.rejections.count(key, refusal.model, refusal.code, self.wall())
        self.refused_calls.note(refusal, key, request_id, context, self.wall(), address)

    # --- answered without an engine

    async def _answer_itself(
        self, path: str, method: str, key: Key, headers: dict[bytes, bytes], receive: Receive
    ) -> tuple[int, bytes]:
        """Return the status and the body of what no engine answers. Raises Refusal."""
        if path != feedback.PATH or method != "POST":
            return 200, self._look_up(path, method, key)
        self._feedback.check_rate(key)
        feedback.check_length(headers)
        with self.services.budget.share(key.id) as share:
            body = await self._bodies.read(headers, receive, share, key.limits)
            return await self._feedback.take(key, body)

    def _options(self, path: str, headers: dict[bytes, bytes], request_id: str) -> list[Header]:
        """Return the headers of the answer to OPTIONS. Raises UnknownPath."""
        methods = methods_of(path).encode()
        allowed = self.services.origins.preflight(headers, methods)
        return [(b"x-request-id", request_id.encode()), (b"allow", methods), *allowed]

    def _look_up(self, path: str, method: str, key: Key) -> bytes:
        """Return the body of the models' list or of one model. Raises UnknownPath, WrongMethod or UnknownModel."""
        methods = methods_of(path)
        if method not in ("GET", "HEAD") or not is_models(path):
            raise WrongMethod("method_not_allowed", path=path, method=method, headers={"allow": methods})
        name = path.removeprefix("/v1/models").removeprefix("/")
        if not name:
            return requests.encode_models(self.catalogue.offered_models(key, self.wall()))
        return requests.encode_model(name, self._model(key, name))

    def _model(self, key: Key, name: str) -> Model:
        """Return the model of this name or alias. Raises UnknownModel."""
        model = self.catalogue.model(key, name)
        if model is None:
            raise UnknownModel("model_not_found", model=name)
        if model.retires is not None and self.wall() >= model.retires.at:
            raise UnknownModel("model_retired", model=name, day=model.retires.day)
        return model

    def _find_called_model(self, context: RequestContext) -> Model:
        """Return the model that a waiting call asks for, and note its key as it is now.

        Raises UnknownModel, and InvalidKey for a key that was revoked or has expired.
        """
        catalogue = self.catalogue
        key = catalogue.key(catalogue.digests.get(context.key.id, ""), self.wall())
        if key is None:
            raise InvalidKey("invalid_api_key")
        context.key = key
        return self._model(key, context.call.model)

    # --- answered by engines

    async def _serve_body(self, context: RequestContext, headers: dict[bytes, bytes], receive: Receive) -> None:
        client, key = context.client, context.key
        if self.services.traces is not None:
            context.trace = read_trace(headers)
        share = self.services.budget.share(key.id)
        try:
            body = None if b"content-encoding" in headers else client.arrived()
            if body is None:
                body = await self._bodies.read(headers, receive, share, key.limits)
            else:  # as nearly always: there is nothing to wait for, or to watch (10 µs)
                self._bodies.take(body, share)
            context.call = requests.parse(body) if len(body) <= LARGE else await self._parse(body)
            context.call.share = share
            await self._serve(context)
        finally:
            share.close()

    async def _parse(self, body: bytes) -> Call:
        """Parse a large body in a thread: streams go on except while JSON itself is decoded."""
        return await self._loop.run_in_executor(self._parser, requests.parse, body)

    async def _serve_upload(self, context: RequestContext, headers: dict[bytes, bytes], receive: Receive) -> None:
        if self.services.traces is not None:
            context.trace = read_trace(headers)
        with self.services.budget.share(context.key.id) as share:
            arrival = self._bodies.arrival(share)
            upload = Upload(receive, headers, arrival, context.key.limits, most=self.services.max_upload)
            try:
                context.call = await upload.begin()
                context.upload = upload
                await self._serve(context)
            finally:
                await upload.stop()

    async def _serve(self, context: RequestContext) -> None:
        """Schedule, admit and forward the call. Raises Refusal, unless the client has had the head of a stream."""
        context.model = self._model(context.key, context.call.model)
        try:
            self._check_call(context)
            for _ in range(RESTARTS):
                try:
                    await self._lease_and_forward(context)
                    return
                except NotTaken as fault:
                    release_frames(fault)
                    await self._await_restart(context, fault.replica)
            await self._lease_and_forward(context)
        except ClientDisconnected:
            raise
        except NotTaken as fault:
            self._refuse_call(context, fault.refusal)
        except Refusal as refusal:
            self._refuse_call(context, refusal)
        except Exception:
            log.exception("call %s", context.request_id, extra={"facts": {"request_id": context.request_id}})
            self._refuse_call(context, Internal())

    async def _lease_and_forward(self, context: RequestContext) -> None:
        """Wait for a replica and send it the call. Raises Refusal, NotTaken."""
        lease: Lease | None = None
        try:
            deaths = await self._count_deaths(context) if self.services.suspects.known else 0
            lease = await self._scheduler.acquire(context)
            if context.replica is not None:
                move_to_chosen(context, lease)
            if context.waited is not None:
                self.services.metrics.observe_wait(context.model.name, context.waited)
            if lease.waited:  # minutes, perhaps
                self._check_call(context)
                deaths = await self._count_deaths(context)
            await self._admit_and_forward(context, lease, is_suspected=deaths > 0)
        finally:
            if lease is not None:
                lease.release()

    async def _await_restart(self, context: RequestContext, replica: Replica) -> None:
        """Wait until the catalogue says that the replica, which did not take the call, is restarted.

        Raises Refusal, ClientDisconnected.
        """
        began, departure = self._clock(), Departure(self._loop)
        if context.upload is None:  # else its body shows, when it is read, that its client disconnects
            context.client.listen(departure)
        try:
            while self._is_listed(replica) and (left := began + RESTART_SEEN - self._clock()) > 0:
                either = self._replaced, departure.noticed
                await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if departure.noticed.done():
                    raise ClientDisconnected
        except asyncio.CancelledError:  # by the server, which does not wait for open calls any longer
            raise ModelUnavailable("shutting_down", headers={"retry-after": "5"}) from None
        finally:
            context.client.unsubscribe()
        context.model = self._find_called_model(context)
        context.restarting += self._clock() - began + (context.waited or 0.0)
        context.waited = None

    def _is_listed(self, replica: Replica) -> bool:
        """Return whether the catalogue says that the replica answers, at the same address."""
        return any(replica.url == one.url for model in self.catalogue.models.values() for one in model.replicas)

    def _refuse_call(self, context: RequestContext, refusal: Refusal) -> None:
        """Raise the refusal, unless the client has had the head of a stream: then send it there."""
        if not context.head_sent:
            refusal.model = context.model.name
            raise refusal from None
        self._end_stream(context, refusal)

    def _end_stream(self, context: RequestContext, refusal: Refusal) -> None:
        """Send the error to a client that has had the head of a stream, in the stream."""
        release_frames(refusal)
        self._record_call_rejection(context, refusal)
        api_format = context.endpoint.api_format
        context.client.last(api_format.encode_event(refusal, context.key.language) + api_format.stream_terminator)

    def _record_call_rejection(self, context: RequestContext, refusal: Refusal) -> None:
        refusal.model = context.model.name
        self._record_rejection(refusal, context.key, context.request_id, context)

    def _check_call(self, context: RequestContext) -> None:
        """Raise Refusal for what the model cannot do or the site forbids, and while usage cannot be recorded."""
        model, endpoint = context.model, context.endpoint
        if model.task not in endpoint.tasks and not model.external:
            raise BadRequest(
                "model_not_supported", param="model", model=model.name, path=endpoint.path, task=model.task
            )
        if context.call.media:
            media_urls.check(context.call.media, self.services.policy.media_domains)
        if not self.services.spool.accepting:
            raise MeteringUnavailable("metering_unavailable", headers={"retry-after": "5"})

    async def _count_deaths(self, context: RequestContext) -> int:
        """Return how many engines died under this very call, once it is known. Raises BadRequest if it is to blame."""
        suspects, key, identity = self.services.suspects, context.key.id, context.call.identity
        await suspects.wait_settled(key, identity)
        deaths = suspects.deaths(key, identity)
        if deaths >= PROOF:
            no_retry = {"x-should-retry": "false"}
            raise BadRequest("suspected_poison", headers=no_retry, minutes=math.ceil(MEMORY / 60))
        return deaths

    def _most_used(self, context: RequestContext) -> Consumption:
        """Return the most that the call may use."""
        call, upload = context.call, context.upload
        if upload is not None:
            return Consumption(transcription.estimate_reservation(upload.expected), upload.expected)
        tokens = requests.estimate_tokens(call, context.endpoint, context.model, self.services.policy)
        return Consumption(tokens, call.size)

    async def _check_quota(self, context: RequestContext) -> None:
        """Raise OverQuota for a call that no wait would help: a limit is zero, or nothing is left of a day or a month.

        Nothing stays reserved.
        """
        lasting = [one for one in context.key.limits if not one.amount or one.counter.window in LASTING]
        if lasting:
            least = Consumption(*(min(1, most) for most in self._most_used(context)))
            reservation = await self.services.limits.admit(lasting, context.model.id, least, self.wall())
            reservation.release()

    async def _admit_and_forward(self, context: RequestContext, lease: Lease, *, is_suspected: bool) -> None:
        """Reserve under the limits, forward, and settle what was used. Raises Refusal."""
        services, call, key, model = self.services, context.call, context.key, context.model
        now = self.wall()
        reservation = await services.limits.admit(key.limits, model.id, self._most_used(context), now)
        more_headers = prepare_sampling(context)
        if (waited := context.seconds_waited) is not None:
            more_headers.append((WAITED_HEADER, b"%.1f" % waited))
        meter = CallMeter(services, context, reservation, now)
        meter.replica = lease.replica.id
        meter.lease = lease
        meter.suspected = is_suspected
        try:
            meter.exchange = exchange = Exchange(
                context,
                meter,
                assemble=must_stream_upstream(call, context.endpoint, model),
                headers=[(b"x-request-id", context.request_id.encode()), *reservation.headers(now), *more_headers],
                observer=make_observer(services, context, meter),
                open_share=partial(services.budget.share, key.id),
                now=self._clock,
                loop=self._loop,
            )
            await self._forwarder.forward(exchange, meter, lease)
        except Refusal as refusal:
            meter.refusal = refusal
            raise
        finally:
            meter.finish()

    # --- tasks of asgi.py

    def take_renewals(self) -> dict[int, Sequence[str]]:
        """Return the digests of keys, by their ids, that were used and are stored under a secret that was replaced."""
        return self._auth.take_renewals()

    def replace(self, catalogue: Catalogue) -> None:
        """Put this catalogue in force; calls in flight go on under the old one."""
        if catalogue.models is not self.catalogue.models:
            self.services.metrics.forget_others(catalogue.models)
        self.catalogue = catalogue
        self._replaced.set_result(None)
        self._replaced = self._loop.create_future()
        self._auth.forget()
        self._pools.keep_only({replica.url for model in catalogue.models.values() for replica in model.replicas})
        self.reachability.apply()
        self._scheduler.recheck()
        self._inquiry.settle_doubts()

    def note_supervisors(self, heartbeats: Mapping[int, Heartbeat]) -> None:
        """Take what is known of the hosts' supervisors now. Call it about once a second, while the database answers."""
        self.reachability.supervisors = heartbeats
        self._inquiry.settle_doubts()

    def note_loads(self, loads: Mapping[int, EngineLoad]) -> None:
        """Take what engines report, by their replicas' ids. Call it about once a second, while the database answers."""
        self._scheduler.note_loads(loads)

    def sweep(self) -> None:
        """End calls that are over their time, and send heartbeats to clients that wait. Call it about once a second."""
        now = self._clock()
        self._bodies.sweep()
        self._scheduler.sweep(self._forwarder.sweep(now), forwarding.HEARTBEAT)
        self._pools.sweep(now)
        self.services.suspects.sweep()
        self._inquiry.settle_doubts()

    @property
    def in_flight(self) -> int:
        """How many calls are at engines."""
        return len(self._open_calls)

    @property
    def queued(self) -> int:
        """How many calls wait for their turn."""
        return self._scheduler.queued

    def waiting(self, model: int) -> int:
        """Return how many calls wait for the model of this id."""
        names = [one.name for one in self.catalogue.models.values() if one.id == model]
        return sum(map(self._scheduler.calls_waiting, names))

    def refuse_wake_up(self, wake: WakeUp, seconds: float) -> None:
        """Refuse the calls for which a model is not loaded, as their caller had too many others loaded."""
        self._scheduler.refuse_wake_up(wake, seconds)

    def queue_snapshot(self) -> QueueSnapshot:
        """Return who waits in this worker, and what replicas work on for it."""
        return self._scheduler.snapshot(self.catalogue.models.values())

    def state(self, *, backlog: int, database_up: bool, age: float, tasks_down: int) -> WorkerState:
        """Return this worker's part of /metrics. `backlog` of the spool in bytes, `age` of the catalogue in seconds."""
        counting = self.services.limits.counting
        return WorkerState(
            in_flight=self.in_flight,
            spool_bytes=backlog,
            spool_accepting=self.services.spool.accepting,
            database_up=database_up,
            catalogue_revision=self.catalogue.revision,
            catalogue_age_seconds=age,
            limits_alone=counting.local_fallback,
            limits_unsent=counting.unsent,
            limits_admitted_alone=counting.admitted_locally,
            queued=self.queued,
            batch_waiting=self._scheduler.queued_batch,
            tasks_down=tasks_down,
        )

    def gauges(self) -> list[Gauge]:
        """Return the gauges of the catalogue, the same for all workers, and of replicas as this one sees them."""
        skipped = self._balancer.skipped_replicas(self._clock())
        ready: list[Gauge] = []
        unreachable: list[Gauge] = []
        refusing: list[Gauge] = []
        for model in self.catalogue.models.values():
            labels = (("model", model.name),)
            count = len(self._balancer.keep_reachable(model.replicas))
            away = len(model.replicas) - count
            refused = sum(replica.id in skipped for replica in model.replicas)
            ready.append(("madoguchi_replicas_ready", "Replicas that answer.", labels, count))
            unreachable.append(("madoguchi_replicas_unreachable", "Replicas that do not answer.", labels, away))
            refusing.append(("madoguchi_replicas_skipped", "Replicas that refused a call within 2 s.", labels, refused))
        keys: Gauge = ("madoguchi_catalogue_keys", "Usable API keys.", (), len(self.catalogue.keys))
        return [keys, *ready, *unreachable, *refusing]  # those of one name are adjacent

    async def close(self) -> None:
        self._parser.shutdown()
        for exchange in list(self._open_calls):
            exchange.client_left()
        self._pools.close()


class Departure:
    """The end of a client's connection, while nothing is sent to it. A `downstream.Listener`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.noticed: asyncio.Future[None] = loop.create_future()

    def client_left(self) -> None:
        if not self.noticed.done():
            self.noticed.set_result(None)

    def client_ready(self) -> None:
        pass


class RequestIds:
    """Random ids, made many at a time: the kernel's part is 10 µs here, as much for 3,000 bytes as for 12."""

    def __init__(self) -> None:
        self._ready: list[str] = []

    def new(self) -> str:
        if not self._ready:
            text = secrets.token_hex(12 * 256)
            self._ready = ["req_" + text[at : at + 24] for at in range(0, len(text), 24)]
        return self._ready.pop()


def find_endpoint(path: str) -> tuple[str, Endpoint | None]:
    """Return the path, normalised if it is not an endpoint's as it came, and its endpoint."""
    endpoint = ENDPOINTS.get(path)
    if endpoint is None:
        path = normalise_path(path)
        endpoint = ENDPOINTS.get(path)
    return path, endpoint


def make_observer(services: Services, context: RequestContext, meter: CallMeter) -> StreamObserver | None:
    """Return what watches the call's answer; None also if that fails, which costs no answer."""
    try:
        return services.observe(context)
    except Exception:
        log.exception("call %s is not observed", context.request_id)
        meter.observer_failed()
        return None


def read_loop_mode(headers: dict[bytes, bytes], fields: Iterable[Header]) -> Mode | None:
    """Return what the caller wants done about word loops; None: what the model's policy says. Raises BadRequest.

    `fields`: the headers as they came, in which one that was given twice is there twice.
    """
    if LOOPS_HEADER not in headers:
        return None
    given = {value.decode("latin-1").strip().lower() for name, value in fields if name == LOOPS_HEADER}
    wanted = ", ".join(sorted(given))
    mode = read_mode(wanted)
    if mode is None:
        sent, modes = wanted[:40], ", ".join(MODES)
        raise BadRequest("invalid_loops", code="invalid_value", param=LOOPS_HEADER.decode(), sent=sent, modes=modes)
    return mode


def read_replica(headers: dict[bytes, bytes]) -> int | None:
    """Return the id of the replica that a canary's call asks for; None: any. Raises BadRequest."""
    value = headers.get(REPLICA_HEADER)
    if value is None:
        return None
    if not (value.isdigit() and len(value) < 19):
        raise BadRequest("invalid_replica", code="invalid_value", param=REPLICA_HEADER.decode())
    return int(value)


def move_to_chosen(context: RequestContext, lease: Lease) -> None:
    """Move the lease to the replica that the call asks for. Raises ModelUnavailable if it does not answer now.

    The scheduler found room on any of them: of the chosen one, a canary takes one slot more than there is at most.
    """
    chosen = next((one for one in context.model.replicas if one.id == context.replica), None)
    if chosen is None:
        raise ModelUnavailable("model_unavailable", headers={"retry-after": "30"}, model=context.model.name)
    if chosen.id != lease.replica.id:
        lease.move(chosen)


def prepare_sampling(context: RequestContext) -> list[Header]:
    """Note how the engine is to sample; return the header that shows what differs from the client's own parameters."""
    call, presets, endpoint = context.call, context.model.presets, context.endpoint
    if endpoint.costs != "prompt and answer":
        return []
    if presets and not context.key.canary:  # which looks at the model, not at how operators have it sampled
        context.presets = sampling.preset_members(call.value, presets, every=endpoint.several_answers)
    context.temperature = sampling.read_temperature(context.presets.get("temperature", call.value("temperature")))
    return [(b"x-madoguchi-sampling", sampling.describe(context.presets))] if context.presets else []


def check_base_url(path: str) -> None:
    """Raise UnknownPath, with the right path, for a client whose base URL is wrong."""
    if not is_models(path) and (right := find_intended_path(path)) is not None:
        raise UnknownPath("wrong_base_url", code="unknown_url", path=path, right=right)


def is_models(path: str) -> bool:
    return path == "/v1/models" or path.startswith("/v1/models/")


def methods_of(path: str) -> str:
    """Return the methods as the header `Allow` lists them. Raises UnknownPath."""
    if path in ENDPOINTS or path == feedback.PATH:
        return "POST, OPTIONS"
    if is_models(path):
        return "GET, HEAD, OPTIONS"
    raise UnknownPath("unknown_url", path=path)


def send_refusal(client: Client, refusal: Refusal, api_format: ApiFormat, language: Language, request_id: str) -> None:
    headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    body = api_format.encode_error(refusal, language)
    client.answer(refusal.status, [JSON, (b"x-request-id", request_id.encode()), *headers], body)
