"""What people and callers notice when a part of a site of two machines fails, as a table."""

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg

from tests.failover.load import SiteLoad
from tests.failover.site import TwoMachines, two_machines
from tests.postgres import Postgres
from tests.restart.load import Answer
from tests.waiting import eventually

DIRECTORY_AWAY = 20.0  # seconds
REDIS_AWAY = 30.0
PROMOTED_AFTER = 5.0  # seconds after the primary's end: what watches it takes a while to be sure
MACHINE_AWAY = 15.0
RECORDED_WITHIN = 60.0  # seconds after which usage that is not in the database counts as lost

Event = Callable[[TwoMachines], Awaitable[object]]


async def do_nothing(site: TwoMachines) -> None:
    """Let calls go on, to compare with."""
    await asyncio.sleep(5)


async def lose_directory(site: TwoMachines) -> None:
    """Have it accept connections and answer nothing."""
    with site.directory.frozen():
        await asyncio.sleep(DIRECTORY_AWAY)


async def lose_redis(site: TwoMachines) -> None:
    """Have it come back without anything that it counted."""
    site.shared.kill()
    await asyncio.sleep(REDIS_AWAY)
    await asyncio.to_thread(site.shared.start)


async def restart_postgres(site: TwoMachines) -> None:
    await asyncio.to_thread(site.primary.stop)
    await asyncio.to_thread(site.primary.start)


async def kill_machine(site: TwoMachines) -> None:
    first = site.machines[0]
    await asyncio.to_thread(first.kill)
    await asyncio.sleep(MACHINE_AWAY)
    await asyncio.to_thread(first.start)


async def fail_over(site: TwoMachines) -> None:
    await asyncio.to_thread(site.primary.stop)
    await asyncio.sleep(PROMOTED_AFTER)
    await asyncio.to_thread(site.standby.promote)


EVENTS: dict[str, Event] = {
    "nothing": do_nothing,
    f"directory silent for {DIRECTORY_AWAY:.0f} s": lose_directory,
    f"Redis away for {REDIS_AWAY:.0f} s, back empty": lose_redis,
    "PostgreSQL killed and started again": restart_postgres,
    f"a machine killed, back after {MACHINE_AWAY:.0f} s": kill_machine,
    f"PostgreSQL killed, its standby promoted after {PROMOTED_AFTER:.0f} s": fail_over,
}
PEOPLE = ("alice", "bob", "yamada", "charlie", "olivia")
KINDS = ("stream", "call", "page", "sign-in")


async def measure(site: TwoMachines, what: str, event: Event, options: argparse.Namespace) -> None:
    people = [site.directory.people[name] for name in PEOPLE]
    load = SiteLoad(
        *(site.nginx.url, site.key, site.nginx.trust(), options.streams, options.seconds, options.rate),
        people=people,
    )
    async with load:
        await eventually(lambda: load.open_streams == load.streams and load.count()["call"] >= 3 * load.rate)
        begun = time.monotonic()
        await event(site)
        took = time.monotonic() - begun
        await asyncio.sleep(options.seconds + 2)  # until what was open then has ended
    lost, doubled = await count_usage(site, load)
    cells = [what, f"{took:.1f}", *(describe(load.answers, kind) for kind in KINDS), f"{last_failure(load, begun):.1f}"]
    print(f"| {' | '.join([*cells, str(lost), str(doubled)])} |", flush=True)
    for why in sorted({f"{one.kind}: {one.why[:150]}" for one in load.failed()}):
        print(f"    {sum(f'{one.kind}: {one.why[:150]}' == why for one in load.failed())} x {why}", flush=True)


def describe(answers: list[Answer], kind: str) -> str:
    """Return how many there were, how many of them failed, and how long the slowest took that did not."""
    made = [one for one in answers if one.kind == kind]
    failed = sum(bool(one.why) for one in made)
    slowest = max((one.seconds for one in made if not one.why), default=0.0)
    return f"{len(made)}, {failed} failed" + ("" if kind == "stream" else f"; {slowest:.1f} s")


def last_failure(load: SiteLoad, begun: float) -> float:
    """Return the seconds from the event's beginning until the last one began that failed."""
    return max((one.began - begun for one in load.failed()), default=0.0)


async def count_usage(site: TwoMachines, load: SiteLoad) -> tuple[int, int]:
    """Return how many complete answers have no row in the database, and how many rows the sums have too many."""
    complete = {one.request_id for one in load.answers if one.request_id and not one.why}
    with contextlib.suppress(TimeoutError):
        await eventually(lambda: complete <= recorded(site), RECORDED_WITHIN)
    lost = len(complete - recorded(site))
    query = "select (select sum(requests) from usage_usageday) - (select count(*) from usage_usagerecord)"
    ((doubled,),) = serving(site).rows(query)
    return lost, int(doubled)


def recorded(site: TwoMachines) -> set[str]:
    return {name for (name,) in serving(site).rows("select request_id from usage_usagerecord")}


def serving(site: TwoMachines) -> Postgres:
    """Return the database that takes changes."""
    with contextlib.suppress(psycopg.OperationalError):
        if site.primary.rows("select pg_is_in_recovery()") == [(False,)]:
            return site.primary
    return site.standby


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a stream")
    parser.add_argument("--rate", type=int, default=10, help="calls a second")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the names of what is to fail")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, two_machines(Path(name)) as site:
        print(f"| what | takes, s | {' | '.join(KINDS)} | last failure after, s | usage lost | doubled |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        for what, event in EVENTS.items():
            if any(word in what for word in options.only):
                await measure(site, what, event, options)
