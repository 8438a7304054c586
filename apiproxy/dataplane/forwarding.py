"""A call at the engines: attempts until there is an answer, or nothing more can be tried."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.call_meter import CallMeter
from apiproxy.dataplane.catalogue import Replica
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.crash_inquiry import CrashInquiry
from apiproxy.dataplane.engine_pools import EnginePools
from apiproxy.dataplane.engine_requests import engine_request
from apiproxy.dataplane.errors import EngineTimeout, Internal, ModelUnavailable, Refusal, release_frames
from apiproxy.dataplane.formats.requests import Call
from apiproxy.dataplane.reachability import Reachability
from apiproxy.dataplane.relay import Exchange, ExchangeOutcome
from apiproxy.dataplane.scheduler import BACKLOGGED_AFTER, Lease
from apiproxy.dataplane.services import Services
from apiproxy.dataplane.upstream import Broken, Connection, Pool, Unreachable, UpstreamError

log = logging.getLogger("madoguchi.gateway")

# An attempt on another replica, and one on a fresh connection for a stale one.
ATTEMPTS = 3
# Seconds after which a stream that has not begun gets a comment, and again after as many: Dify gives up after 300 s
# without a byte, proxies on the way after 60 s.
HEARTBEAT = 15.0

OpenCalls = dict[Exchange, CallMeter]


class NotTaken(Exception):
    """No connection to the only replica could be made, so the call may be queued again until it is restarted.

    `refusal`: what the client is sent if that takes too long. Nothing of an answer was sent, and nothing metered.
    """

    def __init__(self, replica: Replica, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.replica = replica
        self.refusal = refusal


class Forwarder:
    """`open_calls`: those that are at engines now, kept here for all who need them.

    `record_rejection` is called for a refused call that reached no engine.
    """

    def __init__(
        self,
        services: Services,
        balancer: Balancer,
        pools: EnginePools,
        reachability: Reachability,
        inquiry: CrashInquiry,
        open_calls: OpenCalls,
        *,
        record_rejection: Callable[[RequestContext, Refusal], None],
    ) -> None:
        self._record_rejection = record_rejection
        self._services = services
        self._clock = services.clock
        self._balancer = balancer
        self._pools = pools
        self._reachability = reachability
        self._inquiry = inquiry
        self._open_calls = open_calls

    async def forward(self, exchange: Exchange, meter: CallMeter, lease: Lease) -> None:
        """Send the call to the lease's replica, or to another if a retry is safe, and wait until the client is served.

        Raises a Refusal if nothing comes and the client has had nothing, NotTaken if its engine is being restarted.
        """
        client, upload = meter.context.client, meter.context.upload
        exchange.arriving = upload is not None
        if upload is None:
            client.listen(exchange)
        self._open_calls[exchange] = meter
        try:
            if meter.suspected:
                await self._inquiry.start_trial(meter)
            if not await self._try(exchange, meter, lease):
                self._check_restarting(exchange, meter, lease.replica)
                await self._fail(exchange, meter)
        except (Refusal, NotTaken):
            raise
        except asyncio.CancelledError:  # by the server, which does not wait for open calls any longer
            self._break_off(exchange, ModelUnavailable("shutting_down", headers={"retry-after": "5"}))
        except Exception:  # a client that has had a part of the answer has to learn that no more comes
            request_id = meter.context.request_id
            log.exception("call %s", request_id, extra={"facts": {"request_id": request_id}})
            self._break_off(exchange, Internal())
        finally:
            self._open_calls.pop(exchange, None)
            exchange.free()
            if meter.trial is not None:
                meter.end_trial()
            client.unsubscribe()

    def _check_restarting(self, exchange: Exchange, meter: CallMeter, replica: Replica) -> None:
        """Raise NotTaken for a call that no engine has had, if a supervisor starts its replica's engine again."""
        context = meter.context
        unreachable = isinstance(exchange.error, Unreachable) and not exchange.reached and not exchange.metered
        if unreachable and context.replica is None and self._reachability.is_looked_after(context.model, replica):
            raise NotTaken(replica, exchange.refusal) from None

    def _break_off(self, exchange: Exchange, refusal: Refusal) -> None:
        """Meter what was generated, and send the client the error in its stream, or raise it."""
        if not exchange.cut_off(refusal) and not exchange.send_error(refusal):
            raise refusal from None

    async def _fail(self, exchange: Exchange, meter: CallMeter) -> None:
        """Send the client the error in its stream, or raise it. If no engine had the call, no usage shows it."""
        refusal = exchange.refusal
        if exchange.metered:  # tokens were made: a caller who asks again would pay again
            refusal.headers["x-should-retry"] = "false"
        if not exchange.send_error(refusal):
            raise refusal
        if not exchange.reached:
            self._record_rejection(meter.context, refusal)
        await exchange.outcome()

    async def _try(self, exchange: Exchange, meter: CallMeter, lease: Lease) -> bool:
        """Make attempts while another may help. Return whether the client has an answer, or is gone."""
        timeouts = meter.context.model.timeouts
        for _ in range(ATTEMPTS):
            replica = lease.replica
            meter.replica = replica.id
            outcome = await self._attempt(exchange, meter, replica)
            if exchange.says_dead or is_connection_lost(exchange.error):
                await self._inquiry.inquire(exchange, meter, replica)
            if outcome is ExchangeOutcome.ANSWERED or outcome is ExchangeOutcome.LEFT:
                return True
            if exchange.metered or self._clock() - exchange.began > timeouts.total:
                return False
            if is_stale(exchange.error):
                continue  # with the same replica
            other = self._other_replica(exchange, meter, replica)
            if other is None:
                return False
            lease.move(other)
            meter.retries += 1
        return False

    def _other_replica(self, exchange: Exchange, meter: CallMeter, replica: Replica) -> Replica | None:
        """Return a replica that may be given the call after this one, if there is one."""
        if not exchange.untouched or meter.context.replica is not None:
            return None  # the error is about the request, or the engine may have died of it
        self._balancer.penalise(replica, self._clock())
        if meter.context.upload is not None and exchange.reached:
            return None  # some of it has gone there, and is nowhere else
        return self._balancer.choose(meter.context.model.replicas, self._clock(), but=replica.id)

    async def _attempt(self, exchange: Exchange, meter: CallMeter, replica: Replica) -> ExchangeOutcome:
        context, pool = meter.context, self._pools.of(replica)
        upload = context.upload
        # Before there is a connection, which would be left behind by whatever goes wrong here.
        request = engine_request(context, pool.address, replica, self._services.policy, assemble=exchange.assembles)
        stale = is_stale(exchange.error)
        # After a stale connection a fresh one: an engine that closed one has perhaps closed the others as well. For an
        # upload always a fresh one, for it cannot be sent again.
        connection = None if upload is not None or stale else pool.take_idle(self._clock())
        try:
            connection = connection or await self._connect(pool, meter)
            exchange.attempt(connection, request)
            if upload is not None:
                upload.start(connection, exchange, replica.upstream_model, partial(set_uploaded, exchange, meter))
            return await exchange.outcome()
        except Unreachable as error:
            release_frames(error)
            facts = {"facts": {"request_id": context.request_id}}
            log.warning("replica %s of %s: %s", replica.id, context.model.name, error, extra=facts)
            refusal = ModelUnavailable("model_unavailable", headers={"retry-after": "5"}, model=context.model.name)
            # It had the request on the connection that broke, and is gone: not stale, but dead.
            exchange.set_unreachable(Broken(str(error), lost=True) if stale else error, refusal)
            return ExchangeOutcome.BROKEN
        except BaseException:
            if connection is not None:
                connection.abort()
            raise

    async def _connect(self, pool: Pool, meter: CallMeter) -> Connection:
        return await self._pools.connect(pool, meter.context.model, self._reachability.is_silent)

    # --- once a second

    def sweep(self, now: float) -> set[str]:
        """Cut off calls that are over their time, and send heartbeats to clients that wait.

        Return the models of which interactive calls have waited too long for their first byte.
        """
        backlogged: set[str] = set()
        for exchange, meter in list(self._open_calls.items()):
            try:
                exchange.heartbeat(HEARTBEAT)
                meter.checkpoint(now)
                meter.charge()
                if meter.trial is not None and exchange.first_byte_at is not None:
                    meter.end_trial()
                if exchange.first_byte_at is None and now - exchange.heard_at > BACKLOGGED_AFTER and meter.is_urgent:
                    backlogged.add(meter.context.model.name)
                check_time(exchange, meter, now)
            except Exception:  # one call must not keep the others from being looked at
                request_id = meter.context.request_id
                log.exception("call %s", request_id, extra={"facts": {"request_id": request_id}})
        return backlogged


def check_time(exchange: Exchange, meter: CallMeter, now: float) -> None:
    """Cut the call off if its engine, or its client, has been silent for longer than the model's time-outs allow."""
    timeouts = meter.context.model.timeouts
    silence = now - exchange.heard_at
    if exchange.waits_for_client:  # so the engine cannot go on
        if silence > timeouts.idle:
            exchange.client_left()
        elif now - exchange.began > timeouts.total:
            exchange.cut_off(EngineTimeout())
        return
    if exchange.first_byte_at is not None:
        allowed = timeouts.idle
    elif exchange.awaited:
        allowed = timeouts.first_byte
    else:  # an answer in one piece has its first byte when all of it is made
        allowed = timeouts.total
    if silence > allowed or now - exchange.began > timeouts.total:
        exchange.cut_off(EngineTimeout())


def set_uploaded(exchange: Exchange, meter: CallMeter, call: Call) -> None:
    """Note that the engine has all of the call. From now on the exchange must notice that the client disconnects."""
    exchange.arriving = False
    meter.context.call = call
    meter.context.client.listen(exchange)


def is_stale(error: UpstreamError | None) -> bool:
    return isinstance(error, Broken) and error.stale


def is_connection_lost(error: UpstreamError | None) -> bool:
    return isinstance(error, Broken) and error.lost
