"""What is noted of an engine that runs and does not answer a question well."""

import pytest

from modelregistry.engines.base import Spec
from modelregistry.failure_advice import BAD_ANSWER, NO_ANSWER, SILENT_HOST
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.supervisor.doubts import HOST_UNHEARD
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.repository import DesiredModel

FAILED = "All connection attempts failed"


@pytest.fixture
def replica() -> ManagedReplica:
    desired = DesiredModel(
        **{"spec": Spec(engine="vllm", name="m", path="/m"), "enabled": True, "numbers": frozenset({0})},
        **{"idle_after": None, "hours": None, "url": "", "upstream_key": "", "upstream_model": ""},
    )
    return ManagedReplica(key=ReplicaKey(1, 0), desired=desired, fingerprint="", state=ReplicaState.READY, since=0.0)


def test_that_its_host_is_silent_stays_the_cause_while_questions_fail(replica):
    replica.enter(ReplicaState.UNHEALTHY, 1.0, HOST_UNHEARD, SILENT_HOST)
    replica.record_failed_question(FAILED, refused=False, host_silent=True)
    assert (replica.detail, replica.cause) == (HOST_UNHEARD, SILENT_HOST)
    replica.record_failed_question(FAILED, refused=False, host_silent=False)
    assert (replica.detail, replica.cause) == (FAILED, NO_ANSWER)


@pytest.mark.parametrize(("refused", "cause"), [(False, NO_ANSWER), (True, BAD_ANSWER)])
def test_one_that_is_off_the_catalogue_has_the_cause_of_its_last_question(replica, refused, cause):
    replica.enter(ReplicaState.UNHEALTHY, 1.0)
    replica.record_failed_question(FAILED, refused=refused, host_silent=False)
    assert (replica.detail, replica.cause) == (FAILED, cause)


@pytest.mark.parametrize(("refused", "detail"), [(False, ""), (True, FAILED)])
def test_one_that_starts_is_noted_only_to_refuse(replica, refused, detail):
    replica.enter(ReplicaState.STARTING, 1.0)
    replica.record_failed_question(FAILED, refused=refused, host_silent=False)
    assert (replica.detail, replica.cause, replica.refusals) == (detail, "", int(refused))
