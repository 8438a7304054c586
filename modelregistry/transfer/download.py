"""Files that another host offers, as sources of a copy."""

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from modelregistry.install.copying import CannotImport, CopyInterrupted
from modelregistry.transfer.surface import FileOffer, OfferedFile

PIECE = 2**20  # bytes: with a limit of 1 MB/s, one in a second
ANSWER_WITHIN = 60.0  # seconds for a connection, and for what comes next on it
LOOK_AGAIN = 1.0
SUM_WITHIN = 3600.0  # seconds until the other host has read a file again: 140 GB at 40 MB/s

AWAY = "source-away"


class RateLimit:
    """Lets so many bytes through in a second; 0: all. `wait`: sleeps, or ends the copy."""

    def __init__(self, rate: int, wait: Callable[[float], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.wait = wait
        self.clock = clock
        self.due = clock()

    def spend(self, number: int) -> None:
        """Wait until so many bytes more may have come."""
        if not self.rate:
            return
        now = self.clock()
        self.due = max(self.due, now - 1.0) + number / self.rate
        if self.due > now:
            self.wait(self.due - now)


def sources_of(offer: FileOffer, context: ssl.SSLContext, wait: Callable[[float], None]) -> dict[str, "OfferedSource"]:
    """Return what to copy, by the names of the files."""
    return {file.name: OfferedSource(offer, number, context, wait) for number, file in enumerate(offer.files)}


class OfferedSource:
    """A file of an offer."""

    def __init__(self, offer: FileOffer, number: int, context: ssl.SSLContext, wait: Callable[[float], None]) -> None:
        self.offer = offer
        self.number = number
        self.file: OfferedFile = offer.files[number]
        self.context = context
        self.wait = wait

    @property
    def size(self) -> int:
        return self.file.size

    @contextmanager
    def open(self) -> Iterator["_OpenedOffer"]:
        """Open it; it is asked for when it is read."""
        connection = self._connect()
        try:
            yield _OpenedOffer(self, connection)
        finally:
            connection.close()

    def confirm(self, digest: str) -> None:
        """Compare it with what the other host finds on its disk, where that is not known from the offer."""
        if self.file.sha256:
            return
        deadline = time.monotonic() + SUM_WITHIN
        while not (found := self._ask_for_sum()):
            if time.monotonic() >= deadline:
                raise CopyInterrupted(f"{self.where} gave no checksum of {self.file.name}.", code=AWAY)
            self.wait(LOOK_AGAIN)
        self.check_digest(digest, found)

    def check_digest(self, digest: str, expected: str) -> None:
        """Raise CannotImport for another one."""
        if digest != expected:
            raise CannotImport(
                f"{self.file.name} did not arrive as it is at {self.where}, or is not there as it was when its "
                f"checksum was written: check that disk. It is fetched again when it is ordered again.",
                code="damaged",
            )

    @property
    def where(self) -> str:
        return urlsplit(self.offer.url).netloc

    def _ask_for_sum(self) -> str:
        connection = self._connect()
        try:
            body = self.request(connection, "sums", {}).read(1000)
            found = json.loads(body)["sha256"]
            if not isinstance(found, str):
                raise ValueError("a checksum that is no text")
            return found
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
            raise self.away(error) from error
        finally:
            connection.close()

    def request(
        self, connection: http.client.HTTPSConnection, what: str, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        """Ask for the file or its sum. Raises CannotImport, OSError, HTTPException."""
        sent = {"Authorization": f"Bearer {self.offer.token}", "If-Match": f'"{self.file.stamp}"', **headers}
        connection.request("GET", f"/{what}/{self.number}", headers=sent)
        response = connection.getresponse()
        if response.status == http.client.PRECONDITION_FAILED:
            raise CannotImport(
                f"{self.file.name} changed at {self.where} while it was copied: run it again when it is complete.",
                code="changed",
            )
        if response.status not in (http.client.OK, http.client.PARTIAL_CONTENT):
            raise CopyInterrupted(f"{self.where} answers {response.status} {response.reason[:100]}.", code=AWAY)
        return response

    def away(self, error: Exception) -> CopyInterrupted:
        """Return the refusal of a host that does not answer."""
        return CopyInterrupted(f"{self.where} does not answer: {str(error)[:200] or type(error).__name__}.", code=AWAY)

    def _connect(self) -> http.client.HTTPSConnection:
        parts = urlsplit(self.offer.url)
        return http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=ANSWER_WITHIN, context=self.context
        )


class _OpenedOffer:
    def __init__(self, source: OfferedSource, connection: http.client.HTTPSConnection) -> None:
        self.source = source
        self.connection = connection
        self.at = 0
        self.response: http.client.HTTPResponse | None = None

    @property
    def identities(self) -> Sequence[Sequence[Any]]:
        """Return its stamp, and its sum: with that a copy goes on from another host that has the same file."""
        file = self.source.file
        return [[file.size, file.stamp], *([[file.size, file.sha256]] if file.sha256 else [])]

    def seek(self, offset: int, /) -> None:
        self.at = offset

    def read(self, length: int, /) -> bytes:
        if self.at >= self.source.size:
            return b""
        try:
            if self.response is None:
                headers = {"Range": f"bytes={self.at}-"} if self.at else {}
                self.response = self._begin(headers)
            piece = self.response.read(length)
        except (OSError, http.client.HTTPException) as error:
            raise self.source.away(error) from error
        if not piece:
            raise self.source.away(EOFError("it gave less than the whole file"))
        self.at += len(piece)
        return piece

    def _begin(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        response = self.source.request(self.connection, "files", headers)
        if response.length != self.source.size - self.at or (response.status == http.client.PARTIAL_CONTENT) != bool(
            headers
        ):
            raise http.client.HTTPException("it gave another part than was asked for")
        return response

    def check(self, done: int, digest: str) -> None:
        if done != self.source.size:
            raise self.source.away(EOFError("it gave another length than it said"))
        if self.source.file.sha256:
            self.source.check_digest(digest, self.source.file.sha256)
        with suppress(OSError):
            self.connection.close()
