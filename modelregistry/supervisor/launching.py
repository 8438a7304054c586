"""What a supervisor is configured with, and why an engine was not started, in words for operators."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelregistry import failure_advice, placement_messages, validation
from modelregistry.engines.base import CallerIsolation
from modelregistry.hostside.launching import HostConfig
from modelregistry.hostside.surface import LaunchRefusal
from modelregistry.memory.estimate import Prediction
from modelregistry.memory.placement import Space


class CannotLaunch(Exception):
    """The engine was not started. The message is for the operator; `cause`: a code of `failure_advice`, or ""."""

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class DoesNotFit(CannotLaunch):
    """The host has no room for it now. `need`: on each device; None: the host lacks the devices.

    `spaces`: where it could go if others made room.
    """

    def __init__(self, message: str, need: Prediction | None, spaces: tuple[Space, ...] = ()) -> None:
        super().__init__(message, failure_advice.NO_ROOM)
        self.need = need
        self.spaces = spaces


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorConfig:
    """What a supervisor must know of its host and installation. Times in seconds."""

    host: str
    runs: Path
    cache: Path
    commands: Mapping[str, str]
    ports: Sequence[int]
    start_limit: float
    stop_grace: float
    directories: Sequence[Path] = ()  # others whose disks are inspected, as that of models' files
    isolation: CallerIsolation = field(default_factory=CallerIsolation)

    @property
    def local(self) -> HostConfig:
        """What the machine on which the supervisor runs has to know."""
        return HostConfig(
            runs=self.runs,
            cache=self.cache,
            commands=self.commands,
            ports=self.ports,
            directories=self.directories,
        )


def explain_launch_refusal(refusal: LaunchRefusal) -> CannotLaunch:
    """Word why a host started no engine."""
    if refusal.no_room is not None:
        found = refusal.no_room
        return DoesNotFit(placement_messages.explain_refusal(found), found.need, found.spaces)
    if refusal.unreadable is not None:
        cause = "bad-files" if refusal.path_exists else "missing-file"
        return CannotLaunch(validation.explain_unreadable(refusal.unreadable), cause)
    if refusal.no_version is not None:
        return CannotLaunch(placement_messages.explain_missing_version(refusal.no_version), "no-engine")
    if refusal.no_launcher:
        return CannotLaunch(refusal.no_launcher, "no-engine")
    if refusal.bad_argument is not None:
        return CannotLaunch(validation.explain_fault(refusal.bad_argument), "bad-argument")
    if refusal.no_port is not None:
        first, last = refusal.no_port
        return CannotLaunch(f"All ports of ENGINE_PORTS ({first}-{last}) are in use.", "port-in-use")
    return CannotLaunch(refusal.failed, failure_advice.cause(refusal.failed))
