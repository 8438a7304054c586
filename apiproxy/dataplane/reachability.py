"""Which replicas can be reached now, by what hosts, engines and supervisors answer.

`host_watch` asks; here its answers become replicas that get no calls, and calls that are given up. In all of these:

- a host or an engine is *silent*: it did not answer when it was asked;
- a supervisor is *quiet*: its heartbeat has been missing for a while; *gone*: for longer than its restart takes;
- a replica is *unreachable*: its host or its engine is silent, so it gets no calls;
- a replica is *skipped*: it refused a call a moment ago, so others are preferred.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.call_meter import CallMeter
from apiproxy.dataplane.catalogue import Catalogue, Model, Replica
from apiproxy.dataplane.engine_pools import EnginePools
from apiproxy.dataplane.errors import ModelUnavailable
from apiproxy.dataplane.host_watch import EngineWatch, Heartbeat, HostWatch
from apiproxy.dataplane.relay import Exchange

log = logging.getLogger("madoguchi.gateway")

# Seconds of a call's life in which it is given up with the first sign that its host is silent: it has cost nothing yet.
YOUNG = 1.0


class Silence(NamedTuple):
    """Of a replica. `since`: seconds, by the clock. `certain`: for so long that calls there are given up."""

    since: float
    certain: bool


class Reachability:
    """`catalogue` returns the one in force, `open_calls` are those that are at engines now."""

    def __init__(
        self,
        balancer: Balancer,
        pools: EnginePools,
        open_calls: Mapping[Exchange, CallMeter],
        *,
        catalogue: Callable[[], Catalogue],
        clock: Callable[[], float],
    ) -> None:
        self._balancer = balancer
        self._pools = pools
        self._open_calls = open_calls
        self._catalogue = catalogue
        self._hosts = HostWatch(clock)
        self._engines = EngineWatch(clock)
        self.supervisors: Mapping[int, Heartbeat] = {}  # by host

    def is_silent(self, host: str) -> bool:
        """Return whether the host with this name or address does not answer."""
        return host in self._hosts.silent

    def is_quiet(self, host: int) -> bool:
        """Return whether the host's supervisor is quiet, for whatever reason."""
        sign = self.supervisors.get(host)
        return sign is not None and sign.quiet

    def is_gone(self, host: int) -> bool:
        """Return whether the host's supervisor has been quiet for so long that it loads nothing."""
        sign = self.supervisors.get(host)
        return sign is not None and sign.gone

    def is_looked_after(self, model: Model, replica: Replica) -> bool:
        """Return whether a supervisor starts the replica's engine again when that dies.

        Not on a silent host, although its supervisor's silence is not long enough yet to say so: such a host may be
        away for hours, and its calls are refused at once.
        """
        if model.external or self.is_gone(replica.host):
            return False
        return not self.is_silent(self._pools.of(replica).address.host)

    def own_replicas(self) -> list[Replica]:
        """Return all replicas but those of external models: their servers have ways and times of their own."""
        models = self._catalogue().models.values()
        return [replica for model in models if not model.external for replica in model.replicas]

    async def ask_hosts(self) -> None:
        """Find out which hosts of our engines are silent. Call it every `host_watch.EVERY` seconds."""
        before = self._hosts.silent
        await self._hosts.ask([self._pools.of(replica) for replica in self.own_replicas()])
        now = self._hosts.silent
        for host in now.keys() - before.keys():
            log.warning("host %s does not answer: its engines get no calls until it does", host)
        for host in before.keys() - now.keys():
            log.warning("host %s answers again, or serves nothing any more", host)
        self.apply()

    async def ask_engines(self) -> None:
        """Ask the engines that no supervisor looks after now, and those that did not answer last.

        A supervisor that is back reports that it is there before it knows which of its engines are. Call it every
        `host_watch.EVERY` seconds.
        """
        before = self._engines.silent
        asked = [one for one in self.own_replicas() if self.is_quiet(one.host) or one.id in before]
        await self._engines.ask([(one, self._pools.of(one)) for one in asked], self._heard_since)
        now = self._engines.silent
        for replica in now.keys() - before.keys():
            log.error("replica %d does not answer, nor does its supervisor: it gets no calls until one does", replica)
        for replica in before.keys() - now.keys():
            log.warning("replica %d answers again, or is gone", replica)
        if before or now:
            self.apply()

    def apply(self) -> None:
        """Send no calls to silent replicas, and give up those that are there. Call it for a new catalogue too."""
        silent = self._silent_replicas()
        self._balancer.unreachable = frozenset(silent)
        if not silent:
            return
        for exchange, meter in list(self._open_calls.items()):
            silence = silent.get(meter.replica or 0)
            if silence is None or not is_hopeless(exchange, silence):
                continue
            model = meter.context.model.name
            refusal = ModelUnavailable("model_unavailable", headers={"retry-after": "5"}, model=model)
            try:
                exchange.cut_off(refusal, lost=True)
            except Exception:  # one call must not keep the others from being given up
                request_id = meter.context.request_id
                log.exception("call %s", request_id, extra={"facts": {"request_id": request_id}})

    def _silent_replicas(self) -> dict[int, Silence]:
        """Return the silent replicas of the catalogue, by id."""
        hosts, engines = self._hosts.silent, self._engines.silent
        found: dict[int, Silence] = {}
        for replica in self.own_replicas() if hosts or engines else ():
            host = self._pools.of(replica).address.host
            certain = self._hosts.is_certain(host) or self._engines.is_certain(replica.id)
            since = hosts.get(host, engines.get(replica.id))
            if since is not None:
                found[replica.id] = Silence(since, certain)
        return found

    def _heard_since(self, at: float) -> Collection[int]:
        """Return the ids of replicas that have sent some of an answer since then."""
        return {
            meter.replica or 0
            for exchange, meter in self._open_calls.items()
            if exchange.first_byte_at is not None and exchange.heard_at >= at
        }


def is_hopeless(exchange: Exchange, silence: Silence) -> bool:
    """Return whether this call at a silent replica is given up."""
    has_begun = exchange.first_byte_at is not None
    if has_begun and exchange.heard_at >= silence.since:
        return False
    return silence.certain or (not has_begun and exchange.began >= silence.since - YOUNG)
