"""Nothing of a cluster starts without its token and certificates."""

import shutil
from dataclasses import replace

import pytest

from modelregistry.cluster import access, head, node
from modelregistry.cluster.access import CERTIFICATE, KEY, TOKEN, ClusterAccess, NotSecured
from modelregistry.cluster.head import HeadDirectory
from modelregistry.cluster.node_directory import NodeDirectory


@pytest.fixture
def directory(tmp_path, issue):
    shutil.copytree(issue("gpu1"), tmp_path / "host" / "secrets")
    return NodeDirectory(path=tmp_path / "host", name="gpu1", address="127.0.0.1", cluster="127.0.0.1:6379")


def test_a_hosts_node_is_secured_and_named(directory):
    command = node.host_command(tmp := directory.path / "python", directory)
    assert command.argv[0] == str(tmp)
    assert command.env["RAY_AUTH_MODE"] == "token"
    assert command.env["RAY_USE_TLS"] == "1"
    assert '--resources={"madoguchi-host:gpu1": 1}' in command.argv


def test_a_head_at_an_address_of_ipv6_is_where_its_hosts_look_for_it(directory):
    there = HeadDirectory(path=directory.path, address="::1", redis="[::1]:7001")
    command = there.command(directory.path / "python")
    assert {"--port=6377", "--node-ip-address=::1"} <= set(command.argv)
    assert command.env["RAY_REDIS_ADDRESS"] == "[::1]:7001"
    host = node.host_command(directory.path / "python", replace(directory, address="::1", cluster=there.access.address))
    assert {"--address=[::1]:6377", "--node-ip-address=::1"} <= set(host.argv)


def test_the_token_is_in_no_environment_and_no_command_line(directory):
    token = (directory.secrets / TOKEN).read_text().strip()
    command = node.host_command(directory.path / "python", directory)
    assert not [value for value in (*command.env.values(), *command.argv) if token in value]
    assert token not in repr(command)


@pytest.mark.parametrize("name", [TOKEN, access.AUTHORITY, CERTIFICATE, KEY])
def test_without_one_of_its_secrets_neither_host_nor_head_starts(directory, name):
    (directory.secrets / name).unlink()
    with pytest.raises(NotSecured):
        node.host_command(directory.path / "python", directory)
    with pytest.raises(NotSecured):
        HeadDirectory(path=directory.path, address="127.0.0.1", redis="").command(directory.path / "python")
    with pytest.raises(NotSecured):
        ClusterAccess(address="127.0.0.1:6379", secrets=directory.secrets).environment()


@pytest.mark.parametrize("name", [TOKEN, KEY])
def test_a_secret_that_others_can_read_is_none(directory, name):
    (directory.secrets / name).chmod(0o640)
    with pytest.raises(NotSecured, match="chmod 600"):
        node.host_command(directory.path / "python", directory)


def test_a_token_that_can_be_guessed_is_none(directory):
    (directory.secrets / TOKEN).write_text("secret")
    with pytest.raises(NotSecured, match="6 characters"):
        node.host_command(directory.path / "python", directory)


def test_each_start_of_a_node_listens_elsewhere_in_the_same_range(directory):
    def ports():
        argv = node.host_command(directory.path / "python", directory).argv
        return {word.partition("=")[2] for word in argv if word.partition("=")[0] in node.NODE_PORTS}

    several = [ports() for _ in range(5)]
    assert all(len(each) == 3 and {int(port) for port in each} <= set(node.PORTS) for each in several)
    assert len({frozenset(each) for each in several}) > 1
    assert not set(node.PORTS) & set(node.WORKER_PORTS)


def test_a_head_forgets_where_it_last_ran(directory):
    (directory.path / "ray").mkdir()
    (directory.path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379")
    made = HeadDirectory(path=directory.path, address="127.0.0.1", redis="127.0.0.1:7001")
    made.save()
    command = head.load(directory.path).command(directory.path / "python")
    assert not (directory.path / "ray" / "ray_current_cluster").exists()
    assert command.env["RAY_REDIS_ADDRESS"] == "127.0.0.1:7001"


def test_a_directory_that_is_no_heads_is_refused(tmp_path):
    with pytest.raises(ValueError, match="head"):
        head.load(tmp_path)
