"""Joining a cluster, through a real join server with real certificates: all faults are said, and nothing is kept."""

import asyncio
import contextlib
import json
import platform
import ssl
import time
from dataclasses import replace
from functools import partial

import pytest

from modelregistry.cluster import certificates, join, join_server, node_directory
from modelregistry.cluster.invitation import FILES, Invitation, NoInvitation
from modelregistry.cluster.join import SENTENCES, NotJoined
from modelregistry.cluster.join_server import JoinProblem, JoinRequest, JoinServer, Peer
from modelregistry.cluster.link import ClusterNode, ClusterSilent
from modelregistry.engines.base import EngineCommand
from modelregistry.process import process
from modelregistry.process.process import Runs
from tests.ports import unused_port

RAY = "2.60.0"
PYTHON = platform.python_version()
NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def _ray(monkeypatch):
    """Pretend to be in Ray's own environment, in which this runs on a host."""
    monkeypatch.setattr(join, "ray_version", lambda: RAY)


@pytest.fixture
def port():
    return unused_port()


@pytest.fixture
def invite(issue, port):
    def invite(name="gpu2", address="127.0.0.1", *, certified="", **other):
        secrets = issue(name, certified or "127.0.0.1")
        values = {
            "name": name,
            "address": address,
            "cluster": "127.0.0.1:6379",
            "join_port": port,
            "ray": RAY,
            "python": platform.python_version(),
            "gpus": 0,
            "files": {each: (secrets / each).read_text() for each in FILES},
        }
        return Invitation(**values | other)

    return invite


@pytest.fixture
def opened(issue, port):
    """Return a function that starts a join server: `async with opened(ray=…)`."""

    @contextlib.asynccontextmanager
    async def opened(*, ray=RAY, python=PYTHON, nodes=(), clock=lambda: NOW, removed=dict, address="127.0.0.1"):
        async def list_nodes():
            if nodes is None:
                raise ClusterSilent("no answer within 5 s")
            return nodes

        made = JoinServer(
            issue("head", address), ray=ray, python=python, list_nodes=list_nodes, find_removed=removed, clock=clock
        )
        async with await made.listen(address, port):
            yield made

    return opened


async def try_to_join(invitation, directory, *, gpus=0, clock=lambda: NOW):
    return await asyncio.to_thread(join.join, invitation, directory, count_gpus=lambda: gpus, clock=clock)


async def codes_of(invitation, directory, **how):
    with pytest.raises(NotJoined) as refused:
        await try_to_join(invitation, directory, **how)
    assert not directory.exists()  # nothing is half joined
    assert all(words for words in str(refused.value).splitlines())
    return {problem.code for problem in refused.value.problems}


async def test_a_machine_with_an_invitation_joins(invite, opened, tmp_path):
    async with opened():
        directory = await try_to_join(invite(models="/srv/models"), tmp_path / "host")
    assert node_directory.load(tmp_path / "host") == directory
    assert str(directory.model_files) == "/srv/models"
    assert directory.cluster == "127.0.0.1:6379"
    assert {each.name for each in directory.secrets.iterdir()} == set(FILES)
    assert all(each.stat().st_mode & 0o077 == 0 for each in directory.secrets.iterdir())


async def test_a_machine_joins_a_head_at_an_address_of_ipv6(invite, opened, tmp_path):
    async with opened(address="::1"):
        invitation = invite(address="::1", certified="::1", cluster="[::1]:6377")
        directory = await try_to_join(Invitation.read(invitation.written()), tmp_path / "host")
    assert (directory.address, directory.cluster) == ("::1", "[::1]:6377")


async def test_a_join_server_that_is_closed_is_named_with_its_address_of_ipv6(invite, tmp_path, port):
    with pytest.raises(NotJoined) as refused:
        await try_to_join(invite(address="::1", cluster="[::1]:6377"), tmp_path / "host")
    assert [(one.code, one.there) for one in refused.value.problems] == [("no-join-server", f"[::1]:{port}")]


def test_an_invitation_to_what_is_no_address_of_a_head_is_refused(invite):
    with pytest.raises(NoInvitation):
        Invitation.read(invite(cluster="::1:6377").written())


async def test_a_machine_joins_into_a_directory_that_was_made_for_its_user(invite, opened, tmp_path):
    (tmp_path / "host").mkdir(mode=0o700)
    async with opened():
        await try_to_join(invite(), tmp_path / "host")
    assert node_directory.load(tmp_path / "host").name == invite().name


async def test_an_invitation_survives_being_printed(invite):
    made = invite()
    assert Invitation.read(f"\n  {made.written()}\r\n") == made


@pytest.mark.parametrize("text", ["", "!", "e30=", "WzFd", "A" * 65_537])
def test_what_is_no_invitation_is_refused(text):
    with pytest.raises(NoInvitation):
        Invitation.read(text)


def test_half_an_invitation_is_refused(invite):
    with pytest.raises(NoInvitation):
        Invitation.read(invite().written()[:-100])


async def test_a_wrong_token_is_named_and_nothing_else(invite, opened, tmp_path):
    made = invite()
    wrong = invite(files=made.files | {"token": "x" * 40})
    async with opened(ray="1.0", python="2.7"):
        assert await codes_of(wrong, tmp_path / "host") == {"wrong-token"}


async def test_certificates_of_another_cluster_are_named(invite, opened, tmp_path, issue):
    certificates.create_authority(tmp_path / "other")
    secrets = issue("gpu3", signer=tmp_path / "other")
    foreign = invite(files={each: (secrets / each).read_text() for each in FILES})
    async with opened():
        assert await codes_of(foreign, tmp_path / "host") == {"other-cluster"}


async def test_another_ray_is_named_before_the_cluster_is_asked(invite, tmp_path):
    assert await codes_of(invite(ray="2.59.0"), tmp_path / "host") == {"other-ray"}


async def test_another_python_is_named_before_the_cluster_is_asked(invite, tmp_path):
    assert await codes_of(invite(python="3.9.1"), tmp_path / "host") == {"other-python"}


async def test_a_cluster_that_was_upgraded_since_is_named(invite, opened, tmp_path):
    async with opened(ray="2.61.0", python="3.99.0"):
        assert await codes_of(invite(), tmp_path / "host") == {"other-ray", "other-python"}


async def test_a_name_that_is_taken_is_named(invite, opened, tmp_path):
    node = ClusterNode(node="n", address="10.0.0.9", alive=True, host="gpu2", resources={})
    async with opened(nodes=[node]):
        assert await codes_of(invite(), tmp_path / "host") == {"name-taken"}


async def test_the_name_of_a_host_that_is_dead_is_free(invite, opened, tmp_path):
    node = ClusterNode(node="n", address="10.0.0.9", alive=False, host="gpu2", resources={})
    async with opened(nodes=[node]):
        await try_to_join(invite(), tmp_path / "host")


async def test_a_certificate_serves_its_own_host_only(invite, opened, tmp_path):
    async with opened():
        assert await codes_of(invite(files=invite("gpu7").files), tmp_path / "host") == {"other-name"}


async def test_an_address_that_this_machine_does_not_have_is_named(invite, opened, tmp_path):
    async with opened():
        assert await codes_of(invite(address="192.0.2.1"), tmp_path / "host") == {"address-missing"}


async def test_an_address_that_leads_elsewhere_is_unreachable(opened, issue):
    """As behind a translation of addresses: another program answers there, and not with the nonce."""

    async def answer(_reader, writer):
        writer.write(b"something else\n")
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    secrets = issue("gpu2")
    async with opened() as made, other:
        request = JoinRequest(
            token=(secrets / "token").read_text().strip(),
            name="gpu2",
            address="127.0.0.1",
            port=other.sockets[0].getsockname()[1],
            nonce="0" * 32,
            ray=RAY,
            python=platform.python_version(),
            clock=NOW,
        )
        peer = Peer(name="gpu2", addresses=frozenset({"127.0.0.1"}), fingerprint="", issued_at=0.0)
        assert [problem.code for problem in await made.find_problems(request, peer)] == ["unreachable"]


async def test_a_host_that_was_removed_is_refused_until_it_is_invited_again(invite, opened, tmp_path):
    before = invite()
    async with opened(removed=lambda: {"gpu2": time.time() + 1}):
        assert await codes_of(before, tmp_path / "host") == {"removed"}
    async with opened(removed=lambda: {"gpu2": time.time() - 60, "gpu3": time.time() + 60}):
        await try_to_join(before, tmp_path / "host")


async def test_a_host_that_has_joined_gets_another_token_and_keeps_what_its_operator_added(invite, opened, tmp_path):
    async with opened():
        directory = await try_to_join(invite(), tmp_path / "host")
    replace(directory, commands={"vllm": "/opt/vllm"}).save()
    made = invite()
    new = replace(made, files=made.files | {"token": "n" * 40}, cluster="127.0.0.2:7777")
    after = join.renew(new, tmp_path / "host")
    assert after == node_directory.load(tmp_path / "host")
    assert (after.commands, after.cluster) == ({"vllm": "/opt/vllm"}, "127.0.0.2:7777")
    assert {each.name: each.read_text() for each in after.secrets.iterdir()} == new.files
    assert {each.name for each in (tmp_path / "host").iterdir()} == {"secrets", node_directory.FILE}


async def test_what_is_no_renewal_changes_nothing(invite, opened, tmp_path):
    with pytest.raises(NotJoined):
        join.renew(invite(), tmp_path / "nowhere")
    async with opened():
        await try_to_join(invite(), tmp_path / "host")
    kept = read_host(tmp_path / "host")
    made = invite()
    for wrong, codes in (
        (invite("gpu7"), ["joined-before"]),
        (replace(made, address="192.0.2.1"), ["address-missing"]),
        (replace(made, address="nonsense.invalid"), ["address-missing"]),
        (replace(made, ray="2.59.0", python="3.9.1"), ["other-ray", "other-python"]),
        (replace(made, files=made.files | {"token": "short"}), ["bad-secrets"]),
        (replace(made, files=made.files | {"host.key": invite().files["host.key"]}), ["bad-secrets"]),
        (replace(made, files=made.files | {"ca.crt": "x" * 40}), ["bad-secrets"]),
    ):
        with pytest.raises(NotJoined) as refused:
            join.renew(wrong, tmp_path / "host")
        assert [problem.code for problem in refused.value.problems] == codes
        assert read_host(tmp_path / "host") == kept


def read_host(path):
    return {str(each.relative_to(path)): each.read_text() for each in path.rglob("*") if each.is_file()}


async def test_a_renewal_that_cannot_be_written_changes_nothing(invite, opened, tmp_path, monkeypatch):
    async with opened():
        await try_to_join(invite(), tmp_path / "host")
    kept = read_host(tmp_path / "host")

    def is_full(*_args):
        raise OSError("no space left")

    for kind, name in ((Invitation, "write_files"), (node_directory.NodeDirectory, "save")):
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, is_full)
            with pytest.raises(NotJoined) as refused:
                join.renew(invite(), tmp_path / "host")
        assert [problem.code for problem in refused.value.problems] == ["cannot-keep"]
        assert read_host(tmp_path / "host") == kept


async def test_secrets_survive_a_renewal_that_was_killed_and_one_that_then_fails(invite, opened, tmp_path):
    async with opened():
        directory = await try_to_join(invite(), tmp_path / "host")
    kept = read_host(tmp_path / "host")
    directory.secrets.rename(tmp_path / "host" / "secrets.old")  # as far as it came
    made = invite()
    with pytest.raises(NotJoined):
        join.renew(replace(made, files=made.files | {"token": "short"}), tmp_path / "host")
    assert read_host(tmp_path / "host") == kept
    join.renew(made, tmp_path / "host")
    assert {each.name: each.read_text() for each in directory.secrets.iterdir()} == made.files


async def test_the_join_server_connects_only_to_the_machine_that_asks(opened, issue):
    """Else a member of the cluster could have it knock at any address that it reaches."""
    met = []

    async def answer(_reader, writer):
        met.append(writer.get_extra_info("peername"))
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    secrets = issue("gpu2", "10.0.0.2")
    async with opened() as made, other:
        request = JoinRequest(
            token=(secrets / "token").read_text().strip(),
            name="gpu2",
            address="127.0.0.1",
            port=other.sockets[0].getsockname()[1],
            nonce="0" * 32,
            ray=RAY,
            python=platform.python_version(),
            clock=NOW,
        )
        peer = Peer(name="gpu2", addresses=frozenset({"10.0.0.2"}), fingerprint="", issued_at=0.0)
        assert [problem.code for problem in await made.find_problems(request, peer)] == ["other-address"]
    assert met == []


async def test_a_name_is_kept_for_who_was_let_in_until_it_is_a_node(invite, opened, tmp_path):
    other = invite(address="127.0.0.2", certified="127.0.0.2")
    async with opened():
        await try_to_join(invite(), tmp_path / "first")
        assert await codes_of(other, tmp_path / "other") == {"name-taken"}
        await try_to_join(invite(), tmp_path / "invited-again")


async def test_connections_that_say_nothing_keep_no_machine_from_joining(invite, opened, tmp_path, port, issue):
    secrets = issue("gpu3")
    context = ssl.create_default_context(cafile=str(secrets / "ca.crt"))
    context.load_cert_chain(secrets / "host.crt", secrets / "host.key")
    async with opened():
        silent = [await asyncio.open_connection("127.0.0.1", port, ssl=context) for _ in range(join_server.AT_A_TIME)]
        async with asyncio.timeout(join_server.LINE_WITHIN - 1):
            await try_to_join(invite(), tmp_path / "host")
        for _, writer in silent:
            writer.close()


async def test_a_connection_without_a_handshake_is_closed(opened, port, monkeypatch):
    monkeypatch.setattr(join_server, "HANDSHAKE_WITHIN", 0.2)
    async with opened():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("apart", [-300, -31, 31, 300])
async def test_clocks_that_are_apart_are_named(invite, opened, tmp_path, apart):
    async with opened():
        assert await codes_of(invite(), tmp_path / "host", clock=lambda: NOW + apart) == {"clocks-apart"}


async def test_clocks_may_be_a_little_apart(invite, opened, tmp_path):
    async with opened():
        await try_to_join(invite(), tmp_path / "host", clock=lambda: NOW + 20)


async def test_a_gpu_that_was_promised_and_is_not_there_is_named(invite, tmp_path):
    assert await codes_of(invite(gpus=2), tmp_path / "host", gpus=1) == {"no-gpu"}


async def test_a_machine_without_ray_is_named(invite, tmp_path, monkeypatch):
    monkeypatch.setattr(join, "ray_version", lambda: "")
    assert await codes_of(invite(), tmp_path / "host") == {"no-ray"}


async def test_a_machine_joins_once(invite, opened, tmp_path):
    async with opened():
        await try_to_join(invite(), tmp_path / "host")
        with pytest.raises(NotJoined) as refused:
            await try_to_join(invite(), tmp_path / "host")
    assert [problem.code for problem in refused.value.problems] == ["joined-before"]


async def test_a_machine_whose_engines_would_be_left_alone_does_not_join_until_it_is_said_what_becomes_of_them(
    invite, opened, tmp_path, runs
):
    runs.start("r1", EngineCommand(argv=("/bin/sleep", "600"), env={}), label={}, grace=1)
    hosts_own = Runs(tmp_path / "other" / "runs")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / node_directory.FILE).write_text("{}")
    hosts_own.start("r2", EngineCommand(argv=("/bin/sleep", "600"), env={}), label={}, grace=1)

    def list_mine():  # other tests may run engines
        return [place for place in join.list_supervised() if place.startswith(str(tmp_path))]

    async def join_with(directory, before):
        how = {"count_gpus": lambda: 0, "clock": lambda: NOW, "list_supervised": list_mine, "runs_before": before}
        return await asyncio.to_thread(partial(join.join, invite(), tmp_path / directory, **how))

    try:
        async with opened():
            with pytest.raises(NotJoined, match=f"--runs {runs.root}") as refused:
                await join_with("host", "")
            assert [(one.code, one.here) for one in refused.value.problems] == [("engines-run", str(runs.root))]
            assert not (tmp_path / "host").exists()
            assert (await join_with("adopting", str(runs.root))).runs == runs.root
            assert (await join_with("another", join.NO_RUNS)).runs == tmp_path / "another" / "runs"
    finally:
        for run in hosts_own.all():
            assert process.stop(run, grace=0)


async def test_a_disk_that_is_full_is_named_and_nothing_is_half_joined(invite, opened, tmp_path, monkeypatch):
    def fail(_directory):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node_directory.NodeDirectory, "save", fail)
    async with opened():
        assert await codes_of(invite(), tmp_path / "host") == {"cannot-keep"}
        (tmp_path / "made").mkdir()
        with pytest.raises(NotJoined):
            await try_to_join(invite(), tmp_path / "made")
    assert list((tmp_path / "made").iterdir()) == []


async def test_a_directory_that_cannot_be_made_is_named(invite, opened, tmp_path):
    (tmp_path / "file").write_text("")
    async with opened():
        with pytest.raises(NotJoined, match="file"):
            await try_to_join(invite(), tmp_path / "file" / "host")


async def test_a_join_server_that_is_closed_is_named(invite, tmp_path):
    assert await codes_of(invite(), tmp_path / "host") == {"no-join-server"}


async def test_a_head_that_does_not_answer_is_named(invite, opened, tmp_path):
    async with opened(nodes=None):
        assert await codes_of(invite(), tmp_path / "host") == {"no-head"}


async def test_all_that_is_wrong_is_said_at_once(invite, opened, tmp_path):
    node = ClusterNode(node="n", address="10.0.0.9", alive=True, host="gpu2", resources={})
    async with opened(nodes=[node], ray="2.61.0"):
        found = await codes_of(invite(), tmp_path / "host", clock=lambda: NOW + 99)
    assert found == {"name-taken", "other-ray", "clocks-apart"}


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b"{}\n", b"x" * 20_000 + b"\n", b'{"token": 1}\n'])
async def test_a_join_server_outlives_what_is_no_request(opened, port, issue, line):
    secrets = issue("gpu2")
    context = ssl.create_default_context(cafile=str(secrets / "ca.crt"))
    context.load_cert_chain(secrets / "host.crt", secrets / "host.key")
    async with opened():
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(line)
            answer = await reader.read()
            writer.close()
            assert not answer or json.loads(answer)["problems"] == [{"code": "other-form", "here": "", "there": ""}]


async def test_a_join_server_answers_only_with_a_certificate(opened, port, issue):
    context = ssl.create_default_context(cafile=str(issue("gpu2") / "ca.crt"))
    async with opened():
        with pytest.raises((ssl.SSLError, ConnectionResetError)):  # noqa: PT012 - in TLS 1.3 the first read shows it
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(b"{}\n")
            if not await reader.read():
                raise ConnectionResetError


def test_every_problem_has_words():
    for code in SENTENCES:
        assert "{" not in join.describe(JoinProblem(code=code, here="this", there="that"))
    assert join.describe(JoinProblem(code="of-a-later-release"))
    assert join_server.CLOCKS < 60
