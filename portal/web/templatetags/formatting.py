"""Numbers and times as people read them."""

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from django import template
from django.contrib.auth import get_user_model
from django.template import Context
from django.utils import timezone
from django.utils.formats import date_format, get_format, number_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import get_language, pgettext
from django.utils.translation import gettext as _

register = template.Library()

# (from, divided by, unit). Below the smallest, the whole number is short enough.
SHORT = {
    "ja": [(100_000_000, 100_000_000, "億"), (10_000, 10_000, "万")],
    "en": [(1_000_000_000, 1_000_000_000, "B"), (1_000_000, 1_000_000, "M"), (10_000, 1_000, "K")],
}


@register.filter
def figure(value: int | float) -> str:
    """Return every digit, grouped: 1,234,567."""
    if isinstance(value, int):  # a table has thousands, and number_format takes 10 µs for each
        return f"{value:,}".replace(",", get_format("THOUSAND_SEPARATOR"))
    return number_format(value, force_grouping=True)


def round_share(share: float, digits: int) -> float:
    """Return the share, 0 to 1, in per cent. Less than all is never rounded up to all."""
    rounded: float = round(100 * share, digits)
    return rounded if share >= 1 else min(rounded, 100 - 10**-digits)


@register.filter
def short(value: int) -> str:
    """Abbreviate a number: 123.5万 in Japanese, 1.2M in English. Rounded down, so that less than a limit looks less."""
    for least, unit, sign in SHORT.get(get_language() or "", SHORT["en"]):
        if value >= least:
            tenths = value * 10 // unit
            return number_format(tenths / 10, decimal_pos=1 if tenths % 10 else 0, force_grouping=True) + sign
    return figure(value)


def round_seconds(value: float) -> str:
    """Return seconds with as many digits as matter, without their unit: 0.42, 1.3, 45.3, 240. Whole ones have none."""
    if value == int(value):
        return number_format(int(value), force_grouping=True)
    digits = 3 if value < 0.01 else 2 if value < 1 else 1 if value < 100 else 0
    # Rounded here: number_format cuts off.
    return number_format(f"{value:.{digits}f}", digits, force_grouping=True)


@register.filter
def seconds(value: float | None) -> str:
    """Return 1.3 s; "" if not known."""
    return "" if value is None else _("%(seconds)s s") % {"seconds": round_seconds(value)}


@register.filter
def ms_in_seconds(value: int) -> str:
    """Return milliseconds as seconds, without their unit: for a column that names it."""
    return round_seconds(value / 1000)


@register.filter
def notable(part: int, whole: int) -> bool:
    """Return whether a part is worth a word in a table: a twentieth of the whole or more."""
    return bool(part) and 20 * part >= whole


@register.filter
def value_of(values: Mapping[Any, int], key: Any) -> int:
    """Return the number by this key; 0 if there is none."""
    return values.get(key, 0)


@register.filter
def times(value: int, factor: int) -> int:
    return value * factor


@register.filter
def absolute(value: int) -> int:
    """Return the number without its sign, for templates that write their own."""
    return abs(value)


def in_zone(value: datetime, zone: ZoneInfo) -> datetime:
    """Return the time in this zone, or as it is on the first or last days of the calendar, which not every zone has."""
    try:
        return value.astimezone(zone)
    except OverflowError:
        return value


@register.simple_tag(takes_context=True)
def moment(context: Context, value: datetime) -> SafeString:
    """Return a time in the zone of the page (`zone` in its context), the exact instant on hover."""
    zone: ZoneInfo = context["zone"]
    local, today = in_zone(value, zone), timezone.now().astimezone(zone).date()
    if local.date() == today:
        text = _("today %(time)s") % {"time": date_format(local, pgettext("time of today", "H:i"))}
    elif local.year == today.year:
        text = date_format(local, pgettext("time of this year", "j M, H:i"))
    else:
        text = date_format(local, pgettext("day of another year", "j M Y"))
    exact = f"{local:%Y-%m-%d %H:%M:%S} {local.tzname()}"
    return format_html('<time datetime="{}" title="{}">{}</time>', local.isoformat(), exact, text)


@register.simple_tag(takes_context=True)
def calendar_day(context: Context, value: datetime) -> SafeString:
    """Return the date, with its year, in the zone of the page, for what ends on a day."""
    local = in_zone(value, context["zone"])
    text = date_format(local, pgettext("day with year", "j M Y"))
    exact = f"{local:%Y-%m-%d %H:%M:%S} {local.tzname()}"
    return format_html('<time datetime="{}" title="{}">{}</time>', local.isoformat(), exact, text)


@register.filter
def month_day(value: date) -> str:
    """Return a day without its year, which is clear from the context: on an axis, in a table."""
    return date_format(value, pgettext("day of this year", "j M"))


@register.filter
def weekday_day(value: date) -> str:
    return date_format(value, pgettext("day of this year with weekday", "D j M"))


@register.filter
def slot_of(value: Any, unit: str) -> str:
    """Return the name of a second, an hour, a day, a week by its Monday, a month, a fiscal year or a time, for a table.

    Of the unit "nth week" the value is a number.
    """
    if unit == "nth week":
        return _("week %(number)s") % {"number": value}
    if unit == "second":
        return f"{value:%H:%M:%S}"
    if unit == "hour":
        return date_format(value, pgettext("time of today", "H:i"))
    if unit in ("time", "date"):
        return " ".join((weekday_day(value), slot_of(value, "hour")))
    if unit == "year":
        return _("FY %(year)s") % {"year": value.year}
    return month(value) if unit == "month" else weekday_day(value)


@register.filter
def mark_of(value: Any, unit: str) -> str:
    """Return the same for an axis, where there is little room."""
    if unit == "time":
        return slot_of(value, "hour")
    return month_day(value) if unit in ("day", "week", "date") else slot_of(value, unit)


def month(value: date) -> str:
    return date_format(value, pgettext("month of a year", "M Y"))


@register.simple_tag
def colon() -> str:
    """Return the separator of a name and what is said of it, with its space."""
    return pgettext("after a name, with its space", ": ")


@register.simple_tag
def comma() -> str:
    """Return the separator of the items of a list, with its space."""
    return pgettext("between the items of a list, with its space", ", ")


@register.filter
def listed(items: Iterable[object]) -> str:
    return comma().join(map(str, items))


@register.filter
def person(user: object) -> str:
    """Return the name as its bearer writes it, see User.get_full_name."""
    return str(user)


@register.inclusion_tag("site/_operators.html")
def operators_to_ask() -> dict[str, object]:
    """Return operators for people to ask for help. At most three: one to ask, two on holiday."""
    operators = get_user_model().objects.filter(is_staff=True, is_active=True, is_break_glass=False)
    return {"operators": operators.order_by("date_joined")[:3]}
