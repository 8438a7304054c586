"""What operators are notified of: hosts that are silent, replicas that were moved, a controller that was replaced."""

from datetime import timedelta

import pytest
from django.utils import timezone

from modelregistry.controller.watching import hosts_watched
from modelregistry.models import ControllerClaim, Host, ReplicaMove, ServedModel
from portal.notifications.models import Notice
from portal.operations import host_notices
from portal.operations.host_notices import MOVED_AGAIN, SETTLED, STEADY

pytestmark = pytest.mark.django_db


def ago(**seconds: float):
    return timezone.now() - timedelta(**seconds)


@pytest.fixture
def host() -> Host:
    return Host.objects.create(name="gpu-01", clustered=True, seen_at=timezone.now())


@pytest.fixture
def model() -> ServedModel:
    return ServedModel.objects.create(name="qwen", engine="vllm", path="/qwen", replicas=9)


def kinds(user) -> list[str]:
    return list(Notice.objects.filter(user=user).order_by("pk").values_list("kind", flat=True))


def silence(**since: float) -> None:
    """Have the host be silent for so long, or answer, and the controller look at it twice."""
    Host.objects.update(silent_since=ago(**since) if since else None)
    hosts_watched.send(sender=None)
    hosts_watched.send(sender=None)


# --- silent hosts


def test_operators_are_notified_once_of_a_host_that_is_silent_and_when_it_has_answered_for_long(host, olivia, alice):
    silence(seconds=20)
    assert kinds(olivia) == []
    silence(seconds=31)
    silence(minutes=40)
    assert kinds(olivia) == ["host-silent"]
    silence()
    assert kinds(olivia) == ["host-silent"]
    host_notices.notify_of_silences(timezone.now() + STEADY + timedelta(seconds=1))
    assert kinds(olivia) == ["host-silent", "host-back"]
    back = Notice.objects.get(kind="host-back").facts
    assert back["host"] == host.name
    assert back["ended_at"] > back["at"]
    silence(seconds=31)
    assert kinds(olivia) == ["host-silent", "host-back", "host-silent"]
    assert kinds(alice) == []


def test_a_host_that_flaps_is_one_silence(host, olivia):
    now = timezone.now()
    for minute in range(30):
        is_silent = minute % 2 == 0
        Host.objects.update(silent_since=now - timedelta(seconds=45) if is_silent else None)
        host_notices.notify_of_silences(now + timedelta(minutes=minute))
    assert kinds(olivia) == ["host-silent"]


def test_a_host_in_maintenance_may_be_switched_off(host, olivia):
    Host.objects.update(maintenance=True)
    silence(minutes=5)
    assert kinds(olivia) == []


# --- moves


def move(model: ServedModel, number: int, *, cause: str = "silent", target: str = "gpu-02", **since: float) -> None:
    at = ago(**since)
    ReplicaMove.objects.create(model=model, number=number, source="gpu-01", target=target, cause=cause, at=at)


def test_the_moves_of_one_host_are_one_notice_when_no_more_come(model, olivia):
    move(model, 0, seconds=40)
    move(model, 1, seconds=10, target="gpu-03")
    hosts_watched.send(sender=None)
    assert kinds(olivia) == []
    host_notices.notify_of_moves(timezone.now() + SETTLED)
    hosts_watched.send(sender=None)
    (notice,) = Notice.objects.filter(user=olivia)
    assert (notice.kind, notice.facts["host"], notice.facts["silent"]) == ("replicas-moved", "gpu-01", True)
    assert len(notice.facts["moved"]) == 2
    assert "gpu-03" in notice.facts["moved"][1]


def test_moves_that_never_end_are_notified_all_the_same(model, olivia):
    move(model, 0, seconds=130)
    move(model, 1, seconds=1)
    hosts_watched.send(sender=None)
    assert kinds(olivia) == ["replicas-moved"]


def test_moves_that_come_again_and_again_wait_and_come_together(model, olivia):
    move(model, 0, seconds=60)
    hosts_watched.send(sender=None)
    now = timezone.now()
    for number in (1, 2):
        move(model, number, seconds=60)
        host_notices.notify_of_moves(now)
    assert kinds(olivia) == ["replicas-moved"]
    host_notices.notify_of_moves(now + MOVED_AGAIN + timedelta(seconds=1))
    assert [len(one.facts["moved"]) for one in Notice.objects.filter(user=olivia).order_by("pk")] == [1, 2]


def test_what_an_operator_wanted_moved_is_no_news(model, olivia):
    move(model, 0, seconds=60, cause="maintenance")
    hosts_watched.send(sender=None)
    assert kinds(olivia) == []
    assert ReplicaMove.objects.get().notified_at is not None


# --- the controller


def test_a_controller_that_took_over_from_one_that_had_not_left_is_notified_once_an_hour(olivia):
    at = timezone.now().replace(minute=10)
    for term in (7, 8):
        claim = {"number": f"n{term}", "term": term, "holder": "site-2", "replaced": "site-1", "since": at}
        ControllerClaim.objects.update_or_create(pk=1, defaults=claim)
        hosts_watched.send(sender=None)
    (notice,) = Notice.objects.filter(user=olivia)
    assert (notice.kind, notice.facts["term"], notice.facts["before"]) == ("controller-replaced", 7, "site-1")


def test_a_controller_that_was_elected_as_usual_is_no_news(olivia):
    ControllerClaim.objects.create(number="n", term=7, holder="site-2", since=timezone.now())
    hosts_watched.send(sender=None)
    assert kinds(olivia) == []
