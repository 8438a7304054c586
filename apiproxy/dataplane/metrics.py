"""Counters of this host's gateways and their Prometheus text.

Labels are bounded: endpoints, models of the catalogue, fixed words. A model that has left the catalogue leaves the text
and the memory.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, chain, islice

from apiproxy.dataplane.mmap_counters import CounterFile, Key

Labels = tuple[tuple[str, str], ...]
Gauge = tuple[str, str, Labels, float]  # name, help, labels, value

REQUESTS, TOKENS, REFUSALS = "madoguchi_requests_total", "madoguchi_tokens_total", "madoguchi_refusals_total"
LOST, DEATHS = "madoguchi_usage_refused_total", "madoguchi_engine_deaths_total"
LOOPS, OBSERVERS = "madoguchi_loops_total", "madoguchi_observer_failures_total"
LOOPED, SAVED = "madoguchi_looped_tokens_total", "madoguchi_saved_tokens_total"
FAILURES, UNVERIFIED = "madoguchi_task_failures_total", "madoguchi_unverified_users_total"
FIRST, WHOLE, BETWEEN = "madoguchi_first_byte_seconds", "madoguchi_request_seconds", "madoguchi_inter_token_seconds"
WAITED = "madoguchi_waited_seconds"
TRACED, UNTRACED = "madoguchi_traces_sent_total", "madoguchi_traces_dropped_total"
# name: help, labels
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    REQUESTS: ("Requests that reached an engine, by how they ended.", ("endpoint", "model", "ending")),
    TOKENS: ("Tokens metered.", ("model", "kind")),
    REFUSALS: ("Requests refused by the gateway, by code.", ("code",)),
    DEATHS: ("Calls under which an engine died, by verdict.", ("model", "verdict")),
    LOST: ("Usage that could not be recorded and was set aside, see `manage.py setaside`.", ()),
    LOOPS: ("Answers in a word loop at their end, or ended because of one.", ("model",)),
    LOOPED: ("Tokens of those answers that repeat others.", ("model",)),
    SAVED: ("Tokens that ended answers could still have had.", ("model",)),
    OBSERVERS: ("Observers that failed and were taken off their stream.", ()),
    UNVERIFIED: ("Calls whose signed end user was not believed, of keys with a secret for that.", ("reason",)),
    TRACED: ("Calls whose traces the collector took.", ()),
    UNTRACED: ("Calls whose traces were dropped, as the collector did not take them.", ()),
    FAILURES: ("Failures of background tasks, which were run again.", ("task",)),
}
# Seconds. A chat model answers within tenths of a second, or after a queue of minutes.
LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# A small model on a large GPU makes 500 tokens a second, a large one that shares a CPU less than one.
SHORT = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0)
# name: help, upper bounds. All by model.
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    FIRST: ("From the request to the engine's first byte.", LONG),
    WHOLE: ("From the request to the answer's end.", LONG),
    BETWEEN: ("Between two tokens of a finished stream, on average: one observation a stream.", SHORT),
    WAITED: ("In the queue, of calls that had to wait for their turn and got it.", LONG),
}
STATE: Key = ("state",)
# A worker publishes its state once a second; one that has not for this many seconds is dead, or as good as dead.
SILENCE = 5.0
# Lines of the text that are made at once, in about 0.3 ms, and the seconds of the pause that follows: long enough for a
# thread that waits for the interpreter to wake up.
BATCH, PAUSE = 100, 0.0001


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """What one worker is doing."""

    in_flight: int
    spool_bytes: int
    spool_accepting: bool
    database_up: bool
    catalogue_revision: int
    catalogue_age_seconds: float  # since the database last confirmed that nothing had changed
    limits_alone: bool = False
    limits_unsent: int = 0
    limits_admitted_alone: int = 0
    queued: int = 0
    batch_waiting: int = 0
    tasks_down: int = 0


# By the fields of WorkerState, which are the metrics' names: help, how several workers' values are combined.
STATES: Mapping[str, tuple[str, Callable[[Iterable[float]], float]]] = {
    "in_flight": ("Calls under way.", sum),
    "spool_bytes": ("Usage not yet in the database.", sum),
    "spool_accepting": ("1 while every worker can write usage to disk.", min),
    "database_up": ("1 if the database answered every worker when it was last asked.", min),
    "catalogue_revision": ("Revision of the oldest catalogue in force.", min),
    "catalogue_age_seconds": ("Since a worker last knew that its catalogue was up to date.", max),
    "limits_alone": ("Workers that count limits for themselves, because Redis is away.", sum),
    "limits_unsent": ("Settlements of limits that Redis has not confirmed.", sum),
    "limits_admitted_alone": ("Calls that workers have let through while Redis was away.", sum),
    "queued": ("Calls that wait for their turn at an engine, those of batch keys included.", sum),
    "batch_waiting": ("Calls of batch keys that wait for their turn.", sum),
    "tasks_down": ("Background tasks that fail or hang; /readyz says which.", sum),
}
LAYOUT = repr((COUNTERS, HISTOGRAMS, list(STATES)))


class Metrics:
    def __init__(self, counters: CounterFile, clock: Callable[[], float] = time.monotonic) -> None:
        """Count in this file. `clock` is the same for all workers of a host."""
        self.counters = counters
        self._clock = clock

    def count_call(
        self,
        endpoint: str,
        model: str,
        ending: str,
        *,
        prompt: int,
        completion: int,
        first_byte: float | None,
        whole: float,
    ) -> None:
        """Count a call that has ended, as `count_request`, `count_tokens` and `observe_times` do.

        Without calling them, because this runs for each call (3 of 8 µs).
        """
        find, numbers = self.counters.places.get, self.counters.numbers
        request, whole_at = find((REQUESTS, endpoint, model, ending)), find((WHOLE, model))
        read, made = find((TOKENS, model, "prompt")), find((TOKENS, model, "completion"))
        if request is None or read is None or made is None or whole_at is None:
            self.count_request(endpoint, model, ending)
            self.count_tokens(model, prompt, completion)
            self.observe_times(model, first_byte, whole)
            return
        numbers[request] += 1
        numbers[read] += prompt
        numbers[made] += completion
        numbers[whole_at + bisect_left(LONG, whole)] += 1
        numbers[whole_at + len(LONG) + 1] += whole
        if first_byte is not None:
            self._observe(FIRST, model, first_byte)

    def count_request(self, endpoint: str, model: str, ending: str) -> None:
        self.counters.add((REQUESTS, endpoint, model, ending), 1, (0, 1))

    def count_tokens(self, model: str, prompt: int, completion: int) -> None:
        self.counters.add((TOKENS, model, "prompt"), 1, (0, prompt))
        self.counters.add((TOKENS, model, "completion"), 1, (0, completion))

    def observe_times(self, model: str, first_byte: float | None, whole: float) -> None:
        """Observe a call's times in seconds; `first_byte` None: there was none."""
        if first_byte is not None:
            self._observe(FIRST, model, first_byte)
        self._observe(WHOLE, model, whole)

    def observe_stream(self, model: str, events: int, seconds: float) -> None:
        """Observe a finished stream of this many events, with this many seconds from the first to the last."""
        if events > 1:
            self._observe(BETWEEN, model, seconds / (events - 1))

    def observe_wait(self, model: str, seconds: float) -> None:
        """Observe how long a call waited in the queue before it went to an engine."""
        self._observe(WAITED, model, seconds)

    def count_rejection(self, code: str) -> None:
        self.counters.add((REFUSALS, code), 1, (0, 1))

    def count_loop(self, model: str, looped: int, saved: int) -> None:
        self.counters.add((LOOPS, model), 1, (0, 1))
        self.counters.add((LOOPED, model), 1, (0, looped))
        self.counters.add((SAVED, model), 1, (0, saved))

    def count_observer_failure(self) -> None:
        self.counters.add((OBSERVERS,), 1, (0, 1))

    def count_engine_death(self, model: str, verdict: str) -> None:
        self.counters.add((DEATHS, model, verdict), 1, (0, 1))

    def count_lost_usage(self, usages: int) -> None:
        self.counters.add((LOST,), 1, (0, usages))

    def count_unverified_user(self, reason: str) -> None:
        self.counters.add((UNVERIFIED, reason), 1, (0, 1))

    def count_traces(self, sent: int, dropped: int) -> None:
        for name, calls in ((TRACED, sent), (UNTRACED, dropped)):
            if calls:
                self.counters.add((name,), 1, (0, calls))

    def count_task_failure(self, task: str) -> None:
        self.counters.add((FAILURES, task), 1, (0, 1))

    def set_state(self, state: WorkerState) -> None:
        """Publish this worker's state. Call it about once a second, and before `render`."""
        self.counters.put(STATE, [self._clock(), *(float(getattr(state, field)) for field in STATES)])

    def forget_others(self, models: Container[str]) -> None:
        """Drop the numbers of models that are not among these."""
        self.counters.forget(lambda key: model_of(key) not in models and model_of(key) != "")

    def close(self) -> None:
        self.counters.put(STATE, [0.0] * (1 + len(STATES)))
        self.counters.close()

    def render(self, models: Container[str], gauges: Iterable[Gauge]) -> bytes:
        """Return the exposition format, version 0.0.4, of all workers of this host.

        `models`: other models are left out. `gauges` are this worker's own; those of one name are adjacent.
        May run in another thread than what counts: 40 models take several milliseconds. See `join_lines`.
        """
        workers = self.counters.read_all()
        time.sleep(PAUSE)
        total = {key: row for key, row in sum_rows(workers).items() if model_of(key) in models or model_of(key) == ""}
        now = self._clock()
        states = [rows[STATE][1:] for rows in workers if STATE in rows and 0 <= now - rows[STATE][0] < SILENCE]
        return join_lines(
            chain(counter_lines(total), histogram_lines(total), gauge_lines(chain(state_gauges(states), gauges)))
        )

    def _observe(self, name: str, model: str, value: float) -> None:
        """Count a value in its histogram's row: how many lie below each bound and above the last, then their sum."""
        bounds = HISTOGRAMS[name][1]
        self.counters.add((name, model), len(bounds) + 2, (bisect_left(bounds, value), 1), (len(bounds) + 1, value))


def model_of(key: Key) -> str:
    """Return the model that a row is about; "" if it is about none."""
    name, *values = key
    if name in HISTOGRAMS:
        return values[0]
    labels = COUNTERS[name][1] if name in COUNTERS else ()
    return values[labels.index("model")] if "model" in labels else ""


def sum_rows(workers: list[dict[Key, list[float]]]) -> dict[Key, list[float]]:
    total: dict[Key, list[float]] = {}
    for rows in workers:
        for key, row in rows.items():
            before = total.get(key)
            total[key] = row if before is None else [sum(pair) for pair in zip(before, row, strict=True)]
    return total


def counter_lines(total: dict[Key, list[float]]) -> Iterator[str]:
    for name, (help_text, labels) in COUNTERS.items():
        yield from format_heading(name, help_text, "counter")
        for key, row in total.items():
            if key[0] == name:
                yield f"{name}{format_labels(tuple(zip(labels, key[1:], strict=True)))} {format_number(row[0])}"


def histogram_lines(total: dict[Key, list[float]]) -> Iterator[str]:
    for name, (help_text, bounds) in HISTOGRAMS.items():
        yield from format_heading(name, help_text, "histogram")
        for (_, model), row in [(key, row) for key, row in total.items() if key[0] == name]:
            for bound, count in zip((*bounds, "+Inf"), accumulate(row[:-1]), strict=True):
                yield f"{name}_bucket{format_labels((('model', model), ('le', str(bound))))} {format_number(count)}"
            yield f"{name}_sum{format_labels((('model', model),))} {format_number(row[-1])}"
            yield f"{name}_count{format_labels((('model', model),))} {format_number(sum(row[:-1]))}"


def state_gauges(states: list[list[float]]) -> Iterator[Gauge]:
    yield "madoguchi_workers", "Gateways of this host.", (), len(states)
    if states:
        for (field, (help_text, combine)), values in zip(STATES.items(), zip(*states, strict=True), strict=True):
            yield f"madoguchi_{field}", help_text, (), combine(values)


def join_lines(lines: Iterable[str]) -> bytes:
    """Return the lines as a text, after a pause of this thread every BATCH lines.

    Without them a thread that renders holds the interpreter for 5 ms, and so the event loop.
    """
    remaining, text = iter(lines), bytearray()
    while batch := list(islice(remaining, BATCH)):
        text += ("\n".join(batch) + "\n").encode()
        time.sleep(PAUSE)
    return bytes(text)


def gauge_lines(gauges: Iterable[Gauge]) -> Iterator[str]:
    previous = ""
    for name, help_text, labels, value in gauges:
        if name != previous:
            yield from format_heading(name, help_text, "counter" if name.endswith("_total") else "gauge")
            previous = name
        yield f"{name}{format_labels(labels)} {format_number(value)}"


def format_heading(name: str, help_text: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {help_text}"
    yield f"# TYPE {name} {kind}"


def format_number(value: float) -> str:
    """Write a number in full: six digits, as `g` gives, would make a rate of a large counter nonsense."""
    return str(int(value)) if value == int(value) else repr(value)


def escape_label(text: str) -> str:
    """Return a text as the value of a label."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def format_labels(labels: Labels) -> str:
    if not labels:
        return ""
    # Model names hold no quotes or backslashes: the registry's validator says so. Others are escaped.
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}"
