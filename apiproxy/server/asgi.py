"""The composition root: builds the gateway of this process; the server's lifespan starts and stops its tasks.

`application` serves `/v1/`, `/healthz`, `/readyz`, `/metrics` and the lifespan; `portal.asgi` mounts it.
"""

import asyncio
import contextlib
import gc
import hashlib
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import orjson
from django.conf import settings
from django.db import DataError, IntegrityError

from apiproxy.bridge import catalogue_loader
from apiproxy.bridge.machines import REPORT_SECONDS
from apiproxy.dataplane import host_watch
from apiproxy.dataplane.backlog import BacklogWatch
from apiproxy.dataplane.catalogue import Catalogue, Counter, Limit
from apiproxy.dataplane.cors import Origins
from apiproxy.dataplane.crash_suspects import CrashSuspects
from apiproxy.dataplane.downstream import Receive, Scope, Send, client_of
from apiproxy.dataplane.errors import FeedbackUnavailable
from apiproxy.dataplane.executor import DaemonExecutor
from apiproxy.dataplane.fairness import ContendedMinute
from apiproxy.dataplane.feedback import FeedbackNote, Outcome
from apiproxy.dataplane.formats.requests import RequestPolicy
from apiproxy.dataplane.gateway import JSON, Gateway
from apiproxy.dataplane.ledger import DatabaseUnavailable, RecordRefused, Spool, UsageDrain
from apiproxy.dataplane.limits.local import Limits, Spending
from apiproxy.dataplane.limits.redis import SharedLimits
from apiproxy.dataplane.memory_budget import MemoryBudget
from apiproxy.dataplane.metrics import LAYOUT, Metrics, gauge_lines, join_lines
from apiproxy.dataplane.mmap_counters import CounterFile
from apiproxy.dataplane.queue_snapshot import QueueSnapshot
from apiproxy.dataplane.routes import PROBES
from apiproxy.dataplane.services import Services
from apiproxy.dataplane.shared_queue import SharedQueue
from apiproxy.dataplane.traces import TraceExporter, make_sender
from apiproxy.dataplane.wake_ups import WakeUp
from apiproxy.server import malloc_trim
from apiproxy.server.gateway_lock import GatewayLock, SecondGateway
from apiproxy.server.succession import GROUP
from modelregistry.supervisor.watchdog import HANGS, Down, Watchdog
from modelregistry.version import VERSION
from portal.keys.site_secrets import OtherSecret
from portal.quotas import windows

log = logging.getLogger("madoguchi.gateway")
STAYS_IN_SPOOL = "usage stays in the spool: %s"

POLL = 1.0  # seconds between two looks at the catalogue's revision; a revoked key lives no longer than two of them
# Seconds between two that unknown keys ask for: a new key works at once, a flood of made-up ones costs little.
REFRESH = 0.2
PATIENCE = 2.0  # seconds that a caller with an unknown key waits for a database that hangs
FULL_RELOAD = 600.0  # what a receiver may have missed is repaired after so long; 100,000 keys take 2 s in a thread
MOVE = 0.25  # seconds between two moves of the spool: pages show a call well within a second
RECORD_REJECTIONS = 2.0  # seconds between two writings of refused calls
REPORT = 2.0  # seconds between two looks at what could not be recorded
# Seconds between two reports of the queue to operators: while calls wait, and while none does.
REPORT_QUEUE, REPORT_IDLE_QUEUE = 2.0, 10.0
# Seconds that a step of a background task may take before it counts as hanging: a database may hang for so long.
PATIENT = 60.0
# Seconds after which a gateway whose metering fails, though the database is there, takes no calls any more: its usage
# waits in the spool, but its keys' limits are not what they seem.
UNMETERED = 300.0
LAST_MOVE = 5.0  # seconds that the last usage may take into the database; then it stays in the spool
RECALL = 10.0  # seconds that a counter's first caller waits to know what was spent: a million calls take 0.7 s
SPENT_AGAIN = 15.0  # a database that could not answer what was spent is asked again after so many seconds
AWAY = 5.0  # seconds without an answer after which the database counts as away; a full load may take 2 s
PLAIN = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
GAUGES_AGE = 2.0  # seconds: several who scrape at once ask the database once
WAKE_AGAIN = 5.0  # a sleeping model's callers write one row in so many seconds


class Application:
    """The gateway and its neighbours.

    Database work runs in threads: the ledger's may wait for a locked database, the catalogue's and the limits' not.
    """

    def __init__(self) -> None:
        self._gateway: Gateway | None = None
        self.drain: UsageDrain | None = None
        self._watchdog = Watchdog(self._task_failed)
        self._tasks: list[asyncio.Task[None]] = []
        self._moved, self._wait = 0, MOVE  # lines of the spool that are moved; seconds until the next look at it
        self._refused = self._aside = 0  # usage that could not be recorded: what /metrics has counted, what waits
        self._reported = -1
        self._worker = f"{settings.HOST_NAME}/{os.getpid()}"
        self._backlog = BacklogWatch()
        self._queue_reported = -math.inf  # loop time
        self._site = b""  # the text of /metrics about hosts, as they were at that time
        self._gauged_at = -math.inf  # loop time
        self._woken: dict[tuple[int, bool], float] = {}  # by model, and whether more than a batch waits for it
        self._looks: dict[tuple[Counter, float], asyncio.Task[Spending | None]] = {}
        self._spent_again = 0.0
        self._shared: SharedLimits | None = None
        self._queue: SharedQueue | None = None
        self._lock: GatewayLock | None = None
        self._ending = False  # no more connections are taken
        self._starting = asyncio.Lock()
        self._next_look: asyncio.Event | None = None  # a look that unknown keys wait for and that has not begun
        self._refreshing: set[asyncio.Task[None]] = set()
        self._looking = asyncio.Lock()
        self._looked = self._loaded = 0.0  # loop time of the last look at the revision, and of the last load
        self._known = 0.0  # loop time at which the catalogue was last known to be up to date

    def http(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve an HTTP request without a coroutine around the gateway's, which would resume with every step (1 µs)."""
        if self._gateway is not None and scope["path"] not in PROBES:
            return self._gateway(scope, receive, send)
        return self(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if self._gateway is None:
            # Without a lifespan (daphne under `runserver`) the first request starts the gateway.
            async with self._starting:
                await self.start()
        assert self._gateway is not None
        path = scope["path"]
        if path not in PROBES:
            await self._gateway(scope, receive, send)
            return
        client = client_of(scope, receive, send)
        if path == "/metrics":
            client.answer(200, PLAIN, await self._render_metrics(self._gateway))
        elif path == "/readyz":
            status, body = readiness(self._gateway.services.spool.accepting, self._watchdog.down, self._aside)
            if self._ending:  # others serve on: who asks by a connection that is left here is not to leave this host
                body["draining"] = True
            client.answer(status, [JSON], orjson.dumps(body))
        else:
            client.answer(200, PLAIN, b"ok\n")
        await client.sent()

    async def _render_metrics(self, gateway: Gateway) -> bytes:
        """Return the text of /metrics, made in a thread: with 40 models the event loop would do nothing else for 5 ms.

        The thread is its own, as a database that hangs is no reason to show nothing.
        """
        self._publish(gateway)
        aside = ("madoguchi_usage_set_aside", "Lines of usage that wait for `manage.py setaside`.", (), self._aside)
        build = ("madoguchi_build_info", "The version of this Madoguchi.", (("version", VERSION),), 1)
        gauges = [*gateway.gauges(), aside, build]
        render = partial(gateway.services.metrics.render, gateway.catalogue.models, gauges)
        site = await self._site_text()
        return await asyncio.get_running_loop().run_in_executor(self._metrics_thread, render) + site

    async def _site_text(self) -> bytes:
        """Return the figures of hosts, at most GAUGES_AGE old; none while the database is away or hangs."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._gauged_at >= GAUGES_AGE:
            try:
                async with asyncio.timeout(PATIENCE):
                    self._site = await loop.run_in_executor(self._limits_thread, read_site_text)
            except (TimeoutError, DatabaseUnavailable):
                self._site = b""
            self._gauged_at = loop.time()
        return self._site

    @property
    def gateway(self) -> Gateway:
        """The gateway, once it has started."""
        assert self._gateway is not None
        return self._gateway

    @property
    def revision(self) -> int:
        """Of the catalogue in force; -1 before there is one."""
        return self._gateway.catalogue.revision if self._gateway else -1

    @property
    def budget(self) -> MemoryBudget:
        """The memory budget of a gateway that has started."""
        return self.gateway.services.budget

    async def start(self) -> None:
        """Load the catalogue (a cold start needs the database) and take over what a dead gateway left.

        Started already: does nothing. Raises DatabaseUnavailable or SecondGateway.
        """
        if self._gateway is not None:
            return
        # Those that count in Redis may be several; none of them beside one that counts in its memory.
        shared, group = bool(settings.REDIS_URL), os.environ.get(GROUP, "")
        self._lock = GatewayLock(settings.RUN / "gateway.lock", shared=shared, group=group)
        self._lock.acquire()
        try:
            await self._build()
        except DatabaseUnavailable:
            self._lock.release()
            raise

    def note_ending(self) -> None:
        """Note that this process takes no more connections; /readyz says so by those that are left."""
        self._ending = True

    async def _build(self) -> None:
        assert self._lock is not None
        spool = Spool(settings.SPOOL)
        self.drain = UsageDrain(settings.SPOOL, catalogue_loader.record_usage, own=spool.owner)
        limits, self._queue = self._limits(), self._shared_queue()
        malloc_trim.configure_malloc()
        budget = MemoryBudget(settings.GATEWAY_MEMORY, settings.GATEWAY_MEMORY_PER_KEY)
        self._trimmer = malloc_trim.MallocTrimmer(budget)
        services = Services(
            digests=catalogue_loader.digests,
            refresh=self._refresh,
            limits=limits,
            spool=spool,
            metrics=Metrics(CounterFile(settings.RUN / "metrics", LAYOUT)),
            budget=budget,
            policy=request_policy(),
            max_body=settings.GATEWAY_MAX_BODY,
            max_upload=settings.GATEWAY_MAX_UPLOAD,
            origins=Origins(settings.GATEWAY_CORS_ORIGINS),
            proxies=settings.TRUSTED_PROXIES,
            suspects=CrashSuspects(
                settings.RUN / "suspects",
                catalogue_loader.body_key(),
                only_gateway=settings.GATEWAY_WORKERS == 1 and self._lock.held,
                wall=time.time,
            ),
            request_wake_up=self._request_wake_up,
            shared_queue=self._queue,
            record_feedback=self._record_feedback,
            traces=self._trace_exporter(),
        )
        gateway = Gateway(services)
        self._catalogue_thread = DaemonExecutor("catalogue")
        self._ledger_thread = DaemonExecutor("ledger")
        self._limits_thread = DaemonExecutor("limits")
        self._metrics_thread = DaemonExecutor("metrics")
        try:
            await self._move(gateway)
        except DatabaseUnavailable:
            raise
        except Exception:  # nothing that a spool holds keeps a gateway from starting; the task will report it again
            log.exception("the spool cannot be moved")
        await self._reload(gateway)
        await asyncio.get_running_loop().run_in_executor(self._catalogue_thread, catalogue_loader.check_secrets)
        if isinstance(limits, SharedLimits):
            self._shared = limits
        # Side by side: while Redis is away each waits for it.
        await asyncio.gather(*(one.start() for one in (self._shared, self._queue) if one is not None))
        self._gateway = gateway
        for name, step in (
            ("catalogue", self._poll),
            ("metering", self._move_often),
            ("sweep", self._sweep),
            ("hosts", self._ask_hosts),
            ("engines", self._ask_engines),
            ("refusals", self._record_rejections_often),
            ("set_aside", self._report_set_aside),
            ("queue", self._report_queue_often),
            ("machine", self._report_machine_often),
        ):
            self._tasks.append(self._watchdog.keep_running(name, partial(step, gateway), patience=PATIENT))
        # What lives as long as the process is put out of the collector's sight: p99 of 700 streams 26 -> 6 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)

    def _limits(self) -> Limits | SharedLimits:
        if not settings.REDIS_URL:
            return Limits(windows.window_bounds, self._query_spent)
        return SharedLimits(
            settings.REDIS_URL,
            prefix=settings.REDIS_PREFIX,
            bounds=windows.window_bounds,
            spent=self._query_spent,
            workers=settings.GATEWAY_WORKERS,
            keep=self._watchdog.keep_running,
        )

    def _trace_exporter(self) -> TraceExporter | None:
        """Return what sends traces of calls; None: no collector is set."""
        if not settings.OTEL_EXPORTER_OTLP_ENDPOINT:
            return None
        resource = {"service.name": "madoguchi", "service.version": VERSION, "service.instance.id": self._worker}
        return TraceExporter(make_sender(settings.OTEL_EXPORTER_OTLP_ENDPOINT), resource)

    def _shared_queue(self) -> SharedQueue | None:
        if not settings.REDIS_URL:
            return None
        return SharedQueue(
            settings.REDIS_URL,
            prefix=settings.REDIS_PREFIX,
            workers=settings.GATEWAY_WORKERS,
            keep=self._watchdog.keep_running,
        )

    async def stop(self) -> None:
        """End open calls, move what can be moved of the spool; the rest waits there for the next start."""
        gateway, self._gateway = self._gateway, None
        if gateway is None:
            return
        tasks, self._tasks = [*self._tasks, *self._refreshing], []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await gateway.close()
        try:
            async with asyncio.timeout(LAST_MOVE):
                await self._move(gateway)
        except Exception as error:  # noqa: BLE001 - a TimeoutError, a DatabaseUnavailable or what the task reported
            log.warning(STAYS_IN_SPOOL, str(error) or f"the database took more than {LAST_MOVE:.0f} s")
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_MOVE):
                    await self._record_rejections(gateway)
                    await self._record_refused_calls(gateway)
                    await self._withdraw_queue()
        if self._shared is not None:
            # Last: calls that were cut off have been settled by now.
            await self._shared.close()
        if self._queue is not None:
            await self._queue.close()
        await self._watchdog.close()
        gateway.services.spool.close()
        await self._end_traces(gateway)
        gateway.services.metrics.close()
        self._end_threads()
        if self._lock is not None:
            self._lock.release()

    async def _end_traces(self, gateway: Gateway) -> None:
        """Have the last traces sent, for a second at most, and count them."""
        if (traces := gateway.services.traces) is not None:
            await asyncio.to_thread(traces.close)
            gateway.services.metrics.count_traces(*traces.take_counts())

    def _end_threads(self) -> None:
        for thread in (self._catalogue_thread, self._ledger_thread, self._limits_thread, self._metrics_thread):
            thread.shutdown()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.start()
                except (DatabaseUnavailable, OtherSecret, SecondGateway) as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                for handler in logging.getLogger().handlers:
                    handler.flush()  # uvicorn exits by the signal that it was sent, without Python's own shutdown
                await send({"type": "lifespan.shutdown.complete"})
                return

    # --- tasks, see Watchdog: each is one turn

    def _task_failed(self, task: str) -> None:
        if self._gateway is not None:
            self._gateway.services.metrics.count_task_failure(task)

    async def _poll(self, gateway: Gateway) -> None:
        await asyncio.sleep(POLL)
        with contextlib.suppress(DatabaseUnavailable):  # the look reports it; what was known stays
            # First: a supervisor that follows another is known by then before what it says of its replicas.
            loop = asyncio.get_running_loop()
            gateway.note_supervisors(
                await loop.run_in_executor(self._catalogue_thread, catalogue_loader.heartbeats_by_host)
            )
            gateway.note_loads(await loop.run_in_executor(self._catalogue_thread, catalogue_loader.loads_by_replica))
        await self._check_catalogue(gateway)

    async def _refresh(self) -> None:
        """Return after a look at the revision that began after the call; waits up to REFRESH for its turn.

        Callers that come together share one look. A database that hangs holds no caller longer than PATIENCE.
        """
        if self._next_look is None:
            self._next_look = asyncio.Event()
            task = asyncio.create_task(self._look_soon(self._next_look))
            self._refreshing.add(task)
            task.add_done_callback(self._refreshing.discard)
        await self._next_look.wait()

    async def _look_soon(self, done: asyncio.Event) -> None:
        loop, gateway = asyncio.get_running_loop(), self._gateway
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await asyncio.sleep(self._looked + REFRESH - loop.time())
                    self._next_look = None  # a caller that comes from now on needs another look
                    if gateway is not None:
                        await self._check_catalogue(gateway)
        finally:
            if self._next_look is done:
                self._next_look = None
            done.set()

    async def _check_catalogue(self, gateway: Gateway) -> None:
        """Bring the catalogue up to date if anything changed.

        All of it is loaded if the last full load was long ago, or if another database server may answer now: a standby
        that was promoted lacks changes that it had not received, and gives their numbers to others.
        """
        loop = asyncio.get_running_loop()
        async with self._looking:
            self._looked = loop.time()
            try:
                number = await loop.run_in_executor(self._catalogue_thread, catalogue_loader.revision)
                if number < gateway.catalogue.revision or loop.time() - self._loaded > FULL_RELOAD:
                    await self._reload(gateway)
                elif number != gateway.catalogue.revision:
                    await self._install(gateway, partial(catalogue_loader.apply_changes, gateway.catalogue))
                self._known = loop.time()
            except DatabaseUnavailable as error:
                self._loaded = -FULL_RELOAD
                log.warning("the database does not answer; the last catalogue stays in force: %s", error)

    async def _reload(self, gateway: Gateway) -> None:
        await self._install(gateway, catalogue_loader.load)
        self._known = self._loaded = asyncio.get_running_loop().time()

    async def _install(self, gateway: Gateway, update: Callable[[], Catalogue]) -> None:
        gateway.replace(await asyncio.get_running_loop().run_in_executor(self._catalogue_thread, update))

    # --- what was spent

    async def _query_spent(self, limit: Limit, now: float) -> Spending | None:
        """Return what was spent of a limit whose counter begins; None: unknown. Concurrent callers share one query."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._spent_again:
            return None
        key = (limit.counter, windows.window_bounds(limit.counter.window, now, limit.zone)[0])
        look = self._looks.get(key)
        if look is None:
            look = self._looks[key] = loop.create_task(self._look_up(limit, now))
            look.add_done_callback(lambda _: self._looks.pop(key))
        return await asyncio.shield(look)

    async def _look_up(self, limit: Limit, now: float) -> Spending | None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            async with asyncio.timeout(RECALL):
                # What this worker has finished is in the database first; the others' is after MOVE seconds.
                if self.drain is not None:
                    await loop.run_in_executor(self._ledger_thread, self.drain.run)
                spending = await loop.run_in_executor(self._limits_thread, catalogue_loader.usage_since, limit, now)
                return replace(spending, read_at=begun)
        except (DatabaseUnavailable, OSError) as error:  # a TimeoutError is an OSError
            self._spent_again = loop.time() + SPENT_AGAIN
            why = str(error) or f"the database took more than {RECALL:.0f} s"
            log.warning("what was used is not known, new counters begin at zero until it is: %s", why)
            return None
        except Exception:  # a sum that overflows must not refuse all calls
            self._spent_again = loop.time() + SPENT_AGAIN
            log.exception("what was used is not known, new counters begin at zero until it is")
            return None

    async def _move_often(self, gateway: Gateway) -> None:
        """Move the spool if something was added; while the database is away waits longer each time, up to 15 s."""
        await asyncio.sleep(self._wait)
        if gateway.services.spool.line_count == self._moved and gateway.services.spool.accepting:
            return
        gateway.services.spool.retry()
        written = gateway.services.spool.line_count
        try:
            await self._move(gateway)
        except DatabaseUnavailable as error:
            log.warning("usage waits in the spool: %s", error)
            self._wait = min(15.0, self._wait * 2)
        else:
            self._moved, self._wait = written, MOVE

    async def _move(self, gateway: Gateway) -> None:
        assert self.drain is not None
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._ledger_thread, gateway.services.spool.sync)
        await loop.run_in_executor(self._ledger_thread, self.drain.run)

    async def _ask_hosts(self, gateway: Gateway) -> None:
        await asyncio.sleep(host_watch.EVERY)
        await gateway.reachability.ask_hosts()

    async def _ask_engines(self, gateway: Gateway) -> None:
        await asyncio.sleep(host_watch.EVERY)
        await gateway.reachability.ask_engines()

    async def _report_set_aside(self, gateway: Gateway) -> None:
        """Report how much usage could not be recorded, whenever that changes, and what has waited for long."""
        assert self.drain is not None
        await asyncio.sleep(REPORT)
        loop = asyncio.get_running_loop()
        # Not in the ledger's thread: it may be what hangs.
        self._aside = aside = await loop.run_in_executor(self._limits_thread, len, self.drain.set_aside)
        if aside != self._reported:
            with contextlib.suppress(DatabaseUnavailable):  # that is reported already
                await loop.run_in_executor(self._limits_thread, catalogue_loader.report_set_aside, aside)
                self._reported = aside
        if backlog := self._backlog.look(gateway.services.spool.byte_count - self.drain.byte_count):
            report = partial(catalogue_loader.report_backlog, self._worker, backlog)
            with contextlib.suppress(DatabaseUnavailable):  # one that lasts is reported again
                await loop.run_in_executor(self._limits_thread, report)

    async def _report_machine_often(self, gateway: Gateway) -> None:
        """Report that this machine has a gateway of this version, unless this process is to end."""
        if not self._ending:
            with contextlib.suppress(DatabaseUnavailable):  # that is reported already
                await asyncio.get_running_loop().run_in_executor(self._limits_thread, catalogue_loader.report_machine)
        await asyncio.sleep(REPORT_SECONDS)

    async def _record_rejections_often(self, gateway: Gateway) -> None:
        await asyncio.sleep(RECORD_REJECTIONS)
        await self._record_rejections(gateway)
        await self._record_refused_calls(gateway)
        await self._renew_digests(gateway)
        await self._record_deaths(gateway)

    async def _record_rejections(self, gateway: Gateway) -> None:
        """Write the refused calls that were counted; what cannot be written now is counted on."""
        counts = gateway.rejections.take()
        if not counts:
            return
        loop = asyncio.get_running_loop()
        try:
            # Shielded: what the thread was given it will do, also when the gateway stops meanwhile.
            await asyncio.shield(loop.run_in_executor(self._ledger_thread, catalogue_loader.record_rejections, counts))
        except DatabaseUnavailable:
            gateway.rejections.give_back(counts)  # the ledger has reported it
        except RecordRefused as error:
            log.error("the database would not take %d counts of refused calls: %s", len(counts), error)

    async def _record_refused_calls(self, gateway: Gateway) -> None:
        """Write the last refused calls, by which their callers can look up why. Best effort, see `refused_calls`."""
        calls = gateway.refused_calls.take()
        if not calls:
            return
        loop = asyncio.get_running_loop()
        try:
            await asyncio.shield(
                loop.run_in_executor(self._ledger_thread, catalogue_loader.record_refused_calls, calls)
            )
        except DatabaseUnavailable:
            gateway.refused_calls.give_back(calls)  # the ledger has reported it
        except RecordRefused as error:
            log.error("the database would not take %d refused calls: %s", len(calls), error)

    async def _renew_digests(self, gateway: Gateway) -> None:
        """Store keys under today's secret that were used and are stored under the one before it. Best effort."""
        if used := gateway.take_renewals():
            loop = asyncio.get_running_loop()
            with contextlib.suppress(DatabaseUnavailable):  # they will be used again
                await asyncio.shield(loop.run_in_executor(self._ledger_thread, catalogue_loader.renew_digests, used))

    async def _record_deaths(self, gateway: Gateway) -> None:
        """Write the calls under which engines died into the audit log; the log has them in any case."""
        deaths = gateway.services.suspects.take()
        if not deaths:
            return
        loop = asyncio.get_running_loop()
        try:
            await asyncio.shield(loop.run_in_executor(self._ledger_thread, catalogue_loader.record_deaths, deaths))
        except (DatabaseUnavailable, RecordRefused) as error:
            log.error("%d calls under which engines died are missing in the audit log: %s", len(deaths), error)

    async def _report_queue_often(self, gateway: Gateway) -> None:
        await asyncio.sleep(REPORT_QUEUE)
        if gateway.queued or asyncio.get_running_loop().time() - self._queue_reported >= REPORT_IDLE_QUEUE:
            with contextlib.suppress(DatabaseUnavailable):  # that is reported already
                await self._report_queue(gateway)

    async def _withdraw_queue(self) -> None:
        """Take this worker, which stops, off operators' pages; without the database they notice by its age."""
        withdraw = partial(catalogue_loader.withdraw_queue, self._worker)
        with contextlib.suppress(DatabaseUnavailable):
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._ledger_thread, withdraw))

    async def _report_queue(self, gateway: Gateway) -> None:
        """Report who waits to operators, and what callers were served in the minutes that are over."""
        loop = asyncio.get_running_loop()
        minutes = gateway.fairness.finished()
        write = partial(
            write_queue_report,
            self._worker,
            gateway.queue_snapshot(),
            minutes,
        )
        await asyncio.shield(loop.run_in_executor(self._ledger_thread, write))
        gateway.fairness.forget(minutes)
        self._queue_reported = loop.time()

    async def _sweep(self, gateway: Gateway) -> None:
        await asyncio.sleep(1.0)
        try:
            gateway.sweep()
            self._trimmer.sweep()
        finally:
            gateway.services.spool.retry()
            self._publish(gateway)
        if self._lock is not None and not self._lock.held and self._lock.retry():
            self._on_predecessor_gone(gateway)

    def _on_predecessor_gone(self, gateway: Gateway) -> None:
        """Count what the gateway before this one has recorded since this one began."""
        gateway.services.suspects.only_gateway = settings.GATEWAY_WORKERS == 1
        if isinstance(gateway.services.limits, Limits):
            gateway.services.limits.seed_again()

    def _publish(self, gateway: Gateway) -> None:
        """Publish the state of this worker to /metrics of all workers."""
        assert self.drain is not None
        age = asyncio.get_running_loop().time() - self._known
        backlog = gateway.services.spool.byte_count - self.drain.byte_count
        down = len(self._watchdog.down)
        state = gateway.state(backlog=backlog, database_up=age < AWAY, age=age, tasks_down=down)
        gateway.services.metrics.set_state(state)
        refused = self.drain.refused_count
        if refused > self._refused:
            gateway.services.metrics.count_lost_usage(refused - self._refused)
            self._refused = refused
        if gateway.services.traces is not None:
            gateway.services.metrics.count_traces(*gateway.services.traces.take_counts())

    def _request_wake_up(self, wake: WakeUp) -> None:
        loop, key = asyncio.get_running_loop(), (wake.model, wake.interactive)
        if loop.time() - self._woken.get(key, -WAKE_AGAIN) >= WAKE_AGAIN:
            self._woken[key] = loop.time()
            waiting = max(1, self.gateway.waiting(wake.model))  # the first is not in the queue yet
            writing = loop.run_in_executor(self._catalogue_thread, write_wake_request, wake, waiting)
            writing.add_done_callback(partial(self._on_wake_request, wake))

    def _on_wake_request(self, wake: WakeUp, writing: asyncio.Future[float]) -> None:
        if not writing.cancelled() and (seconds := writing.result()):
            self._woken.pop((wake.model, wake.interactive), None)  # another caller's call has it loaded
            self.gateway.refuse_wake_up(wake, seconds)

    async def _record_feedback(self, note: FeedbackNote) -> Outcome:
        """Store what a caller says. Raises FeedbackUnavailable where the database does not answer in time."""
        loop = asyncio.get_running_loop()
        try:
            # In the thread of limits: that of the catalogue would keep a revoked key alive.
            async with asyncio.timeout(PATIENCE):
                return await asyncio.shield(
                    loop.run_in_executor(self._limits_thread, catalogue_loader.record_feedback, note)
                )
        except (DatabaseUnavailable, IntegrityError, DataError, TimeoutError) as error:
            raise FeedbackUnavailable("feedback_unavailable", headers={"retry-after": "30"}) from error


def write_queue_report(worker: str, snapshot: QueueSnapshot, minutes: Sequence[ContendedMinute]) -> None:
    """Write who waits in this worker. In a thread, where 200 calls become plain values as well."""
    catalogue_loader.report_queue(worker, asdict(snapshot), [asdict(one) for one in minutes])


def write_wake_request(wake: WakeUp, calls: int) -> float:
    """Return 0; or in how many seconds its caller may have the model loaded, who had too many others loaded."""
    try:
        return catalogue_loader.request_wake_up(wake, calls)
    except DatabaseUnavailable as error:
        log.warning("cannot ask for model %s: %s", wake.model, error)
    except Exception:  # it may be gone
        log.exception("cannot ask for model %s", wake.model)
    return 0.0


def request_policy() -> RequestPolicy:
    """Return what the settings say about request bodies."""
    key = hashlib.sha256(b"prefix cache:" + settings.API_KEY_SECRET.encode()).digest()
    return RequestPolicy(
        default_answer=settings.GATEWAY_DEFAULT_MAX_TOKENS,
        media_domains=frozenset(settings.MEDIA_DOMAINS),
        salt_key=b"" if settings.SHARED_PREFIX_CACHE else key,
    )


def read_site_text() -> bytes:
    """Return the text of /metrics about hosts, models and tasks. Raises DatabaseUnavailable."""
    return join_lines(gauge_lines(catalogue_loader.site_gauges()))


def readiness(accepting: bool, down: Sequence[Down], aside: int) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of /readyz. A catalogue is loaded, or there would be no gateway.

    Not ready: usage cannot be written, or its way to the database has failed for long. Other tasks that are down are
    only listed: a gateway that is ready serves its callers better than one that is taken away.
    """
    body: dict[str, Any] = {"status": "ready"}
    if down:
        body["tasks_down"] = [{"task": one.task, "why": one.why, "seconds": round(one.seconds)} for one in down]
    if aside:
        body["usage_set_aside"] = aside
    # One that hangs waits for the database, without which calls go on.
    unmetered = any(one.task == "metering" and one.why != HANGS and one.seconds > UNMETERED for one in down)
    if accepting and not unmetered:
        return 200, body
    return 503, {**body, "status": "usage cannot be recorded" if accepting else "usage cannot be written"}


application = Application()
