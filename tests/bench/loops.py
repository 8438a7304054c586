"""The guard against word loops: what it finds, what it mistakes for one, and what it costs a token."""

import json
import random
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


def events(pieces: list[str]) -> list[bytes]:
    return [f"data: {HEAD}{json.dumps(piece, ensure_ascii=False)}{TAIL}\n\n".encode() for piece in pieces]


def stops_at(pieces: list[str]) -> int | None:
    """Return the number of the piece at which the guard ends an answer in these pieces."""
    guard = LoopGuard(LoopPolicy("stop"))
    return next((number for number, event in enumerate(events(pieces)) if guard.feed(event) is not None), None)


def joined(tokens: list[str], several: int) -> list[str]:
    return ["".join(tokens[start : start + several]) for start in range(0, len(tokens), several)]


def put_loops(dice: random.Random, before: list[str]) -> Iterator[Found]:
    for text, period in texts.loops(dice, LOOPS, before):
        several = round(50 ** dice.random())
        lead, copies = texts.tokens(text), 4000 // len(period)
        loop = texts.tokens(period * copies)
        at = stops_at(joined(lead + loop, several))
        yield Found(round(len(loop) / copies), None if at is None else (at + 1) * several - len(lead))


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


def part(rounds: int) -> Part:
    """Return ten minutes, most of them for real texts."""
    dice = random.Random(SEED)
    real = list(texts.real_texts(texts.fetch()))
    japanese = sum(len(texts.JAPANESE.findall(text)) > len(text) / 10 for text in real)
    made = list(texts.made_texts(dice, BUILT))
    mistaken = [text for text in real + made if stops_at(texts.tokens(text)) is not None]
    hard = {name: stops_at(texts.tokens(text)) is not None for name, text in texts.hard_texts().items()}
    wrong = [name for name, stopped in hard.items() if stopped]
    found = list(put_loops(dice, dice.sample(real, 200)))
    in_time = sum(one.in_time for one in found) / len(found)
    late = [one.late for one in found if one.late is not None]
    spent = cost(dice.sample(real, 50), rounds)
    rows = [
        [f"{len(real):,} real texts ({japanese:,} in Japanese), {len(made):,} made ones", f"{len(mistaken)} ended"],
        [f"{len(hard)} built to be hard", f"{len(wrong)} ended: {', '.join(wrong) or '–'}"],
        [f"{len(found)} loops of 1 to 300 characters", f"{in_time:.1%} ended in time, {len(found) - len(late)} never"],
        ["… tokens after they began, median", f"{median(late):.0f}"],
        ["CPU for each token, beside the relay's", f"{spent:.0f} ns"],
    ]
    goals = (
        Goal(text="loops ended in time", wanted="≥ 95 %", reached=f"{in_time:.1%}", met=in_time >= 0.95),
        Goal(text="real texts taken for loops", wanted="0", reached=f"{len(mistaken)}", met=not mistaken),
        Goal(text="hard texts taken for loops", wanted="≤ 5", reached=f"{len(wrong)}", met=len(wrong) <= 5),
        Goal(text="guard, CPU per token", wanted="≤ 500 ns", reached=f"{spent:.0f} ns", met=spent <= 500),
    )
    if mistaken:
        rows.append(["the first that was taken for one", f"`{mistaken[0][:200]!r}`"])
    return Part(name="loops", markdown=table(["what", "result"], rows), goals=goals)
