"""Gangs: replicas that are split over several hosts, with a rank on each. All of its ranks run, or none.

vLLM's own processes watch over none of it (0.32, v1/executor/multiproc_executor.py): rank 0 waits for the others when
it starts, for as long as its time-out, and once it serves it looks at its own workers only; a rank whose rank 0 has
gone waits for ever. So each rank is a run like any other, under the shim of its host, and the supervisors of these
hosts, which are all in the controller, look at one another through `Gangs`:

- Rank 0 leads: it is planned like any replica, and is the only one that is asked, routed to and drained. The others
  start when it gathers them, and stop when it has stopped.
- A start is one `Muster`: every host sets its memory apart first, and only when all have is rank 0 started; its host
  chooses the port at which the others find it, so they are started then.
- The start has a name, the id of rank 0's run, which is kept with the run of each rank. A rank belongs to no other one:
  what is left of an earlier start never takes part in a later one, whose port is another, and is stopped.
- A gang that is not kept gives its place to a model that callers wait for, as any replica does, also where that is on
  the host of another rank than 0: rank 0 is drained, and all of it stops. Never a part of it, so it stays while a host
  of it is silent. It comes back as a whole, and not before what others are called for has the room.
- If a rank ends, all are stopped and started again as one. A host that is silent alone ends nothing, as its engine may
  live (its agent may be away, or all hosts silent with Ray's head): but then rank 0 has to answer questions, which
  takes all ranks, and when it does not, and the host has been silent for LOST_AFTER, the gang is over. A host's silence
  counts from when the host that asks was heard itself: after an outage of all they come back one after the other.
  What no supervisor has found yet is silent since the term began.

Nothing of it is stored but with the runs: the next controller finds a gang by them, and takes it over as a whole, or
stops it as a whole.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from modelregistry.engines.base import Spec
from modelregistry.failure_advice import NO_ROOM
from modelregistry.hostside.faults import describe_exception
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.run_metadata import RunMetadata
from modelregistry.hostside.surface import HostSilent, LaunchRefused, RankOrder
from modelregistry.process.process import Life
from modelregistry.supervisor import plan
from modelregistry.supervisor.launching import CannotLaunch, DoesNotFit, explain_launch_refusal
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.plan import Lead, ReplicaState
from modelregistry.supervisor.repository import ReplicaFacts

LOST_AFTER = 8.0  # seconds of silence, as of a host whose replicas the placer moves
# The same while rank 0 loads, which answers nothing yet: a usual lease of 60 s, and the 21 s until no engine is left on
# a host that was cut off. A load of minutes is not to be lost to an agent that is away for less.
LOAD_LOST_AFTER = 90.0
# Seconds of a host's silence from which calls are refused that would wait for its rank. What could run elsewhere has
# been given other places by then: the placer looks for them from LOST_AFTER on, each second.
REFUSED_AFTER = 12.0
# Seconds for which rank 0 keeps its memory while others are unloaded for a rank elsewhere: their answers may take
# `eviction.DRAIN_LIMIT`, and callers have waited for `eviction.PATIENCE` before. Two gangs that wait for each other's
# memory let go after that.
HOLD_WITHIN = 200.0
GATHER_WITHIN = 60.0  # seconds for hosts to set memory apart where they need not wait for it; engines may have to stop
LAUNCH_WITHIN = 60.0  # seconds from rank 0's launch to that of the others
LOOK_AGAIN = 0.5
TRY_AGAIN = 10.0  # seconds after a start for which not all were ready


class GangIncomplete(CannotLaunch):
    """Not all ranks could be started, so none was. `pause`: seconds until it is tried again.

    `lasting`: what is in the way does not pass by itself, so calls are refused meanwhile. `asleep`: others have its
    place, which it could get if it were called.
    """

    def __init__(
        self,
        message: str,
        cause: str = "gang-incomplete",
        pause: float = TRY_AGAIN,
        *,
        lasting: bool = False,
        asleep: bool = False,
    ) -> None:
        super().__init__(message, cause)
        self.pause = pause
        self.lasting = lasting
        self.asleep = asleep


class OthersFirst(GangIncomplete):
    """The room of a rank is being made for a model that callers have waited for longer."""

    def __init__(self, model: str, *, called: bool) -> None:
        reason = f"the room there is being made for {model}, for which calls wait"
        super().__init__(reason, pause=plan.ROOM_PAUSE, asleep=not called)


class GangHost(Protocol):
    """What a gang knows of the supervisor of one of its hosts; see `loop.Supervisor`."""

    supervises: bool
    replicas: dict[ReplicaKey, ManagedReplica]
    rows: Mapping[ReplicaKey, ReplicaFacts] | None

    @property
    def maintenance(self) -> bool: ...

    @property
    def address(self) -> str:
        """Where its engines listen; empty: nothing can listen there."""

    def silent_for(self) -> float: ...

    def life_of(self, replica: ManagedReplica) -> Life | None: ...

    def look_again(self) -> None: ...

    def give_place(self, key: ReplicaKey) -> None:
        """Have a replica, rank 0 of a gang, leave for a model on the host of another rank."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """What all ranks have to have in common: vLLM does not compare them, and hangs or answers nonsense."""

    launcher: str
    version: str
    on_cards: bool
    context: int
    batch: int
    parallel: int

    def agrees_with(self, other: "Likeness") -> bool:
        """Return whether both can be in one gang. A version that is not known, as of a container, is no other one."""
        same = not self.version or not other.version or self.version == other.version
        return same and replace(self, version="") == replace(other, version="")


def lead_key(key: ReplicaKey, spec: Spec) -> ReplicaKey:
    """Return the key of rank 0 of the same gang."""
    return ReplicaKey(key.model, key.number - spec.rank)


def _lead_key(replica: ManagedReplica) -> ReplicaKey:
    return ReplicaKey(replica.key.model, replica.key.number - replica.rank)


def explain_rank(rank: int, hosts: Sequence[str]) -> str:
    return f"rank {rank} of {len(hosts)} on {hosts[rank]}"


@dataclass(slots=True, eq=False)
class Muster:
    """One try to start a gang on these hosts."""

    hosts: tuple[str, ...]
    began: float
    held: dict[int, Likeness] = field(default_factory=dict)
    tried: set[int] = field(default_factory=set)  # ranks that were started in this try
    waiting: set[int] = field(default_factory=set)  # ranks for which others are being unloaded
    obstacle: str = ""  # why it failed
    cause: str = "gang-incomplete"  # the same as a code of `failure_advice`
    pause: float = TRY_AGAIN
    lasting: bool = False  # it does not pass by itself
    asleep: bool = False  # others have its place, which it could get if it were called
    order: RankOrder | None = None  # rank 0 was started
    started_at: float = 0.0
    launched: set[int] = field(default_factory=set)
    decided: asyncio.Event = field(default_factory=asyncio.Event)  # rank 0 was started, or will not be

    def fail(self, reason: str, *, lasting: bool = False) -> None:
        """Give the start up, for the first reason that is reported."""
        if not self.obstacle:
            self.obstacle, self.lasting = reason, lasting
        self.decided.set()

    @property
    def complete(self) -> bool:
        return len(self.held) == len(self.hosts)

    def hold(self, rank: int, likeness: Likeness) -> None:
        """Note that the host of a rank has set its memory apart. Raises GangIncomplete."""
        if self.obstacle:
            raise self.refusal
        self.waiting.discard(rank)
        self.held[rank] = likeness
        other = next((one for one in self.held if not self.held[one].agrees_with(likeness)), None)
        if other is not None:
            self.fail(
                f"{explain_rank(rank, self.hosts)} has {_describe(likeness)}, and {explain_rank(other, self.hosts)} "
                f"{_describe(self.held[other])}: all ranks need the same",
                lasting=True,
            )
            self.cause = "gang-differs"
            raise self.refusal

    @property
    def refusal(self) -> GangIncomplete:
        """Why it failed."""
        return GangIncomplete(self.obstacle, self.cause, self.pause, lasting=self.lasting, asleep=self.asleep)

    def report(self, rank: int, reason: str, *, waits: bool = False, lasting: bool = False) -> None:
        """Note that a rank cannot be started; `waits`: others are being unloaded for it."""
        self.held.pop(rank, None)
        if waits:
            self.waiting.add(rank)
        else:
            self.fail(f"{explain_rank(rank, self.hosts)}: {reason}", lasting=lasting)


def _explain(error: Exception) -> str:
    if isinstance(error, LaunchRefused):
        return str(explain_launch_refusal(error.refusal))
    return str(error) if isinstance(error, CannotLaunch | HostSilent) else describe_exception(error)


def _is_lasting(error: Exception) -> bool:
    """Return whether it does not pass by itself: no engine, no files, or another release of the agent.

    Unlike a host that is silent for a while, or a model that comes first.
    """
    return isinstance(error, CannotLaunch | LaunchRefused) and not isinstance(error, OthersFirst)


def _describe(likeness: Likeness) -> str:
    where = "on GPUs" if likeness.on_cards else "in RAM"
    sizes = f"context {likeness.context}, batch {likeness.batch}, {likeness.parallel} at a time"
    return f"{likeness.launcher} {likeness.version or '(unknown version)'} {where} ({sizes})"


def _lost_after(lead: ManagedReplica) -> float:
    """Return the seconds of a host's silence after which a gang is over, by rank 0."""
    drains_well = lead.state == ReplicaState.DRAINING and lead.failed_checks < plan.FAILED_CHECKS_LIMIT
    return math.inf if lead.proving or drains_well else _usually_lost_after(lead.state)


def _usually_lost_after(state: ReplicaState | None) -> float:
    """Return the same by no more than the state of rank 0; None: nothing is known of that."""
    if state == ReplicaState.READY:
        return math.inf  # it has to prove that all of it is there
    return LOAD_LOST_AFTER if state == ReplicaState.STARTING else LOST_AFTER


class Gangs:
    """The gangs of one controller in one term. `hosts`: the supervisors of its hosts, by name."""

    def __init__(
        self,
        hosts: Mapping[str, GangHost] | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.hosts: Mapping[str, GangHost] = {} if hosts is None else hosts
        self.clock = clock
        self.rng = rng or random.Random()  # noqa: S311 -- spreads tries
        self.musters: dict[ReplicaKey, Muster] = {}
        self.heard_since: dict[str, float] = {}  # since when hosts answer, and what runs there is known
        self.supervised_at: dict[str, float] = {}  # when what runs there was last known
        # The rows of machines that no controller reaches; None: not looked at yet.
        self.forsaken: Mapping[ReplicaKey, ReplicaFacts] | None = None

    # --- Who is heard

    def look(self) -> None:
        """Note which hosts are heard now; each supervisor has it done before it plans."""
        now = self.clock()
        supervised = [name for name, host in self.hosts.items() if host.supervises]
        self.supervised_at |= dict.fromkeys(supervised, now)
        self.heard_since = {name: self.heard_since.get(name, now) for name in supervised if self._is_heard(name)}

    def note_forsaken(self, rows: Mapping[ReplicaKey, ReplicaFacts]) -> None:
        """Note what is known of replicas on machines that no controller reaches."""
        self.forsaken = rows

    def _supervisor_of(self, name: str) -> GangHost | None:
        host = self.hosts.get(name)
        return host if host and host.supervises else None

    def _is_heard(self, name: str) -> bool:
        host = self._supervisor_of(name)
        return host is not None and not host.silent_for()

    def _silence_of(self, name: str, seen_from: str) -> float:
        """Return for how many seconds a host has not been heard while another one was."""
        now, host = self.clock(), self._supervisor_of(name)
        silence = host.silent_for() if host else now - self.supervised_at.get(name, -math.inf)
        return min(silence, now - self.heard_since.get(seen_from, now))

    # --- Starting

    def _gather(self, key: ReplicaKey, spec: Spec) -> None:
        self.musters[key] = Muster(spec.hosts, self.clock())
        for name in spec.hosts[1:]:
            if host := self.hosts.get(name):
                host.look_again()

    def is_called_up(self, key: ReplicaKey, spec: Spec, *, without_room: bool = False) -> bool:
        """Return whether a rank without an engine is to set its memory apart now."""
        muster = self.musters.get(lead_key(key, spec))
        if muster is None or muster.hosts != spec.hosts or muster.order or muster.obstacle:
            return False
        return spec.rank not in muster.tried or (spec.rank in muster.waiting and not without_room)

    def choose_next_try(self, pause: float) -> float:
        """Return when a start that failed is tried again, after this pause or half as much more.

        At random, or two that want the same memory, each with a part of it, would let go and try again in step.
        """
        return self.clock() + self.rng.uniform(pause, 1.5 * pause)

    def awaits_room(self, replica: ManagedReplica) -> bool:
        """Return whether others are to be unloaded for a replica, or rank, for which there is no room.

        For a rank other than 0 only while a start waits for that: else they would be unloaded for what cannot start.
        """
        if replica.rank == 0:
            return True
        muster = self.musters.get(_lead_key(replica))
        if muster is None or muster.hosts != replica.hosts or muster.obstacle:
            return False
        return replica.rank in muster.waiting

    def report_no_room(self, key: ReplicaKey, spec: Spec, reason: str, *, can_come: bool, coming: bool) -> None:
        """Note that the host of a rank has no room. `can_come`: others could be unloaded for it.

        `coming`: they are, as it is called, or leave anyway, as a rank does of a start with other hosts.
        """
        muster = self.musters.get(lead_key(key, spec))
        if muster is None:
            return
        if not muster.obstacle:
            # As of any model that does not fit: gateways refuse calls at once if there is no hope.
            muster.pause, muster.cause = plan.ROOM_PAUSE, "gang-incomplete" if can_come else NO_ROOM
            muster.asleep = can_come and not coming
        muster.report(spec.rank, reason, waits=can_come and coming, lasting=not can_come)

    @contextmanager
    def take_part(self, key: ReplicaKey, spec: Spec) -> Iterator[Muster]:
        """Have the start of a gang, which rank 0 begins; it fails if the block does. Raises GangIncomplete."""
        if spec.rank == 0:
            self._gather(key, spec)
        muster = self.musters.get(lead_key(key, spec))
        if muster is None or muster.hosts != spec.hosts:
            raise GangIncomplete("its rank 0 is not being started any more")
        muster.tried.add(spec.rank)
        try:
            yield muster
        except DoesNotFit as error:
            if spec.rank == 0:  # another one may yet get its room: see `report_no_room`
                muster.report(0, str(error))
            raise
        except asyncio.CancelledError:
            muster.report(spec.rank, "its start was called off")
            raise
        except Exception as error:
            if isinstance(error, OthersFirst) and not muster.obstacle:
                muster.pause, muster.asleep = error.pause, error.asleep
            muster.report(spec.rank, _explain(error), lasting=_is_lasting(error))
            raise

    def note_launch(self, replica: ManagedReplica, metadata: RunMetadata) -> None:
        """Note that a rank was started; with rank 0, the others are to be."""
        muster = self.musters.get(_lead_key(replica))
        if muster is None or not replica.hosts:
            return
        if replica.rank == 0:
            order = RankOrder(gang=metadata.gang, address=metadata.master_address, port=metadata.master_port)
            muster.order, muster.started_at = order, self.clock()
            muster.decided.set()
        elif muster.order and muster.order.gang == replica.gang:
            muster.launched.add(replica.rank)

    async def wait_for_all(self, muster: Muster, is_wanted: Callable[[], bool]) -> None:
        """Wait until all hosts have set memory apart for their ranks. Raises GangIncomplete."""
        while not muster.complete and not muster.obstacle:
            for rank, name in enumerate(muster.hosts):
                if rank and rank not in muster.held and (reason := self._find_absence(name)):
                    self._report_absence(muster, rank, reason)
            within = HOLD_WITHIN if muster.waiting else GATHER_WITHIN
            if self.clock() - muster.began >= within:
                late = min(set(range(len(muster.hosts))) - muster.held.keys(), default=0)
                muster.report(late, f"it was not ready within {within:g} s")
            elif not is_wanted():
                muster.fail("it is not wanted so any more")
            else:
                await asyncio.sleep(LOOK_AGAIN)
        if muster.obstacle:
            raise muster.refusal

    def _report_absence(self, muster: Muster, rank: int, reason: str) -> None:
        """Note that the host of a rank starts nothing. Of one that has been silent for long that may last for hours."""
        name = muster.hosts[rank]
        if self._is_heard(name):
            muster.report(rank, reason)
            return
        left = REFUSED_AFTER - self._silence_of(name, seen_from=muster.hosts[0])
        if left > 0 and not muster.obstacle:
            muster.pause = min(muster.pause, left)  # so that calls are refused soon if it goes on
        muster.report(rank, reason, lasting=left <= 0)

    def _find_absence(self, name: str) -> str:
        host = self.hosts.get(name)
        if host is None or not host.supervises:
            return "its host is not supervised yet" if host else "its host is gone"
        if host.silent_for():
            return "its host is silent"
        if not host.address:
            return "its host does not have its address, or it is not known"
        return "its host is in maintenance" if host.maintenance else ""

    async def wait_for_lead(self, muster: Muster) -> RankOrder:
        """Wait for rank 0 with the memory of another one set apart. Raises GangIncomplete."""
        await muster.decided.wait()
        if muster.order is None:
            raise muster.refusal
        return muster.order

    # --- Living

    def find_break(self, replica: ManagedReplica) -> str:
        """Return why a gang that runs, of which this is rank 0, cannot go on; "": it can, as far as is known."""
        for rank in range(1, len(replica.hosts)):
            if reason := self._find_break(replica, rank):
                return f"{explain_rank(rank, replica.hosts)} {reason}"
        return ""

    def _find_break(self, lead: ManagedReplica, rank: int) -> str:
        name = lead.hosts[rank]
        life = self._life_of_rank(lead, rank)
        if life in (Life.ENDING, Life.ENDED, Life.LOST):
            return "has ended"
        if not self._is_heard(name):
            lost = self._silence_of(name, lead.hosts[0]) >= _lost_after(lead)
            return "does not answer, and nor does its host" if lost else ""
        return "" if life or self._is_being_launched(lead, rank) else "has ended"

    def _life_of_rank(self, lead: ManagedReplica, rank: int) -> Life | None:
        """Return the state of a rank's run, as far as it is known; None: there is no run in this start."""
        host = self._supervisor_of(lead.hosts[rank])
        member = host.replicas.get(ReplicaKey(lead.key.model, lead.key.number + rank)) if host else None
        if host is None or member is None or member.run is None or member.gang != lead.run_id:
            return None
        return host.life_of(member) or Life.RUNNING

    def _is_being_launched(self, lead: ManagedReplica, rank: int) -> bool:
        muster = self.musters.get(lead.key)
        if muster is None or muster.order is None or muster.order.gang != lead.run_id or muster.obstacle:
            return False
        return rank not in muster.launched and self.clock() - muster.started_at < LAUNCH_WITHIN

    def has_silent_rank(self, replica: ManagedReplica) -> bool:
        """Return whether a host of a gang, of which this is rank 0, is not heard, so that it has to prove itself."""
        return any(not self._is_heard(name) for name in replica.hosts[1:])

    # --- Leaving for other models

    def may_leave(self, replica: ManagedReplica) -> bool:
        """Return whether all of a gang could be stopped now; of a replica on one host that is so."""
        return all(self._is_heard(name) for name in replica.hosts)

    def is_leaving(self, replica: ManagedReplica) -> bool:
        """Return whether a rank is to stop with its rank 0, which sleeps by now."""
        lead = self.lead_of(replica)
        return lead is not None and lead.state == ReplicaState.ASLEEP and self.find_lead(replica) == Lead.GONE

    def give_place(self, replica: ManagedReplica) -> None:
        """Have all of a gang leave for a model on the host of this rank."""
        host = self._supervisor_of(replica.hosts[0])
        if host:
            host.give_place(_lead_key(replica))

    def is_maintained(self, spec: Spec) -> bool:
        """Return whether one of its hosts is in maintenance, so that none of it may run."""
        return any((host := self.hosts.get(name)) is not None and host.maintenance for name in spec.hosts)

    def find_lead(self, replica: ManagedReplica) -> Lead:
        """Return what becomes of rank 0 of the start in which this rank takes part, if it has an engine."""
        if not replica.hosts:
            return Lead.UNKNOWN
        host = self._supervisor_of(replica.hosts[0])
        if host is None:
            return self._find_unadopted_lead(replica)
        lead = host.replicas.get(_lead_key(replica))
        if lead is None or lead.run is None or lead.run_id != replica.gang:
            return Lead.GONE
        if host.silent_for():
            return self._find_silent_lead(replica, _lost_after(lead))
        if lead.state in (ReplicaState.BACKOFF, ReplicaState.FAILED):
            return Lead.FAILED
        alive = (ReplicaState.STARTING, ReplicaState.READY, ReplicaState.UNHEALTHY)
        return Lead.SERVES if lead.state in alive else Lead.LEAVES

    def _find_silent_lead(self, replica: ManagedReplica, lost_after: float) -> Lead:
        silence = self._silence_of(replica.hosts[0], seen_from=replica.hosts[replica.rank])
        return Lead.GONE if silence >= lost_after else Lead.UNKNOWN

    def _find_unadopted_lead(self, replica: ManagedReplica) -> Lead:
        """Judge by its row: that says whether it answers, as `doubts.look` asks it."""
        host = self.hosts.get(replica.hosts[0])
        rows = host.rows if host else self.forsaken
        if rows is None:
            return Lead.UNKNOWN
        row = rows.get(_lead_key(replica))
        state = row.state if row and row.run_id == replica.gang else None
        # An end of a drain would never be known.
        return self._find_silent_lead(replica, _usually_lost_after(state))

    def lead_of(self, replica: ManagedReplica) -> ManagedReplica | None:
        """Return rank 0 of the gang, which this rank follows; None: not known, or it is of another start."""
        host = self.hosts.get(replica.hosts[0]) if replica.hosts else None
        lead = host.replicas.get(_lead_key(replica)) if host and host.supervises else None
        return None if lead and replica.run and lead.run_id != replica.gang else lead
