"""A real head and a real host, in networks of their own: what `make test-ray` rehearses at length works at all."""

import os
import signal

import pytest

from modelregistry.cluster.link import HostRefused
from tests.ray.clusters import RENEWAL, ask, cluster, renewed, wait_for_hosts
from tests.ray.traffic import start_engine
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(180)  # network namespaces need root


async def test_a_host_joins_obeys_its_lease_and_its_engine_outlives_its_agent():
    with cluster("a") as made:
        async with made.link() as link:
            await link.wait_until_ready(90)
            await wait_for_hosts(link, "a", seconds=90)
            await link.open_host("a")
            with pytest.raises(HostRefused) as refused:
                await ask(link, "a", "list")
            assert refused.value.kind == "NotRenewed"
            await link.renew("a", RENEWAL)
            engine = await start_engine(link, made.hosts["a"], "r1")
            assert not [name for name in engine.environment() if name.startswith("RAY_")]
            killed = made.hosts["a"].agent()
            os.kill(killed, signal.SIGKILL)
            await eventually(lambda: (found := made.hosts["a"].find("ray::HostAgent")) and killed not in found, 60)
            await renewed(link, "a")
            assert await ask(link, "a", "list") == {"r1": "RUNNING"}
            assert engine.is_alive()
    assert not engine.is_alive()
