"""Parts of a real cluster die, and engines do not: each test has a cluster of its own, secured and with Redis."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from modelregistry.cluster import fence
from modelregistry.cluster.link import ClusterLink, ClusterSilent, HostRefused, Renewal
from modelregistry.process import shim
from tests.ray.clusters import RENEWAL, SECOND, Cluster, Host, ask, cluster, renewed, renewing, reopened, wait_for_hosts
from tests.ray.measurements import note
from tests.ray.traffic import calling, start_engine
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)  # network namespaces need root


@contextlib.asynccontextmanager
async def opened(*names: str):
    """Provide a cluster and a link to it, whose hosts have agents and leases."""
    with cluster(*names) as made:
        async with made.link() as link:
            await link.wait_until_ready(60)
            await wait_for_hosts(link, *names)
            for name in names:
                await link.open_host(name)
                await link.renew(name, RENEWAL)
            yield made, link


async def is_alive(link: ClusterLink, host: str) -> bool | None:
    """Return whether the head takes the host for alive; None: the head does not answer."""
    try:
        return any(node.alive for node in await link.list_nodes(within=2) if node.host == host)
    except ClusterSilent:
        return None


async def until_dead(link: ClusterLink, host: str) -> float:
    began = time.monotonic()

    async def dead() -> bool:
        return await is_alive(link, host) is False

    await eventually(dead, 30)
    return time.monotonic() - began


def resident(host: Host) -> dict[str, int]:
    """Return the MB of memory that each of Ray's processes on a host has, by its name."""
    found: dict[str, int] = {}
    for pid in host.space.pids():
        with contextlib.suppress(OSError, StopIteration):
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            size = next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmRSS"))
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            name = next((word for word in words if "modelregistry.cluster." in word or word.startswith("ray")), "")
            found[name or os.path.basename(words[0])] = size
    return found


async def test_an_engine_outlives_its_agent_and_knows_no_secret():
    async with opened("a") as (made, link):
        host = made.hosts["a"]
        engine = await start_engine(link, host, "r1")
        environment = engine.environment()
        assert not [name for name in environment if name.startswith("RAY_")]
        token = (made.access.secrets / "token").read_text().strip()
        assert not [value for value in environment.values() if token in value]
        for name, size in sorted(resident(host).items()):
            note(f"memory of {name}", size, "MB")
        with calling(made.spaces[0], engine) as calls:
            killed = host.agent()
            os.kill(killed, signal.SIGKILL)
            note("agent -9: back after", await renewed(link, "a"))
            assert host.agent() != killed
            assert await ask(link, "a", "list") == {"r1": "RUNNING"}
            await asyncio.sleep(1)
            assert engine.is_alive()
            assert calls.failures(engine.url) == 0
        assert await ask(link, "a", "stop", run_id="r1")
        assert not engine.is_alive()


async def test_an_engine_outlives_its_nodes_raylet():
    async with opened("a") as (made, link):
        host = made.hosts["a"]
        engine = await start_engine(link, host, "r1")
        with calling(made.spaces[0], engine) as calls:
            agent = shim.identify(host.agent())
            os.kill(host.raylet(), signal.SIGKILL)
            began = time.monotonic()
            await eventually(lambda: not shim.is_alive(agent), 30)
            await renewed(link, "a")
            note("raylet -9: agent back after", time.monotonic() - began)
            assert await ask(link, "a", "list") == {"r1": "RUNNING"}
            assert engine.is_alive()
            assert calls.failures(engine.url) == 0


async def test_a_host_that_lost_its_power_is_noticed_and_comes_back_empty():
    async with opened("a", "b") as (made, link):
        host = made.hosts["a"]
        await start_engine(link, host, "r1")
        host.space.cut()
        host.space.kill_all()
        note("host without power: dead after", await until_dead(link, "a"))
        with pytest.raises(ClusterSilent):
            await ask(link, "a", "list", within=2)
        assert await ask(link, "b", "list") == {}
        host.space.mend()
        host.start()
        note("host with power again: agent after", await renewed(link, "a"))
        assert await ask(link, "a", "list") == {"r1": "LOST"}
        assert not host.find("tiny_engine")


async def test_a_host_that_was_cut_off_serves_on_until_its_lease_is_over_and_nothing_runs_twice():
    lease = 30.0
    async with opened("a", "b") as (made, link), renewing(link, "a"):
        host = made.hosts["b"]
        engine = await start_engine(link, host, "r1")
        await link.renew("b", Renewal(term=1, holder="test", seconds=lease))
        with calling(host.space, engine) as calls:
            host.space.cut()
            began = time.monotonic()
            note("host cut off: dead after", await until_dead(link, "b"))
            elsewhere = await start_engine(link, made.hosts["a"], "r2")
            await eventually(lambda: not engine.is_alive(), lease + 20)
            fenced = calls.last_answer(engine.url) - began
            note(f"host cut off: serves those on its side for (lease {lease:g} s)", fenced)
            assert lease - 3 < fenced < lease + fence.STOPPED_WITHIN
            assert calls.failures(engine.url) == calls.failures(engine.url, since=began + lease - 3)
            await asyncio.sleep(max(0.0, 75 - (time.monotonic() - began)))
        host.space.mend()
        # Another controller was elected meanwhile; the old one is refused.
        note(
            "host no longer cut off: agent after",
            await renewed(link, "b", SECOND),
        )
        assert await ask(link, "b", "list", term=2) == {"r1": "ENDED"}
        with pytest.raises(HostRefused) as refused:
            await ask(link, "b", "list", term=1)
        assert refused.value.kind == "NewerController"
        assert elsewhere.is_alive()
        assert not host.find("tiny_engine")


async def test_nothing_is_noticed_while_the_head_is_away():
    async with opened("a", "b") as (made, link):
        engines = [await start_engine(link, host, "r1") for host in made.hosts.values()]
        agents = [host.agent() for host in made.hosts.values()]
        with calling(made.spaces[0], *engines) as calls:
            made.kill_head()
            began = time.monotonic()
            made.start_head()
            await wait_for_hosts(link, "a", "b")
            for name in made.hosts:
                await renewed(link, name)
                assert await ask(link, name, "list") == {"r1": "RUNNING"}
            note("head -9, Redis kept: all adopted after", time.monotonic() - began)
            assert [host.agent() for host in made.hosts.values()] == agents
            assert all(engine.is_alive() for engine in engines)
            assert sum(calls.failures(engine.url) for engine in engines) == 0


async def test_engines_go_on_while_the_head_is_away_for_longer_than_nodes_wait_for_it():
    async with opened("a") as (made, link):
        engine = await start_engine(link, made.hosts["a"], "r1")
        agent = shim.identify(made.hosts["a"].agent())
        with calling(made.spaces[0], engine) as calls:
            made.kill_head()
            await eventually(lambda: not shim.is_alive(agent), 40)
            assert engine.is_alive()
            began = time.monotonic()
            made.start_head()
            await reopened(link, "a")
            await renewed(link, "a")
            note("head away until nodes gave up: adopted after its return in", time.monotonic() - began)
            assert await ask(link, "a", "list") == {"r1": "RUNNING"}
            assert engine.is_alive()
            assert calls.failures(engine.url) == 0


async def test_an_agent_that_moved_after_the_head_was_away_is_found_again():
    async with opened("a") as (made, link):
        host = made.hosts["a"]
        engine = await start_engine(link, host, "r1")
        made.kill_head()
        made.start_head()
        await wait_for_hosts(link, "a")
        await renewed(link, "a")
        before = shim.identify(host.agent())
        os.kill(host.raylet(), signal.SIGKILL)
        await eventually(lambda: not shim.is_alive(before), 30)
        note("raylet -9 after a head -9: agent back after", await renewed(link, "a"))
        assert await ask(link, "a", "list") == {"r1": "RUNNING"}
        assert engine.is_alive()


async def test_engines_are_adopted_by_a_new_and_empty_cluster():
    async with opened("a", "b") as (made, link):
        engines = [await start_engine(link, host, "r1") for host in made.hosts.values()]
        with calling(made.spaces[0], *engines) as calls:
            lose_state(made)
            began = time.monotonic()
            made.start_redis()
            made.start_head()
            await asyncio.gather(*(reopened(link, name) for name in made.hosts))
            for name in made.hosts:
                await renewed(link, name)
                assert await ask(link, name, "list") == {"r1": "RUNNING"}
            note("Redis lost, head new and empty: all adopted after", time.monotonic() - began)
            assert all(engine.is_alive() for engine in engines)
            assert sum(calls.failures(engine.url) for engine in engines) == 0


def lose_state(made: Cluster) -> None:
    made.kill_head()
    made.redis.kill()
    made.redis.wait()
    shutil.rmtree(made.directory / "redis")


async def test_a_link_whose_driver_dies_or_hangs_comes_back():
    async with opened("a") as (_, link):
        for number in (signal.SIGKILL, signal.SIGSTOP):
            process = link.process
            # The driver, not the `ip` before it: that one has become the driver.
            os.kill(process.pid, number)
            began = time.monotonic()
            await eventually(lambda before=process: link.process is not before and link.ready.is_set(), 60)
            await renewed(link, "a")
            note(f"controller's driver {number.name}: back after", time.monotonic() - began)


async def test_a_machine_with_a_wrong_token_or_without_tls_is_not_let_in():
    async with opened("a") as (made, _):
        bad = made.directory / "bad-token"
        bad.write_text("x" * 40)
        bad.chmod(0o600)
        for change in ({"RAY_AUTH_TOKEN_PATH": str(bad)}, {"RAY_USE_TLS": "0"}, {"RAY_AUTH_MODE": "disabled"}):
            other = ClusterLink(made.python, access=made.access, server=made.server)
            other.environment |= change
            other.argv = tuple(made.spaces[0].inside(other.argv))
            await other.open()
            try:
                with pytest.raises(ClusterSilent):
                    await other.wait_until_ready(8)
            finally:
                await other.close()
