"""What a request to a page or to the API asks for: whose usage, which part of it, and when."""

from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from portal.accounts.models import User
from portal.accounts.timezones import zone_of
from portal.usage import periods, scopes

DEFAULT_PERIOD = "this-month"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """A scope, of which only the part selected by `focus` is left, in a period of the reader's time zone."""

    scope: scopes.UsageScope
    focus: scopes.Focus
    period: periods.Period
    zone: ZoneInfo

    @property
    def counts_people(self) -> bool:
        """Whether more than one person may have used it."""
        return not self.scope.personal and not self.focus.user and not self.focus.key


def build_query(user: User, of: str, focus: scopes.Focus, period: str, now: datetime) -> UsageQuery:
    """Return the query of this person, for the scope and the period of these names.

    Raises Http404 for what this person may not see, KeyError for an unknown period.
    """
    scope, zone = scopes.narrow_scope(scopes.find_scope(user, of), focus), zone_of(user)
    return UsageQuery(scope=scope, focus=focus, period=periods.parse_period(period, now, zone), zone=zone)
