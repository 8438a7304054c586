"""`createcluster` and `addhost`, with Ray's own environment, as `make test-setup` installs it."""

import re
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from modelregistry.cluster import head
from modelregistry.cluster.access import check_secrets
from modelregistry.cluster.invitation import Invitation
from modelregistry.hostside import own_address
from modelregistry.install.engine_environments import RAY

UNIT = Path(__file__).parents[3] / "deploy" / "madoguchi-head.service"


@pytest.fixture(autouse=True)
def _own_addresses(monkeypatch):
    """Let this machine have each address of 10.0.0.0/8 and fd00::/8."""
    find_fault = own_address.find_fault
    monkeypatch.setattr(
        own_address, "find_fault", lambda address: None if address.startswith(("10.", "fd")) else find_fault(address)
    )


@pytest.fixture(autouse=True)
def site(settings, tmp_path):
    settings.VAR = tmp_path
    return tmp_path / "cluster"


def invite(site, name: str, *arguments: str) -> Invitation:
    call_command("addhost", name, *arguments)
    return Invitation.read((site / "invitations" / name).read_text())


def test_a_host_is_invited_with_all_that_it_needs(site, settings, capsys, tmp_path):
    call_command("createcluster", "10.0.0.1", "--redis", "10.0.0.1:7001")
    assert capsys.readouterr().out.split() == [
        str(RAY.python(settings.CACHE)),
        "-m",
        "modelregistry.cluster.head",
        str(site / "head"),
    ]
    assert head.load(site / "head").redis == "10.0.0.1:7001"
    made = invite(site, "gpu1", "--address", "10.0.0.2", "--gpus", "2")
    assert (made.name, made.address, made.cluster, made.gpus) == ("gpu1", "10.0.0.2", "10.0.0.1:6377", 2)
    assert made.models == str(settings.MODELS)
    made.write_files(tmp_path / "host")
    check_secrets(tmp_path / "host")
    context = ssl.create_default_context(cafile=str(tmp_path / "host" / "ca.crt"))
    context.load_cert_chain(tmp_path / "host" / "host.crt", tmp_path / "host" / "host.key")


def test_addresses_of_ipv6_are_in_brackets_where_a_port_or_a_path_follows(site, capsys):
    call_command("createcluster", "fd00::1", "--redis", "[::1]:7001")
    assert (head.load(site / "head").address, head.load(site / "head").redis) == ("fd00::1", "[::1]:7001")
    made = invite(site, "gpu1", "--address", "fd00::2")
    assert (made.address, made.cluster) == ("fd00::2", "[fd00::1]:6377")
    assert f"scp {site / 'invitations' / 'gpu1'} [fd00::2]:invitation" in capsys.readouterr().out


@pytest.mark.parametrize("redis", ["10.0.0.1", "::1:7001", "[::1]", "10.0.0.1:redis"])
def test_what_names_no_redis_is_refused_and_makes_no_cluster(site, redis):
    with pytest.raises(CommandError, match="--redis"):
        call_command("createcluster", "10.0.0.1", "--redis", redis)
    assert not site.exists()


def test_the_unit_of_the_head_runs_what_is_printed_with_the_paths_of_an_installed_version():
    (command,) = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    python = RAY.python(Path("/var/cache/madoguchi"))
    assert command == f"{python} -m modelregistry.cluster.head /var/lib/madoguchi/cluster/head"


def test_a_host_that_was_invited_before_is_asked_to_renew(site, capsys):
    call_command("createcluster", "10.0.0.1")
    printed = []
    for address in ("10.0.0.2", "10.0.0.3"):
        capsys.readouterr()
        invite(site, "gpu1", "--address", address)
        printed.append(capsys.readouterr().out)
    assert ["join --renew /var/lib/madoguchi-host" in one for one in printed] == [False, True]


def test_creating_it_again_keeps_who_was_let_in(site, capsys):
    call_command("createcluster", "10.0.0.1")
    first = invite(site, "gpu1", "--address", "10.0.0.2")
    call_command("createcluster", "10.0.0.9")
    again = invite(site, "gpu1", "--address", "10.0.0.2")
    assert again.cluster == "10.0.0.9:6377"
    for name in ("token", "ca.crt"):
        assert again.files[name] == first.files[name]
    assert again.files["host.key"] != first.files["host.key"]


def test_the_heads_port_can_be_chosen_and_stays(site, capsys):
    call_command("createcluster", "10.0.0.1", "--port", "7777")
    call_command("createcluster", "10.0.0.1", "--redis", "10.0.0.1:7001")
    assert (head.load(site / "head").port, head.load(site / "head").redis) == (7777, "10.0.0.1:7001")
    assert invite(site, "gpu1", "--address", "10.0.0.2").cluster == "10.0.0.1:7777"


def test_creating_it_again_keeps_the_redis_unless_another_one_or_none_is_given(site):
    call_command("createcluster", "10.0.0.1", "--redis", "10.0.0.1:7001")
    for given, kept in (
        ([], "10.0.0.1:7001"),
        (["--redis", "10.0.0.1:7002"], "10.0.0.1:7002"),
        (["--redis", ""], ""),
    ):
        call_command("createcluster", "10.0.0.1", *given)
        assert head.load(site / "head").redis == kept


def test_a_head_that_moves_names_the_hosts_that_have_to_know_and_writes_them_files(site, capsys):
    call_command("createcluster", "10.0.0.1")
    first = invite(site, "gpu1", "--address", "10.0.0.2", "--gpus", "2")
    capsys.readouterr()
    call_command("createcluster", "10.0.0.1", "--redis", "10.0.0.1:7001")
    assert capsys.readouterr().err == ""
    call_command("createcluster", "10.0.0.9")
    seen = capsys.readouterr()
    assert str(site / "invitations" / "gpu1") in seen.err
    assert len(seen.out.splitlines()) == 1  # the command that runs the head
    again = Invitation.read((site / "invitations" / "gpu1").read_text())
    assert (again.cluster, again.address, again.gpus) == ("10.0.0.9:6377", "10.0.0.2", 2)
    assert again.files["token"] == first.files["token"]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.7", "::1", "localhost", "nonsense.invalid", "198.51.100.1"])
def test_an_address_that_leads_no_host_to_this_machine_makes_no_cluster(site, address):
    with pytest.raises(CommandError, match=address):
        call_command("createcluster", address)
    assert not site.exists()


@pytest.mark.parametrize("port", ["80", "6378", "6400", "6579", "6580", "6599", "18100", "18999", "65536", "-1", "x"])
def test_a_port_that_is_not_free_for_the_head_is_refused(port):
    with pytest.raises(CommandError):
        call_command("createcluster", "10.0.0.1", f"--port={port}")


@pytest.mark.parametrize("redis", ["127.0.0.1:7001", "10.0.0.1:7001", "localhost:7001", "[::1]:7001"])
def test_a_head_and_its_redis_on_one_machine_have_two_ports(site, redis):
    with pytest.raises(CommandError, match="7001"):
        call_command("createcluster", "10.0.0.1", "--port", "7001", "--redis", redis)
    assert not site.exists()
    call_command("createcluster", "10.0.0.1", "--redis", redis)
    with pytest.raises(CommandError, match="7001"):
        call_command("createcluster", "10.0.0.1", "--port", "7001")
    assert head.load(site / "head").port == 6377


@pytest.mark.parametrize("port", [6377, 6378, 6380, 6599, 18100])
def test_a_redis_on_this_machine_at_a_port_of_the_cluster_is_refused_and_elsewhere_it_is_not(site, port):
    with pytest.raises(CommandError, match=str(port)):
        call_command("createcluster", "10.0.0.1", "--redis", f"127.0.0.1:{port}")
    assert not site.exists()
    call_command("createcluster", "10.0.0.1", "--redis", f"198.51.100.1:{port}")
    assert head.load(site / "head").redis == f"198.51.100.1:{port}"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.7", "::1", "localhost"])
def test_an_address_that_leads_each_machine_to_itself_invites_no_host(site, address):
    call_command("createcluster", "10.0.0.1")
    with pytest.raises(CommandError, match=address):
        call_command("addhost", "gpu1", "--address", address)
    assert not (site / "invitations").exists()


@pytest.mark.parametrize(
    ("files", "place"), [((), "/srv/madoguchi"), (("bundle.json",), "/opt/madoguchi-host/current")]
)
def test_commands_for_a_host_are_those_of_how_the_site_was_installed(monkeypatch, tmp_path, capsys, files, place):
    call_command("createcluster", "10.0.0.1")
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr("modelregistry.management.commands.addhost.CODE", tmp_path)
    call_command("addhost", "gpu1", "--address", "10.0.0.2")
    assert f"cd {place} &&" in capsys.readouterr().out


def test_without_a_cluster_no_host_is_invited():
    with pytest.raises(CommandError, match="createcluster"):
        call_command("addhost", "gpu1", "--address", "10.0.0.2")


@pytest.mark.parametrize("missing", ["token", "ca.crt", "host.crt", "host.key"])
def test_a_cluster_that_is_not_secured_invites_no_host(site, missing):
    call_command("createcluster", "10.0.0.1")
    (site / "head" / "secrets" / missing).unlink()
    with pytest.raises(CommandError, match=missing):
        call_command("addhost", "gpu1", "--address", "10.0.0.2")


@pytest.mark.parametrize("name", ["", "GPU1", "gpu_1", "gpu 1", "-a", "a" * 64, "gpu1\n", "../x", "head", "ホスト"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(CommandError):
        call_command("addhost", name, "--address", "10.0.0.2")


@pytest.mark.parametrize("address", ["", "0.0.0.0", "http://gpu1", "10.0.0.2:80", "a b"])
def test_an_address_that_is_none_is_refused(address):
    call_command("createcluster", "10.0.0.1")
    with pytest.raises(CommandError):
        call_command("addhost", "gpu1", "--address", address)
    with pytest.raises(CommandError):
        call_command("createcluster", address)


def test_without_ray_the_command_that_installs_it_is_named(settings, tmp_path):
    settings.CACHE = tmp_path / "empty"
    with pytest.raises(CommandError, match="installray"):
        call_command("createcluster", "10.0.0.1")


def test_a_machine_that_is_too_slow_for_a_certificate_is_named(monkeypatch):
    monkeypatch.setattr("modelregistry.cluster.site.ISSUED_WITHIN", 0.001)
    with pytest.raises(CommandError, match="within"):
        call_command("createcluster", "10.0.0.1")


@pytest.mark.parametrize("gpus", ["-1", "65", "x", "1_0", "２"])
def test_a_number_of_gpus_that_no_host_has_is_refused(gpus):
    call_command("createcluster", "10.0.0.1")
    with pytest.raises(CommandError):
        call_command("addhost", "gpu1", "--address", "10.0.0.2", f"--gpus={gpus}")


def test_an_invitation_is_a_file_of_its_owner_and_nothing_of_it_is_printed(site, capsys):
    call_command("createcluster", "10.0.0.1")
    made = invite(site, "gpu1", "--address", "10.0.0.2")
    path = site / "invitations" / "gpu1"
    assert path.stat().st_mode & 0o777 == 0o600
    printed = capsys.readouterr().out
    assert str(path) in printed
    assert not [line for line in made.written().splitlines() if line in printed]
    path.chmod(0o644)  # as of a careless copy
    invite(site, "gpu1", "--address", "10.0.0.2")
    assert path.stat().st_mode & 0o777 == 0o600


def read_files(directory) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def trusts(site, invitation: Invitation, tmp_path) -> bool:
    """Return whether the cluster's present authority signed the certificate."""
    (tmp_path / "invited.crt").write_text(invitation.files["host.crt"])
    command = ["openssl", "verify", "-CAfile", site / "authority" / "ca.crt", tmp_path / "invited.crt"]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def test_a_host_that_was_removed_has_nothing_that_is_good_any_more(site, capsys, tmp_path):
    call_command("createcluster", "10.0.0.1", "--port", "7777")
    bad = invite(site, "gpu1", "--address", "10.0.0.2")
    before = invite(site, "gpu2", "--address", "10.0.0.3", "--gpus", "2")
    assert trusts(site, bad, tmp_path)
    capsys.readouterr()
    call_command("removehost", "gpu1")
    printed = capsys.readouterr().out
    after = Invitation.read((site / "invitations" / "gpu2").read_text())
    assert str(site / "invitations" / "gpu2") in printed
    assert not (site / "invitations" / "gpu1").exists()
    assert (after.name, after.address, after.gpus, after.cluster) == ("gpu2", "10.0.0.3", 2, "10.0.0.1:7777")
    for name in ("token", "ca.crt", "host.crt", "host.key"):
        assert after.files[name] != before.files[name]
    assert not trusts(site, bad, tmp_path)
    assert trusts(site, after, tmp_path)
    check_secrets(site / "head" / "secrets")
    assert read_files(site / "head" / "secrets")["token"] == after.files["token"]
    assert head.load(site / "head").removed()["gpu1"] == pytest.approx(time.time(), abs=60)


def test_a_rotation_that_fails_changes_nothing(site, monkeypatch):
    call_command("createcluster", "10.0.0.1")
    before = read_files(site / "authority"), read_files(site / "head" / "secrets")
    monkeypatch.setattr("modelregistry.cluster.site.ISSUED_WITHIN", 0.001)
    with pytest.raises(CommandError):
        call_command("rotatecluster")
    assert (read_files(site / "authority"), read_files(site / "head" / "secrets")) == before
    assert {path.name for path in site.iterdir()} == {"authority", "head"}


def test_a_rotation_gives_each_host_a_file(site):
    call_command("createcluster", "10.0.0.1")
    addresses = {"gpu1": "10.0.0.2", "gpu2": "10.0.0.3"}
    before = {name: invite(site, name, "--address", address) for name, address in addresses.items()}
    call_command("rotatecluster")
    after = {path.name: Invitation.read(path.read_text()) for path in (site / "invitations").iterdir()}
    assert after.keys() == before.keys()
    assert len({each.files["token"] for each in after.values()}) == 1
    assert after["gpu1"].files["token"] != before["gpu1"].files["token"]


@pytest.mark.parametrize("command", ["removehost gpu1", "rotatecluster"])
def test_without_a_cluster_nothing_is_changed(command):
    with pytest.raises(CommandError, match="createcluster"):
        call_command(*command.split())


def read_all(directory) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["gpu11", "gpu2", "", "head", "../head", "../invitations/gpu1"])
def test_a_host_that_is_not_known_is_not_removed_and_nothing_is_changed(site, name):
    call_command("createcluster", "10.0.0.1")
    invite(site, "gpu1", "--address", "10.0.0.2")
    invite(site, "gpu2", "--address", "10.0.0.3")
    call_command("removehost", "gpu2")  # known once
    before = read_all(site)
    with pytest.raises(CommandError, match="gpu1"):
        call_command("removehost", name)
    assert read_all(site) == before


def test_a_removal_that_failed_can_be_repeated(site, monkeypatch):
    call_command("createcluster", "10.0.0.1")
    before = invite(site, "gpu1", "--address", "10.0.0.2")
    with monkeypatch.context() as slow:
        slow.setattr("modelregistry.cluster.site.ISSUED_WITHIN", 0.001)
        with pytest.raises(CommandError):
            call_command("removehost", "gpu1")
    assert "gpu1" in head.load(site / "head").removed()
    call_command("removehost", "gpu1")
    assert read_files(site / "head" / "secrets")["token"] != before.files["token"]
    assert not list((site / "invitations").iterdir())


@pytest.mark.parametrize("address", ["10.0.0.2", "GPU-1.internal", "fd00:0::2"])
def test_an_address_of_another_host_invites_none_unless_that_one_is_replaced(site, address):
    call_command("createcluster", "10.0.0.1")
    own = {"GPU-1.internal": "gpu-1.internal", "fd00:0::2": "fd00::2"}.get(address, address)
    invite(site, "gpu1", "--address", own)
    before = read_all(site)
    with pytest.raises(CommandError, match="gpu1"):
        call_command("addhost", "gpu2", "--address", address)
    with pytest.raises(CommandError, match="gpu11"):
        call_command("addhost", "gpu2", "--address", address, "--replaces", "gpu11")
    assert read_all(site) == before
    assert invite(site, "gpu2", "--address", address, "--replaces", "gpu1").name == "gpu2"
    assert [path.name for path in (site / "invitations").iterdir()] == ["gpu2"]
    call_command("rotatecluster")
    assert [path.name for path in (site / "invitations").iterdir()] == ["gpu2"]
