"""When a supervisor knows what is left of its host's memory after a replica was placed there."""

from dataclasses import replace

import pytest

from modelregistry.engines.base import Spec
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.supervisor.database import Database
from modelregistry.supervisor.launching import SupervisorConfig
from modelregistry.supervisor.loop import Supervisor
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.office import Office
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.repository import DesiredModel

KEY = ReplicaKey(1, 0)
GIVEN_AT = 100.0
DESIRED = DesiredModel(
    **{"spec": Spec(engine="vllm", name="m", path="/m"), "enabled": True, "numbers": frozenset([0])},
    **{"idle_after": None, "hours": None, "url": "", "upstream_key": "", "upstream_model": ""},
)


@pytest.fixture
def supervisor(tmp_path) -> Supervisor:
    config = SupervisorConfig(
        **{"host": "here", "runs": tmp_path / "runs", "cache": tmp_path / "cache", "commands": {}},
        **{"ports": range(1, 2), "start_limit": 1, "stop_grace": 1},
    )
    return Supervisor(config, office=Office(number="n", holder="this test", term=1), database=Database())


def has(supervisor: Supervisor, state: ReplicaState) -> None:
    supervisor.replicas[KEY] = ManagedReplica(key=KEY, desired=DESIRED, fingerprint="f", state=state, since=0.0)


def reads(supervisor: Supervisor, at: float, desired: DesiredModel | None) -> None:
    supervisor.sync.desired_models = {KEY.model: desired} if desired else {}
    supervisor.sync.desired_at = at


# Unregistered or bound to another host; fewer replicas, moved, or one over several hosts that has not all of them yet.
@pytest.mark.parametrize("desired", [None, replace(DESIRED, numbers=frozenset())])
def test_what_is_not_to_run_is_settled_as_soon_as_that_was_read_after_it_was_placed(supervisor, desired):
    reads(supervisor, GIVEN_AT - 1, desired)
    assert not supervisor.is_settled(KEY, GIVEN_AT)
    reads(supervisor, GIVEN_AT + 1, desired)
    assert supervisor.is_settled(KEY, GIVEN_AT)


def test_what_is_to_run_and_is_not_there_yet_is_not_settled(supervisor):
    reads(supervisor, GIVEN_AT + 1, DESIRED)
    assert not supervisor.is_settled(KEY, GIVEN_AT)


@pytest.mark.parametrize("desired", [None, DESIRED])
def test_what_starts_is_not_settled_before_its_memory_is_set_apart(supervisor, desired):
    reads(supervisor, GIVEN_AT + 1, desired)
    has(supervisor, ReplicaState.STARTING)
    assert not supervisor.is_settled(KEY, GIVEN_AT)
    has(supervisor, ReplicaState.FAILED)
    assert supervisor.is_settled(KEY, GIVEN_AT)
