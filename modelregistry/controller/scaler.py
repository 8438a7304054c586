"""How many replicas of a model run beside the least that operators want, up to the most: by how long its calls wait.

One more when a call that came now would wait for longer than a bound, and has for a while; it goes only where it fits
without making room. One fewer when for long no call has waited and the others would have done with room to spare. In
between nothing changes, so that a load which just needs so many keeps them; nor does anything that gateways do not
report. Calls of batches do not count: they take what others leave.

What operators see of it where there is no place for one more: how many are wanted, since when, and what is missing
(`ReplicaShortage`). That is over when there is a place, or calls wait no longer, or are not reported any more.

Further replicas have the highest numbers. That one is placed is all that is known of it: the next controller goes on
with it.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from modelregistry.controller.loads import ModelLoad
from modelregistry.controller.repository import FreeModel
from modelregistry.controller.shortages import PlacementAttempt, Shortage
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.models import ReplicaShortage

log = logging.getLogger(__name__)

EVERY = 5.0  # seconds; gateways report their queues every 2 s while calls wait, and every 10 s while none do
# Of the room of the replicas that would be left: what may have been in use for one to be removed.
BUSY_SHARE = 0.7
TRY_AGAIN = 30.0  # seconds until a place is looked for again after there was none
AGAIN_AFTER = 600.0  # seconds after one could not run until another one is tried
# Where one is that may yet be ready, and where it is of no use: it failed, or was unloaded for another model.
COMING = ("", "starting", "draining", "stopped", "backoff", "unhealthy")
USELESS = ("failed", "asleep")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRule:
    """`wait`: seconds of expected wait above which, for `after` seconds, one is added.

    `quiet`: seconds without a waiting call until one is removed.
    """

    wait: float
    after: float
    quiet: float


# A burst of a minute is over before a further replica has loaded, which takes 30 s to minutes, and people wait 15 s for
# an answer to begin before they wonder. Loading it again costs minutes, so it is kept for a quarter of an hour.
USUAL_SCALING = ScalingRule(wait=15.0, after=60.0, quiet=900.0)


class ScaledPlacer(Protocol):
    """What of a `placer.Placer` is needed here."""

    @property
    def models(self) -> Mapping[int, FreeModel]:
        """The models without a host of their own, as last read."""

    async def add_further(self, key: ReplicaKey) -> PlacementAttempt:
        """Place one more replica where it fits as it is."""

    async def remove_further(self, key: ReplicaKey, *, quiet: bool) -> None:
        """Have one of these leave, when its running answers are over."""

    async def note_shortages(self, found: Mapping[int, Shortage]) -> None:
        """Record which models lack a replica, by their ids, and that no other one does."""


class LoadHistory:
    """What is known of one model's load: since when its calls wait too long, and since when fewer would do."""

    def __init__(self) -> None:
        self.busy_since: float | None = None
        self.quiet_since: float | None = None
        self.not_before = float("-inf")  # when one more may be tried
        self.shortage: Shortage | None = None  # why there was no place for it

    def observe(self, load: ModelLoad | None, replicas: int, rule: ScalingRule, now: float) -> None:
        """Take what gateways report of it now; None: nothing."""
        busy = load is not None and load.wait is not None and load.wait > rule.wait
        quiet = load is not None and not load.waiting and _fits_fewer(load, replicas)
        self.busy_since = (now if self.busy_since is None else self.busy_since) if busy else None
        self.quiet_since = (now if self.quiet_since is None else self.quiet_since) if quiet else None
        if not busy:
            self.shortage = None

    def forget(self) -> None:
        """Begin again, as the number of replicas has changed."""
        self.busy_since = self.quiet_since = self.shortage = None

    def is_busy(self, rule: ScalingRule, now: float) -> bool:
        return self.busy_since is not None and now - self.busy_since >= rule.after

    def is_quiet(self, rule: ScalingRule, now: float) -> bool:
        return self.quiet_since is not None and now - self.quiet_since >= rule.quiet


def _fits_fewer(load: ModelLoad, replicas: int) -> bool:
    """Return whether one replica fewer would have had room to spare for what runs now."""
    if load.room is None or replicas < 2:
        return True
    return load.running <= BUSY_SHARE * load.room * (replicas - 1) / replicas


class Scaler:
    """One controller's. `read_loads`: by the model's id; None: no gateway reports. It raises django.db.Error."""

    def __init__(
        self,
        placer: ScaledPlacer,
        read_loads: Callable[[], Awaitable[Mapping[int, ModelLoad] | None]],
        rule: ScalingRule,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.placer = placer
        self.read_loads = read_loads
        self.rule = rule
        self.clock = clock
        self.loads: dict[int, LoadHistory] = {}
        self.recorded: Mapping[int, Shortage] | None = None  # None: an earlier controller may have left some

    async def look(self) -> None:
        """Look once at all models that may have more replicas than they need. Raises django.db.Error."""
        models = {one: model for one, model in self.placer.models.items() if model.most > model.replicas}
        self.loads = {one: self.loads.get(one) or LoadHistory() for one in models}
        if models:
            reported = await self.read_loads()
            now = self.clock()
            for model_id, model in models.items():
                load = None if reported is None else reported.get(model_id, ModelLoad())
                await self._look_at(model_id, model, load, now)
        short = {one: known.shortage for one, known in self.loads.items() if known.shortage}
        if short != self.recorded:
            await self.placer.note_shortages(short)
            self.recorded = short

    async def _look_at(self, model_id: int, model: FreeModel, load: ModelLoad | None, now: float) -> None:
        known, further = self.loads[model_id], [number for number in model.placed if number >= model.replicas]
        known.observe(load, model.replicas + len(further), self.rule, now)
        if further and _rests(model):
            known.forget()
            await self.placer.remove_further(ReplicaKey(model_id, max(further)), quiet=True)
        elif number := _find_useless(model, further):
            known.forget()
            known.not_before = now + AGAIN_AFTER
            await self.placer.remove_further(ReplicaKey(model_id, number), quiet=False)
        elif known.is_busy(self.rule, now):
            await self._add(model_id, model, load, now)
        elif known.is_quiet(self.rule, now) and further:
            log.info("%s: one replica fewer, as its calls do not wait any more", model.spec.name)
            known.forget()
            await self.placer.remove_further(ReplicaKey(model_id, max(further)), quiet=True)

    async def _add(self, model_id: int, model: FreeModel, load: ModelLoad | None, now: float) -> None:
        """Have one replica more, or note why there is none."""
        known = self.loads[model_id]
        if not _may_have_more(model):
            known.shortage = None
            return
        wanted = len(model.placed) + 1
        if now < known.not_before:
            known.shortage = known.shortage or Shortage(cause=ReplicaShortage.Cause.USELESS, wanted=wanted)
            return
        # Its number is the first that none has: one in the middle may have gone.
        number = next(one for one in range(model.replicas, model.most) if one not in model.placed)
        attempt = await self.placer.add_further(ReplicaKey(model_id, number))
        if attempt.placed:
            log.info("%s: one more replica, as its calls would wait for %.0f s", model.spec.name, _wait_of(load))
            known.forget()
        elif attempt.shortage:
            known.shortage = replace(attempt.shortage, wanted=wanted)
            known.not_before = now + TRY_AGAIN


def _rests(model: FreeModel) -> bool:
    """Return whether a model is not to serve, or sleeps until it is called."""
    least = [model.placed[number].state for number in range(model.replicas) if number in model.placed]
    return not model.enabled or (bool(least) and set(least) == {"asleep"})


def _find_useless(model: FreeModel, further: Collection[int]) -> int:
    """Return one of the further replicas that is of no use; 0: none is."""
    return max((number for number in further if model.placed[number].state in USELESS), default=0)


def _may_have_more(model: FreeModel) -> bool:
    """Return whether the most are not reached, and all that there are have become ready: the next may not be needed."""
    states = [at.state for at in model.placed.values()]
    return model.enabled and len(states) < model.most and "ready" in states and not set(states) & set(COMING)


def _wait_of(load: ModelLoad | None) -> float:
    return (load.wait or 0.0) if load else 0.0
