"""What a starting supervisor makes of engines that ended before it came."""

import pytest

from modelregistry.engines.base import EngineCommand
from modelregistry.hostside.launching import HostConfig
from modelregistry.hostside.local import LocalHost
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.process import process
from modelregistry.process.process import Life, Runs
from modelregistry.supervisor.adoption import adopt_runs
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.repository import ReplicaFacts

KEY = ReplicaKey(1, 0)
LABEL = {
    **{"model": 1, "replica": 0, "name": "m", "task": "chat", "fingerprint": "", "launcher": "llama-server"},
    **{"slots": 1, "port": 0, "url": "", "api_key": ""},
}


@pytest.fixture
def runs(tmp_path):
    """Return runs with one, "old", that was stopped."""
    made = Runs(tmp_path)
    run = made.start("old", EngineCommand(argv=("/bin/sleep", "600"), env={}), label=LABEL, grace=5)
    assert process.stop(run, grace=5)
    assert process.life_of(run) is Life.ENDED
    return made


async def adopt(runs, **facts):
    known = {KEY: ReplicaFacts(state=ReplicaState.STARTING, run_id="old", **facts)}
    host = LocalHost(HostConfig(runs=runs.root, cache=runs.root, commands={}, ports=[]))
    found = await adopt_runs(host, known, {}, grace=1, clock=lambda: 100.0)
    await host.close()
    return found[KEY], host


async def test_a_start_that_was_not_made_yet_is_no_crash_of_the_engine_before(runs):
    """The supervisor was killed between saying that it starts an engine and starting it."""
    replica, _ = await adopt(runs, pid=None)
    assert (replica.state, replica.run) == (ReplicaState.STOPPED, None)


async def test_an_engine_that_died_without_a_supervisor_is_a_crash(runs):
    replica, host = await adopt(runs, pid=4711)
    assert (replica.state, replica.run.run_id) == (ReplicaState.STARTING, "old")
    assert replica.observe(host.life_of).ended


async def test_the_row_of_a_replica_is_written_again_as_it_may_have_been_doubted_since_it_was_read(runs):
    replica, _ = await adopt(runs, pid=4711)
    assert replica.written is None
