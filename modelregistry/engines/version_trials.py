"""Which of several installed versions of an engine a replica is started with. Pure.

A model is pinned to a version, or follows the newest that has proven itself with it on its host: a newer one is tried
by one replica first. It must start, answer, and answer a fixed question much as the version before did. Until then the
others stay with the proven version; if it fails, so does the one that tried it, and it is not tried again until it
changes.

Of several launchers that could run it (llama.cpp has three) it stays with the one that is proven, whatever is installed
beside it. Where that is gone, or none is proven, each of the others is tried as a version is.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from modelregistry.wire_bounds import Line, Lines, Name

PROVEN, FAILED = "proven", "failed"
UNTRIED = "untried"  # again: what it failed of was not its fault
# Of greedy answers of two versions: other kernels round otherwise, and after some words an answer may take another
# turn. What shares a fifth of its letters in order with the other is of the same model.
ALIKE = 0.2
ALIKE_VECTORS = 0.95  # cosine; 0.999 between engines that calculate in other types
# Failures that say nothing of the engine's version.
NOT_ITS_FAULT = frozenset(
    [
        *("does-not-fit", "port-in-use", "missing-file", "bad-files", "pointer-file", "no-permission", "disk-full"),
        *("disk-fault", "read-only", "gpu-lost", "gpu-memory-fault", "gpu-busy", "driver-mismatch", "fabric-manager"),
        *("bad-address", "remote-code", "host-memory", "no-engine", "start-fault", "sleep-unsupported"),
    ]
)


class NoVersion(LookupError):
    """The version that a model is pinned to is not installed. `installed`: those that are, the newest first."""

    def __init__(self, launcher: str, wanted: str, installed: Sequence[str]) -> None:
        super().__init__(launcher, wanted)
        self.launcher = launcher
        self.wanted = wanted
        self.installed = tuple(installed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """An installation of ours. `stamp` changes when it does: what failed may be tried again then."""

    launcher: Name
    version: Name
    stamp: Line
    program: Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a version did with one model on one host. `answer`: to the fixed question, as `probe.sample` gives it."""

    launcher: str
    version: str
    stamp: str
    state: str
    answer: Mapping[str, Any] | None = None
    cause: str = ""  # a code of `failure_advice`
    detail: str = ""

    def is_of(self, installed: Installed) -> bool:
        return (self.launcher, self.version, self.stamp) == (installed.launcher, installed.version, installed.stamp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`trial`: it has to prove itself. `instead`: the version that would be taken if it failed; "": there is none."""

    installed: Installed
    trial: bool = False
    instead: Name = ""


def choose_version(
    installed: Sequence[Installed], trials: Iterable[Trial], *, pinned: str = "", tried_now: Collection[str] = ()
) -> Choice:
    """Choose one of the installations of a launcher, given newest first (at least one). Raises NoVersion.

    `tried_now`: the versions that other replicas of the model are trying at this moment.
    """
    if pinned:
        found = next((one for one in installed if one.version == pinned), None)
        if found is None:
            raise NoVersion(installed[0].launcher, pinned, [one.version for one in installed])
        return Choice(installed=found)
    known = list(trials)
    failed = [one for one in installed if any(trial.is_of(one) for trial in known if trial.state == FAILED)]
    left = [one for one in installed if one not in failed]
    proven = [one for one in left if any(trial.is_of(one) for trial in known if trial.state == PROVEN)]
    if not left:
        return Choice(installed=installed[0])
    newest = left[0]
    if newest in proven:
        return Choice(installed=newest)
    if proven and newest.version in tried_now:
        return Choice(installed=proven[0])
    # Without a proven one, a new model begins with the newest and has the next one to fall back to.
    instead = [*proven, *left[1:]]
    return Choice(installed=newest, trial=True, instead=instead[0].version if instead else "")


def proven_launchers(trials: Iterable[Trial]) -> list[str]:
    """Return the launchers of which a version has proven itself, the one that did so last before the others.

    `trials`: the oldest first.
    """
    proven = [trial.launcher for trial in trials if trial.state == PROVEN]
    return list(dict.fromkeys(reversed(proven)))


def failed_launchers(installed: Iterable[Installed], trials: Iterable[Trial]) -> set[str]:
    """Return those of which each version that is there was tried and failed."""
    failures = [trial for trial in trials if trial.state == FAILED]
    there = list(installed)
    left = {one.launcher for one in there if not any(trial.is_of(one) for trial in failures)}
    return {one.launcher for one in there} - left


def find_reference(trials: Iterable[Trial], launcher: str) -> Mapping[str, Any] | None:
    """Return the answer that a new version is held to: of the one that was proven last."""
    answers = [
        trial.answer for trial in trials if trial.state == PROVEN and trial.launcher == launcher and trial.answer
    ]
    return answers[-1] if answers else None


def explain_difference(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """Return why the second answer cannot be of the same model as the first, for operators; empty: it may be."""
    if before is None or after is None:
        return ""
    if "text" in before and "text" in after:
        return _other_text(str(before["text"]), str(after["text"]))
    if "vector" in before and "vector" in after:
        return _other_vector(before["vector"], after["vector"])
    if "best" in before and "best" in after and before["best"] != after["best"]:
        return f"ranks text {after['best']} first, not {before['best']}"
    return ""


_REPEATED = re.compile(r"(.{1,8}?)\1{7,}", re.DOTALL)


def _other_text(before: str, after: str) -> str:
    if before == after:
        return ""
    if not after.strip():
        return "answers nothing"
    if _REPEATED.fullmatch(after.strip()) and not _REPEATED.fullmatch(before.strip()):
        return f"repeats itself: {after[:40]!r}"
    likeness = SequenceMatcher(None, before, after, autojunk=False).ratio()
    return "" if likeness >= ALIKE else f"answers {after[:60]!r}, not {before[:60]!r}"


def _other_vector(before: Sequence[float], after: Sequence[float]) -> str:
    if len(before) != len(after):
        return f"gives vectors of {len(after)} numbers, not {len(before)}"
    product = sum(one * other for one, other in zip(before, after, strict=True))
    lengths = math.hypot(*before) * math.hypot(*after)
    cosine = product / lengths if lengths else 0.0
    return "" if cosine >= ALIKE_VECTORS else f"gives other vectors (cosine {cosine:.2f})"
