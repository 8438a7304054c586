"""How often a model's answers fall into word loops, for operators: by day, temperature and engine."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext as _

from modelregistry.models import ServedModel
from portal.audit.models import AuditEvent
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
class SamplingChange:
    """The rates of the days before and after the one on which a model's sampling was last set."""

    day: date
    before: LoopRate
    after: LoopRate

    @property
    def verdict(self) -> str:
        if self.before.is_above(self.after):
            return "helped"
        if self.after.is_above(self.before):
            return "worse"
        return "no difference" if self.before.known and self.after.known else "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoops:
    """A model's word loops: of the last 24 hours (`recent`), of the 28 days before (`usual`), and of all of them."""

    recent: LoopRate
    usual: LoopRate
    days: tuple[date, ...]
    counts: tuple[LoopCount, ...]
    changed: date | None  # the day on which its sampling was last set, if that was one of `days`

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

    @property
    def change(self) -> SamplingChange | None:
        if self.changed is None:
            return None
        before = self._sum(one for one in self.counts if one.day < self.changed)
        after = self._sum(one for one in self.counts if one.day > self.changed)
        return SamplingChange(day=self.changed, before=before, after=after)

    def _sum(self, counts: Iterable[LoopCount]) -> LoopRate:
        rates = [one.rate for one in counts]
        return LoopRate(answers=sum(rate.answers for rate in rates), looped=sum(rate.looped for rate in rates))


def read_loops(model: ServedModel, now: datetime) -> ModelLoops:
    """Read the loops of a model. Four queries."""
    days, name = recent_days(now), model.name
    rows = sum_rates(LoopDay.objects.filter(model=name, day__gte=days[0]), *FIELDS)
    none = LoopRate()
    return ModelLoops(
        recent=read_recent_rates(now, name).get(name, none),
        usual=read_usual_rates(now, name).get(name, none),
        days=days,
        counts=tuple(_count(key, rate) for key, rate in rows.items()),
        changed=_read_change(model, days[0]),
    )


def _read_change(model: ServedModel, first: date) -> date | None:
    events = AuditEvent.objects.filter(object_kind="model", object_id=str(model.pk), before__has_key="sampling")
    at = events.order_by("-at").values_list("at", flat=True).first()
    day = timezone.localdate(at, timezone.get_default_timezone()) if at else None
    return day if day is not None and day >= first else None


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
    change = loops.change
    return {
        "raised": loops.raised,
        "recent": describe_rate(loops.recent),
        "usual": describe_rate(loops.usual),
        "change": None if change is None else _describe_change(change),
        "days": [{**{name: getattr(one, name) for name in FIELDS}, **describe_rate(one.rate)} for one in loops.counts],
    }


def _describe_change(change: SamplingChange) -> dict[str, Any]:
    rates = {"before": describe_rate(change.before), "after": describe_rate(change.after)}
    return {"day": change.day, "verdict": change.verdict, **rates}
