"""The service of a node: Ray runs on a host for as long as its service does, and no longer."""

import os
import signal
import subprocess
import threading

import pytest

from modelregistry.cluster import node_directory, node_service
from modelregistry.cluster.access import NotSecured
from modelregistry.cluster.node import NodeCommand
from modelregistry.cluster.node_service import NodeService, RunsAlready
from modelregistry.process import shim
from tests.waiting import until


@pytest.fixture
def kept(monkeypatch):
    """Provide a service of a shell with a child; `starts` counts."""
    monkeypatch.setattr(node_service, "PAUSES", (0.05,))
    starts = []

    def command():
        starts.append(1)
        return NodeCommand(("/bin/sh", "-c", "sleep 300 & wait"), {"PATH": os.defpath})

    made = NodeService(command)
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made, starts
    made.stop()
    thread.join(30)
    assert not thread.is_alive()


def family(made: NodeService) -> list[shim.Identity]:
    """Return the shell and its child, once both are there."""

    def both():
        shell = made.process and shim.identify(made.process.pid)
        below = shim.descendants(made.process.pid) if shell else []
        return [shell, *below] if below else None

    return until(both, 10)


def test_what_ended_is_started_again_and_leaves_nothing(kept):
    made, starts = kept
    shell, child = family(made)
    # The children are noted twice a second.
    until(lambda: child in made.below, 10)
    os.kill(shell.pid, signal.SIGKILL)
    until(lambda: len(starts) == 2, 10)
    assert not shim.is_alive(child)
    assert family(made)[0] != shell


def test_stopping_ends_all_of_it(kept):
    made, starts = kept
    members = family(made)
    made.stop()
    until(lambda: not any(shim.is_alive(who) for who in members), 20)
    assert len(starts) == 1


def test_what_cannot_be_started_is_tried_again(monkeypatch):
    monkeypatch.setattr(node_service, "PAUSES", (0.05,))
    tries = []

    def command():
        tries.append(1)
        if len(tries) == 1:
            raise NotSecured("its token is being replaced")
        return NodeCommand(("/nowhere/at/all" if len(tries) == 2 else "/bin/true",), {"PATH": os.defpath})

    made = NodeService(command)
    thread = threading.Thread(target=made.run)
    thread.start()
    until(lambda: len(tries) > 3, 10)
    made.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_one_service_runs_ray_for_a_directory(tmp_path):
    held = node_service.take_lock(tmp_path)
    with pytest.raises(RunsAlready):
        node_service.take_lock(tmp_path)
    os.close(held)
    os.close(node_service.take_lock(tmp_path))


def test_a_service_that_cannot_run_says_why(tmp_path, capsys):
    assert node_service.main(tmp_path) == 1
    assert "not the directory of a host" in capsys.readouterr().err


def test_what_a_killed_service_left_is_ended_and_nothing_else(tmp_path):
    def start(path):
        return subprocess.Popen(["/bin/sleep", "300"], env={node_directory.VARIABLE: str(path)})

    with start(tmp_path) as left, start(tmp_path / "other") as other:
        try:
            ending = threading.Thread(target=node_service.end_left, args=(tmp_path,))
            ending.start()
            assert left.wait(10) == -signal.SIGKILL
            ending.join(20)
            assert other.poll() is None
        finally:
            other.kill()
            left.kill()
