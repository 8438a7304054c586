"""How often a model's answers fall into word loops, for operators: by day, temperature and engine."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from django.utils.translation import gettext as _

from portal.usage.chart import Chart, line_chart
from portal.usage.loop_rates import LoopRate, read_recent_rates, read_usual_rates, recent_days, sum_rates
from portal.usage.models import LoopDay

FIELDS = ("day", "quantisation", "launcher", "version", "temperature")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopCount:
    """The rate of one day, quantisation, engine and band of temperature."""

    day: date
    quantisation: str
    launcher: str
    version: str
    temperature: str
    rate: LoopRate

    @property
    def engine(self) -> str:
        return f"{self.launcher} {self.version}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoops:
    """A model's word loops: of the last 24 hours (`recent`), of the 28 days before (`usual`), and of all of them."""

    recent: LoopRate
    usual: LoopRate
    days: tuple[date, ...]
    counts: tuple[LoopCount, ...]

    @property
    def raised(self) -> bool:
        return self.recent.is_above(self.usual)

    @property
    def by_temperature(self) -> list[tuple[str, str, LoopRate]]:
        """The bands that have any answers, the lowest first, each with what people call it."""
        rates = {band: self._sum(one for one in self.counts if one.temperature == band) for band in LoopDay.Temperature}
        return [(band.value, str(band.label), rate) for band, rate in rates.items() if rate.answers]

    @property
    def by_engine(self) -> list[tuple[str, str, LoopRate]]:
        """Each (quantisation, launcher and version), the one that answered last first."""
        last: dict[tuple[str, str], date] = {}
        for one in self.counts:
            key = one.quantisation, one.engine
            last[key] = max(one.day, last.get(key, one.day))
        return [
            (*key, self._sum(one for one in self.counts if (one.quantisation, one.engine) == key))
            for key in sorted(last, key=lambda key: (-last[key].toordinal(), key))
        ]

    @property
    def chart(self) -> Chart | None:
        """The rate by day with its bounds, in per cent, where it is known; None: of no day."""
        rates = {day: self._sum(one for one in self.counts if one.day == day) for day in self.days}
        known = {day: rate for day, rate in rates.items() if rate.known}
        lines: dict[str, dict[date, float | None]] = {
            _("rate"): {day: 100 * (rate.share or 0) for day, rate in known.items()},
            _("at least"): {day: 100 * rate.interval[0] for day, rate in known.items()},
            _("at most"): {day: 100 * rate.interval[1] for day, rate in known.items()},
        }
        return line_chart(lines, self.days, "day", name="loops", measure="per cent") if known else None

    def _sum(self, counts: Iterable[LoopCount]) -> LoopRate:
        rates = [one.rate for one in counts]
        return LoopRate(answers=sum(rate.answers for rate in rates), looped=sum(rate.looped for rate in rates))


def read_loops(model: str, now: datetime) -> ModelLoops:
    """Read the loops of a model. Three queries."""
    days = recent_days(now)
    rows = sum_rates(LoopDay.objects.filter(model=model, day__gte=days[0]), *FIELDS)
    none = LoopRate()
    return ModelLoops(
        recent=read_recent_rates(now, model).get(model, none),
        usual=read_usual_rates(now, model).get(model, none),
        days=days,
        counts=tuple(_count(key, rate) for key, rate in rows.items()),
    )


def _count(key: tuple[Any, ...], rate: LoopRate) -> LoopCount:
    day, quantisation, launcher, version, temperature = key
    return LoopCount(
        day=day, quantisation=quantisation, launcher=launcher, version=version, temperature=temperature, rate=rate
    )


def describe_rate(rate: LoopRate) -> dict[str, Any]:
    """Return the values of the API's LoopRate."""
    low, high = rate.interval
    known = {"known": rate.known, "share": rate.share, "low": low, "high": high}
    return {"answers": rate.answers, "looped": rate.looped, **known}


def describe_loops(loops: ModelLoops) -> dict[str, Any]:
    """Return the values of the API's Loops."""
    return {
        "raised": loops.raised,
        "recent": describe_rate(loops.recent),
        "usual": describe_rate(loops.usual),
        "days": [{**{name: getattr(one, name) for name in FIELDS}, **describe_rate(one.rate)} for one in loops.counts],
    }
