"""One run: an installation under load, troubles by chance, and after each the wait until all is well again."""

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apiproxy.server.succession import STOP_SECONDS
from modelregistry.hostside.run_metadata import metadata_of
from modelregistry.process import shim
from modelregistry.supervisor import loop, plan
from tests.chaos import leftovers, troubles
from tests.chaos.books import Books, disagreements, unmetered
from tests.chaos.census import RESTING, Census, Found, unaccounted
from tests.chaos.discrepancy import Discrepancy
from tests.chaos.load import Call, Load, Target
from tests.chaos.troubles import EVERYBODY, Backoff, Deck, Pace, Trouble
from tests.installation import Installation
from tests.waiting import until

GRACE = 5  # seconds, ENGINE_STOP_GRACE
AT_ONCE = 0.25  # how often a trouble comes while another is being recovered from
CALM = (0.5, 4.0)  # seconds between two troubles
GIVE_UP = 180.0  # seconds beyond a bound, after which the run ends
STILL = 20.0  # seconds that a front is frozen
LOCKED = 8.0  # seconds of a database that is locked
AFTERWARDS = 2.0  # seconds after a recovery in which a call may still be answered with the trouble
LOOK_EVERY = 0.25
Kind = tuple[str, str]  # the part that is hurt, and its model


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    seed: int
    seconds: float
    troubles: list[list[Trouble]]  # those of one inner list came at once
    starts: Mapping[str, float]
    calls: list[Call]
    rows: list[dict[str, Any]]
    faults: list[str]


class Storm:
    """`targets` are the models, registered already. `say` is given each event as a line."""

    def __init__(
        self,
        installation: Installation,
        books: Books,
        targets: Sequence[Target],
        load: Load,
        dice: random.Random,
        say: Callable[[str], None],
    ) -> None:
        self.installation = installation
        self.books = books
        self.targets = {target.model: target for target in targets}
        self.load = load
        self.dice = dice
        self.census = Census(installation.var)
        self.pace = Pace()
        self.faults: list[str] = []
        self.batches: list[list[Trouble]] = []
        self.starts: dict[str, float] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._tell = say
        self._began = time.monotonic()
        self._start_slowness = 1.0
        self._resident = 0.0  # MB of the gateway before the load
        self._calm_at = float("inf")  # from when on every failure must have a cause
        self._logs = 0
        self._unsupervised_at = 0.0  # Unix seconds at which a supervisor was killed last

    # --- Calm -----------------------------------------------------------------------------------------------------

    def start(self, seconds: float) -> None:
        """Return when every model answers for the first time; how long that took is what bounds are made of."""
        begun = time.monotonic()
        self.installation.start()
        self.starts[EVERYBODY] = time.monotonic() - begun
        waiting = set(self.targets)

        def all_ready() -> bool:
            self.pace.look()
            ready = {row["model"] for row in self.books.replicas() if row["state"] == "ready"}
            for model in waiting & ready:
                self.starts[model] = time.monotonic() - begun - self.starts[EVERYBODY]
            waiting.difference_update(ready)
            return not waiting

        until(all_ready, seconds)
        until(self._everybody_answers, 60)
        self._start_slowness = self.pace.slowness(begun)
        self._resident = leftovers.resident_megabytes(self.installation)
        self._backoffs = {model: troubles.of_engine() for model in self.targets}
        self._backoffs |= {part: troubles.of_program() for part in ("gateway", "portal", "supervisor")}
        told = ", ".join(f"{model or 'portal'} {seconds:.1f} s" for model, seconds in self.starts.items())
        self._calm_at = time.monotonic()
        self._say(f"started: {told} (slowness {self._start_slowness:.1f})")

    def _everybody_answers(self) -> bool:
        return all(self.load.ask(target).outcome == "finished" for target in self.targets.values())

    # --- Storm ----------------------------------------------------------------------------------------------------

    def rage(self, seconds: float, kinds: Sequence[Kind]) -> None:
        """Cause troubles for so long, and until each kind was there once; end early when one does not recover."""
        deck = Deck(kinds, self.dice)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or not deck.played:
            time.sleep(self.dice.uniform(*CALM))
            before = self._runs()
            batch = [self._strike(deck)]
            while self.dice.random() < AT_ONCE:
                time.sleep(self.dice.uniform(0.0, 2.0))
                batch.append(self._strike(deck))
            self.batches.append(batch)
            if not self._recover(batch, before):
                break

    def _strike(self, deck: Deck) -> Trouble:
        while True:
            for kind in deck.order():
                if trouble := self._do(*kind):
                    deck.play(kind)
                    return trouble
            time.sleep(LOOK_EVERY)

    def _do(self, part: str, model: str) -> Trouble | None:
        special = {"up": self._kill_up, "database": self._lock_database}
        if part in special:
            return special[part]()
        if model and self._backoffs[model].tired(time.monotonic()):
            return None
        run_ids = [run_id for name, run_id in self._runs().items() if name == model]
        of_part = part.removeprefix("still ")
        victims = [
            found for found in self.census.take() if found.part == of_part and (not model or found.run in run_ids)
        ]
        if not victims:
            return None
        victim = self.dice.choice(sorted(victims, key=lambda found: found.who.pid))
        if part == "still front":
            return self._stand_still(model, victim)
        trouble = self._trouble(part, model, victim)
        self._announce(trouble)
        if part == "supervisor":
            self._unsupervised_at = time.time()
        return trouble if shim.send_signal(victim.who, signal.SIGKILL) else None

    def _trouble(self, part: str, model: str, victim: Found) -> Trouble:
        now = time.monotonic()
        backoff = self._backoffs[model or part]
        of_engine = frozenset({model} if model else ())
        return Trouble(
            kind=f"kill -9 {part}",
            model=model,
            victim=str(victim.who.pid),
            hurts=frozenset({EVERYBODY}) if part == "gateway" else of_engine,
            restarts=of_engine,
            pauses=backoff.died(now),
            work=self._work(model) + (troubles.NOTICED if model else troubles.ANSWERED),
            began=now,
            wall=time.time(),
        )

    def _work(self, model: str) -> float:
        """Return seconds that a start takes on an idle machine."""
        return self.starts[model] / self._start_slowness

    def _kill_up(self) -> Trouble:
        """Kill `up` and do what systemd would: start it again after a while, as often as it takes."""
        # A supervisor that is still starting ends at once, and the engines go on until the next one adopts them.
        engines, supervised = frozenset(self.targets), self.books.supervisor_seen() > self._unsupervised_at
        trouble = Trouble(
            kind="kill -9 up",
            model="",
            victim=str(self.installation.process.pid),
            hurts=frozenset({EVERYBODY}),
            restarts=engines if supervised else frozenset(),
            may_restart=engines,
            # The gateway before it drains, and is found in the way once more; the supervisor before it stops engines,
            # and `up` pauses as long again, at most, until it tries the next one.
            pauses=STOP_SECONDS + 2 * troubles.RESTART_SEC + 2 * (loop.BRIEF_DRAIN + GRACE),
            work=2 * self._work(EVERYBODY) + max(map(self._work, self.targets)) + troubles.NOTICED,
            began=time.monotonic(),
            wall=time.time(),
        )
        self._announce(trouble)
        self.installation.process.kill()
        self.installation.process.wait()
        self._unsupervised_at = time.time()
        deadline = time.monotonic() + trouble.bound + GIVE_UP
        while time.monotonic() < deadline:
            time.sleep(troubles.RESTART_SEC)
            self._keep_log()
            with contextlib.suppress(AssertionError):
                self.installation.start()
                break
        return trouble

    def _stand_still(self, model: str, victim: Found) -> Trouble:
        trouble = Trouble(
            kind=f"front frozen {STILL:.0f} s",
            model=model,
            victim=str(victim.who.pid),
            hurts=frozenset({model}),
            restarts=frozenset(),
            pauses=STILL + plan.CHECK_EVERY + loop.CHECK_WITHIN,
            work=troubles.NOTICED,
            began=time.monotonic(),
            wall=time.time(),
        )
        self._announce(trouble)
        with troubles.stopped(victim.who):
            time.sleep(STILL)
        return trouble

    def _lock_database(self) -> Trouble:
        trouble = Trouble(
            kind=f"database locked {LOCKED:.0f} s",
            model="",
            victim="",
            hurts=frozenset(),
            restarts=frozenset(),
            pauses=LOCKED,
            work=troubles.NOTICED,
            began=time.monotonic(),
            wall=time.time(),
        )
        self._announce(trouble)
        with troubles.locked(self.installation.var / "madoguchi.sqlite3"):
            time.sleep(LOCKED)
        return trouble

    def _keep_log(self) -> None:
        """Make an event with `start`, which begins a new one."""
        self._logs += 1
        (self.installation.var / "up.log").rename(self.installation.var / f"up-{self._logs}.log")

    # --- Recovery -------------------------------------------------------------------------------------------------

    def _recover(self, batch: list[Trouble], before: Mapping[str, str]) -> bool:
        """Wait until all is well; notes what is not as it should be. False: it did not become well."""
        last = max(trouble.began for trouble in batch)
        ill: list[str] = []
        while True:
            self.pace.look()
            slowness = self.pace.slowness(last)
            for trouble in batch:
                trouble.slowness = slowness
            bound = sum(trouble.bound for trouble in batch)
            ill = self._ill(batch, before)
            now = time.monotonic()
            if not ill or now - batch[0].began > bound + GIVE_UP:
                break
            time.sleep(LOOK_EVERY)
        for trouble in batch:
            trouble.over = now
        names = " + ".join(str(trouble) for trouble in batch)
        took = now - batch[0].began
        if ill:
            self._fault(f"{names}: not well after {took:.0f} s: {'; '.join(ill)}")
            return False
        self._say(f"  well after {took:.1f} s (at most {bound:.1f} s, slowness {slowness:.1f})")
        if took > bound:
            self._fault(f"{names}: well only after {took:.1f} s, {bound:.1f} s are allowed")
        for backoff in self._backoffs.values():
            backoff.well(now)
        self._check_untouched(batch, before, names)
        return True

    def _ill(self, batch: Sequence[Trouble], before: Mapping[str, str]) -> list[str]:
        """Return what is not well yet, in the order of what costs least to see."""
        replicas = self.books.replicas()
        ill = [f"{row['model']} is {row['state']}" for row in replicas if row["state"] != "ready"]
        if len(replicas) != len(self.targets):
            ill.append(f"{len(replicas)} replicas")
        restarts = frozenset().union(*(trouble.restarts for trouble in batch))
        runs = self._runs()
        ill += [f"{model} is the engine of before" for model in restarts if runs.get(model) == before.get(model)]
        killed = [trouble.wall for trouble in batch if trouble.kind in ("kill -9 supervisor", "kill -9 up")]
        if killed and self.books.supervisor_seen() <= max(killed):
            ill.append("no supervisor has said that it lives")
        ill = ill or list(map(str, unaccounted(self.census.take(), self.census.living_runs(), replicas)))
        if not ill:
            asked = [self.load.ask(target) for target in self.targets.values()]
            ill = [f"{call.model} answered {call.outcome} {call.why}" for call in asked if call.outcome != "finished"]
        return ill

    def _check_untouched(self, batch: Sequence[Trouble], before: Mapping[str, str], names: str) -> None:
        """Check that an engine that was not hurt is still the same."""
        restarts = frozenset().union(*(trouble.restarts | trouble.may_restart for trouble in batch))
        after = self._runs()
        for model, run_id in before.items():
            if model not in restarts and after.get(model) != run_id:
                self._fault(f"{names}: {model} was started anew although nobody touched it")

    def _runs(self) -> dict[str, str]:
        """Return the living run of each model."""
        return {metadata_of(run).name: run.run_id for run in self.census.living_runs()}

    # --- The end --------------------------------------------------------------------------------------------------

    def end(self, seed: int) -> Report:
        """End the load, then everything; judges."""
        self.load.end()
        deadline = time.monotonic() + 60
        with contextlib.suppress(AssertionError):
            until(lambda: not unmetered(self.load.calls, self.books.usage()) or time.monotonic() > deadline, 90)
        self._check_leftovers()
        try:
            if (status := self.installation.stop()) != 0:
                self._fault(f"after SIGTERM, `up` ended with {status}")
        except AssertionError as error:
            self._fault(f"after SIGTERM: {str(error)[:500]}")
        self.faults += [f"left after SIGTERM: {found}" for found in self.census.take()]
        self.faults += [
            f"after SIGTERM {row['model']} is {row['state']}"
            for row in self.books.replicas()
            if row["state"] not in RESTING
        ]
        self.faults += [f"in the log: {text}" for text in tracebacks(self.installation.var)]
        rows = self._rows_of_calls()
        self.faults += map(str, disagreements(self.load.calls, rows))
        self.faults += [f"{call.name}: {wrong}" for call in self.load.calls for wrong in call.wrong]
        self.faults += list(self._unexplained())
        return Report(
            seed=seed,
            seconds=time.monotonic() - self._began,
            troubles=self.batches,
            starts=self.starts,
            calls=self.load.calls,
            rows=rows,
            faults=self.faults,
        )

    def _rows_of_calls(self) -> list[dict[str, Any]]:
        return [row for row in self.books.usage() if row["end_user"] != leftovers.WHO]

    def _check_leftovers(self) -> None:
        model = next(name for name, target in self.targets.items() if target.engine == "llama.cpp")

        def find() -> list[Discrepancy]:
            rows = self._rows_of_calls()
            return list(leftovers.find_leftovers(self.installation, self.load.keys, rows, model, self._resident))

        with contextlib.suppress(AssertionError):
            until(lambda: not find(), 60)
        try:
            self.faults += map(str, find())
        except AssertionError as error:  # it is not well
            self._fault(f"after the load: {str(error)[:500]}")

    def _unexplained(self) -> Iterator[str]:
        """Call that failed although nothing was wrong with what they needed."""
        everything = [trouble for batch in self.batches for trouble in batch]
        for call in self.load.calls:
            if not call.outcome:
                yield f"{call.name} has not ended"
            if call.outcome not in ("broken", "refused") or call.began < self._calm_at:
                continue
            causes = [
                trouble
                for trouble in everything
                if trouble.hurts & {EVERYBODY, call.model}
                and trouble.began <= call.ended
                and call.began <= trouble.over + AFTERWARDS
            ]
            if not causes:
                at = call.began - self._began
                yield f"{call.name} ({call.kind} of {call.model}, at {at:.1f} s): {call.outcome}, {call.why}"
            elif "timeout" in call.why and not any("still" in trouble.kind for trouble in causes):
                yield f"{call.name} ({call.kind} of {call.model}) timed out although nothing stood still"

    def _announce(self, trouble: Trouble) -> None:
        self._say(str(trouble))

    def _fault(self, text: str) -> None:
        self.faults.append(text)
        self._say(f"FAULT: {text}")

    def _say(self, text: str) -> None:
        self._tell(f"{time.monotonic() - self._began:7.1f} s  {text}")


def tracebacks(var: Path) -> list[str]:
    """Return the tracebacks, which were not expected."""
    return [text[:2000].strip() for text in _written(var).split("Traceback (most recent call last):")[1:]]


def logs(var: Path) -> str:
    """Return the end of what `up` and all that it started wrote, without a line for each call."""
    return "\n".join([line for line in _written(var).splitlines() if "madoguchi.calls" not in line][-150:])


def _written(var: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in sorted(var.glob("up*.log"), key=_last_written))


def _last_written(path: Path) -> float:
    return path.stat().st_mtime
