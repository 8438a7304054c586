"""How many slots people need: the gateway's scheduler before made-up engines, for several sizes of a company.

In time that jumps from event to event, as in `scheduler`: the same engines, prompts and answers.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

from tests.bench import scheduler
from tests.bench.report import Part, table
from tests.bench.scheduler import BEGIN, PREFILL, RATE, Seen, Site, others_waits, quantile

PROMPT, ANSWER = (200, 3000), (50, 400)  # tokens
CALL = sum(PROMPT) / 2 / PREFILL + sum(ANSWER) / 2 / RATE  # seconds of one
HOUR = 3600.0
GOOD = 2.0  # seconds that one call in twenty may wait longer than
BATCH = 50  # calls that a program of a person keeps open besides


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """`active`: of its people, those who ask in the busiest hour. `pause`: minutes between two questions of one."""

    people: int
    active: float
    pause: float

    @property
    def calls(self) -> float:
        """A second."""
        return self.people * self.active / (self.pause * 60)

    @property
    def busy(self) -> float:
        """Slots at work on average, by Little's law."""
        return self.calls * CALL


COMPANIES = (
    Company(people=500, active=0.2, pause=4),
    Company(people=2000, active=0.1, pause=4),
    Company(people=2000, active=0.2, pause=4),
    Company(people=2000, active=0.4, pause=4),
    Company(people=2000, active=0.4, pause=2),
)


async def busiest_hour(site: Site, dice: random.Random, *, company: Company, program: bool) -> None:
    """Let people ask at random times for an hour; `program`: beside one who has many calls open all the time."""

    async def ask(at: float, user: int) -> None:
        await asyncio.sleep(at)
        await site.ask(user, dice.randrange(*PROMPT), dice.randrange(*ANSWER))

    async def work_off() -> None:
        while site.now() < BEGIN + HOUR:
            await site.ask(0, 500, 400)

    calls, at, asking = [], 0.0, round(company.people * company.active)
    while (at := at + dice.expovariate(company.calls)) < BEGIN + HOUR:
        calls.append(ask(at, dice.randrange(1, asking + 1)))
    await asyncio.gather(*calls, *(work_off() for _ in range(BATCH * program)))


def waits(company: Company, slots: int, rounds: int, *, program: bool = False) -> list[list[float]]:
    load: Callable[[Site, random.Random], Awaitable[None]] = partial(busiest_hour, company=company, program=program)
    seen: list[Seen] = [scheduler.run(load, seed, fair=True, slots=slots) for seed in range(rounds)]
    return [others_waits(one) for one in seen]


def least_slots(company: Company, rounds: int) -> int:
    """Return with how many of them 95 of 100 calls begin within GOOD."""
    slots = max(1, round(company.busy))
    while median(quantile(one, 0.95) for one in waits(company, slots, rounds)) > GOOD:
        slots += 1
    return slots


def line(company: Company, rounds: int) -> list[str]:
    slots = least_slots(company, rounds)
    alone, beside = (waits(company, slots, rounds, program=program) for program in (False, True))
    return [
        f"{company.people:,}",
        f"{company.active:.0%}",
        f"{company.pause:g} min",
        f"{company.calls * 60:.0f}",
        f"{company.busy:.1f}",
        f"{slots}",
        f"{company.busy / slots:.0%}",
        f"{median(quantile(one, 0.5) for one in alone):.1f} / {median(quantile(one, 0.95) for one in alone):.1f} s",
        f"{median(quantile(one, 0.5) for one in beside):.1f} / {median(quantile(one, 0.95) for one in beside):.1f} s",
    ]


def part(rounds: int) -> Part:
    columns = ["people", "ask in the busiest hour", "each every", "calls a minute", "slots at work", "slots needed"]
    columns += ["used", "wait p50 / p95", f"beside a program with {BATCH} calls open"]
    return Part(name="sizing", markdown=table(columns, [line(one, rounds) for one in COMPANIES]))
