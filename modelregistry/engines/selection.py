"""Which launcher and version a replica is started with, by what its host has and what was tried there. Pure.

The supervisor asks it when it starts a replica; page, API and command look ahead with it, by what the host reported.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from modelregistry.engines import programs, version_trials
from modelregistry.engines.base import Spec
from modelregistry.engines.registry import engine_named
from modelregistry.engines.version_trials import Choice, Installed, NoVersion, Trial
from modelregistry.wire_bounds import Lines, Name


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenEngine:
    """What a replica is started with. `choice`: among our installations; None: a program that operators named.

    `usual`: it is what this host takes where none is named.
    """

    launcher: Name
    program: Lines
    choice: Choice | None = None
    usual: bool = True

    def measured_version(self, versions: Mapping[str, str]) -> str:
        """Return its version as measurements know it. `versions`: what each launcher's usual program reports."""
        if self.usual or self.choice is None:
            return versions.get(self.launcher, "")
        return self.choice.installed.version


def select_engine(
    spec: Spec,
    found: Mapping[str, tuple[str, ...]],
    installed: Sequence[Installed],
    *,
    trials: Iterable[Trial] = (),
    tried_now: Collection[str] = (),
) -> ChosenEngine:
    """Select the engine for a model. Raises NoLauncher or NoVersion.

    `found`: the usual program of each launcher; `installed`: our installations, of each launcher the newest first;
    `trials`: what is known of versions with this model, the oldest first; `tried_now`: the versions that its other
    replicas are trying.
    """
    known = list(trials)
    # What operators name is no installation of ours, of which nothing is known.
    named = {name for name, program in found.items() if program not in {one.program for one in installed}}
    failed = version_trials.failed_launchers(installed, known) - named
    prefer = [name for name in version_trials.proven_launchers(known) if name not in failed]
    launcher = programs.choose_launcher(spec, found, prefer=prefer, avoid=failed)
    there = [one for one in installed if one.launcher == launcher]
    # An operator who names a program means that one; a version that a model is pinned to comes before it.
    if not there or (not spec.version and found[launcher] != there[0].program):
        if spec.version:
            raise NoVersion(launcher, spec.version, ())
        return ChosenEngine(launcher=launcher, program=found[launcher])
    choice = version_trials.choose_version(there, known, pinned=spec.version, tried_now=tried_now)
    if choice.trial and not choice.instead:
        choice = replace(choice, instead=_another_launcher(spec, found, {*failed, launcher}))
    usual = choice.installed.program == found[launcher]
    return ChosenEngine(launcher=launcher, program=choice.installed.program, choice=choice, usual=usual)


def explain_mismatch(spec: Spec, engine: ChosenEngine) -> str:
    """Return why an engine that a host offers is not one that the model is to be started with; "": it is.

    A host's agent may have an earlier release, which does not know all of what a model asks for.
    """
    wanted = spec.launcher or spec.engine
    if engine.launcher not in ([spec.launcher] if spec.launcher else engine_named(spec.engine).launchers()):
        return f"The host offers {engine.launcher}, and {wanted} is wanted: its agent may have an earlier release."
    offered = engine.choice.installed if engine.choice else None
    if offered and offered.launcher != engine.launcher:
        return f"The host offers {offered.launcher}, and {wanted} is wanted: its agent may have an earlier release."
    if spec.version and (offered is None or offered.version != spec.version):
        found = f"{engine.launcher} {offered.version if offered else '(unknown version)'}"
        return f"The host offers {found}, and version {spec.version} is wanted: its agent may have an earlier release."
    return ""


def _another_launcher(spec: Spec, found: Mapping[str, tuple[str, ...]], without: Collection[str]) -> str:
    """Return the one that would be taken if these failed; empty: there is none."""
    left = {name: program for name, program in found.items() if name not in without}
    try:
        return programs.choose_launcher(spec, left)
    except programs.NoLauncher:
        return ""
