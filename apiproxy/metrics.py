"""Counters of this gateway and their Prometheus text. Labels are bounded: endpoints, known models, fixed words."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

Labels = tuple[tuple[str, str], ...]
Gauge = tuple[str, str, Labels, float]  # name, help, labels, value

HELP = {
    "madoguchi_requests_total": "Requests that reached an engine, by endpoint, model and how they ended.",
    "madoguchi_tokens_total": "Tokens metered, by model and kind.",
    "madoguchi_refusals_total": "Requests refused by the gateway, by code.",
    "madoguchi_first_byte_seconds": "From the request to the engine's first byte, by model.",
    "madoguchi_request_seconds": "From the request to the answer's end, by model.",
}
COUNTERS = ("madoguchi_requests_total", "madoguchi_tokens_total", "madoguchi_refusals_total")
HISTOGRAMS = ("madoguchi_first_byte_seconds", "madoguchi_request_seconds")
# Seconds. A chat model answers within tenths of a second, or after a queue of minutes.
BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Histogram:
    """How many values lie below each of BOUNDS, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: Labels) -> Iterable[str]:
        below = 0
        for bound, count in zip((*BOUNDS, "+Inf"), self.counts, strict=True):
            below += count
            yield f"{name}_bucket{braces((*labels, ('le', str(bound))))} {below}"
        yield f"{name}_sum{braces(labels)} {self.sum:g}"
        yield f"{name}_count{braces(labels)} {below}"


class Metrics:
    def __init__(self) -> None:
        self._counts: dict[str, Counter[Labels]] = {name: Counter() for name in COUNTERS}
        self._times: dict[str, dict[str, Histogram]] = {name: {} for name in HISTOGRAMS}

    def request(self, endpoint: str, model: str, ending: str) -> None:
        self._counts["madoguchi_requests_total"][("endpoint", endpoint), ("model", model), ("ending", ending)] += 1

    def tokens(self, model: str, prompt: int, completion: int) -> None:
        counts = self._counts["madoguchi_tokens_total"]
        counts[("model", model), ("kind", "prompt")] += prompt
        counts[("model", model), ("kind", "completion")] += completion

    def times(self, model: str, first_byte: float | None, whole: float) -> None:
        """Seconds; `first_byte` None: there was none."""
        if first_byte is not None:
            self._histogram("madoguchi_first_byte_seconds", model).add(first_byte)
        self._histogram("madoguchi_request_seconds", model).add(whole)

    def refusal(self, code: str) -> None:
        self._counts["madoguchi_refusals_total"][(("code", code),)] += 1

    def text(self, gauges: Iterable[Gauge]) -> bytes:
        """The exposition format, version 0.0.4. Of gauges, those of one name stand together."""
        lines: list[str] = []
        for name, counts in self._counts.items():
            lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} counter"]
            lines += [f"{name}{braces(labels)} {value}" for labels, value in counts.items()]
        for name, histograms in self._times.items():
            lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} histogram"]
            for model, histogram in histograms.items():
                lines += histogram.lines(name, (("model", model),))
        seen: set[str] = set()
        for name, help_text, labels, value in gauges:
            if name not in seen:
                lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
                seen.add(name)
            lines.append(f"{name}{braces(labels)} {value:g}")
        return ("\n".join(lines) + "\n").encode()

    def _histogram(self, name: str, model: str) -> Histogram:
        return self._times[name].setdefault(model, Histogram())


def braces(labels: Labels) -> str:
    if not labels:
        return ""
    # Model names hold no quotes or backslashes: the registry's validator says so.
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}"
