"""`FileSurface`: how a controller has models' files brought to a host. It orders and watches; it carries no file.

A host that has them offers them to one copy: it listens, with TLS and the cluster's certificates, for as long as there
is an offer, and gives them to who has the offer's token. The host that is to have them fetches them there
(`download`), or out of a folder that it has itself. As with `hostside.surface`, values are plain dataclasses, no
request waits long, each may be repeated, and silence is not an end: a host whose agent was started again does not know
its fetch any more, and goes on with it where it was when it is ordered again.

Hosts offer and write nothing beyond their models' folders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Protocol

from modelregistry.wire_bounds import AtMost, Line, Name

MOST_FILES = 20_000  # of a model


class FetchPhase(Enum):
    UNKNOWN = "unknown"  # the host knows of no such fetch
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedFile:
    """A file of a model. `stamp` changes with its content; `sha256`: "" where it was never computed."""

    name: Line  # its path within the model's folder
    size: int
    stamp: Line
    sha256: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOffer:
    """Where the files of a model are to be had. `code`, `detail`: why they are not; `code` is "" where they are."""

    url: Line = ""
    token: Name = ""
    files: Annotated[Sequence[OfferedFile], AtMost(MOST_FILES)] = ()
    code: Name = ""
    detail: Line = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOrder:
    """What is to be brought to a host. `path`: of the model, the same on all hosts.

    `directory`: where the host has it as well, such as a shared folder; without one it takes the offer. `limit`: bytes
    in a second; 0: as fast as it goes.
    """

    copy: str
    path: str
    limit: int = 0
    directory: str = ""
    offer: FileOffer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchState:
    """How far a fetch is. `done`, `total`: bytes; `code`, `detail`: why it failed."""

    phase: FetchPhase
    done: int = 0
    total: int = 0
    code: Name = ""
    detail: Line = ""


class FileSurface(Protocol):
    """The files of one host. Each method raises HostSilent or HostFault."""

    async def offer_files(self, copy: str, path: str) -> FileOffer:
        """Let the files of a model be fetched for one copy; repeated, this keeps the offer from running out."""

    async def withdraw_offer(self, copy: str) -> None:
        """End the offer to a copy, if there is one."""

    async def fetch_files(self, order: FetchOrder) -> FetchState:
        """Begin to fetch, unless a fetch for this copy runs; return at once."""

    async def read_fetch(self, copy: str) -> FetchState:
        """Return how far a fetch is."""

    async def stop_fetch(self, copy: str) -> None:
        """Stop a fetch, if it runs. What it brought stays for the next one."""

    async def drop_draft(self, path: str) -> None:
        """Delete what was brought of a model whose copy was given up."""
