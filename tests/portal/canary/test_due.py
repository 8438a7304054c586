from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from modelregistry.models import FileReport, Host, Replica, ServedModel
from portal.canary import due
from portal.canary.models import CanaryRequest, CanaryRun
from portal.canary.prompts import VERSION

Reason, Verdict, Obstacle = CanaryRun.Reason, CanaryRun.Verdict, CanaryRun.Obstacle
NOON = datetime(2026, 11, 30, 3, tzinfo=UTC)  # in Tokyo


@pytest.fixture
def replica(db) -> Replica:
    model = ServedModel.objects.create(name="m", engine="vllm", path="/m")
    FileReport.objects.create(model=model, facts={}, stamp="files-1", at=NOON)
    host = Host.objects.create(name="here")
    return Replica.objects.create(
        model=model, host=host, state=Replica.State.READY, run_id="run-1", version="0.30", launcher="vllm"
    )


def ran(target: due.CanaryTarget, at: datetime, **more) -> CanaryRun:
    values = {
        "model_id": target.model_id,
        **{name: getattr(target, name) for name in ("host", "number", "replica_id", "run_id", "launcher", "version")},
        "files": target.files,
        "prompts": VERSION,
        "reason": Reason.NIGHTLY,
        "began_at": at,
        "seen_at": at,
        "verdict": Verdict.PASSED,
    }
    return CanaryRun.objects.create(**{**values, **more})


def reasons(now: datetime) -> list[str]:
    return [one.reason for one in due.find_due(now)]


def test_a_replica_that_was_never_asked_is_due(replica):
    assert reasons(NOON) == [Reason.FIRST]


def test_it_is_due_once_a_night_from_the_hour_on(replica, settings):
    settings.CANARY_HOUR = 3
    [target] = due.targets()
    ran(target, NOON - timedelta(minutes=1))

    night = NOON + timedelta(hours=15)  # 3:00
    assert reasons(night - timedelta(minutes=1)) == []
    assert reasons(night) == [Reason.NIGHTLY]
    ran(target, night)
    assert reasons(night + timedelta(hours=23)) == []
    assert reasons(night + timedelta(hours=24)) == [Reason.NIGHTLY]


def test_without_an_hour_only_operators_have_models_asked(replica, settings):
    settings.CANARY_HOUR = None
    assert reasons(NOON) == []

    CanaryRequest.objects.create(model=replica.model, at=NOON)

    assert reasons(NOON) == [Reason.REQUEST]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "0.31"}, Reason.ENGINE),
        ({"launcher": "llama-server"}, Reason.ENGINE),
        ({"run_id": "run-2"}, Reason.START),
        ({"run_id": "run-2", "version": "0.31"}, Reason.ENGINE),
    ],
)
def test_a_new_engine_or_a_start_is_a_reason(replica, change, reason):
    ran(due.targets()[0], NOON)
    Replica.objects.update(**change)

    assert reasons(NOON) == [reason]


def test_changed_files_are_a_reason_and_files_that_no_one_has_read_are_not(replica):
    ran(due.targets()[0], NOON)
    FileReport.objects.update(stamp="")
    assert reasons(NOON) == []

    FileReport.objects.update(stamp="files-2")

    assert reasons(NOON) == [Reason.FILES]


@pytest.mark.parametrize("state", [Replica.State.ASLEEP, Replica.State.STARTING, Replica.State.FAILED])
def test_a_replica_that_does_not_answer_is_not_woken(replica, state):
    Replica.objects.update(state=state)

    assert reasons(NOON) == []


@pytest.mark.parametrize("change", [{"task": "embedding"}, {"enabled": False}])
def test_only_offered_chat_models_are_asked(replica, change):
    ServedModel.objects.update(**change)

    assert reasons(NOON) == []


def test_what_an_operator_asked_for_comes_first_and_once(replica):
    [target] = due.targets()
    ran(target, NOON)
    other = Replica.objects.create(
        model=ServedModel.objects.create(name="a", engine="vllm", path="/a"), host=replica.host, state="ready"
    )
    CanaryRequest.objects.create(model=replica.model, at=NOON + timedelta(minutes=1))

    found = due.find_due(NOON + timedelta(minutes=2))

    assert [(one.target.model, one.reason) for one in found] == [("m", Reason.REQUEST), (other.model.name, "first")]
    ran(target, NOON + timedelta(minutes=2))
    assert reasons(NOON + timedelta(minutes=3)) == [Reason.FIRST]


def test_a_run_that_was_not_done_is_tried_again_later_and_without_a_gateway_at_once(replica):
    [target] = due.targets()
    run = ran(target, NOON, verdict=Verdict.NOT_DONE, obstacle=Obstacle.BUSY)
    assert reasons(NOON + due.RETRY - timedelta(seconds=1)) == []
    assert reasons(NOON + due.RETRY) == [Reason.FIRST]

    run.obstacle = Obstacle.GATEWAY
    run.save()

    assert reasons(NOON) == [Reason.FIRST]


def test_a_clock_that_was_ahead_keeps_no_night_from_being_due(replica, settings):
    settings.CANARY_HOUR = 3
    [target] = due.targets()
    ran(target, NOON + timedelta(days=400))

    assert reasons(NOON) == [Reason.NIGHTLY]
    ran(target, NOON)
    assert reasons(NOON + timedelta(minutes=3)) == []


def test_a_run_that_goes_on_is_known_until_it_is_silent(replica):
    [target] = due.targets()
    run = ran(target, NOON, verdict=Verdict.RUNNING)

    assert due.running_now(NOON + due.SILENT) == run
    assert due.running_now(NOON + due.SILENT + timedelta(seconds=1)) is None
    assert replace(target, files="") != target
