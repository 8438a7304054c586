"""Bytes to a server and its answers back, without a library that would make them proper first."""

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes

    @property
    def code(self) -> str:
        """The error's code as programs read it, or ""."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return json.loads(self.body)["error"]["code"]
        return ""


class Cut(Exception):
    """The server closed within an answer."""


class Reader:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._got = b""

    def answers(self, *methods: str) -> Iterator[Answer]:
        """Yield all answers until the server closes; `methods` of the requests, GET for those that are not given."""
        left = list(methods)
        while self._got or self._more():
            if not self._got.startswith(b"HTTP/"[: len(self._got)]):  # HTTP/0.9: a body alone
                yield Answer(0, {}, self._rest())
                return
            status, headers = self._head()
            if status == 100:
                continue
            method = left.pop(0) if left else "GET"
            yield Answer(status, headers, b"" if method == "HEAD" else self._body(status, headers))
            if status == 101:
                return

    def one(self, method: str = "GET") -> Answer:
        return next(self.answers(method))

    def _head(self) -> tuple[int, dict[str, str]]:
        top = self._until(b"\r\n\r\n").decode("latin-1")
        line, *fields = top.split("\r\n")
        pairs = [one.split(":", 1) for one in fields]
        return int(line.split()[1]), {name.lower(): value.strip() for name, value in pairs}

    def _body(self, status: int, headers: dict[str, str]) -> bytes:
        if status in (101, 204, 304):
            return b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._until(b"\r\n"), 16):
                body += self._exactly(size)
                self._exactly(2)
            self._exactly(2)
            return body
        if "content-length" in headers:
            return self._exactly(int(headers["content-length"]))
        return self._rest()

    def _rest(self) -> bytes:
        while self._more():
            pass
        body, self._got = self._got, b""
        return body

    def _until(self, end: bytes) -> bytes:
        while end not in self._got:
            if not self._more():
                raise Cut(self._got)
        found, _, self._got = self._got.partition(end)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._got) < size:
            if not self._more():
                raise Cut(self._got)
        found, self._got = self._got[:size], self._got[size:]
        return found

    def _more(self) -> bool:
        try:
            piece = self._connection.recv(65536)
        except (ConnectionError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            return False
        self._got += piece
        return bool(piece)


def request(method: str, target: str, *fields: str, body: bytes = b"", version: str = "HTTP/1.1") -> bytes:
    lines = [f"{method} {target} {version}", "host: localhost", *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
