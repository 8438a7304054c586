"""Which pages of other origins may call `/v1` from a browser, and the headers that say so (the Fetch standard).

These headers keep no caller out: a browser keeps pages of other origins from reading answers, and from sending an API
key at all, unless headers allow it. No cookies are involved, so credentials in their sense are never allowed.
"""

import re
from collections.abc import Collection

from apiproxy.dataplane.downstream import Header

# Seconds for which a browser remembers a preflight; Chromium cuts at two hours.
REMEMBERED = b"7200"
# The headers of an answer that a page may read, beside those that every page may.
EXPOSED = (
    b"request-id, retry-after, retry-after-ms, x-madoguchi-waited, x-request-id, x-should-retry, "
    b"x-ratelimit-limit-requests, x-ratelimit-limit-tokens, "
    b"x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, "
    b"x-ratelimit-reset-requests, x-ratelimit-reset-tokens"
)
# SDKs send a dozen of their own, so what is asked for is allowed if it is a list of names.
NAMES = re.compile(rb"[\w\-, ]{1,2000}")


class Origins:
    """`allowed`: origins as browsers write them (`https://chat.example.co.jp`), or `*` for all."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._all = "*" in allowed
        self._allowed = frozenset(origin.encode() for origin in allowed)

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def headers(self, origin: bytes | None) -> list[Header]:
        """Return the headers of an answer to a page of this origin; None: the request named none."""
        if not self._allowed:
            return []
        vary = (b"vary", b"origin")
        if origin is None or not (self._all or origin in self._allowed):
            return [vary]
        return [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED), vary]

    def preflight(self, headers: dict[bytes, bytes], methods: bytes) -> list[Header]:
        """Return the headers that answer a browser's question what a page of this origin may send; none if nothing."""
        origin = headers.get(b"origin")
        if origin is None or not (self._all or origin in self._allowed):
            return []
        answer = [(b"access-control-allow-methods", methods), (b"access-control-max-age", REMEMBERED)]
        wanted = headers.get(b"access-control-request-headers", b"")
        return [*answer, (b"access-control-allow-headers", wanted)] if NAMES.fullmatch(wanted) else answer
