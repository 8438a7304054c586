"""The office of a site's elected controller, by which its supervisors act; see `controller.election`."""

from dataclasses import dataclass

BEAT = 2.0  # seconds between two renewals; gateways doubt hosts that have missed two of them, see `routes.QUIET`


class Replaced(Exception):
    """The site has another controller than this process; engines are left as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Office:
    """What an elected controller acts by. `number`: of its claim; `holder`: who it is, in words."""

    number: str
    holder: str
    term: int
