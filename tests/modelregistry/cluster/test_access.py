"""Nothing of a cluster starts without its token and certificates."""

import shutil

import pytest

from modelregistry.cluster import access, head, node
from modelregistry.cluster.access import CERTIFICATE, KEY, TOKEN, ClusterAccess, NotSecured
from modelregistry.cluster.head import HeadHome
from modelregistry.cluster.host_home import HostHome


@pytest.fixture
def home(tmp_path, issue):
    shutil.copytree(issue("gpu1"), tmp_path / "home" / "secrets")
    return HostHome(directory=tmp_path / "home", name="gpu1", address="127.0.0.1", cluster="127.0.0.1:6379")


def test_a_hosts_node_is_secured_and_named(home):
    command = node.host_command(tmp := home.directory / "python", home)
    assert command.argv[0] == str(tmp)
    assert command.env["RAY_AUTH_MODE"] == "token"
    assert command.env["RAY_USE_TLS"] == "1"
    assert '--resources={"madoguchi-host:gpu1": 1}' in command.argv


def test_the_token_is_in_no_environment_and_no_command_line(home):
    token = (home.secrets / TOKEN).read_text().strip()
    command = node.host_command(home.directory / "python", home)
    assert not [value for value in (*command.env.values(), *command.argv) if token in value]
    assert token not in repr(command)


@pytest.mark.parametrize("name", [TOKEN, access.AUTHORITY, CERTIFICATE, KEY])
def test_without_one_of_its_secrets_neither_host_nor_head_starts(home, name):
    (home.secrets / name).unlink()
    with pytest.raises(NotSecured):
        node.host_command(home.directory / "python", home)
    with pytest.raises(NotSecured):
        HeadHome(directory=home.directory, address="127.0.0.1", redis="").command(home.directory / "python")
    with pytest.raises(NotSecured):
        ClusterAccess(address="127.0.0.1:6379", secrets=home.secrets).environment()


@pytest.mark.parametrize("name", [TOKEN, KEY])
def test_a_secret_that_others_can_read_is_none(home, name):
    (home.secrets / name).chmod(0o640)
    with pytest.raises(NotSecured, match="chmod 600"):
        node.host_command(home.directory / "python", home)


def test_a_token_that_can_be_guessed_is_none(home):
    (home.secrets / TOKEN).write_text("secret")
    with pytest.raises(NotSecured, match="6 characters"):
        node.host_command(home.directory / "python", home)


def test_each_start_of_a_node_listens_elsewhere_in_the_same_range(home):
    def ports():
        argv = node.host_command(home.directory / "python", home).argv
        return {word.partition("=")[2] for word in argv if word.partition("=")[0] in node.NODE_PORTS}

    several = [ports() for _ in range(5)]
    assert all(len(each) == 3 and {int(port) for port in each} <= set(node.PORTS) for each in several)
    assert len({frozenset(each) for each in several}) > 1
    assert not set(node.PORTS) & set(node.WORKER_PORTS)


def test_a_head_forgets_where_it_last_ran(home):
    (home.directory / "ray").mkdir()
    (home.directory / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379")
    made = HeadHome(directory=home.directory, address="127.0.0.1", redis="127.0.0.1:7001")
    made.save()
    command = head.load(home.directory).command(home.directory / "python")
    assert not (home.directory / "ray" / "ray_current_cluster").exists()
    assert command.env["RAY_REDIS_ADDRESS"] == "127.0.0.1:7001"


def test_a_directory_that_is_no_heads_is_refused(tmp_path):
    with pytest.raises(ValueError, match="head"):
        head.load(tmp_path)
