"""Gives files to other hosts while there is an offer: HTTP/1.1 with ranges over TLS, by threads of its own.

Who fetches shows a certificate of the cluster, as Ray's nodes do, and the token of the offer, which is random and for
one copy. A file is given by its number in the offer, so that no path comes from outside, and only as it was when it was
offered: the stamp in If-Match.
"""

import contextlib
import hmac
import json
import logging
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from modelregistry.host_port import join_host_port
from modelregistry.install import copying
from modelregistry.transfer.checksums import Checksums, stamp_of

log = logging.getLogger(__name__)

PIECE = 2**20  # bytes
IDLE = 600.0  # seconds without a request, or a repeated offer, after which an offer is over
SEND_WITHIN = 120.0  # seconds for a piece: the other end may be flushing 256 MB to a slow disk
LOOK = 1.0
CONNECTIONS = 16

_WHERE = re.compile(r"/(files|sums)/(\d{1,6})")
_RANGE = re.compile(r"bytes=(\d{1,18})-")


@dataclass(slots=True)
class ServedFiles:
    """What one offer gives. `places`: beyond which none of its links leads."""

    files: Sequence[Path]
    places: Sequence[Path]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    used_at: float = field(default_factory=time.monotonic)


class FileServer(ThreadingMixIn, TCPServer):
    """Listens from `serve` until it has no offer left. `offers`: by the copies that they are for."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    timeout = LOOK

    def __init__(self, address: str, port: int, context: ssl.SSLContext, checksums: Checksums) -> None:
        if ":" in address:
            self.address_family = socket.AF_INET6
        super().__init__((address, port), FileHandler)
        self.context = context
        self.checksums = checksums
        self.offers: dict[str, ServedFiles] = {}
        self.changing = threading.Lock()
        self.free = threading.BoundedSemaphore(CONNECTIONS)
        self.closed = False

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"https://{join_host_port(str(host), int(port))}"

    def add(self, copy: str, served: ServedFiles) -> bool:
        """Add an offer, and return whether it was in time."""
        with self.changing:
            if not self.closed:
                self.offers[copy] = served
            return not self.closed

    def serve(self) -> None:
        """Answer until no offer is left."""
        while not self._is_over():
            self.handle_request()
        self.server_close()

    def _is_over(self) -> bool:
        now = time.monotonic()
        with self.changing:
            for copy in [copy for copy, one in self.offers.items() if now - one.used_at > IDLE]:
                del self.offers[copy]
            self.closed = not self.offers
        return self.closed

    def find(self, token: str) -> ServedFiles | None:
        """Return the offer of this token."""
        with self.changing:
            found = [one for one in self.offers.values() if hmac.compare_digest(one.token.encode(), token.encode())]
        for one in found:
            one.used_at = time.monotonic()
        return found[0] if found else None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Agree on TLS in the connection's own thread: a client that says nothing holds up no other."""
        if not self.free.acquire(blocking=False):
            return
        try:
            request.settimeout(SEND_WITHIN)
            with self.context.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.info("a connection of %s for files ended early", client_address, exc_info=True)


class FileHandler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = SEND_WITHIN
    server: FileServer

    def do_GET(self) -> None:
        """Give a file, or its checksum."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        offer, where = self.server.find(token), _WHERE.fullmatch(self.path)
        if offer is None:
            return self._refuse(HTTPStatus.UNAUTHORIZED)
        if where is None or int(where[2]) >= len(offer.files):
            return self._refuse(HTTPStatus.NOT_FOUND)
        path = offer.files[int(where[2])]
        try:
            if stamp_of(path) != self.headers.get("If-Match", "").strip('"'):
                return self._refuse(HTTPStatus.PRECONDITION_FAILED)
            if where[1] == "sums":
                return self._give_sum(path)
            self._give_file(path, offer)
        except copying.CannotImport:
            self._refuse(HTTPStatus.PRECONDITION_FAILED)
        except FileNotFoundError:
            self._refuse(HTTPStatus.PRECONDITION_FAILED)

    def _give_sum(self, path: Path) -> None:
        body = json.dumps({"sha256": self.server.checksums.compute(path)}).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _give_file(self, path: Path, offer: ServedFiles) -> None:
        with copying.open_within(path, offer.places) as file:
            size, begin = path.stat().st_size, 0
            if asked := self.headers.get("Range"):
                found = _RANGE.fullmatch(asked)
                if found is None or int(found[1]) >= max(size, 1):
                    return self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                begin = int(found[1])
            self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
            self.send_header("Content-Length", str(size - begin))
            if asked:
                self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
            self.end_headers()
            file.seek(begin)
            left = size - begin
            while left and (piece := file.read(min(PIECE, left))):
                self.wfile.write(piece)
                left -= len(piece)
                offer.used_at = time.monotonic()
        if left:
            self.close_connection = True  # it became shorter; the other end notices that something is missing
        else:
            with contextlib.suppress(OSError):
                self.server.checksums.compute(path)  # while the kernel still remembers it

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("files: " + format, *args)
