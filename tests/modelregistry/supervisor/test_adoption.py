"""What a starting supervisor makes of engines that ended before it came."""

import pytest

from modelregistry.engines.base import EngineCommand
from modelregistry.process import process
from modelregistry.process.process import Life, Runs
from modelregistry.supervisor.adoption import adopt_runs
from modelregistry.supervisor.plan import ReplicaKey, ReplicaState
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


def adopt(runs, **facts):
    known = {KEY: ReplicaFacts(state=ReplicaState.STARTING, run_id="old", **facts)}
    return adopt_runs(runs, known, {}, grace=1, clock=lambda: 100.0)[KEY]


def test_a_start_that_was_not_made_yet_is_no_crash_of_the_engine_before(runs):
    """The supervisor was killed between saying that it starts an engine and starting it."""
    replica = adopt(runs, pid=None)
    assert (replica.state, replica.run) == (ReplicaState.STOPPED, None)


def test_an_engine_that_died_without_a_supervisor_is_a_crash(runs):
    replica = adopt(runs, pid=4711)
    assert (replica.state, replica.run.run_id) == (ReplicaState.STARTING, "old")
    assert replica.observe().ended
