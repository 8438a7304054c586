"""How long people wait beside one key's 200 calls at once, first come, first served and by the fair queue.

The gateway's own scheduler runs before a made-up engine, in time that jumps from event to event: an engine with slots,
so many tokens a second in each of them, a prompt that is read at its speed, and a queue of its own in the order of
arrival. First come first served is what came before the fair queue: every call goes into the engine at once.

Several workers have one queue in a real Redis, whose answers take no time. Each call comes to one of them by
chance, as connections do.
"""

import asyncio
import contextlib
import random
import selectors
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from time import monotonic, process_time
from typing import Any

from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.catalogue import Replica
from apiproxy.dataplane.client_address import ClientAddress
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.downstream import Header, Listener
from apiproxy.dataplane.errors import ModelBusy
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import ENDPOINTS
from apiproxy.dataplane.limits.redis_connection import OnReply, RedisConnection
from apiproxy.dataplane.model_queue import cost_of
from apiproxy.dataplane.scheduler import Lease, Scheduler
from apiproxy.dataplane.shared_queue import SharedQueue
from apiproxy.dataplane.token_usage import Tokens
from modelregistry.supervisor.watchdog import Watchdog
from tests.apiproxy.served import KEY, SERVED
from tests.bench.report import Goal, Part, table
from tests.redis import redis_server

SLOTS, RATE, PREFILL = 16, 30.0, 2000.0  # the rates in tokens a second, of one slot
PEOPLE, BURST = 40, 200
BEGIN = 60.0  # seconds until the burst
PEOPLE_ASK = 200.0  # seconds from the burst until people ask no more
GREEDY = 8  # callers of the second load, who always have 50 calls open
LASTS = 600.0  # seconds of the second load
WORKERS = (2, 4)
QUIET = 0.0005  # real seconds without a word from Redis after which time goes on: what it sends comes together


class Unanswered:
    """How many commands Redis has not answered yet."""

    count = 0

    @classmethod
    @contextlib.contextmanager
    def counted(cls) -> Iterator[None]:
        send = RedisConnection.send

        def counting(connection: RedisConnection, words: tuple[Any, ...], on_reply: OnReply) -> None:
            def answered(reply: Any) -> None:
                cls.count -= 1
                on_reply(reply)

            cls.count += 1
            send(connection, words, answered)

        RedisConnection.send = counting  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            RedisConnection.send = send  # type: ignore[method-assign]


class TimeJump(selectors.DefaultSelector):
    """Waits in no time: what the loop would wait for is added to its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.is_real = False  # while connections are made
        self._spoken = False  # with Redis, since the last jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.is_real:
            begun = monotonic()
            found = super().select(timeout)
            self.now += monotonic() - begun
            return found
        if timeout == 0:
            return super().select(0)
        if Unanswered.count or self._spoken:
            self._spoken = Unanswered.count > 0
            found = super().select(1.0 if self._spoken else QUIET)
            self._spoken = self._spoken or bool(found)
            return found
        self.now += timeout or 0.0
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jump = TimeJump()
        super().__init__(self.jump)

    def time(self) -> float:
        return self.jump.now


class Silent:
    """A client that takes everything."""

    waiting = False

    def __init__(self) -> None:
        self.always: list[Header] = []

    def arrived(self) -> None: ...
    def answer(self, status: int, headers: list[Header], body: bytes) -> None: ...
    def begin(self, headers: list[Header]) -> None: ...
    def piece(self, body: bytes) -> None: ...
    def chunk(self, framed: bytes, start: int) -> bool:
        return False

    def last(self, body: bytes) -> None: ...
    def listen(self, listener: Listener) -> None: ...
    def unsubscribe(self) -> None: ...
    async def sent(self) -> None: ...


CALL = requests.parse(b'{"model": "m", "messages": [], "stream": true}')


@dataclass(slots=True, eq=False)
class Running:
    lease: Lease
    prompt: int
    began: float  # at a slot

    def used(self, now: float, answer: int) -> Tokens:
        read = min(self.prompt, int((now - self.began) * PREFILL))
        made = int((now - self.began - self.prompt / PREFILL) * RATE)
        return Tokens(prompt=read, completion=max(0, min(made, answer)))


@dataclass(slots=True)
class Seen:
    """What callers have got, and waited for until an engine began to work."""

    waits: dict[int, list[float]] = field(default_factory=dict)  # of calls that came after BEGIN, by user
    tokens: dict[int, int] = field(default_factory=dict)  # of answers, by user
    made: list[tuple[float, int]] = field(default_factory=list)  # when, how many
    burst_over: float = 0.0
    refused: int = 0  # calls that were asked to come back


class Site:
    """A gateway with one engine of so many slots. `fair`: it knows them. `queues`: one for each of several workers."""

    def __init__(
        self, *, fair: bool, slots: int = SLOTS, queues: Sequence[SharedQueue | None] = (None,), seed: int = 0
    ) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time
        replica = Replica(id=1, url="", api_key="", upstream_model="m", slots=slots if fair else None)
        self.model = replace(SERVED, replicas=(replica,))
        self.schedulers = [
            Scheduler(
                Balancer(),
                find_model=lambda _: self.model,
                find_called_model=lambda _: self.model,
                request_wake_up=lambda _: None,
                is_gone=lambda _: False,
                is_looked_after=lambda *_: True,
                clock=loop.time,
                shared=queue,
            )
            for queue in queues
        ]
        self.scheduler = self.schedulers[0]
        self._dice = random.Random(seed)
        self.engine = asyncio.Semaphore(slots)  # which is first come, first served
        self.running: dict[Running, int] = {}
        self.seen = Seen()

    async def ask(self, user: int, prompt: int, answer: int) -> None:
        """Call as SDKs do, which come again when they are asked to."""
        while True:
            try:
                return await self.call(user, prompt, answer)
            except ModelBusy as refusal:
                self.seen.refused += 1
                await asyncio.sleep(float(refusal.headers["retry-after"]))

    async def call(self, user: int, prompt: int, answer: int) -> None:
        came = self.now()
        context = RequestContext(
            "req_1", ENDPOINTS["/v1/chat/completions"], replace(KEY, user=user), ClientAddress("", ""), Silent()
        )
        context.call, context.model = CALL, self.model
        lease = await self._dice.choice(self.schedulers).acquire(context)
        try:
            async with self.engine:
                begun = self.now()
                if came >= BEGIN:
                    self.seen.waits.setdefault(user, []).append(begun - came)
                running = Running(lease, prompt, begun)
                self.running[running] = answer
                await asyncio.sleep(prompt / PREFILL + answer / RATE)
                del self.running[running]
            lease.charge(cost_of(Tokens(prompt=prompt, completion=answer)))
            self.seen.tokens[user] = self.seen.tokens.get(user, 0) + answer
            self.seen.made.append((self.now(), answer))
        finally:
            lease.release()

    async def sweep(self) -> None:
        """Do what the gateway does once a second."""
        while True:
            await asyncio.sleep(1.0)
            now = self.now()
            for running, answer in self.running.items():
                if running.lease.is_contended:
                    running.lease.charge(cost_of(running.used(now, answer)))
            for scheduler in self.schedulers:
                scheduler.sweep((), 15.0)


def run(load: Callable[[Site, random.Random], Awaitable[None]], seed: int, *, fair: bool, slots: int = SLOTS) -> Seen:
    async def main() -> Seen:
        site = Site(fair=fair, slots=slots)
        sweeping = asyncio.create_task(site.sweep())
        try:
            await load(site, random.Random(seed))
        finally:
            sweeping.cancel()
        return site.seen

    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main())


def run_workers(load: Callable[[Site, random.Random], Awaitable[None]], seed: int, *, workers: int, url: str) -> Seen:
    """Run the load with several workers that share the Redis at this URL."""

    async def main(loop: Loop) -> Seen:
        watchdog = Watchdog(clock=loop.time)
        queues = [
            SharedQueue(url, prefix=f"{seed}", workers=workers, keep=watchdog.keep_running, clock=loop.time)
            for _ in range(workers)
        ]
        site = Site(fair=True, queues=queues, seed=seed)
        loop.jump.is_real = True
        for queue in queues:
            await queue.start()
        loop.jump.is_real, loop.jump.now = False, 0.0
        sweeping = asyncio.create_task(site.sweep())
        try:
            await load(site, random.Random(seed))
            assert all(queue.is_shared for queue in queues)
        finally:
            sweeping.cancel()
            loop.jump.is_real = True
            for queue in queues:
                await queue.close()
            await watchdog.close()
        return site.seen

    loop = Loop()
    with Unanswered.counted(), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main(loop))


async def burst_beside_people(site: Site, dice: random.Random) -> None:
    """Send the burst, and people's questions at times that do not depend on the answers: the work is the same."""

    async def ask(at: float, user: int, prompt: int, answer: int) -> None:
        await asyncio.sleep(at)
        await site.ask(user, prompt, answer)

    async def burst() -> None:
        await asyncio.gather(*(ask(BEGIN, 0, 500, 400) for _ in range(BURST)))
        site.seen.burst_over = site.now() - BEGIN

    calls = []
    for user in range(1, PEOPLE + 1):
        at = dice.uniform(0, 60)
        while at < BEGIN + PEOPLE_ASK:
            calls.append(ask(at, user, dice.randrange(200, 3000), dice.randrange(50, 400)))
            at += dice.uniform(30, 100)
    await asyncio.gather(burst(), *calls)


async def greedy_callers(site: Site, dice: random.Random) -> None:
    """Let callers, each with answers of another length, always have more calls open than there are slots."""

    async def ask(user: int) -> None:
        while site.now() < LASTS:
            await site.ask(user, 500, round(100 * (user + 1) * dice.uniform(0.5, 1.5)))

    tasks = [asyncio.create_task(ask(user)) for user in range(GREEDY) for _ in range(50)]
    await asyncio.sleep(LASTS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def jain(values: list[float]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def others_waits(seen: Seen) -> list[float]:
    return [wait for user, waits in seen.waits.items() if user for wait in waits]


def speed(seen: Seen) -> float:
    """Return the tokens a second from the burst until all is answered."""
    made = [(at, tokens) for at, tokens in seen.made if at > BEGIN]
    return sum(tokens for _, tokens in made) / (max(at for at, _ in made) - BEGIN)


def microseconds(rounds: int, url: str = "") -> float:
    """Return the CPU time for the lease of a call that does not wait, the least of so many rounds.

    `url`: of the Redis in which the worker has its queue.
    """

    async def main() -> float:
        watchdog = Watchdog()
        keep = watchdog.keep_running
        queue = SharedQueue(url, prefix="cost", workers=2, keep=keep) if url else None
        site = Site(fair=True, queues=(queue,))
        if queue is not None:
            await queue.start()
            await site.call(1, 0, 0)  # after which it has credits
        context = RequestContext("req_1", ENDPOINTS["/v1/chat/completions"], KEY, ClientAddress("", ""), Silent())
        context.call, context.model = CALL, site.model
        spent = []
        for _ in range(rounds):
            begun = process_time()
            for _ in range(20_000):
                lease = await site.scheduler.acquire(context)
                lease.charge(1.0)
                lease.release()
            spent.append(process_time() - begun)
        if queue is not None:
            await queue.close()
        await watchdog.close()
        return min(spent) / 20_000 * 1e6

    return asyncio.run(main())


def line(name: str, seen: Mapping[int, Seen], greedy: Mapping[int, Seen]) -> list[str]:
    waits = [others_waits(one) for one in seen.values()]
    return [
        name,
        f"{median(quantile(one, 0.5) for one in waits):.1f} s",
        f"{median(quantile(one, 0.95) for one in waits):.1f} s",
        f"{median(max(one) for one in waits):.1f} s",
        f"{median(one.burst_over for one in seen.values()):.0f} s",
        f"{median(one.refused for one in seen.values()):.0f}",
        f"{median(speed(one) for one in seen.values()):.0f}",
        f"{median(jain(list(map(float, one.tokens.values()))) for one in greedy.values()):.3f}",
    ]


def part(rounds: int) -> Part:
    seeds = range(rounds)
    burst = {fair: {seed: run(burst_beside_people, seed, fair=fair) for seed in seeds} for fair in (False, True)}
    greedy = {fair: {seed: run(greedy_callers, seed, fair=fair) for seed in seeds} for fair in (False, True)}
    columns = ["", "others' wait p50", "p95", "most", "burst ends after", "calls refused", "tokens/s", "Jain's index"]
    names = {False: "first come, first served", True: "fair queue"}
    lines = [line(names[fair], burst[fair], greedy[fair]) for fair in (False, True)]
    with redis_server() as redis:
        several = {}
        for workers in WORKERS:
            several[workers] = {
                seed: run_workers(burst_beside_people, seed, workers=workers, url=redis.url) for seed in seeds
            }
            served = {seed: run_workers(greedy_callers, seed, workers=workers, url=redis.url) for seed in seeds}
            lines.append(line(f"fair queue, {workers} workers", several[workers], served))
        shared_cost = microseconds(max(3, rounds), redis.url)
    of_two = median(quantile(others_waits(one), 0.95) for one in several[2].values())
    ratio_of_two = median(speed(several[2][seed]) / speed(burst[True][seed]) for seed in seeds)
    p95 = median(quantile(others_waits(one), 0.95) for one in burst[True].values())
    before = median(quantile(others_waits(one), 0.95) for one in burst[False].values())
    ratio = median(speed(burst[True][seed]) / speed(burst[False][seed]) for seed in seeds)
    index = median(jain(list(map(float, one.tokens.values()))) for one in greedy[True].values())
    cost = microseconds(max(3, rounds))
    goals = (
        Goal(
            text="200 calls at once of one key beside 40 people: p95 of the others' wait",
            wanted="≤ 5 s",
            reached=f"{p95:.1f} s ({before:.0f} s first come, first served)",
            met=p95 <= 5,
        ),
        Goal(
            text="the same: tokens a second, of those first come, first served",
            wanted="≥ 98%",
            reached=f"{ratio:.1%}",
            met=ratio >= 0.98,
        ),
        Goal(
            text="Jain's index of tokens among callers who always wait",
            wanted="≥ 0.95",
            reached=f"{index:.3f}",
            met=index >= 0.95,
        ),
        Goal(
            text="two workers with one queue: p95 of the others' wait, and tokens a second, of those of one worker",
            wanted="≤ 110%, ≥ 90%",
            reached=f"{of_two / p95:.0%}, {ratio_of_two:.1%}",
            met=of_two <= 1.1 * p95 and ratio_of_two >= 0.9,
        ),
    )
    cost_line = (
        f"A call that does not wait takes {cost:.1f} µs of CPU for its lease, "
        f"{shared_cost:.1f} µs where the queue is in Redis."
    )
    return Part(name="scheduler", markdown=f"{table(columns, lines)}\n\n{cost_line}", goals=goals)
