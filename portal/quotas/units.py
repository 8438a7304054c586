"""The units of quotas: how people read them, and how their use is summed from records.

What the gateway counts of a call is the row of the same name in `apiproxy.dataplane.limits.units`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from django.db.models import F, Value
from django.db.models.expressions import Combinable
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy

from portal.web.templatetags.formatting import figure

Text = str | Promise


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What is said of a unit in one window."""

    choice: Text  # among what can be limited
    amount: Text  # an ngettext_lazy by "number", which is "n" in figures
    left: Text = ""  # an ngettext_lazy by "whole", "left" of "amount"; only where use adds up over days


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuotaUnit:
    """`recorded` and `summed` are what one row adds: a UsageRecord, and a row of its sums (`Sums`)."""

    name: str  # in the database: 10 characters at most
    label: Text
    windows: Mapping[str, Words]  # those it can be limited in, by Quota.Window; "": no window, for concurrent calls
    recorded: Combinable | None = None  # None: nothing adds up
    summed: Combinable | None = None

    def format_amount(self, amount: int, window: str) -> str:
        """Return it as "1,000,000 tokens per day"."""
        return str(self.windows[window].amount % {"number": amount, "n": figure(amount)})

    def format_left(self, left: int, amount: int, window: str) -> str:
        """Return it as "250,000 of 1,000,000 tokens left today"."""
        return str(self.windows[window].left % {"whole": amount, "left": figure(left), "amount": figure(amount)})


TOKENS = QuotaUnit(
    name="tokens",
    label=_("tokens"),
    windows={
        "day": Words(
            choice=_("tokens per day"),
            amount=ngettext_lazy("%(n)s token per day", "%(n)s tokens per day", "number"),
            left=ngettext_lazy(
                "%(left)s of %(amount)s token left today", "%(left)s of %(amount)s tokens left today", "whole"
            ),
        ),
        "month": Words(
            choice=_("tokens per month"),
            amount=ngettext_lazy("%(n)s token per month", "%(n)s tokens per month", "number"),
            left=ngettext_lazy(
                "%(left)s of %(amount)s token left this month", "%(left)s of %(amount)s tokens left this month", "whole"
            ),
        ),
        "minute": Words(
            choice=_("tokens per minute"),
            amount=ngettext_lazy("%(n)s token per minute", "%(n)s tokens per minute", "number"),
        ),
    },
    recorded=F("prompt_tokens") + F("completion_tokens"),
    summed=F("prompt_tokens") + F("completion_tokens"),
)
REQUESTS = QuotaUnit(
    name="requests",
    label=_("requests"),
    windows={
        "day": Words(
            choice=_("requests per day"),
            amount=ngettext_lazy("%(n)s request per day", "%(n)s requests per day", "number"),
            left=ngettext_lazy(
                "%(left)s of %(amount)s request left today", "%(left)s of %(amount)s requests left today", "whole"
            ),
        ),
        "month": Words(
            choice=_("requests per month"),
            amount=ngettext_lazy("%(n)s request per month", "%(n)s requests per month", "number"),
            left=ngettext_lazy(
                "%(left)s of %(amount)s request left this month",
                "%(left)s of %(amount)s requests left this month",
                "whole",
            ),
        ),
        "minute": Words(
            choice=_("requests per minute"),
            amount=ngettext_lazy("%(n)s request per minute", "%(n)s requests per minute", "number"),
        ),
    },
    recorded=Value(1),
    summed=F("requests"),
)
CONCURRENT = QuotaUnit(
    name="concurrent",
    label=_("requests at the same time"),
    windows={
        "": Words(
            choice=_("requests at the same time"),
            amount=ngettext_lazy("%(n)s request at a time", "%(n)s requests at a time", "number"),
        )
    },
)

UNITS = {unit.name: unit for unit in (TOKENS, REQUESTS, CONCURRENT)}


def unit_choices() -> list[tuple[str, Text]]:
    return [(unit.name, unit.label) for unit in UNITS.values()]


def kind_choices() -> list[tuple[str, Text]]:
    """Return what can be limited as (unit/window, words): first what adds up over days, then all else."""
    kinds = [(unit, window, words) for unit in UNITS.values() for window, words in unit.windows.items()]
    kinds.sort(key=lambda kind: not kind[2].left)
    return [(f"{unit.name}/{window}", words.choice) for unit, window, words in kinds]
