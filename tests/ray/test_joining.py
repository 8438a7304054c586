"""Joining a real cluster from machines of their own, with the command that a host runs."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from modelregistry.cluster import node, node_directory
from modelregistry.cluster.invitation import Invitation
from tests.ray.clusters import RENEWAL, Cluster, Host, ask, cluster, wait_for_hosts
from tests.ray.networks import ip
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)  # network namespaces need root


def join(made: Cluster, number: int, invitation: Invitation, directory: Path) -> "subprocess.CompletedProcess[str]":
    """Run the command of a host on the machine of that number."""
    command = [str(made.python), "-m", "modelregistry.cluster.join", "--runs", "none", str(directory)]
    return subprocess.run(
        made.spaces[number].inside(command),
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(node.CODE)},
        input=invitation.written(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_a_machine_joins_and_what_must_not_join_learns_why():
    with cluster(spare=2) as made:
        address = made.spaces[1].address
        log = made.directory / "head" / "ray.log"
        until(lambda: "Ray runtime started" in log.read_text(), 60)
        invitation = made.invite("gpu1", address)
        directory = made.directory / "gpu1"

        wrong = replace(invitation, files=invitation.files | {"token": "x" * 40})
        assert_refused(join(made, 1, wrong, directory), directory, "token")
        # An address that the machine has, and that is routed nowhere.
        ip("-n", made.spaces[1].name, "address", "add", "10.88.0.1/32", "dev", "lo")
        assert_refused(join(made, 1, replace(invitation, address="10.88.0.1"), directory), directory, "10.88.0.1")
        assert_refused(join(made, 1, replace(invitation, ray="2.59.0"), directory), directory, "2.59.0")
        assert_refused(join(made, 1, replace(invitation, python="3.9.0"), directory), directory, "3.9.0")
        assert_refused(join(made, 1, replace(invitation, gpus=8), directory), directory, "8 GPUs")

        joined = join(made, 1, invitation, directory)
        assert joined.returncode == 0, joined.stderr
        made.hosts["gpu1"] = host = Host(node_directory.load(directory), made.spaces[1])
        host.start()
        async with made.link() as link:
            await link.wait_until_ready(60)
            await wait_for_hosts(link, "gpu1")
            await link.open_host("gpu1")
            await link.renew("gpu1", RENEWAL)
            assert await ask(link, "gpu1", "list") == {}

            second = made.invite("gpu1", made.spaces[2].address)
            assert_refused(join(made, 2, second, made.directory / "gpu2"), made.directory / "gpu2", "gpu1")

            started = await ask(link, "gpu1", "start", run_id="r1", argv=["/bin/sleep", "300"], env={})
            host.process.terminate()
            assert host.process.wait(40) == 0
            assert Path(f"/proc/{started['pid']}").exists()  # its service may be restarted, engines go on
        left = subprocess.run(
            made.spaces[1].inside([str(made.python), "-m", "modelregistry.cluster.leave", str(directory)]),
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(node.CODE)},
            timeout=60,
            check=False,
        )
        assert left.returncode == 0
        assert not Path(f"/proc/{started['pid']}").exists()
        assert not (directory / "secrets").exists()
        until(lambda: not made.spaces[1].pids(), 20)  # the fence as well


def assert_refused(done: "subprocess.CompletedProcess[str]", directory: Path, word: str) -> None:
    assert done.returncode == 1
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not directory.exists()
