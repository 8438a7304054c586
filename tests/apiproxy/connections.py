"""Connections to a gateway on which a test writes what it likes."""

import socket


def connect(url: str, seconds: float = 20) -> socket.socket:
    """Connect to where this URL is served. Nothing on the connection takes longer than `seconds`."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=seconds)


def head(method: str, path: str, *fields: str, key: str = "") -> bytes:
    """Return the head of a request; with a key it is authenticated."""
    more = [f"authorization: Bearer {key}"] if key else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: x", *more, *fields, "", ""]).encode()
