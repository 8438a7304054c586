"""What callers notice of upgrades, restarts and deaths, as a table. `python -m tests.restart` runs it."""

import argparse
import asyncio
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.installation import ROOT
from tests.postgres import postgres
from tests.redis import redis_server
from tests.restart.load import Answer, Load
from tests.restart.site import NEXT, Site, copy_version, site
from tests.waiting import eventually

Event = Callable[[Site], Awaitable[object]]


async def do_nothing(running: Site) -> None:
    """Let calls go on, to compare with."""
    await asyncio.sleep(5)


async def reload(running: Site) -> None:
    done = await asyncio.to_thread(running.reload)
    assert done.returncode == 0, done.stderr


async def restart(running: Site) -> None:
    await asyncio.to_thread(running.stop)
    await asyncio.to_thread(running.start)


async def kill_gateway(running: Site) -> None:
    before = set(running.gateways())
    os.kill(min(before), signal.SIGKILL)
    await eventually(lambda: len(set(running.gateways()) - {min(before)}) == len(before))


async def kill_portal(running: Site) -> None:
    (victim,) = [pid for pid, command in running.installation.processes().items() if "portal_worker" in command]
    os.kill(victim, signal.SIGKILL)
    await asyncio.sleep(5)


async def measure(running: Site, what: str, event: Event, options: argparse.Namespace) -> None:
    trust = running.nginx.trust()
    load = Load(running.nginx.url, running.key, trust, options.streams, options.seconds, options.rate)
    async with load:
        await eventually(lambda: load.open_streams == load.streams and load.count()["call"] >= 5 * load.rate)
        begun = time.monotonic()
        await event(running)
        took = time.monotonic() - begun
        await asyncio.sleep(options.seconds)  # until what was open then has ended
    print(f"| {what} | {took:.1f} | {' | '.join(describe(load, kind, begun) for kind in ('stream', 'call', 'page'))} |")
    for why in sorted({one.why for one in load.failed()}):
        print(f"    {sum(one.why == why for one in load.failed())} x {why}")


def describe(load: Load, kind: str, since: float) -> str:
    """Return how many there were, failed, and, but for streams, how long they took from the event on (ms)."""
    made = [one for one in load.answers if one.kind == kind]
    words = f"{len(made)}, {sum(bool(one.why) for one in made)} failed"
    return words if kind == "stream" else f"{words}; {spread([one for one in made if one.began >= since])}"


def spread(answers: list[Answer]) -> str:
    times = sorted(one.seconds * 1000 for one in answers)
    return f"{statistics.median(times):.0f} / {times[int(len(times) * 0.99)]:.0f} / {times[-1]:.0f}"


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a stream")
    parser.add_argument("--rate", type=int, default=20, help="calls a second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, redis_server() as shared, postgres() as database:
        place = Path(name)
        settings = {"REDIS_URL": shared.url, "DATABASE_URL": database.url, "GATEWAY_WORKERS": "2"}
        with site(place, **settings) as running:
            running.start()
            print("| what | takes, s | streams | calls: p50 / p99 / most, ms | pages |\n|---|---|---|---|---|")
            await measure(running, "nothing", do_nothing, options)
            running.lead_to(copy_version(place, NEXT))
            await measure(running, "upgrade (`reload`, another version)", reload, options)
            assert running.version() == NEXT
            running.lead_to(ROOT)
            await measure(running, "back (`reload`)", reload, options)
            await measure(running, "a gateway is killed", kill_gateway, options)
            await measure(running, "the portal is killed", kill_portal, options)
            await measure(running, "`restart`", restart, options)
