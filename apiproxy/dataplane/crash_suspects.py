"""Calls under which an engine died: which of them is to blame, and which are not sent to an engine again.

llama.cpp was seen to die of a grammar, vLLM of a parameter: sent to the next engine, one call ends them all. So a call
whose engine died is never sent to another by us. Its caller may send it again, though, and most calls that were open
when an engine died had nothing to do with it. These rules separate the guilty call from the others:

- A call that was the only one at its engine is to blame (with several gateways no one knows that it was the only one).
- Any other is a *suspect*: sent again, it waits until no other suspect of its model is on trial, which lasts until its
  first byte. An engine that dies meanwhile died of the one on trial.
- Without a trial, e.g. of an engine that dies in the middle of answers, three deaths are proof enough.
- A host that dies ends all its engines: where none of several takes connections any more no call is blamed. Where an
  engine was the only one of its host, that is *in doubt* until its supervisor reports that it is gone (then the host
  lived on, and the engine died alone) or says nothing (then the call is acquitted). The same call waits meanwhile.
- A suspect that is answered to its end is one no longer. Everything about a call is forgotten after MEMORY.

A call is known by a keyed digest of its body, as a file in a directory that all gateways of a host share: one byte for
each death, the time of the last. No text is kept. Nothing is looked up while there are no such files.
"""

import asyncio
import contextlib
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
# Files at most, with no text in any; a caller who causes more deaths than that has killed every engine long ago.
MAX_SUSPECTS = 500
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
        self._only_gateway = only_gateway
        self._wall = wall
        self.known: dict[str, int] = {}  # deaths by digest; while there are none, there is nothing to look up
        self._last: dict[int, _Died] = {}  # by replica
        self._trials: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by model
        self._doubts: dict[int, _Doubt] = {}  # by replica
        self._reported: list[Death] = []
        self._reported_at: dict[tuple[int, int, Verdict], float] = {}  # by key, model and verdict
        self.sweep()

    def deaths(self, body: bytes) -> int:
        """Return how many engines died under this call a while ago; PROOF and more: it is not to be sent again."""
        if not self.known or not body:
            return 0
        return self.known.get(self._digest(body), 0)

    def record_death(self, replica: int, calls: int) -> int:
        """Record that an engine was found dead under one call while `calls` were open there, this one included.

        Return how many were open when the first of them found it dead.
        """
        now = self._wall()
        last = self._last.get(replica)
        if last is None or not 0 <= now - last.at < TOGETHER:
            last = self._last[replica] = _Died(now, calls)
        return last.calls

    def judge(self, body: bytes, *, calls: int, on_trial: bool) -> Verdict:
        """Count the death for one of the calls that were open, and return what the call is from now on."""
        guilty = on_trial or (calls == 1 and self._only_gateway)
        if not body:  # an upload, of which nothing is held
            return "suspect"
        digest = self._digest(body)
        before = self.known.get(digest, 0)
        deaths = max(PROOF, before + 1) if guilty else before + 1
        self._remember(digest, deaths, deaths - before)
        return "guilty" if deaths >= PROOF else "suspect"

    def doubt(
        self, replica: int, host: int, claim: str, body: bytes, *, before: int, proven: Callable[[], None]
    ) -> None:
        """Hold in doubt how this call was just judged, and call `proven` once it is known that the engine died alone.

        `before`: the call's deaths before that. `claim`: of the host's supervisor.
        """
        doubt = self._doubts.get(replica)
        if doubt is None:
            doubt = self._doubts[replica] = _Doubt(host, claim, self._wall() + DOUBT)
        digest = self._digest(body)
        doubt.blamed[digest] = doubt.blamed.get(digest, 0) + self.known.get(digest, 0) - before
        doubt.proven.append(proven)

    @property
    def in_doubt(self) -> bool:
        return bool(self._doubts)

    async def wait_settled(self, body: bytes) -> None:
        """Wait while it is in doubt whether this call is to blame."""
        digest = self._digest(body)
        for doubt in [one for one in self._doubts.values() if digest in one.blamed]:
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

    def clear(self, body: bytes) -> None:
        """Forget a suspect, which was answered to its end."""
        digest = self._digest(body)
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

    def _digest(self, body: bytes) -> str:
        return blake2b(body, key=self._key, digest_size=16).hexdigest()

    def _remember(self, digest: str, deaths: int, more: int) -> None:
        if digest not in self.known and len(self.known) >= MAX_SUSPECTS:
            return
        self.known[digest] = deaths
        path = self._directory / digest
        with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:  # a full disk: only this process knows
            file.write(b"." * more)
            now = self._wall()
            os.utime(file.fileno(), (now, now))
