"""`createcluster` and `addhost`, with Ray's own environment, as `make test-setup` installs it."""

import re
import ssl

import pytest
from django.core.management import CommandError, call_command

from modelregistry.cluster import head
from modelregistry.cluster.access import check_secrets
from modelregistry.cluster.invitation import Invitation
from modelregistry.install.engine_environments import RAY


@pytest.fixture(autouse=True)
def site(settings, tmp_path):
    settings.VAR = tmp_path
    return tmp_path / "cluster"


def invite(capsys, *arguments: str) -> Invitation:
    call_command("addhost", *arguments)
    return Invitation.read(re.search(r"<<'END'\n(.*)\nEND", capsys.readouterr().out, re.DOTALL)[1])


def test_a_host_is_invited_with_all_that_it_needs(site, settings, capsys, tmp_path):
    call_command("createcluster", "10.0.0.1", "--redis", "10.0.0.1:7001")
    assert capsys.readouterr().out.split() == [
        str(RAY.python(settings.CACHE)),
        "-m",
        "modelregistry.cluster.head",
        str(site / "head"),
    ]
    assert head.load(site / "head").redis == "10.0.0.1:7001"
    made = invite(capsys, "gpu1", "--address", "10.0.0.2", "--gpus", "2")
    assert (made.name, made.address, made.cluster, made.gpus) == ("gpu1", "10.0.0.2", "10.0.0.1:6379", 2)
    made.write_files(tmp_path / "host")
    check_secrets(tmp_path / "host")
    context = ssl.create_default_context(cafile=str(tmp_path / "host" / "ca.crt"))
    context.load_cert_chain(tmp_path / "host" / "host.crt", tmp_path / "host" / "host.key")


def test_creating_it_again_keeps_who_was_let_in(site, capsys):
    call_command("createcluster", "10.0.0.1")
    first = invite(capsys, "gpu1", "--address", "10.0.0.2")
    call_command("createcluster", "10.0.0.9")
    again = invite(capsys, "gpu1", "--address", "10.0.0.2")
    assert again.cluster == "10.0.0.9:6379"
    for name in ("token", "ca.crt"):
        assert again.files[name] == first.files[name]
    assert again.files["host.key"] != first.files["host.key"]


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


@pytest.mark.parametrize("gpus", ["-1", "65", "x", "1_0", "２"])
def test_a_number_of_gpus_that_no_host_has_is_refused(gpus):
    call_command("createcluster", "10.0.0.1")
    with pytest.raises(CommandError):
        call_command("addhost", "gpu1", "--address", "10.0.0.2", f"--gpus={gpus}")
