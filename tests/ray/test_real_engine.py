"""A real model on a host of a real cluster, started, asked and adopted through the surface that a supervisor has."""

import asyncio
import contextlib
import os
import secrets
import signal
import time

import pytest

from modelregistry.cluster.link import ClusterChannel
from modelregistry.engines.base import Spec
from modelregistry.hostside.remote import RemoteHost
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.surface import HostSilent, LaunchOrder
from modelregistry.process import shim
from modelregistry.process.process import Life
from tests.engines import chat_model
from tests.ray.clusters import RENEWAL, cluster, renewed, wait_for_hosts
from tests.ray.measurements import note
from tests.ray.traffic import chatting
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)  # network namespaces need root


async def test_a_real_model_answers_while_agent_raylet_and_head_die():
    with cluster("a") as made:
        async with made.link(server="modelregistry.cluster.host_server:make_server") as link:
            await link.wait_until_ready(60)
            await wait_for_hosts(link, "a")
            await link.open_host("a")
            await link.renew("a", RENEWAL)
            host = RemoteHost(ClusterChannel(link, "a", RENEWAL.term, RENEWAL.holder))
            await host.open()
            await asyncio.wait_for(host.wait_until_heard(), 20)
            spec = Spec(engine="llama.cpp", name="m", path=str(chat_model()), context=512, slots=1)
            run_id = secrets.token_hex(8)
            order = LaunchOrder(
                run_id=run_id,
                key=ReplicaKey(1, 0),
                spec=spec,
                engine=await host.choose_engine(spec, [], []),
                address=made.hosts["a"].directory.address,
                grace=5.0,
            )
            began = time.monotonic()
            run = await host.launch(order)
            engine = shim.identify(run.pid)
            with chatting(made.spaces[0], run.label.url, run.label.api_key) as tokens:
                await eventually(lambda: any(tokens), 90)
                note("xllamacpp on a host: first answer after", time.monotonic() - began)
                tokens.clear()
                agent = shim.identify(made.hosts["a"].agent())
                for kill in (
                    lambda: os.kill(made.hosts["a"].agent(), signal.SIGKILL),
                    lambda: os.kill(made.hosts["a"].raylet(), signal.SIGKILL),
                ):
                    agent = shim.identify(made.hosts["a"].agent())
                    kill()
                    await eventually(lambda who=agent: not shim.is_alive(who), 30)
                    await renewed(link, "a")
                made.kill_head()
                made.start_head()
                await wait_for_hosts(link, "a")
                await renewed(link, "a")
                adopted = await _list(host)
                assert [(each.run_id, each.pid, each.life) for each in adopted] == [(run_id, run.pid, Life.RUNNING)]
                # The same order again, as after a silence, starts nothing.
                assert (await host.launch(order)).pid == run.pid
                count = len(tokens)
                await eventually(lambda: len(tokens) > count + 1, 60)
                assert shim.is_alive(engine)
                assert all(tokens)
                note(f"{len(tokens)} calls to xllamacpp while agent, raylet and head died: none failed")
            assert await host.stop(run_id, 5.0) == ""
            assert not shim.is_alive(engine)
            await host.close()


async def _list(host: RemoteHost):
    found = []

    async def ask() -> bool:
        with contextlib.suppress(HostSilent):
            found[:] = await host.list_runs()
        return bool(found)

    await eventually(ask, 30)
    return found
