"""The host agent by itself: it acts for the controller that holds the lease, and hands out no secrets."""

import os

import pytest

from modelregistry.cluster import fence, host_home
from modelregistry.cluster.agent import HostAgent
from modelregistry.cluster.host_home import HostHome
from modelregistry.cluster.lease import NewerController, NotRenewed
from modelregistry.process import shim


@pytest.fixture
def home(tmp_path):
    made = HostHome(directory=tmp_path / "host", name="gpu1", address="127.0.0.1", cluster="127.0.0.1:6379")
    made.save()
    return made


@pytest.fixture
def agent(home, monkeypatch):
    """Provide one whose server answers with what it was asked."""

    def make_server(_home):
        async def serve(message):
            return message

        return serve

    monkeypatch.setattr(fence, "start", lambda *where: None)
    monkeypatch.setenv(host_home.VARIABLE, str(home.directory))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_TLS_SERVER_KEY", "/secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return HostAgent(make_server)


async def test_it_does_nothing_for_a_controller_without_the_lease(agent):
    with pytest.raises(NotRenewed):
        await agent.exchange(1, "start")
    await agent.renew(1, "one", 30.0)
    assert await agent.exchange(1, "start") == "start"


async def test_it_does_nothing_for_a_controller_that_was_replaced(agent):
    await agent.renew(1, "one", 30.0)
    await agent.renew(2, "two", 30.0)
    with pytest.raises(NewerController):
        await agent.exchange(1, "start")
    with pytest.raises(NewerController):
        await agent.renew(1, "one", 30.0)


async def test_it_describes_itself_also_to_controllers_that_it_does_not_obey(agent):
    found = await agent.describe()
    assert (found["name"], found["boot"], found["term"], found["lease"]) == ("gpu1", shim.boot_id(), 0, 0.0)


def test_engines_inherit_nothing_that_ray_put_there(agent):
    assert not [name for name in os.environ if name.startswith("RAY_") or name == "OMP_NUM_THREADS"]


def test_a_process_that_is_no_hosts_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv(host_home.VARIABLE, raising=False)
    with pytest.raises(ValueError, match=host_home.VARIABLE):
        host_home.of_environment(os.environ)
    with pytest.raises(ValueError, match="not the directory of a host"):
        host_home.load(tmp_path)


def test_what_an_operator_added_to_a_host_is_read(home):
    path = home.directory / host_home.FILE
    path.write_text(path.read_text().replace('"commands": {}', '"commands": {"vllm": "/opt/vllm"}'))
    assert host_home.load(home.directory).commands == {"vllm": "/opt/vllm"}


@pytest.mark.parametrize("ports", ["[0, 5]", "[9, 5]", "[1, 70000]", '"all"', "[1]"])
def test_a_damaged_host_is_refused(home, ports):
    path = home.directory / host_home.FILE
    path.write_text(path.read_text().replace("[18100, 18999]", ports))
    with pytest.raises(ValueError, match="not the directory of a host"):
        host_home.load(home.directory)
