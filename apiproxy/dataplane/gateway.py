"""The life of a request: authenticate, read, admit, route, relay, settle, record.

A plain ASGI callable. It never touches the database: keys, models and replicas come from the catalogue in memory, usage
goes to the spool. What happens when a neighbour is away:

- database: the last catalogue stays in force, usage waits in the spool; nothing else changes;
- engine: another replica is tried once, then 503; a stream that had begun ends with an error event. What an engine has
  begun to work on goes to no other: it may be what the engine dies of (see `crash_suspects`);
- disk: no new work (503) until the spool can be written again;
- client: the engine is told to stop, what it had generated is metered.
"""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any

from apiproxy.dataplane import access_log, media_urls, openwebui
from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.catalogue import Catalogue, Key, Model, Replica
from apiproxy.dataplane.client_address import ClientAddress, client_address_of, in_networks
from apiproxy.dataplane.cors import Origins
from apiproxy.dataplane.crash_suspects import MEMORY, PROOF, CrashSuspects, Death
from apiproxy.dataplane.downstream import Client, Receive, Scope, Send, client_of
from apiproxy.dataplane.errors import (
    BadRequest,
    ClientDisconnected,
    EngineFailed,
    EngineTimeout,
    Internal,
    InvalidKey,
    Language,
    MeteringUnavailable,
    ModelUnavailable,
    NetworkNotAllowed,
    Refusal,
    UnknownModel,
    UnknownPath,
    WrongMethod,
)
from apiproxy.dataplane.executor import DaemonExecutor
from apiproxy.dataplane.formats import requests, transcription
from apiproxy.dataplane.formats.api_formats import CHAT, MESSAGES, ApiFormat
from apiproxy.dataplane.formats.requests import ENDPOINTS, Call, Endpoint
from apiproxy.dataplane.host_watch import EngineWatch, HostWatch, SignOfLife, distant_hosts
from apiproxy.dataplane.ledger import Spool
from apiproxy.dataplane.limits.local import Admission, Reservation
from apiproxy.dataplane.limits.units import Consumption
from apiproxy.dataplane.memory_budget import SMALL, MemoryBudget
from apiproxy.dataplane.metrics import Gauge, Metrics, State
from apiproxy.dataplane.rejection_counts import RejectionCounts
from apiproxy.dataplane.relay import STREAM_HEADERS, Exchange, Outcome
from apiproxy.dataplane.request_bodies import RequestBodies
from apiproxy.dataplane.routes import WITHOUT_V1, normalise_path
from apiproxy.dataplane.scheduler import BACKLOGGED_AFTER, Lease, QueuedRequest, Scheduler
from apiproxy.dataplane.throughput import ThroughputEstimator
from apiproxy.dataplane.token_usage import Tokens
from apiproxy.dataplane.uploads import Upload
from apiproxy.dataplane.upstream import Address, Broken, Connection, Header, Pool, Unreachable, UpstreamError
from apiproxy.dataplane.usage_events import Usage

log = logging.getLogger("madoguchi.gateway")

# A caller is asked to come back after so many seconds for a model that is being loaded: SDKs give up above 60 s.
LOADING_RETRY = 10
# Seconds after which a stream that has not begun gets a comment, and again after as many: Dify gives up after 300 s
# without a byte, proxies on the way after 60 s.
HEARTBEAT = 15.0
# Seconds after which what a call has used so far is written down for the first time.
CHECKPOINT = 3.0
# Texts of keys whose digests are remembered: a digest takes 6 µs. Only those of usable keys, for one catalogue.
REMEMBERED = 10_000
# Bytes of a body above which a thread reads it: 340,000 empty lists of a megabyte take 0.2 s.
LARGE = 128 * 1024
# Seconds that a connection to an engine of our own may take; a host that is there answers within a millisecond.
NEAR = 0.8
ONCE_MORE = 0.15
# Seconds of a call's life in which it is given up with the first sign that its host is silent: it has cost nothing yet.
YOUNG = 1.0
# An attempt on another replica, and one on a fresh connection for a stale one.
ATTEMPTS = 3
# Seconds between two looks at an engine that broke an answer off, and those that each may take: one that dies may still
# take connections for a moment, one that lives takes them at once.
STILL_THERE = (0.0, 0.3)
LOOK = 1.0


JSON: Header = (b"content-type", b"application/json")


class Gateway:
    """`digest` turns the text of a key into what the catalogue is keyed by, or None if it cannot be a key.

    `wish(model_id)` is called when somebody wants a model that is asleep. `refresh` sees to it that the catalogue is as
    new as can be had cheaply; a key that is well formed but unknown waits for it. `proxies`: how many of ours stand in
    front and are believed where a caller comes from. `workers`: how many gateways share the engines.
    `budget`: of memory, by ids of keys. `origins`: of pages that may call from a browser.
    """

    def __init__(
        self,
        *,
        digest: Callable[[str], str | None],
        limits: Admission,
        spool: Spool,
        metrics: Metrics,
        budget: MemoryBudget,
        terms: requests.Terms,
        max_body: int,
        max_upload: int,
        origins: Origins,
        proxies: int,
        workers: int,
        suspects: CrashSuspects,
        wish: Callable[[int], None],
        refresh: Callable[[], Awaitable[None]],
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.catalogue = Catalogue(revision=-1)
        self.limits = limits
        self.spool = spool
        self.metrics = metrics
        self.budget = budget
        self.terms = terms
        self.refusals = RejectionCounts()
        self._digest = digest
        self._max_upload = max_upload
        self._origins = origins
        self._crossed = bool(origins)
        self._proxies = proxies
        self._wish = wish
        self._refresh = refresh
        self.wall = wall
        self._clock = clock
        self._bodies = RequestBodies(most=max_body, budget=budget, clock=clock)
        self._loop = asyncio.get_running_loop()
        self._reader = DaemonExecutor("bodies")
        self._request_ids = RequestIds()
        self._digests: dict[str, str] = {}  # by the key's text
        self.paces = ThroughputEstimator()
        self._balancer = Balancer()
        self._reach = HostWatch(clock)
        self._engines = EngineWatch(clock)
        self._supervisors: Mapping[int, SignOfLife] = {}  # by host
        self.suspects = suspects
        self._pools: dict[str, Pool] = {}
        self._exchanges: dict[Exchange, CallMeter] = {}
        self._turns = Scheduler(self._balancer, model=self._named, workers=workers, clock=clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = client_of(scope, receive, send)
        request_id = self._request_ids.new()
        headers = dict(scope["headers"])
        path = scope["path"]
        endpoint = ENDPOINTS.get(path)
        if endpoint is None:
            path = normalise_path(path)
            endpoint = ENDPOINTS.get(path)
        api_format = endpoint.api_format if endpoint else CHAT
        if self._crossed:
            client.always = self._origins.headers(headers.get(b"origin"))
        if api_format is MESSAGES:  # its SDKs show it by this name
            client.always = [*client.always, (b"request-id", request_id.encode())]
        language: Language = "ja" if headers.get(b"accept-language", b"").startswith(b"ja") else "en"
        key: Key | None = None
        try:
            if path in WITHOUT_V1:
                raise UnknownPath("base_url_without_v1", code="unknown_url", path=path, right=f"/v1{path}")
            if scope["method"] == "OPTIONS":  # browsers ask without a key what they may ask
                client.answer(200, self._options(path, headers, request_id), b"")
                await client.sent()
                return
            text = given_key(headers)
            key = self._known(text) or await self._authenticate(text)
            language = key.language
            peer = scope.get("client")
            caller = client_address_of(peer[0] if peer else "", headers, scope["headers"], self._proxies)
            if key.networks and not in_networks(caller.address, key.networks):
                raise NetworkNotAllowed("network_not_allowed", address=caller.address or "?")
            if key.takes_user_headers:
                caller = caller._replace(end_user=openwebui.find_person(headers))
            if endpoint is not None and scope["method"] == "POST":
                if endpoint.costs == "sound":
                    await self._pass_upload(endpoint, headers, key, caller, receive, client, request_id)
                else:
                    share = self.budget.share(key.id)
                    try:
                        body = None if b"content-encoding" in headers else client.arrived()
                        if body is None:
                            body = await self._bodies.read(headers, receive, share, key.limits)
                        else:  # as nearly always: nobody needs to wait for it, or to see that it comes (10 µs)
                            self._bodies.take(body, share)
                        call = requests.parse(body) if len(body) <= LARGE else await self._parse(body)
                        call.share = share
                        await self._relay(call, endpoint, key, caller, client, request_id)
                    finally:
                        share.close()
            else:
                found = self._look_up(path, scope["method"], key)
                client.answer(200, [JSON, (b"x-request-id", request_id.encode())], found)
        except Refusal as refusal:
            self._turn_away(refusal, key, request_id)
            refuse(client, refusal, api_format, language, request_id)
        except ClientDisconnected:
            log.debug("%s: the client left before its request was complete", request_id)
        except Exception:  # nothing a client sends may show it our stack
            log.exception("call %s", request_id, extra={"facts": {"request_id": request_id}})
            refuse(client, Internal(), api_format, language, request_id)
        await client.sent()

    def _turn_away(self, refusal: Refusal, key: Key | None, request_id: str) -> None:
        """Count and log a refusal. That of a call which reached an engine stands in its usage already."""
        self.metrics.count_rejection(refusal.code)
        if refusal.logged:
            return
        access_log.log_rejection(request_id, key.id if key else None, refusal)
        if key is not None:  # a flood of made-up keys counts for nobody
            self.refusals.count(key, refusal.model, refusal.code, self.wall())

    # --- who

    def _known(self, text: str) -> Key | None:
        """Return the key with this text, if it was used before under this catalogue."""
        digest = self._digests.get(text)
        return None if digest is None else self.catalogue.key(digest, self.wall())

    async def _authenticate(self, text: str) -> Key:
        digest = self._digest(text)
        if digest is None:
            raise InvalidKey("invalid_api_key")
        key = self.catalogue.key(digest, self.wall())
        if key is None:  # perhaps it was made a moment ago
            await self._refresh()
            key = self.catalogue.key(digest, self.wall())
        if key is None:
            raise InvalidKey("invalid_api_key")
        if len(self._digests) < REMEMBERED:
            self._digests[text] = digest
        return key

    # --- what

    def _options(self, path: str, headers: dict[bytes, bytes], request_id: str) -> list[Header]:
        """Return the answer's headers to a question what may be asked. Raises UnknownPath."""
        methods = methods_of(path).encode()
        allowed = self._origins.preflight(headers, methods)
        return [(b"x-request-id", request_id.encode()), (b"allow", methods), *allowed]

    async def _parse(self, body: bytes) -> Call:
        """Return a large body as `requests.parse` reads it, in a thread: streams go on but while JSON itself is
        decoded.
        """
        return await self._loop.run_in_executor(self._reader, requests.parse, body)

    def _look_up(self, path: str, method: str, key: Key) -> bytes:
        """Return the body of what is answered from memory. Raises UnknownPath, WrongMethod or UnknownModel."""
        methods = methods_of(path)
        if method not in ("GET", "HEAD") or not is_models(path):
            raise WrongMethod("method_not_allowed", path=path, method=method, headers={"allow": methods})
        return self._models(path, key)

    def _models(self, path: str, key: Key) -> bytes:
        name = path.removeprefix("/v1/models").removeprefix("/")
        if not name:
            return requests.encode_models(self.catalogue.offered(key, self.wall()))
        return requests.encode_model(name, self._model(key, name, self.wall()))

    def _named(self, name: str) -> Model | None:
        return self.catalogue.models.get(name)

    def _model(self, key: Key, name: str, now: float) -> Model:
        """Return the model of this name or alias. Raises UnknownModel."""
        model = self.catalogue.model(key, name)
        if model is None:
            raise UnknownModel("model_not_found", model=name)
        if model.retires is not None and now >= model.retires.at:
            raise UnknownModel("model_retired", model=name, day=model.retires.day)
        return model

    async def _pass_upload(
        self,
        endpoint: Endpoint,
        headers: dict[bytes, bytes],
        key: Key,
        caller: ClientAddress,
        receive: Receive,
        client: Client,
        request_id: str,
    ) -> None:
        with self.budget.share(key.id) as share:
            arrival = self._bodies.arrival(share)
            upload = Upload(receive, headers, arrival, key.limits, most=self._max_upload)
            try:
                call = await upload.begin()
                await self._relay(call, endpoint, key, caller, client, request_id, upload)
            finally:
                await upload.stop()

    # --- how much, where

    async def _relay(
        self,
        call: Call,
        endpoint: Endpoint,
        key: Key,
        caller: ClientAddress,
        client: Client,
        request_id: str,
        upload: Upload | None = None,
    ) -> None:
        """`upload`: what the engine is sent after the call's head."""
        model = self._model(key, call.model, self.wall())
        waiter: QueuedRequest | None = None
        turn: Lease | None = None
        try:
            if model.task not in endpoint.tasks and not model.external:
                raise BadRequest(
                    "model_not_supported", param="model", model=model.name, path=endpoint.path, task=model.task
                )
            if call.media:
                media_urls.check(call.media, self.terms.media_domains)
            if key.batch:
                call.drop_values()  # it may wait for minutes
                waiter = self._waiter(call, endpoint, model, client, request_id, upload)
                turn = await self._turn(waiter, client, upload)
                model = self._model(key, call.model, self.wall())  # as it is now
            patient = waiter is not None and waiter.patient
            await self._serve(call, endpoint, key, caller, model, client, request_id, upload, turn, patient=patient)
        except Refusal as refusal:
            refusal.model = model.name
            if waiter is None or not waiter.patient:
                raise
            self._turn_away(refusal, key, request_id)
            client.last(endpoint.api_format.encode_event(refusal, key.language) + endpoint.api_format.stream_terminator)
        finally:
            if turn is not None:
                turn.end()

    def _waiter(
        self, call: Call, endpoint: Endpoint, model: Model, client: Client, request_id: str, upload: Upload | None
    ) -> QueuedRequest:
        kept_patient = call.stream and endpoint.streams and upload is None
        heartbeat = endpoint.api_format.heartbeat if kept_patient else b""
        headers = [*STREAM_HEADERS, (b"x-request-id", request_id.encode())]
        return QueuedRequest(model, client, self._clock(), heartbeat, headers)

    async def _turn(self, waiter: QueuedRequest, client: Client, upload: Upload | None) -> Lease:
        """Return a batch call's leave to go, see `scheduler`. Raises Refusal or ClientLeft."""
        if upload is None:  # else its body is still being read, which tells that its client left
            client.listen(waiter)
        try:
            return await self._turns.wait(waiter)
        finally:
            client.deafen()

    async def _serve(
        self,
        call: Call,
        endpoint: Endpoint,
        key: Key,
        caller: ClientAddress,
        model: Model,
        client: Client,
        request_id: str,
        upload: Upload | None,
        turn: Lease | None,
        *,
        patient: bool,
    ) -> None:
        """`patient`: the client has had the head of a stream already."""
        if not self.spool.accepting:
            raise MeteringUnavailable("metering_unavailable", headers={"retry-after": "5"})
        deaths = 0
        if self.suspects.known:
            await self.suspects.settled(call.identity)
            deaths = self.suspects.deaths(call.identity)
        if deaths >= PROOF:
            no_retry = {"x-should-retry": "false"}
            raise BadRequest("suspected_poison", headers=no_retry, minutes=math.ceil(MEMORY / 60))
        replica = (turn.replica if turn is not None else None) or self._choose(model)
        most = (
            Consumption(transcription.estimate_reservation(upload.expected), upload.expected)
            if upload
            else Consumption(requests.estimate_tokens(call, endpoint, model, self.terms), call.size)
        )
        now = self.wall()
        hold = await self.limits.admit(key.limits, model.id, most, now)
        meter = CallMeter(self, call, endpoint, key, caller, model, hold, request_id, now)
        meter.replica = replica.id
        meter.suspected = deaths > 0
        try:
            headers = [(b"x-request-id", request_id.encode()), *hold.headers(now)]
            assemble = assembles(call, endpoint, model)
            exchange = Exchange(
                call,
                endpoint,
                client,
                meter,
                assemble=assemble,
                headers=headers,
                language=key.language,
                shares=partial(self.budget.share, key.id),
                now=self._clock,
                loop=self._loop,
                patient=patient,
            )
            meter.exchange = exchange
            if turn is not None:
                turn.arrive()
            await self._exchange(exchange, meter, model, replica, client, upload)
        except Refusal as refusal:
            meter.refusal = refusal
            raise
        finally:
            meter.finish()

    def _choose(self, model: Model) -> Replica:
        replica = self._balancer.choose(model.replicas, self._clock())
        if replica is not None:
            return replica
        if model.loading_on:
            self._wish(model.id)
        # A host whose supervisor is quiet starts and wakes nothing now.
        if any(not self._is_quiet(host) for host in model.loading_on):
            raise ModelUnavailable(
                "model_loading", headers={"retry-after": str(LOADING_RETRY)}, model=model.name, seconds=LOADING_RETRY
            )
        raise ModelUnavailable("model_unavailable", headers={"retry-after": "30"}, model=model.name)

    async def _exchange(
        self,
        exchange: Exchange,
        meter: "CallMeter",
        model: Model,
        replica: Replica,
        client: Client,
        upload: Upload | None,
    ) -> None:
        """Attempts until the answer has gone out or nothing more can be tried. Raises a Refusal then."""
        exchange.arriving = upload is not None
        if upload is None:
            client.listen(exchange)
        self._exchanges[exchange] = meter
        try:
            if meter.suspected:
                await self._stand_trial(meter)
            for _ in range(ATTEMPTS):
                meter.replica = replica.id
                ending = await self._attempt(exchange, meter, replica, client, upload)
                if (exchange.error is not None and is_lost(exchange.error)) or exchange.says_dead:
                    await self._inquire(exchange, meter, model, replica)
                if ending in (Outcome.ANSWERED, Outcome.LEFT):
                    return
                if exchange.metered or self._clock() - exchange.began > model.timeouts.total:
                    break
                if not is_stale(exchange.error):
                    if not exchange.untouched:
                        break  # it is about the request, or the engine may have died of it
                    self._balancer.refused(replica, self._clock())
                    if upload is not None and exchange.reached:
                        break  # some of it has gone there, and is nowhere else
                    other = self._balancer.choose(model.replicas, self._clock(), but=replica.id)
                    if other is None:
                        break
                    replica = other
            if exchange.metered:  # tokens were made: who asks again would pay again
                exchange.refusal.headers["x-should-retry"] = "false"
            if not exchange.say(exchange.refusal):
                raise exchange.refusal
            if not exchange.reached:  # no usage will tell of it
                exchange.refusal.model = model.name
                self._turn_away(exchange.refusal, meter.key, meter.request_id)
            await exchange.ending()
        except asyncio.CancelledError:  # by the server, whose patience with open answers has ended
            refusal = ModelUnavailable("shutting_down", headers={"retry-after": "5"})
            if not exchange.cut_off(refusal) and not exchange.say(refusal):
                raise refusal from None
        finally:
            self._exchanges.pop(exchange, None)
            exchange.free()
            if meter.trial is not None:
                meter.end_trial()
            client.deafen()

    # --- engines that die

    async def _stand_trial(self, meter: "CallMeter") -> None:
        """Wait until this suspect is the only one at its model. Raises NoReplica if that takes too long."""
        try:
            meter.trial = await self.suspects.trial(meter.model.name)
        except TimeoutError as error:
            raise ModelUnavailable("model_unavailable", headers={"retry-after": "5"}, model=meter.model.name) from error

    async def _inquire(self, exchange: Exchange, meter: "CallMeter", model: Model, replica: Replica) -> None:
        """Find out whether the engine died under this call, and what to think of the call then."""
        calls = sum(other.replica == replica.id for other in self._exchanges.values())
        if replica.id in self._balancer.unreachable or self._is_quiet(replica.host):
            return  # of an engine whose host is silent nobody knows why
        if not exchange.says_dead and await self._still_there(replica):
            return
        now = self._named(model.name)
        if now is None or all(other.id != replica.id for other in now.replicas):
            return  # taken off the catalogue before: it was to stop
        self._balancer.refused(replica, self._clock())
        others = None if exchange.says_dead or model.external else await self._others_live(replica)
        if others is False:
            log.error("all engines on the host of replica %d are gone: no call is blamed for that", replica.id)
            return
        calls = self.suspects.died(replica.id, calls)
        before = self.suspects.deaths(meter.identity)
        verdict = self.suspects.judge(meter.identity, calls=calls, on_trial=meter.trial is not None)
        death = Death(
            at=self.wall(),
            request_id=meter.request_id,
            key=meter.key.id,
            model=model.id,
            replica=replica.id,
            endpoint=meter.path,
            calls=calls,
            verdict=verdict,
        )
        prove = partial(self._tell_death, death, model.name)
        sign = self._supervisors.get(replica.host)
        if others is None and sign is not None and not exchange.says_dead and not model.external:
            self.suspects.doubt(replica.id, replica.host, sign.claim, meter.identity, before=before, proven=prove)
        else:
            prove()
        refusal = EngineFailed("engine_died")
        if verdict == "guilty" or calls == 1:  # SDKs would send it three times
            refusal.headers["x-should-retry"] = "false"
        exchange.explain(refusal)

    def _tell_death(self, death: Death, model: str) -> None:
        self.metrics.count_engine_death(model, death.verdict)
        facts = {"request_id": death.request_id, "key": death.key, "replica": death.replica, "calls": death.calls}
        log.error("an engine of %s died under a call (%s)", model, death.verdict, extra={"facts": facts})
        self.suspects.tell(death)

    async def _others_live(self, replica: Replica) -> bool | None:
        """Return whether another engine of its host takes connections; None: there is no other."""
        others = [one for one in self._ours() if one.host == replica.host and one.id != replica.id]
        return any(await asyncio.gather(*map(self._still_there, others))) if others else None

    async def _still_there(self, replica: Replica) -> bool:
        """Return whether the engine takes connections."""
        for wait in STILL_THERE:
            await asyncio.sleep(wait)
            try:
                connection = await self._pool(replica).connect(LOOK)
            except Unreachable as error:
                # What only took too long was perhaps us, or is the host, about which the watch knows.
                return isinstance(error.__cause__, TimeoutError)
            connection.abort()
        return True

    async def _attempt(
        self, exchange: Exchange, meter: "CallMeter", replica: Replica, client: Client, upload: Upload | None
    ) -> Outcome:
        pool = self._pool(replica)
        # Before there is a connection, which whatever goes wrong here would leave behind.
        request = meter.request(pool.address, replica, upload, assemble=exchange.assembles)
        connection: Connection | None = None
        stale = is_stale(exchange.error)
        self._balancer.began(replica)
        try:
            # After a stale connection a fresh one: an engine that closed one has perhaps closed the others as well. For
            # an upload always a fresh one, for it cannot be sent again.
            connection = None if upload is not None or stale else pool.take_idle(self._clock())
            connection = connection or await self._connect(pool, meter.model)
            exchange.attempt(connection, request)
            if upload is not None:
                uploaded = partial(self._uploaded, exchange, meter, client)
                upload.start(connection, exchange, replica.upstream_model, uploaded)
            return await exchange.ending()
        except Unreachable as error:
            facts = {"facts": {"request_id": meter.request_id}}
            log.warning("replica %s of %s: %s", replica.id, meter.model.name, error, extra=facts)
            retry = {"retry-after": "5"}
            # It had the request on the connection that broke, and is gone: not stale, but dead.
            gone = Broken(str(error), lost=True) if stale else error
            exchange.unreachable(gone, ModelUnavailable("model_unavailable", headers=retry, model=meter.model.name))
            return Outcome.BROKEN
        except BaseException:
            if connection is not None:
                connection.abort()
            raise
        finally:
            self._balancer.ended(replica)
            if self._turns.queues:
                self._turns.look(meter.model.name)

    async def _connect(self, pool: Pool, model: Model) -> Connection:
        """Raise Unreachable."""
        if model.external or model.timeouts.connect <= NEAR:
            return await pool.connect(model.timeouts.connect)
        try:
            return await pool.connect(NEAR)
        except Unreachable:
            # We may have been held up ourselves, or a packet was lost: the watch knows whether the host is there.
            if pool.address.host in self._reach.silent or not distant_hosts(pool.address.host):
                raise
            return await pool.connect(ONCE_MORE)

    def _uploaded(self, exchange: Exchange, meter: "CallMeter", client: Client, call: Call) -> None:
        """The engine has all of the call. From now on somebody else must notice that the client has left."""
        meter.know(call)
        exchange.know(call)
        client.listen(exchange)

    def _pool(self, replica: Replica) -> Pool:
        pool = self._pools.get(replica.url)
        if pool is None:
            pool = self._pools[replica.url] = Pool(Address.parse(replica.url), self._clock)
        return pool

    # --- tasks of asgi.py

    def replace(self, catalogue: Catalogue) -> None:
        """From now on this catalogue is in force; calls under way go on under the old one."""
        if catalogue.models is not self.catalogue.models:
            self.metrics.forget_others(catalogue.models)
        self.catalogue = catalogue
        self._digests.clear()
        served = {replica.url for model in catalogue.models.values() for replica in model.replicas}
        for url in [url for url in self._pools if url not in served]:
            self._pools.pop(url).close()
        self._note_silence()
        self._settle_doubts()

    def note_supervisors(self, signs: Mapping[int, SignOfLife]) -> None:
        """What is known of the supervisors of hosts now. Call it about once a second, while the database tells."""
        self._supervisors = signs
        self._settle_doubts()

    def _settle_doubts(self) -> None:
        if not self.suspects.in_doubt:
            return
        served = {replica.id for model in self.catalogue.models.values() for replica in model.replicas}
        for replica in self.suspects.settle(self._supervisors, served):
            log.error("replica %d died with its host: no call is blamed for that", replica)

    async def ask_engines(self) -> None:
        """Ask the engines that no supervisor looks after now, and those that did not answer last: a supervisor that is
        back says that it is there before it knows which of its engines are. Call it every `host_watch.EVERY` seconds.
        """
        before = self._engines.silent
        asked = [one for one in self._ours() if self._is_quiet(one.host) or one.id in before]
        await self._engines.ask([(one, self._pool(one)) for one in asked], self._heard_since)
        now = self._engines.silent
        for replica in now.keys() - before.keys():
            log.error("replica %d does not answer, nor does its supervisor: it gets no calls until one does", replica)
        for replica in before.keys() - now.keys():
            log.warning("replica %d answers again, or is gone", replica)
        if before or now:
            self._note_silence()

    def _is_quiet(self, host: int) -> bool:
        """Return whether the host's supervisor is quiet, for whatever reason."""
        sign = self._supervisors.get(host)
        return sign is not None and sign.quiet

    def _heard_since(self, at: float) -> Collection[int]:
        """Return replicas that have sent some of an answer since then."""
        return {
            meter.replica or 0
            for exchange, meter in self._exchanges.items()
            if exchange.first_byte_at is not None and exchange.heard_at >= at
        }

    async def ask_hosts(self) -> None:
        """Find out which hosts of our engines are silent. Call it every `host_watch.EVERY` seconds."""
        before = self._reach.silent
        await self._reach.ask([self._pool(replica) for replica in self._ours()])
        now = self._reach.silent
        for host in now.keys() - before.keys():
            log.warning("host %s does not answer: its engines get no calls until it does", host)
        for host in before.keys() - now.keys():
            log.warning("host %s answers again, or serves nothing any more", host)
        self._note_silence()

    def _ours(self) -> list[Replica]:
        """Return all replicas but those of external models: servers of others have ways of their own."""
        return [one for model in self.catalogue.models.values() if not model.external for one in model.replicas]

    def _note_silence(self) -> None:
        """Take silent replicas off the catalogue, so to speak, and give up the calls that are there."""
        hosts, engines = self._reach.silent, self._engines.silent
        if not hosts and not engines:
            self._balancer.unreachable = frozenset()
            return
        there = {replica.id: self._pool(replica).address.host for replica in self._ours()}
        silent = {id: engines[id] for id in there if id in engines}
        silent |= {id: hosts[host] for id, host in there.items() if host in hosts}
        self._balancer.unreachable = frozenset(silent)
        for exchange, meter in list(self._exchanges.items()):
            replica = meter.replica or 0
            if replica not in silent:
                continue
            begun = exchange.first_byte_at is not None
            if begun and exchange.heard_at >= silent[replica]:
                continue
            certain = self._reach.certain(there[replica]) or self._engines.certain(replica)
            if (not begun and exchange.began >= silent[replica] - YOUNG) or certain:
                headers = {"retry-after": "5"}
                try:
                    exchange.cut_off(
                        ModelUnavailable("model_unavailable", headers=headers, model=meter.model.name), lost=True
                    )
                except Exception:  # one call must not keep the others from being told
                    log.exception("call %s", meter.request_id, extra={"facts": {"request_id": meter.request_id}})

    def sweep(self) -> None:
        """End exchanges that are over their time, keep patient who waits for one. Call about once a second."""
        now = self._clock()
        self._bodies.sweep()
        late: set[str] = set()
        for exchange, meter in list(self._exchanges.items()):
            try:
                self._look_at(exchange, meter, now, late)
            except Exception:  # one call must not keep the others from being looked at
                log.exception("call %s", meter.request_id, extra={"facts": {"request_id": meter.request_id}})
        self._turns.sweep(late, HEARTBEAT)
        for pool in self._pools.values():
            pool.sweep(now)
        self.suspects.sweep()
        self._settle_doubts()

    def _look_at(self, exchange: Exchange, meter: "CallMeter", now: float, late: set[str]) -> None:
        """Add its model to `late` if somebody has waited for too long for its first byte."""
        timeouts = meter.model.timeouts
        exchange.heartbeat(HEARTBEAT)
        meter.checkpoint(now)
        if meter.trial is not None and exchange.first_byte_at is not None:
            meter.end_trial()
        silence = now - exchange.heard_at
        if silence > BACKLOGGED_AFTER and exchange.first_byte_at is None and meter.urgent:
            late.add(meter.model.name)
        if exchange.waits_for_client and silence > timeouts.idle:
            exchange.client_left()
        elif now - exchange.began > timeouts.total:
            exchange.cut_off(EngineTimeout())
        elif exchange.waits_for_client:
            pass  # the engine cannot go on
        elif exchange.first_byte_at is not None:
            if silence > timeouts.idle:
                exchange.cut_off(EngineTimeout())
        elif exchange.awaited and silence > timeouts.first_byte:
            exchange.cut_off(EngineTimeout())  # an answer in one piece has its first byte when all of it is made

    def state(self, *, backlog: int, database_up: bool, age: float, tasks_down: int) -> State:
        """`backlog` of the spool in bytes, `age` of the catalogue in seconds."""
        counting = self.limits.counting
        return State(
            in_flight=len(self._exchanges),
            spool_bytes=backlog,
            spool_accepting=self.spool.accepting,
            database_up=database_up,
            catalogue_revision=self.catalogue.revision,
            catalogue_age=age,
            limits_alone=counting.alone,
            limits_unsent=counting.unsent,
            limits_admitted_alone=counting.admitted_alone,
            batch_waiting=self._turns.waiting,
            tasks_down=tasks_down,
        )

    def gauges(self) -> list[Gauge]:
        """Of the catalogue, which is the same for all workers, and of replicas as this one finds them."""
        skipped = self._balancer.skipped(self._clock())
        models, reachable = self.catalogue.models.values(), self._balancer.reachable
        avoided = {model.name: sum(replica.id in skipped for replica in model.replicas) for model in models}
        return [
            ("madoguchi_catalogue_keys", "Usable API keys.", (), len(self.catalogue.keys)),
            *(
                (
                    *("madoguchi_replicas_ready", "Replicas that answer.", (("model", model.name),)),
                    len(reachable(model.replicas)),
                )
                for model in models
            ),
            *(
                (
                    *(
                        "madoguchi_replicas_unreachable",
                        "Replicas that do not answer.",
                        (("model", model.name),),
                    ),
                    len(model.replicas) - len(reachable(model.replicas)),
                )
                for model in models
            ),
            *(
                ("madoguchi_replicas_skipped", "Of these, refused a call within 2 s.", (("model", name),), count)
                for name, count in avoided.items()
            ),
        ]

    async def close(self) -> None:
        self._reader.shutdown()
        for exchange in list(self._exchanges):
            exchange.client_left()
        for pool in self._pools.values():
            pool.close()


class RequestIds:
    """Random ones, made many at a time: the kernel's part is 10 µs here, as much for 3,000 bytes as for 12."""

    def __init__(self) -> None:
        self._ready: list[str] = []

    def new(self) -> str:
        if not self._ready:
            text = secrets.token_hex(12 * 256)
            self._ready = ["req_" + text[at : at + 24] for at in range(0, len(text), 24)]
        return self._ready.pop()


class CallMeter:
    """What one call used: to the spool, the limits and the counters, exactly once. A `relay.Meter`."""

    def __init__(
        self,
        gateway: Gateway,
        call: Call,
        endpoint: Endpoint,
        key: Key,
        caller: ClientAddress,
        model: Model,
        hold: Reservation,
        request_id: str,
        started: float,
    ) -> None:
        self._gateway = gateway
        self._call = call
        self._endpoint = endpoint
        self.key = key
        self._caller = caller
        self.model = model
        self._hold = hold
        self.request_id = request_id
        self._started = started
        self._closed: Usage | None = None
        self._checkpoint = 0.0  # when the next is due
        self.replica: int | None = None
        self.exchange: Exchange | None = None
        self.refusal: Refusal | None = None  # what the client is told instead of an answer
        self.suspected = False  # an engine died while this very call was open, some minutes ago
        self.trial: asyncio.Lock | None = None  # held while no other suspect of the model may go

    def request(self, address: Address, replica: Replica, upload: Upload | None, *, assemble: bool) -> bytes:
        """Return the HTTP request for an engine; of an upload, its head."""
        head = (
            f"POST {address.prefix}{self._endpoint.path} HTTP/1.1\r\nhost: {address.host_header}\r\n"
            f"authorization: Bearer {replica.api_key}\r\nx-request-id: {_for_engines(self.request_id)}\r\n"
            "accept-encoding: identity\r\n"
        )
        if upload is not None:
            body = b""
            head += f"content-type: {upload.content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
        else:
            body = requests.upstream_body(
                self._call,
                self._endpoint,
                replica.upstream_model,
                force_stream=assemble,
                extra=self._members(replica),
                re_encode=self.model.external,
            )
            if self._call.size > SMALL:
                self._call.drop_values()
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        return head.encode("latin-1") + body

    @property
    def path(self) -> str:
        return self._endpoint.path

    @property
    def identity(self) -> bytes:
        """What tells the call from others; empty of an upload."""
        return self._call.identity

    def end_trial(self) -> None:
        trial, self.trial = self.trial, None
        if trial is not None:
            trial.release()

    def _members(self, replica: Replica) -> dict[str, Any]:
        """What the engine is told beside what the client says."""
        call, endpoint = self._call, self._endpoint
        terms = self._gateway.terms
        members = requests.max_tokens_members(call, endpoint, self.model, terms, limited=self._limited)
        if not self.model.external:
            members |= requests.cache_members(call, self.model, terms, self.key.tenant)
        if self.key.batch and replica.sorts and endpoint.takes_priority:
            members["priority"] = requests.BATCH_PRIORITY
        return members

    def _limited(self) -> bool:
        """Return whether the call falls under a limit of what the engine generates."""
        model = self.model.id
        return any(
            limit.counter.unit.bounds_answer and limit.counter.model in (None, model) for limit in self.key.limits
        )

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for the first byte of a stream."""
        exchange = self.exchange
        streams = self._call.stream or (exchange is not None and exchange.assembles)
        return not self.key.batch and streams and self._endpoint.streams

    def know(self, call: Call) -> None:
        """All of a call whose upload has now been read to its end."""
        self._call = call

    def open(self) -> None:
        self._write_down(Tokens(prompt=self._call.prompt_estimate))
        self._call.forget_body()

    def checkpoint(self, now: float) -> None:
        """Write down what was used so far, for the case that this process is killed; call it about once a second.

        First after CHECKPOINT seconds, then whenever the call has become a quarter older, so that a killed process
        loses a fifth of what an answer used: 20 lines in the first ten minutes, 8 in the next hour.
        """
        exchange = self.exchange
        if exchange is None or exchange.metered or not exchange.reached:
            return
        age = now - exchange.began
        if age < CHECKPOINT or now < self._checkpoint:
            return
        self._checkpoint = now + max(CHECKPOINT, age / 4)
        self._write_down(exchange.used()[0])

    def _write_down(self, tokens: Tokens) -> None:
        self._gateway.spool.open_call(self._usage("interrupted", tokens, estimated=True))

    def close(self, status: str, tokens: Tokens, *, estimated: bool) -> None:
        """Whatever is at fault, what was used is recorded and nothing stays reserved, here or when the call is over."""
        most = requests.max_usage(self._call, self._endpoint, self.model)
        if tokens.prompt + tokens.completion > most:
            tokens, estimated = tokens.within(most), True
        try:
            usage = self._usage(status, tokens, estimated=estimated)
            self._gateway.spool.close_call(usage)
            self._closed = usage
        finally:
            self._hold.settle(Consumption(tokens.prompt + tokens.completion, self._call.size))
        self._count(status, tokens)

    def _count(self, status: str, tokens: Tokens) -> None:
        """For /metrics, and for what is guessed of later calls."""
        metrics, model = self._gateway.metrics, self.model
        path, prompt, completion = self._endpoint.path, tokens.prompt, tokens.completion
        if (exchange := self.exchange) is None:
            metrics.count_request(path, model.name, status)
            metrics.count_tokens(model.name, prompt, completion)
        else:
            first = None if exchange.first_byte_at is None else exchange.first_byte_at - exchange.began
            lasted = exchange.now() - exchange.began
            metrics.count_call(
                path, model.name, status, prompt=prompt, completion=completion, first_byte=first, whole=lasted
            )
            if status == "finished":
                self._gateway.paces.observe(model.id, tokens.completion / self._call.answers, lasted)
                if exchange.first_byte_at is not None and (events := exchange.events):
                    metrics.observe_stream(model.name, events, exchange.heard_at - exchange.first_byte_at)

    def guess(self, seconds: float) -> int:
        made = self._gateway.paces.estimate(self.model.id, seconds) * self._call.answers
        return round(min(made, requests.max_generated(self._call, self._endpoint, self.model)))

    def finish(self) -> None:
        """The call is over. What no exchange has metered was refused by the engine, or never reached one."""
        exchange = self.exchange
        try:
            if self._closed is None and exchange is not None and exchange.reached:
                self.close("refused" if exchange.refusal.status < 500 else "failed", Tokens(), estimated=False)
        finally:  # whatever is at fault, nothing stays reserved
            self._hold.release()
        if self.suspected and self._closed is not None and self._closed.status == "finished":
            self._gateway.suspects.cleared(self._call.identity)
        if self._closed is not None:
            access_log.log_call(self._closed, self.refusal)
            if self.refusal is not None:
                self.refusal.logged = True
        self.exchange = None  # it knows us: of a circle only the garbage collector could free the memory

    def _usage(self, status: str, tokens: Tokens, *, estimated: bool) -> Usage:
        exchange = self.exchange
        assert exchange is not None
        first, now = exchange.first_byte_at, exchange.now()
        return Usage(
            request_id=self.request_id,
            key=self.key.id,
            user=self.key.user,
            tenant=self.key.tenant,
            model=self.model.name,
            replica=self.replica,
            endpoint=self._endpoint.path,
            started=self._started,
            first_token_ms=None if first is None else round((first - exchange.began) * 1000),
            duration_ms=round((now - exchange.began) * 1000),
            prompt_tokens=tokens.prompt,
            cached_tokens=tokens.cached,
            completion_tokens=tokens.completion,
            reasoning_tokens=tokens.reasoning,
            status=status,
            estimated=estimated,
            end_user=self._caller.end_user or self._call.end_user,
            address=self._caller.address,
            client=self._caller.client,
        )


def is_stale(error: UpstreamError | None) -> bool:
    return isinstance(error, Broken) and error.stale


def is_lost(error: UpstreamError | None) -> bool:
    return isinstance(error, Broken) and error.lost


def _for_engines(request_id: str) -> str:
    """As a UUID: llama-cpp-python, and other servers with starlette-context, answer 400 to any other request id."""
    return request_id.removeprefix("req_").ljust(32, "0")


def assembles(call: Call, endpoint: Endpoint, model: Model) -> bool:
    """Return whether the engine is asked for a stream although the client wants one JSON."""
    if call.stream or not endpoint.streams or endpoint.costs == "sound":
        return False
    if not model.stops_unary:
        # llama.cpp tells no log probabilities in the stream of a call with tools.
        return not (call.value("logprobs") and call.fields.get("tools"))
    # An engine that we do not know may be a llama.cpp, which tells the usage of one answer of several; in a stream it
    # can be counted. No engine streams a beam search.
    several = call.answers > 1 and not call.fields.get("use_beam_search")
    return model.external and several and endpoint.api_format.needs_usage_option


def is_models(path: str) -> bool:
    return path == "/v1/models" or path.startswith("/v1/models/")


def methods_of(path: str) -> str:
    """As the header `Allow` lists them. Raises UnknownPath."""
    if path in ENDPOINTS:
        return "POST, OPTIONS"
    if is_models(path):
        return "GET, HEAD, OPTIONS"
    raise UnknownPath("unknown_url", path=path)


def given_key(headers: dict[bytes, bytes]) -> str:
    """Return the text of the API key, from OpenAI's or from Anthropic's header. Raises InvalidKey."""
    scheme, _, text = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not text:
        text = headers.get(b"x-api-key", b"").decode("latin-1")
    if not text.strip():
        raise InvalidKey("missing_api_key")
    return text.strip()


def refuse(client: Client, refusal: Refusal, api_format: ApiFormat, language: Language, request_id: str) -> None:
    headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    body = api_format.encode_error(refusal, language)
    client.answer(refusal.status, [JSON, (b"x-request-id", request_id.encode()), *headers], body)
