"""A real vLLM (its build for CPUs) whose model is split over two hosts, under a real controller."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelregistry.process import process
from modelregistry.process.process import Life
from tests import engines
from tests.modelregistry.gang_site import GangSite, ask
from tests.waiting import until

# Two starts of two ranks each, of a minute on an idle machine.
pytestmark = pytest.mark.timeout(1500)

START = 500.0  # seconds


@pytest.fixture
def site(transactional_db, tmp_path) -> Iterator[GangSite]:
    command = f"{engines.vllm_python()} -m vllm.entrypoints.cli.main"
    site = GangSite(tmp_path, environment={"VLLM_COMMAND": command, **engines.VLLM_ON_CPU})
    yield site
    site.close()


def name_of(pid: int) -> str:
    """Return the name that a process of vLLM gives itself: VLLM::Worker_TP1 and so on."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def test_a_real_vllm_is_split_over_hosts_and_started_again_as_one(site):
    site.start()
    site.gang(path=str(engines.tiny_llama()), context=256, slots=2, args=["--enforce-eager"])
    before = until(site.is_ready, START)
    assert ask(before[0], 120)
    workers = {row.host.name: process.process_tree(site.run_of_rank(row)) for row in before}
    assert sorted(workers) == ["gpu-1", "gpu-2"]
    assert all(len(tree) >= 2 for tree in workers.values())  # a front and its worker at least

    # Of the rank that does not answer, its worker: its front ends with it.
    second = before[1]
    worker = next(who.pid for who in workers[second.host.name] if "Worker" in name_of(who.pid))
    os.kill(worker, signal.SIGKILL)
    until(lambda: process.life_of(site.run_of_rank(before[0])) is Life.ENDED, 120)
    after = site.serves_again(before, seconds=START)
    assert ask(after[0], 120)
    assert site.living_ranks() == {"gpu-1": 1, "gpu-2": 1}
