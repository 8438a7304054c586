"""Moves of replicas to other hosts, and changes of the controller, as they are recorded for operators."""

from datetime import timedelta

import pytest
from django.utils import timezone

from modelregistry import moves
from modelregistry.controller.repository import place_replica, read_claim, release_claim, take_claim
from modelregistry.models import ControllerClaim, Host, ReplicaMove, ServedModel

pytestmark = pytest.mark.django_db


@pytest.fixture
def model() -> ServedModel:
    return ServedModel.objects.create(name="qwen", engine="vllm", path="/qwen", replicas=4)


@pytest.fixture
def hosts() -> tuple[Host, Host]:
    return Host.objects.create(name="gpu-01"), Host.objects.create(name="gpu-02")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ({"silent_since": timezone.now()}, ReplicaMove.Cause.SILENT),
        ({"silent_since": timezone.now(), "maintenance": True}, ReplicaMove.Cause.SILENT),
        ({"maintenance": True}, ReplicaMove.Cause.MAINTENANCE),
        ({}, ReplicaMove.Cause.NO_PLACE),
    ],
)
def test_a_replica_that_is_placed_elsewhere_is_recorded_with_what_was_wrong_with_its_host(model, hosts, source, cause):
    first, second = hosts
    read_claim()
    assert place_replica(model.pk, 0, first.pk, before=None)
    Host.objects.filter(pk=first.pk).update(**source)
    assert place_replica(model.pk, 0, second.pk, before=first.pk)
    (move,) = moves.read_moves()
    assert (move.model, move.number, move.source, move.target, move.cause) == ("qwen", 0, "gpu-01", "gpu-02", cause)
    assert ControllerClaim.objects.get().moves == 1


def test_what_is_placed_first_or_again_or_too_late_is_no_move(model, hosts):
    first, second = hosts
    place_replica(model.pk, 0, first.pk, before=None)
    place_replica(model.pk, 0, first.pk, before=first.pk)
    assert not place_replica(model.pk, 0, first.pk, before=second.pk)
    assert moves.read_moves() == []


def test_the_last_moves_are_kept_and_all_are_counted(model, hosts, monkeypatch):
    monkeypatch.setattr(moves, "MOST_MOVES", 2)
    read_claim()
    for number in range(4):
        place_replica(model.pk, number, hosts[0].pk, before=None)
        place_replica(model.pk, number, hosts[1].pk, before=hosts[0].pk)
    assert [move.number for move in moves.read_moves()] == [3, 2]
    assert ControllerClaim.objects.get().moves == 4


def test_moves_are_found_by_model_and_by_either_host(model, hosts):
    other = ServedModel.objects.create(name="other", engine="vllm", path="/other")
    third = Host.objects.create(name="gpu-03")
    for row, target in ((model, hosts[1]), (other, third)):
        place_replica(row.pk, 0, hosts[0].pk, before=None)
        place_replica(row.pk, 0, target.pk, before=hosts[0].pk)
    assert [move.model for move in moves.read_moves(model=model)] == ["qwen"]
    assert [move.model for move in moves.read_moves(host=third)] == ["other"]
    assert len(moves.read_moves(host=hosts[0])) == 2


# --- the controller


def test_a_claim_that_was_not_released_is_taken_from_its_holder():
    assert take_claim(read_claim(), "a", "site-1, process 7, /var/lib/madoguchi")
    assert ControllerClaim.objects.get().replaced == ""
    assert take_claim(read_claim(), "b", "site-2, process 9, /var/lib/madoguchi")
    claim = ControllerClaim.objects.get()
    assert (claim.term, claim.replaced) == (2, "site-1, process 7, /var/lib/madoguchi")
    assert claim.since is not None
    assert abs(claim.since - timezone.now()) < timedelta(seconds=60)


@pytest.mark.parametrize("released", [True, False])
def test_a_controller_that_left_or_was_restarted_on_its_machine_was_not_replaced(released):
    take_claim(read_claim(), "a", "site-1, process 7, /var/lib/madoguchi")
    if released:
        release_claim("a")
    holder = "site-2, process 9, /x" if released else "site-1, process 31, /var/lib/madoguchi"
    assert take_claim(read_claim(), "b", holder)
    assert ControllerClaim.objects.get().replaced == ""
