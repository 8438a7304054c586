"""The guard against word loops: what it finds, what it mistakes for one, and what it costs a token."""

import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import process_time

from apiproxy.dataplane.loops import LoopPolicy
from apiproxy.dataplane.stream.loop_guard import LoopGuard
from tests.bench import texts
from tests.bench.report import Goal, Part, table

SEED = 14
LOOPS, BUILT = 500, 1000
SHORT = 64  # tokens of a period
STREAMS, IN_TURN = 1000, 300  # streams that are fed in turn, and tokens of each
HEAD = (
    '{"id":"chatcmpl-9f8b7c6d5e4f3a2b","object":"chat.completion.chunk","created":1764442000,'
    '"model":"llama-3.1-70b","choices":[{"index":0,"delta":{"content":'
)
TAIL = '},"logprobs":null,"finish_reason":null}]}'


@dataclass(frozen=True, slots=True)
class Found:
    """A loop of `period` tokens, ended so many tokens after it had begun; None: it was not."""

    period: int
    late: int | None

    @property
    def in_time(self) -> bool:
        most = 200 if self.period <= SHORT else 4 * self.period + 32
        return self.late is not None and self.late <= most


@dataclass(frozen=True, slots=True)
class Looping:
    """A made answer, in pieces of `several` tokens, that is in a loop of `period` tokens after `lead` tokens."""

    pieces: list[str]
    several: int
    lead: int
    period: int

    def found(self, at: int | None) -> Found:
        """Return what it means that the answer was ended at the piece of this number."""
        return Found(self.period, None if at is None else (at + 1) * self.several - self.lead)


def events(pieces: list[str]) -> list[bytes]:
    return [f"data: {HEAD}{json.dumps(piece, ensure_ascii=False)}{TAIL}\n\n".encode() for piece in pieces]


def stops_at(pieces: list[str]) -> int | None:
    """Return the number of the piece at which the guard ends an answer in these pieces."""
    guard = LoopGuard(LoopPolicy("stop"))
    return next((number for number, event in enumerate(events(pieces)) if guard.feed(event) is not None), None)


def joined(tokens: list[str], several: int) -> list[str]:
    return ["".join(tokens[start : start + several]) for start in range(0, len(tokens), several)]


def looping(dice: random.Random, before: list[str]) -> Iterator[Looping]:
    for text, period in texts.loops(dice, LOOPS, before):
        several = round(50 ** dice.random())
        lead, copies = texts.tokens(text), 4000 // len(period)
        loop = texts.tokens(period * copies)
        yield Looping(joined(lead + loop, several), several, len(lead), round(len(loop) / copies))


def nanoseconds(call: Callable[[], object], tokens: int, rounds: int) -> float:
    """Return the CPU time for each token, the least of so many rounds."""
    spent = []
    for _ in range(rounds):
        begun = process_time()
        call()
        spent.append(process_time() - begun)
    return min(spent) / tokens * 1e9


def cost(sample: list[str], rounds: int) -> float:
    streams = [events(texts.tokens(text)) for text in sample]

    def feed() -> None:
        for stream in streams:
            guard = LoopGuard(LoopPolicy("count"))
            for event in stream:
                guard.feed(event)

    return nanoseconds(feed, sum(map(len, streams)), rounds)


def cost_in_turn(sample: list[str], rounds: int) -> float:
    """Return the same as `cost` of streams that get their tokens in turn, so that none finds its memory in a cache.

    Without what it takes to go through the events, which the relay has at hand.
    """
    streams = [events(texts.tokens(text)[:IN_TURN]) for text in sample]

    def feed(take: list[Callable[[bytes], object]]) -> None:
        for token in range(IN_TURN):
            for one, stream in zip(take, streams, strict=True):
                one(stream[token])

    tokens = IN_TURN * len(streams)
    whole = nanoseconds(lambda: feed([LoopGuard(LoopPolicy("count")).feed for _ in streams]), tokens, rounds)
    return whole - nanoseconds(lambda: feed([len] * len(streams)), tokens, rounds)


def kilobytes(sample: list[str], streams: int) -> float:
    """Return what a guard holds on average while its stream is open, wherever in its answer that is."""
    dice = random.Random(SEED)
    answers = [events(texts.tokens(text)) for text in sample]
    open_ones = [answers[number % len(answers)] for number in range(streams)]
    ends = [dice.randrange(len(answer)) for answer in open_ones]
    tracemalloc.start()
    guards = [LoopGuard(LoopPolicy("count")) for _ in range(streams)]
    for guard, answer, end in zip(guards, open_ones, ends, strict=True):
        for event in answer[:end]:
            guard.feed(event)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / streams / 1024


def part(rounds: int) -> Part:
    """Return a minute, most of it for real texts."""
    dice = random.Random(SEED)
    real = list(texts.real_texts(texts.fetch()))
    japanese = sum(len(texts.JAPANESE.findall(text)) > len(text) / 10 for text in real)
    made = list(texts.made_texts(dice, BUILT))
    mistaken = [text for text in real + made if stops_at(texts.tokens(text)) is not None]
    hard = {name: stops_at(texts.tokens(text)) is not None for name, text in texts.hard_texts().items()}
    wrong = [name for name, stopped in hard.items() if stopped]
    rows_of = texts.row_texts()
    ended = [name for name, text in rows_of.items() if stops_at(texts.tokens(text)) is not None]
    found = [one.found(stops_at(one.pieces)) for one in looping(dice, dice.sample(real, 200))]
    in_time = sum(one.in_time for one in found) / len(found)
    late = [one.late for one in found if one.late is not None]
    sample = dice.sample(real, 50)
    spent, held = cost(sample, rounds), kilobytes(sample, STREAMS)
    long = [text for text in dice.sample(real, 2 * STREAMS) if len(texts.tokens(text)) >= IN_TURN][:STREAMS]
    in_turn = cost_in_turn(long, rounds)
    rows = [
        [f"{len(real):,} real texts ({japanese:,} in Japanese), {len(made):,} made ones", f"{len(mistaken)} ended"],
        [f"{len(hard)} built to be hard", f"{len(wrong)} ended: {', '.join(wrong) or '–'}"],
        [f"{len(rows_of)} everyday ones of equal rows", f"{len(ended)} ended: {', '.join(ended) or '–'}"],
        [f"{len(found)} loops of 1 to 300 characters", f"{in_time:.1%} ended in time, {len(found) - len(late)} never"],
        ["… tokens after they began, median", f"{median(late):.0f}"],
        ["CPU for each token, beside the relay's", f"{spent:.0f} ns"],
        [f"the same, {len(long):,} streams in turn", f"{in_turn:.0f} ns"],
        ["held for a stream, on average of 1,000", f"{held:.1f} KB"],
    ]
    goals = (
        Goal(text="loops ended in time", wanted="≥ 95 %", reached=f"{in_time:.1%}", met=in_time >= 0.95),
        Goal(text="real texts taken for loops", wanted="0", reached=f"{len(mistaken)}", met=not mistaken),
        Goal(text="hard texts taken for loops", wanted="≤ 5", reached=f"{len(wrong)}", met=len(wrong) <= 5),
        Goal(text="guard, CPU per token", wanted="≤ 500 ns", reached=f"{spent:.0f} ns", met=spent <= 500),
        Goal(
            text=f"guard, CPU per token, {len(long):,} streams in turn",
            wanted="≤ 500 ns",
            reached=f"{in_turn:.0f} ns",
            met=in_turn <= 500,
        ),
        Goal(text="guard, memory of a stream", wanted="≤ 12 KB", reached=f"{held:.1f} KB", met=held <= 12),
    )
    if mistaken:
        rows.append(["the first that was taken for one", f"`{mistaken[0][:200]!r}`"])
    return Part(name="loops", markdown=table(["what", "result"], rows), goals=goals)
