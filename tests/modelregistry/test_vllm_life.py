"""A real vLLM (its build for CPUs) under a real supervisor: started, adopted, killed part by part, drained, stopped.

One story in three acts, as each start takes a minute: what is killed in one act is what the next one has to start.
"""

import json
import os
import signal
import threading
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from modelregistry.models import Replica
from modelregistry.process import process, shim
from modelregistry.supervisor.adoption import ADOPTED
from modelregistry.supervisor.loop import SHIM_KILLED
from tests import engines
from tests.output import lines_of
from tests.waiting import until

# Three starts of a minute each on an idle machine, and CI's is not.
pytestmark = pytest.mark.timeout(1500)

CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
START = 400.0  # seconds


class Answer:
    """A stream of so many answers at a time, read by a thread of its own, up to its end or its connection's."""

    def __init__(self, replica: Replica, tokens: int, *, answers: int = 1) -> None:
        question = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "ignore_eos": True}
        request = Request(
            f"{replica.url}/v1/chat/completions",
            data=json.dumps({**question, "max_tokens": tokens, "n": answers, "stream": True}).encode(),
            headers={"authorization": f"Bearer {replica.api_key}", "content-type": "application/json"},
        )
        self.response = urlopen(request, timeout=120)
        self.lines = [self.response.readline().decode()]
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        try:
            self.lines += [line.decode() for line in self.response]
        except OSError:
            return

    def rest(self) -> str:
        self.thread.join(180)
        assert not self.thread.is_alive()
        return "".join(self.lines)


def ask(replica: Replica) -> int:
    """Return how many tokens it makes when asked for one."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    request = Request(
        f"{replica.url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {replica.api_key}", "content-type": "application/json"},
    )
    with urlopen(request, timeout=120) as answer:
        return json.load(answer)["usage"]["completion_tokens"]


def name(who: shim.Identity) -> str:
    """Return the name that a process of vLLM gives itself: VLLM::EngineCore, VLLM::Worker and so on."""
    return Path(f"/proc/{who.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


def part(run: process.Run, word: str) -> shim.Identity:
    return until(lambda: next((who for who in process.process_tree(run) if word in name(who)), None), 20)


def dead(everybody: list[shim.Identity]) -> bool:
    return not any(shim.is_alive(who) for who in everybody)


def everybody(run: process.Run) -> list[shim.Identity]:
    tree = process.process_tree(run)
    # The API server, its EngineCore and a resource tracker at least.
    assert len(tree) >= 3, [name(who) for who in tree]
    assert {who.pid for who in process.find_leftovers(run)} == {who.pid for who in tree}
    return [run.shim, *tree]


def fails_and_comes_back(site, before: Replica, parts: list[shim.Identity], *, shim_killed: bool = False) -> Replica:
    # Without a key in its row no gateway sends it anything.
    down = until(lambda: (row := site.replica("tiny")).api_key != before.api_key and row.detail and row, 60)
    assert dead(parts)
    ended = process.exit_of(site.run_of(before))
    assert (ended is None) is shim_killed
    assert down.detail.startswith(str(ended or SHIM_KILLED)), down.detail
    assert down.restarts == before.restarts + 1
    after = site.reaches("ready", "tiny", seconds=START)
    assert after.run_id != before.run_id
    assert ask(after) == 1
    return after


def test_the_life_of_a_vllm(site):
    site.environment |= CPU
    supervisor = site.supervise()
    site.model("tiny", engine="vllm", path=str(engines.tiny_llama()), context=4096, args=["--enforce-eager"])
    until(lambda: site.replica("tiny"), 20)
    first = site.reaches("ready", "tiny", seconds=START)
    assert ask(first) == 1
    assert first.version.startswith("0.")
    parts = everybody(site.run_of(first))

    # The supervisor is killed in the middle of an answer: the answer goes on, and the next one adopts the same process.
    answer = Answer(first, 3000)  # longer than a busy machine needs for a supervisor's start: 20 s here
    supervisor.kill()
    supervisor.wait()
    supervisor = site.supervise("--stop-engines")
    until(lambda: lines_of(ADOPTED, site.log.read_text()))
    busy = until(lambda: (row := site.replica("tiny")).live and row.live["running"] and row.live["cache_used"] and row)
    assert (busy.pid, busy.run_id, busy.state) == (first.pid, first.run_id, "ready")
    text = answer.rest()
    assert text.rstrip().endswith("data: [DONE]")
    assert '"finish_reason":"length"' in text
    assert everybody(site.run_of(first)) == parts

    # Its engine core is killed in the middle of an answer, which must not seem to have finished.
    answer = Answer(first, 3500)
    os.kill(part(site.run_of(first), "EngineCore").pid, signal.SIGKILL)
    assert '"finish_reason":"' not in answer.rest()
    second = fails_and_comes_back(site, first, parts)

    # Its front is killed, and so is the shim that would have ended the rest: core and worker hold the memory, are
    # no process's children, and nothing listens. They are known by their mark and their cgroup.
    parts = everybody(site.run_of(second))
    os.kill(parts[0].pid, signal.SIGKILL)
    os.kill(second.pid, signal.SIGKILL)
    third = fails_and_comes_back(site, second, parts, shim_killed=True)

    # Everything is stopped with a stream open: more than the little time that it is given for that.
    parts = everybody(site.run_of(third))
    # One answer of 3,500 tokens was at its end in that time on an idle machine.
    answer = Answer(third, 3500, answers=16)
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == 0
    assert dead(parts)
    # On TERM vLLM may notify its clients by "finish_reason":"abort", or nothing more.
    assert '"finish_reason":"length"' not in answer.rest()
    assert site.living() == []
    assert site.replica("tiny").state == "stopped"
