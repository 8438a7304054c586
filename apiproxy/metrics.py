"""Counters of this gateway and their Prometheus text. Labels are bounded: endpoints, known models, fixed words."""

from collections import Counter
from collections.abc import Iterable

HELP = {
    "madoguchi_requests_total": "Requests answered, by endpoint, model and HTTP status or ending.",
    "madoguchi_tokens_total": "Tokens metered, by model and kind.",
    "madoguchi_refusals_total": "Requests refused by the gateway, by code.",
}

Labels = tuple[tuple[str, str], ...]


class Metrics:
    def __init__(self) -> None:
        self._counts: dict[str, Counter[Labels]] = {name: Counter() for name in HELP}

    def request(self, endpoint: str, model: str, ending: str) -> None:
        self._counts["madoguchi_requests_total"][("endpoint", endpoint), ("model", model), ("ending", ending)] += 1

    def tokens(self, model: str, prompt: int, completion: int) -> None:
        counts = self._counts["madoguchi_tokens_total"]
        counts[("model", model), ("kind", "prompt")] += prompt
        counts[("model", model), ("kind", "completion")] += completion

    def refusal(self, code: str) -> None:
        self._counts["madoguchi_refusals_total"][(("code", code),)] += 1

    def text(self, gauges: Iterable[tuple[str, str, Labels, float]]) -> bytes:
        """The exposition format, version 0.0.4. `gauges`: (name, help, labels, value); one help per name."""
        lines: list[str] = []
        for name, counts in self._counts.items():
            lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} counter"]
            lines += [f"{name}{braces(labels)} {value}" for labels, value in counts.items()]
        seen: set[str] = set()
        for name, help_text, labels, value in gauges:
            if name not in seen:
                lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
                seen.add(name)
            lines.append(f"{name}{braces(labels)} {value:g}")
        return ("\n".join(lines) + "\n").encode()


def braces(labels: Labels) -> str:
    if not labels:
        return ""
    # Model names hold no quotes or backslashes: the registry's validator says so.
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}"
