"""The units of limits: what each counts of a call, and what it is called in headers and errors.

Reserving, settling, headers and errors loop over units; none of them knows a unit by its name. How people read a unit
and how its use is summed from records is in the row of the same name in `portal.quotas.units`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from apiproxy.dataplane.errors import Language

HeaderNames = tuple[bytes, bytes, bytes]  # of the limit, of what remains, of when all of it returns


class Consumption(NamedTuple):
    """What a call may use at most, before it goes out; what it used, after it has ended."""

    tokens: int = 0  # read and generated
    request_bytes: int = 0  # of its body
    requests: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    name: str  # in quotas, and in the keys of Redis
    counts: Literal["tokens", "request_bytes", "requests"]  # which field of a Consumption
    while_running: bool = False  # counts what calls under way have reserved, in no window; else what they used
    bounds_answer: bool = False  # what is reserved holds only if the engine bounds the answer
    header: str | None  # x-ratelimit-limit-HEADER; None: no header shows it
    error_type: Literal["tokens", "requests"]  # `type` in OpenAI's error object, which knows these two
    words: Mapping[Language, str]

    def reserve(self, most: Consumption) -> int:
        """Return how much of the unit a call may use."""
        return most[self.index]

    def settle(self, used: Consumption) -> int:
        """Return how much of the unit a call used that has reached an engine."""
        return 0 if self.while_running else used[self.index]

    @cached_property
    def index(self) -> int:
        return Consumption._fields.index(self.counts)

    @cached_property
    def headers(self) -> HeaderNames | None:
        """The names of OpenAI's rate headers; None: no header shows this unit."""
        if self.header is None:
            return None
        name = self.header.encode()
        return b"x-ratelimit-limit-" + name, b"x-ratelimit-remaining-" + name, b"x-ratelimit-reset-" + name


REQUESTS = Unit(
    name="requests",
    counts="requests",
    header="requests",
    error_type="requests",
    words={"en": "requests", "ja": "リクエスト"},
)
TOKENS = Unit(
    name="tokens",
    counts="tokens",
    bounds_answer=True,
    header="tokens",
    error_type="tokens",
    words={"en": "tokens", "ja": "トークン"},
)
CONCURRENT = Unit(
    name="concurrent",
    counts="requests",
    while_running=True,
    header=None,
    error_type="requests",
    words={"en": "requests", "ja": "リクエスト"},
)

UNITS = {unit.name: unit for unit in (REQUESTS, TOKENS, CONCURRENT)}
