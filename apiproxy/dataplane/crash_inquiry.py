"""The inquiry after an engine has broken an answer off: is it dead, did it die alone, is the call to blame.

`crash_suspects` holds the rules and what is remembered; here the engines are asked.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial

from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.call_meter import CallMeter
from apiproxy.dataplane.catalogue import Catalogue, Replica
from apiproxy.dataplane.crash_suspects import Death
from apiproxy.dataplane.engine_pools import EnginePools
from apiproxy.dataplane.errors import EngineFailed, ModelUnavailable
from apiproxy.dataplane.reachability import Reachability
from apiproxy.dataplane.relay import Exchange
from apiproxy.dataplane.services import Services
from apiproxy.dataplane.upstream import Unreachable

log = logging.getLogger("madoguchi.gateway")

ENGINE_DIED = "an engine of %s died under a call (%s)"  # of which model, and what is known of the call

# Seconds before each look at an engine that broke an answer off, and those that a look may take: one that dies may
# still take connections for a moment, one that lives takes them at once.
LOOKS_AFTER = (0.0, 0.3)
LOOK_WITHIN = 1.0


class CrashInquiry:
    def __init__(
        self,
        services: Services,
        reachability: Reachability,
        balancer: Balancer,
        pools: EnginePools,
        open_calls: Mapping[Exchange, CallMeter],
        *,
        catalogue: Callable[[], Catalogue],
    ) -> None:
        self._services = services
        self._suspects = services.suspects
        self._reachability = reachability
        self._balancer = balancer
        self._pools = pools
        self._open_calls = open_calls
        self._catalogue = catalogue

    async def start_trial(self, meter: CallMeter) -> None:
        """Wait until this suspect is the only one at its model. Raises ModelUnavailable if that takes too long."""
        model = meter.context.model.name
        try:
            meter.trial = await self._suspects.acquire_trial(model)
        except TimeoutError as error:
            raise ModelUnavailable("model_unavailable", headers={"retry-after": "5"}, model=model) from error

    async def inquire(self, exchange: Exchange, meter: CallMeter, replica: Replica) -> None:
        """Find out whether the engine died under this call; if so judge the call, and let its client know."""
        calls = sum(other.replica == replica.id for other in self._open_calls.values())
        model = meter.context.model
        if not await self._is_dead(exchange, replica) or not self._is_served(model.name, replica):
            return
        self._balancer.penalise(replica, self._services.clock())
        if model.hosts > 1:
            log.error("the engine of %s died under a call, which is not judged: it is on several hosts", model.name)
            exchange.set_refusal(EngineFailed("split_engine_died"))
            return
        others_live = None if exchange.says_dead or model.external else await self._others_live(replica)
        if others_live is False:
            log.error("all engines on the host of replica %d are gone: no call is blamed for that", replica.id)
            return
        calls = self._suspects.record_death(replica.id, calls)
        is_guilty = self._judge(exchange, meter, replica, calls, died_alone=others_live)
        refusal = EngineFailed("engine_died")
        if is_guilty or calls == 1:  # SDKs would send it three times
            refusal.headers["x-should-retry"] = "false"
        exchange.set_refusal(refusal)

    async def _is_dead(self, exchange: Exchange, replica: Replica) -> bool:
        """Return whether the engine is gone. Nothing is known of one whose host is silent: False."""
        if replica.id in self._balancer.unreachable or self._reachability.is_quiet(replica.host):
            return False
        return exchange.says_dead or not await self._takes_connections(replica)

    def _is_served(self, model: str, replica: Replica) -> bool:
        """Return whether the catalogue still has the replica; one that was taken off was to stop."""
        now = self._catalogue().models.get(model)
        return now is not None and any(other.id == replica.id for other in now.replicas)

    def _judge(
        self, exchange: Exchange, meter: CallMeter, replica: Replica, calls: int, *, died_alone: bool | None
    ) -> bool:
        """Judge the call by the rules of `crash_suspects`, and report the death once it is proven.

        `died_alone`: None if the replica is the only one of its host. Returns whether the call is guilty.
        """
        context, identity = meter.context, meter.context.call.identity
        on_trial = meter.trial is not None
        judgement = self._suspects.judge(replica.id, context.key.id, identity, calls=calls, on_trial=on_trial)
        verdict = judgement.verdict
        death = Death(
            at=self._services.wall(),
            request_id=context.request_id,
            key=context.key.id,
            model=context.model.id,
            replica=replica.id,
            endpoint=context.endpoint.path,
            calls=calls,
            verdict=verdict,
        )
        report = partial(self._report, death, context.model.name)
        sign = self._reachability.supervisors.get(replica.host)
        if died_alone is None and sign is not None and not exchange.says_dead and not context.model.external:
            self._suspects.doubt(replica.id, replica.host, sign.claim, judgement, proven=report)
        else:
            report()
        return verdict == "guilty"

    def _report(self, death: Death, model: str) -> None:
        self._services.metrics.count_engine_death(model, death.verdict)
        facts = {"request_id": death.request_id, "key": death.key, "replica": death.replica, "calls": death.calls}
        log.error(ENGINE_DIED, model, death.verdict, extra={"facts": facts})
        self._suspects.report(death)

    async def _others_live(self, replica: Replica) -> bool | None:
        """Return whether another engine of its host takes connections; None: there is no other."""
        everywhere = self._reachability.own_replicas()
        others = [one for one in everywhere if one.host == replica.host and one.id != replica.id]
        return any(await asyncio.gather(*map(self._takes_connections, others))) if others else None

    async def _takes_connections(self, replica: Replica) -> bool:
        for wait in LOOKS_AFTER:
            await asyncio.sleep(wait)
            try:
                connection = await self._pools.of(replica).connect(LOOK_WITHIN)
            except Unreachable as error:
                # A time-out may be our own delay, or the host's, which HostWatch handles.
                return isinstance(error.__cause__, TimeoutError)
            connection.abort()
        return True

    # --- doubts

    def settle_doubts(self) -> None:
        """End what is in doubt and can be decided now: after news of supervisors or replicas, and once a second."""
        if not self._suspects.in_doubt:
            return
        served = {replica.id for model in self._catalogue().models.values() for replica in model.replicas}
        for replica in self._suspects.settle(self._reachability.supervisors, served):
            log.error("replica %d died with its host: no call is blamed for that", replica)
