"""Calls under which an engine died: which of them is to blame, and which are not sent to an engine again.

llama.cpp was seen to die of a grammar, vLLM of a parameter: sent to the next engine, one call ends them all. So a call
whose engine died is never sent to another by us. Its caller may send it again, though, and most calls that were open
when an engine died had nothing to do with it. These rules separate the guilty call from the others:

- A call that was the only one at its engine is to blame (with several gateways no one knows that it was the only one).
- Any other is a *suspect*: sent again, it waits until no other suspect of its model is on trial, which lasts until its
  first byte. An engine that dies meanwhile died of the one on trial.
- Without a trial, e.g. of an engine that dies in the middle of answers, three deaths are proof enough. A call that was
  open several times at one engine died once with it.
- One death says something of the key that sent the call alone: the same body from another key is suspected after two
  deaths, and refused after three. Many send "hello" as their first call.
- A call of a model over several hosts is never judged. When one of its processes dies on another host, rank 0 fails
  with the next call that it gets, which has nothing to do with it, and what began the death is not known here. So a
  call that does kill such a model is not kept from it: each time costs a start, after pauses that grow
  (`plan.backoff`), and a model that dies within a minute ten times in a row is *failed*.
- A host that dies ends all its engines: where none of several takes connections any more no call is blamed. Where an
  engine was the only one of its host, that is *in doubt* until its supervisor reports that it is gone (then the host
  lived on, and the engine died alone) or says nothing (then the call is acquitted). The same call waits meanwhile.
- A suspect that is answered to its end is one no longer. Everything about a call is forgotten after MEMORY.

A call is known by keyed digests, one of its body and one of its key and body, as files in a directory that all gateways
of a host share: one byte for each death, the time of the last. No text is kept. Nothing is looked up while there are no
such files.
"""

import asyncio
import contextlib
import fcntl
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from apiproxy.dataplane.host_watch import Heartbeat

Verdict = Literal["suspect", "guilty"]

# Seconds: an engine needs up to minutes to restart, and a person who was refused wrongly has not gone home yet.
MEMORY = 300.0
# Deaths that need no further proof, see above.
PROOF = 3
# Deaths under a body after which it is suspected of every key that sends it.
OF_ALL_KEYS = 2
# Files at most, with no text in any; a caller who causes more deaths than that has killed every engine long ago.
MAX_SUSPECTS = 1000
# Seconds that a suspect waits for its trial; SDKs ask again after a 503.
PATIENCE = 15.0
# Connections of one death break within milliseconds; a busy machine lets us know later.
TOGETHER = 2.0
# Seconds after which a doubt counts as a proof: a supervisor reports within two, unless the database is away, and is
# known to say nothing after seven.
DOUBT = 10.0
# So many calls of one death are written to the audit log, and one of a key and model in so many seconds; the log and
# /metrics have all of them.
REPORTED_OF_ONE = 5
REPORT_AGAIN = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """An engine that died under a call, for operators. `calls`: how many were open there."""

    at: float  # Unix seconds
    request_id: str
    key: int
    model: int
    replica: int
    endpoint: str
    calls: int
    verdict: Verdict


@dataclass(slots=True)
class _Died:
    """The last death of a replica."""

    at: float
    calls: int  # that were open there when it was first noticed
    reported: int = 0  # of these
    counted: set[str] = field(default_factory=set)  # the digests of keys and bodies for which it was counted


@dataclass(frozen=True, slots=True)
class DeathJudgement:
    """`counted`: how many deaths were counted for it, by digest."""

    verdict: Verdict
    counted: Mapping[str, int]


@dataclass(slots=True)
class _Doubt:
    """Whether an engine died alone or with its host."""

    host: int
    claim: str  # of the supervisor that looked after it
    until: float
    blamed: dict[str, int] = field(default_factory=dict)  # deaths that were counted, by the call's digest
    proven: list[Callable[[], None]] = field(default_factory=list)  # to be called then
    over: asyncio.Event = field(default_factory=asyncio.Event)


class CrashSuspects:
    """`wall` gives Unix seconds. `only_gateway`: this is the only gateway, which sees all calls of an engine."""

    def __init__(self, directory: Path, key: bytes, *, only_gateway: bool, wall: Callable[[], float]) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._key = key
        self.only_gateway = only_gateway
        self._wall = wall
        self.known: dict[str, int] = {}  # deaths by digest; while there are none, there is nothing to look up
        self._last: dict[int, _Died] = {}  # by replica
        self._trials: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by model
        self._doubts: dict[int, _Doubt] = {}  # by replica
        self._reported: list[Death] = []
        self._reported_at: dict[tuple[int, int, Verdict], float] = {}  # by key, model and verdict
        self.sweep()

    def deaths(self, key: int, body: bytes) -> int:
        """Return how many engines died under this call a while ago; PROOF and more: it is not to be sent again."""
        if not self.known or not body:
            return 0
        mine, all_keys = (self.known.get(digest, 0) for digest in self._digests(key, body))
        return max(mine, all_keys) if all_keys >= OF_ALL_KEYS else mine

    def record_death(self, replica: int, calls: int) -> int:
        """Record that an engine was found dead under one call while `calls` were open there, this one included.

        Return how many were open when the first of them found it dead.
        """
        now = self._wall()
        last = self._last.get(replica)
        if last is None or not 0 <= now - last.at < TOGETHER:
            last = self._last[replica] = _Died(now, calls)
        return last.calls

    def judge(self, replica: int, key: int, body: bytes, *, calls: int, on_trial: bool) -> DeathJudgement:
        """Count the death for one of the calls that were open, and return what the call is from now on.

        `record_death` of this replica comes before.
        """
        if not body:  # an upload, of which nothing is held
            return DeathJudgement("suspect", {})
        guilty = on_trial or (calls == 1 and self.only_gateway)
        mine, all_keys = self._digests(key, body)
        before, known_here = self.known.get(mine, 0), self._last[replica].counted
        more = 0 if mine in known_here else 1
        if guilty:
            more = max(more, PROOF - before)
        known_here.add(mine)
        counted = {mine: self._count(mine, more), all_keys: self._count(all_keys, 1, apart=TOGETHER)}
        return DeathJudgement("guilty" if guilty or self.deaths(key, body) >= PROOF else "suspect", counted)

    def doubt(
        self, replica: int, host: int, claim: str, judgement: DeathJudgement, *, proven: Callable[[], None]
    ) -> None:
        """Hold in doubt how a call was just judged, and call `proven` once it is known that the engine died alone.

        `claim`: of the host's supervisor.
        """
        doubt = self._doubts.get(replica)
        if doubt is None:
            doubt = self._doubts[replica] = _Doubt(host, claim, self._wall() + DOUBT)
        for digest, deaths in judgement.counted.items():
            doubt.blamed[digest] = doubt.blamed.get(digest, 0) + deaths
        doubt.proven.append(proven)

    @property
    def in_doubt(self) -> bool:
        return bool(self._doubts)

    async def wait_settled(self, key: int, body: bytes) -> None:
        """Wait while it is in doubt whether this call is to blame."""
        if not self.deaths(key, body):
            return
        digests = set(self._digests(key, body))
        for doubt in [one for one in self._doubts.values() if digests & one.blamed.keys()]:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DOUBT):
                    await doubt.over.wait()

    def settle(self, supervisors: Mapping[int, Heartbeat], served: Collection[int]) -> list[int]:
        """End doubts by what is known of the hosts' supervisors and by which replicas they say are there.

        Return the replicas that died with their hosts. Call it whenever either changes, and about once a second.
        """
        now, acquitted = self._wall(), []
        for replica, doubt in list(self._doubts.items()):
            sign = supervisors.get(doubt.host)
            if sign is None or sign.quiet or sign.claim != doubt.claim:
                acquitted.append(replica)
                self._acquit(doubt)
            elif replica not in served or not 0 < doubt.until - now <= DOUBT:
                for prove in doubt.proven:
                    prove()
            else:
                continue
            del self._doubts[replica]
            doubt.over.set()
        return acquitted

    def _acquit(self, doubt: _Doubt) -> None:
        for digest, deaths in doubt.blamed.items():
            left = self.known.get(digest, 0) - deaths
            path = self._directory / digest
            with contextlib.suppress(OSError):
                if left > 0:
                    self.known[digest] = left
                    os.truncate(path, left)
                else:
                    self.known.pop(digest, None)
                    path.unlink(missing_ok=True)

    def clear(self, key: int, body: bytes) -> None:
        """Forget a suspect, which was answered to its end."""
        for digest in self._digests(key, body):
            self.known.pop(digest, None)
            (self._directory / digest).unlink(missing_ok=True)

    async def acquire_trial(self, model: str) -> asyncio.Lock:
        """Wait until no other suspect of this model is on trial; `release` it then. Raises TimeoutError."""
        lock = self._trials[model]
        async with asyncio.timeout(PATIENCE):
            await lock.acquire()
        return lock

    def report(self, death: Death) -> None:
        """Keep the death for operators, see `take`."""
        group, kind = self._last[death.replica], (death.key, death.model, death.verdict)
        if kind in self._reported_at or (group.reported >= REPORTED_OF_ONE and death.verdict == "suspect"):
            return
        group.reported += 1
        self._reported_at[kind] = death.at
        self._reported.append(death)

    def take(self) -> list[Death]:
        """Return what was reported since the last time."""
        reported, self._reported = self._reported, []
        return reported

    def sweep(self) -> None:
        """Learn what other gateways found, forget what is old. Call it about once a second."""
        now = self._wall()
        self._reported_at = {kind: at for kind, at in self._reported_at.items() if 0 <= now - at < REPORT_AGAIN}
        oldest, deaths = now - MEMORY, {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another gateway was quicker
                    status = entry.stat()
                    if status.st_mtime < oldest:
                        os.unlink(entry.path)
                    else:
                        deaths[entry.name] = status.st_size
        self.known = deaths

    def _digests(self, key: int, body: bytes) -> tuple[str, str]:
        """Return what the call is known by as one of this key, and as one of any."""
        all_keys = blake2b(body, key=self._key, digest_size=16)
        return blake2b(
            b"%d " % key + all_keys.digest(), key=self._key, digest_size=16
        ).hexdigest(), all_keys.hexdigest()

    def _count(self, digest: str, more: int, *, apart: float = 0.0) -> int:
        """Count deaths, and return how many were. `apart`: seconds within which one was counted already by any gateway.

        All gateways see the death of an engine, within milliseconds, each under calls of its own.
        """
        if not more or (digest not in self.known and len(self.known) >= MAX_SUSPECTS):
            return 0
        now = self._wall()
        with contextlib.suppress(OSError), (self._directory / digest).open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            found = os.fstat(file.fileno())
            if found.st_size and 0 <= now - found.st_mtime < apart:
                self.known[digest] = found.st_size
                return 0
            file.write(b"." * more)
            os.utime(file.fileno(), (now, now))
            self.known[digest] = found.st_size + more
            return more
        self.known[digest] = self.known.get(digest, 0) + more  # a full disk: only this process knows
        return more
