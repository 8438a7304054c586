"""One agent of a host acts: a later one ends an earlier one, also one that hangs."""

import os
import signal
import subprocess
import sys

import pytest
from django.conf import settings

from modelregistry.cluster import agent_lock
from modelregistry.cluster.agent_lock import HeldByAnother
from tests.waiting import until

HOLDER = """
import sys, time
from pathlib import Path
from modelregistry.cluster import agent_lock
agent_lock.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=settings.BASE_DIR, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("hangs", [False, True])
def test_a_later_agent_ends_the_one_before(holder, tmp_path, hangs):
    if hangs:
        os.kill(holder.pid, signal.SIGSTOP)
    os.close(agent_lock.take(tmp_path, patience=0.1))
    assert holder.wait(10) == -signal.SIGKILL


def test_one_that_ends_by_itself_is_waited_for(holder, tmp_path):
    holder.terminate()
    os.close(agent_lock.take(tmp_path, patience=30.0))
    assert holder.wait(10) == -signal.SIGTERM


def test_one_that_cannot_be_ended_keeps_the_later_one_from_acting(tmp_path, monkeypatch):
    monkeypatch.setattr(agent_lock, "GONE_WITHIN", 0.1)
    held = agent_lock.take(tmp_path)  # by this process, which ends no agent but others
    with pytest.raises(HeldByAnother):
        agent_lock.take(tmp_path, patience=0.1)
    os.close(held)
    os.close(agent_lock.take(tmp_path))


def test_a_number_that_another_process_has_now_is_not_signalled(tmp_path):
    (tmp_path / agent_lock.FILE).write_text(f"[{os.getppid()}, 1]")
    os.close(agent_lock.take(tmp_path))
    until(lambda: os.getppid() > 0)
