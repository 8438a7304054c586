"""Loops of a real model: what an offline check finds in its answers, and what the guard and LiteLLM end of them."""

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import django

from apiproxy.dataplane.loops import LoopPolicy
from apiproxy.dataplane.stream.loop_guard import LoopGuard
from modelregistry.install.build_cache import build_once
from tests import locked
from tests.bench import answers, loops, report, texts, tools
from tests.bench.answers import TEMPERATURES, TOKENS, Answer
from tests.bench.report import Goal, Part

# What makes a loop, for the offline check: so many exact copies, and so many bytes in all.
COPIES, BYTES = 3, 320
LOCK = Path(__file__).with_name("litellm.lock")
REPLAY = Path(__file__).with_name("litellm_replay.py")
PLOT = Path(__file__).with_name("real-loops.svg")
DRAW = Path(__file__).with_name("draw_loops.py")
END = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
REAL = 9000  # texts that made loops begin with: without this project's own, which change
SHOWN = 60  # characters of a period in the lists


@dataclass(frozen=True, slots=True, order=True)
class Run:
    """A stretch of a text that repeats itself: each byte is the one `period` bytes before it, from the second copy."""

    start: int
    period: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an answer, in tokens of it. None: no loop lasts, or it was not stopped.

    `confirmed`: whether the guard stopped within a loop that the offline check finds, one that lasts or another.
    """

    question: str
    temperature: float
    generated: int
    begun: int | None
    period: str  # the text that is repeated to the end
    guard: int | None
    confirmed: bool
    litellm: int | None

    def line(self) -> list[str]:
        begun = "–" if self.begun is None else f"{self.begun}"
        stopped = [f"{at}" if at is not None else "never" for at in (self.guard, self.litellm)]
        return [self.question, f"{self.temperature:g}", begun, f"{self.generated}", *stopped, quoted(self.period)]


def find_runs(text: bytes) -> list[Run]:
    """Return every loop in a text, by comparing it with itself at every distance."""
    size, number, found = len(text), int.from_bytes(text), []
    for period in range(1, size // COPIES + 1):
        differs = (number ^ (number >> 8 * period)).to_bytes(size)[period:]
        least = max(COPIES * period, BYTES) - period
        at = differs.find(bytes(least))
        while at >= 0:
            rest = differs[at:]
            equal = len(rest) - len(rest.lstrip(b"\0"))
            found.append(Run(at, period, at + period + equal))
            at = differs.find(bytes(least), at + equal)
    return found


def find_last(text: bytes) -> Run | None:
    """Return the loop that the text ends in: that which begins first, with the shortest of its periods.

    Loops that overlap are one: a model may go on with a copy that lacks a word.
    """
    runs = sorted(find_runs(text), key=lambda run: run.end, reverse=True)
    ends = [run for run in runs if run.end == len(text)]
    if not ends:
        return None
    start = last = min(ends)
    for run in runs:
        if run.end > start.start:
            start = min(start, run)
    return Run(start.start, last.period, last.end)


def judge(answer: Answer, litellm: int | None) -> Outcome:
    """Compare what the guard and LiteLLM do about an answer with what the offline check finds in it."""
    chunks = [read_chunk(event) for event in answer.events]
    pieces = ["".join(choice["delta"].get("content") or "" for choice in chunk["choices"]).encode() for chunk in chunks]
    generated = next(chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage"))
    cut = any(choice["finish_reason"] == "length" for chunk in chunks for choice in chunk["choices"])
    each = generated / sum(map(bool, pieces))  # tokens of an event with text: a Japanese character may have three
    text, stopped = b"".join(pieces), stop(answer.events)
    loop, until = find_last(text) if cut else None, len(b"".join(pieces[:stopped]))
    return Outcome(
        question=answer.question,
        temperature=answer.temperature,
        generated=generated,
        begun=None if loop is None else round(each * count_events(pieces, loop.start)),
        period="" if loop is None else text[-loop.period :].decode(errors="replace"),
        guard=None if stopped is None else round(each * sum(map(bool, pieces[:stopped]))),
        confirmed=stopped is not None and any(run.start < until <= run.end for run in find_runs(text)),
        litellm=None if litellm is None else round(each * litellm),
    )


def read_chunk(event: bytes) -> dict[str, Any]:
    """Return a chunk of a stream; of its end and of the comments of a slow engine, one without choices."""
    return json.loads(event.removeprefix(b"data: ")) if event.startswith(b"data: {") else {"choices": []}


def stop(events: Iterable[bytes]) -> int | None:
    """Return how many events had come when the guard ended the answer."""
    guard = LoopGuard(LoopPolicy("stop"))
    return next((number for number, event in enumerate(events, 1) if guard.feed(event) is not None), None)


def count_events(pieces: Sequence[bytes], size: int) -> int:
    """Return how many events with text had come when so many bytes had."""
    count = 0
    for piece in pieces:
        if size <= 0:
            break
        size -= len(piece)
        count += bool(piece)
    return count


def replay(streams: list[str]) -> list[int | None]:
    """Return at which of its texts LiteLLM ends each stream. It takes 0.7 ms for an event, so results are kept."""
    given = json.dumps(streams)
    key = hashlib.sha256(b"".join([LOCK.read_bytes(), REPLAY.read_bytes(), given.encode()])).hexdigest()[:12]

    def make(workspace: Path) -> Path:
        made = workspace / "results.json"
        command = [str(locked.python(LOCK, "bench")), "-P", str(REPLAY)]
        locked.say(f"giving LiteLLM {len(streams)} streams")
        made.write_text(subprocess.run(command, input=given, text=True, check=True, stdout=subprocess.PIPE).stdout)
        return made

    return json.loads(build_once(texts.cache() / f"litellm-{key}.json", make, locked.say).read_text())


def part(rounds: int) -> Part:
    """Return half a minute, once answers and LiteLLM's results are in the user's cache; else a quarter of an hour."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "portal.settings"
    django.setup()
    real = answers.collect()
    ended = replay([b"".join(answer.events).decode() for answer in real])
    outcomes = [judge(answer, litellm) for answer, litellm in zip(real, ended, strict=True)]
    draw(outcomes)
    looping = [one for one in outcomes if one.begun is not None]
    missed = [one for one in looping if one.guard is None]
    others = [one for one in outcomes if one.begun is None and one.guard is not None]
    stopped = len(looping) - len(missed)
    return Part(
        name="real-loops",
        markdown="\n\n".join([by_temperature(outcomes), *listed(outcomes), made_loops()]),
        goals=(
            Goal(
                text=f"lasting loops in {len(outcomes)} real answers that were stopped",
                wanted="all",
                reached=f"{stopped} of {len(looping)}",
                met=not missed,
            ),
            Goal(text="other real answers that were stopped", wanted="0", reached=f"{len(others)}", met=not others),
        ),
    )


def by_temperature(outcomes: list[Outcome]) -> str:
    columns = ["temperature", "answers", f"cut at {TOKENS} tokens", "in a lasting loop", "", "stopped", "never"]
    columns += ["others stopped", "tokens after it began: median, most", "tokens saved"]
    groups = {f"{one:g}": [outcome for outcome in outcomes if outcome.temperature == one] for one in TEMPERATURES}
    rows = []
    for name, chosen in (groups | {"both": outcomes}).items():
        cut = sum(one.generated >= TOKENS for one in chosen)
        looping = sum(one.begun is not None for one in chosen)
        counts = [name, f"{len(chosen)}", f"{cut}", f"{looping}"]
        rows.append([*counts, "guard", *stops(chosen, [one.guard for one in chosen])])
        rows.append([*counts, "LiteLLM", *stops(chosen, [one.litellm for one in chosen])])
    return report.table(columns, rows)


def stops(outcomes: list[Outcome], ended: list[int | None]) -> list[str]:
    """Return the cells for what ended these answers at these tokens."""
    late = [at - one.begun for one, at in zip(outcomes, ended, strict=True) if one.begun is not None and at is not None]
    never = sum(one.begun is not None and at is None for one, at in zip(outcomes, ended, strict=True))
    others = sum(one.begun is None and at is not None for one, at in zip(outcomes, ended, strict=True))
    saved = sum(one.generated - at for one, at in zip(outcomes, ended, strict=True) if at is not None)
    return [f"{len(late)}", f"{never}", f"{others}", f"{median(late):.0f}, {max(late)}" if late else "–", f"{saved:,}"]


def listed(outcomes: list[Outcome]) -> list[str]:
    """Return what went wrong or may have, one answer a row."""
    columns = ["question", "temperature", "loop begins", "tokens", "guard", "LiteLLM", "what is repeated to the end"]
    groups: dict[str, Callable[[Outcome], bool]] = {
        "Lasting loops that the guard did not stop": lambda one: one.begun is not None and one.guard is None,
        "Stopped by the guard in a loop that the model would have left": lambda one: (
            one.begun is None and one.guard is not None and one.confirmed
        ),
        "Stopped by the guard where the offline check finds no loop": lambda one: (
            one.guard is not None and not one.confirmed
        ),
        "Stopped by LiteLLM where no loop lasts": lambda one: one.begun is None and one.litellm is not None,
    }
    found = []
    for name, belongs in groups.items():
        rows = [one.line() for one in outcomes if belongs(one)]
        found.append(f"{name}: {report.table(columns, rows) if rows else 'none.'}".replace(": |", ":\n\n|", 1))
    return found


def quoted(text: str) -> str:
    """Return a text as a cell of a table, cut."""
    short = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    return f"`{short!r}`".replace("|", "\\|") if text else "–"


def made_loops() -> str:
    """Return a table of what both do about the made loops and the hard texts of `loops`."""
    dice = random.Random(loops.SEED)
    before = dice.sample(list(islice(texts.real_texts(texts.fetch()), REAL)), 200)
    made = list(loops.looping(dice, before))
    hard = [texts.tokens(text) for text in texts.hard_texts().values()]
    streams = [loops.events(pieces) for pieces in (*(one.pieces for one in made), *hard)]
    ended = replay([b"".join(events).decode() + END for events in streams])
    rows = []
    for who, stopped in (("guard", [stop(events) for events in streams]), ("LiteLLM", ended)):
        found = [one.found(at and at - 1) for one, at in zip(made, stopped, strict=False)]
        late = [one.late for one in found if one.late is not None]
        in_time = sum(one.in_time for one in found) / len(found)
        mistaken = sum(at is not None for at in stopped[len(made) :])
        middle = f"{median(late):.0f}" if late else "–"
        rows.append([who, f"{len(late)}", f"{in_time:.1%}", middle, f"{mistaken}"])
    columns = ["", f"of {len(made)} made loops ended", "in time", "tokens after they began, median"]
    return report.table([*columns, f"of {len(hard)} hard texts ended"], rows)


def draw(outcomes: list[Outcome]) -> None:
    """Draw with another Python, as what draws is not among the product's dependencies."""
    points = [
        {name: getattr(one, name) for name in ("temperature", "generated", "begun", "guard", "litellm")}
        for one in outcomes
        if one.begun is not None or one.guard is not None or one.litellm is not None
    ]
    subprocess.run([tools.python(), DRAW, PLOT], input=json.dumps(points), text=True, check=True)
