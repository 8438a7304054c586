"""The host agent by itself: it acts for the controller that holds the lease, and hands out no secrets."""

import asyncio
import json
import os
import subprocess
from typing import Any

import pytest

from modelregistry.cluster import fence, limits, node_directory
from modelregistry.cluster.agent import MOST_MESSAGES, HostAgent
from modelregistry.cluster.messages import read_answer
from modelregistry.cluster.node_directory import NodeDirectory
from modelregistry.process import shim


@pytest.fixture
def directory(tmp_path):
    made = NodeDirectory(path=tmp_path / "host", name="gpu1", address="127.0.0.1", cluster="127.0.0.1:6379")
    made.save()
    return made


@pytest.fixture
def agent(directory, monkeypatch):
    """Provide one whose server answers with what it was asked."""

    def make_server(_directory):
        async def serve(message):
            return message

        return serve

    monkeypatch.setattr(fence, "start", lambda *where: None)
    monkeypatch.setenv(node_directory.VARIABLE, str(directory.path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_TLS_SERVER_KEY", "/secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return HostAgent(make_server)


async def renew(agent: HostAgent, term: int, holder: str, seconds: float = 30.0) -> dict[str, Any]:
    boot, since = json.loads(await agent.describe())["shown"]
    return json.loads(await agent.renew(term, holder, seconds, boot, since))


async def test_it_does_nothing_for_a_controller_without_the_lease(agent):
    assert json.loads(await agent.exchange(1, "one", "start"))["kind"] == "NotRenewed"
    assert 29 < (await renew(agent, 1, "one"))["result"] <= 30
    assert json.loads(await agent.exchange(1, "one", "start"))["result"] == "start"


async def test_it_does_nothing_for_a_controller_that_was_replaced(agent):
    await renew(agent, 1, "one")
    await renew(agent, 2, "two")
    refused = json.loads(await agent.exchange(1, "one", "start"))
    assert (refused["kind"], refused["term"]) == ("NewerController", 2)
    assert (await renew(agent, 1, "one"))["kind"] == "NewerController"
    assert json.loads(await agent.exchange(2, "one", "start"))["kind"] == "NewerController"


async def test_a_renewal_counts_from_when_the_agent_was_heard(agent):
    boot, since = json.loads(await agent.describe())["shown"]
    assert json.loads(await agent.renew(1, "one", 30.0, boot, since - 20))["result"] < 11
    stale = json.loads(await agent.renew(1, "one", 30.0, boot, since - 40))
    assert stale["kind"] == "StaleRenewal"
    assert stale["shown"][1] >= since  # from which the next one may count


async def test_it_describes_itself_also_to_controllers_that_it_does_not_obey(agent):
    found = json.loads(await agent.describe())["result"]
    assert (found["name"], found["boot"], found["term"], found["lease"]) == ("gpu1", shim.boot_id(), 0, 0.0)
    await renew(agent, 3, "one")
    found = json.loads(await agent.describe())["result"]
    assert (found["term"], found["holder"], found["fenced"]) == (3, "one", True)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), subprocess.TimeoutExpired("fence", 60)])
async def test_a_host_without_a_fence_says_so_and_keeps_its_lease(agent, monkeypatch, error):
    def fail(*_where):
        raise error

    monkeypatch.setattr(fence, "start", fail)
    assert (await renew(agent, 1, "one"))["result"] > 29
    assert json.loads(await agent.describe())["result"]["fenced"] is False


async def test_what_goes_wrong_is_an_answer_and_no_exception(directory, monkeypatch):
    def make_server(_directory):
        async def serve(message):
            raise RuntimeError("unforeseen")

        return serve

    monkeypatch.setattr(fence, "start", lambda *where: None)
    monkeypatch.setenv(node_directory.VARIABLE, str(directory.path))
    agent = HostAgent(make_server)
    await renew(agent, 1, "one")
    found = read_answer(await agent.exchange(1, "one", "start"))
    assert (found["kind"], found["fault"]) == ("RuntimeError", "unforeseen")


async def test_messages_that_hang_leave_room_for_renewals(directory, monkeypatch):
    answered, begun = asyncio.Event(), []

    def make_server(_directory):
        async def serve(message):
            begun.append(message)
            await answered.wait()
            return message

        return serve

    monkeypatch.setattr(fence, "start", lambda *where: None)
    monkeypatch.setenv(node_directory.VARIABLE, str(directory.path))
    agent = HostAgent(make_server)
    await renew(agent, 1, "one")
    slots = asyncio.Semaphore(limits.CONCURRENCY)  # as Ray lets so many calls run at a time

    async def call(work):
        async with slots:
            return json.loads(await work)

    hanging = [asyncio.create_task(call(agent.exchange(1, "one", "look"))) for _ in range(2 * limits.CONCURRENCY)]
    async with asyncio.timeout(20):
        boot, since = (await call(agent.describe()))["shown"]
        assert (await call(agent.renew(1, "one", 30.0, boot, since)))["result"] > 29
    assert len(begun) == MOST_MESSAGES
    answered.set()
    kinds = [found.get("kind", "") for found in await asyncio.gather(*hanging)]
    assert kinds.count("TooManyMessages") == len(hanging) - MOST_MESSAGES
    assert json.loads(await agent.exchange(1, "one", "again"))["result"] == "again"


def test_engines_inherit_nothing_that_ray_put_there(agent):
    assert not [name for name in os.environ if name.startswith("RAY_") or name == "OMP_NUM_THREADS"]


def test_a_process_that_is_no_hosts_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv(node_directory.VARIABLE, raising=False)
    with pytest.raises(ValueError, match=node_directory.VARIABLE):
        node_directory.of_environment(os.environ)
    with pytest.raises(ValueError, match="not the directory of a host"):
        node_directory.load(tmp_path)


def test_what_an_operator_added_to_a_host_is_read(directory):
    path = directory.path / node_directory.FILE
    path.write_text(path.read_text().replace('"commands": {}', '"commands": {"vllm": "/opt/vllm"}'))
    assert node_directory.load(directory.path).commands == {"vllm": "/opt/vllm"}


@pytest.mark.parametrize("ports", ["[0, 5]", "[9, 5]", "[1, 70000]", '"all"', "[1]"])
def test_a_damaged_host_is_refused(directory, ports):
    path = directory.path / node_directory.FILE
    path.write_text(path.read_text().replace("[18100, 18999]", ports))
    with pytest.raises(ValueError, match="not the directory of a host"):
        node_directory.load(directory.path)
