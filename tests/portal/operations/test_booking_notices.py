"""What operators are notified of when memory that models need is not booked for them in Ray."""

from datetime import timedelta

import pytest
from django.utils import timezone

from modelregistry.controller.watching import hosts_watched
from modelregistry.failure_advice import NO_ROOM
from modelregistry.models import Host, Replica, ServedModel
from portal.notifications.models import Notice
from portal.operations import booking_notices
from portal.operations.booking_notices import LEAST, STEADY, find_trouble
from portal.operations.models import BookingTrouble

pytestmark = pytest.mark.django_db

HELD = {"code": "booking-held", "replica": "qwen #0", "detail": "qwen #0, GPU 0: 60.0 GB"}
LATE = {"code": "booking-late", "replica": "gemma #1", "detail": "gemma #1, GPU 0: 9.0 GB"}
OTHERS = {"0": 60_000_000_000, "-1": 8_000_000_000}


@pytest.fixture
def host() -> Host:
    return Host.objects.create(name="gpu-01", clustered=True, seen_at=timezone.now())


def book(host: Host, *, late=(), others=None) -> None:
    found = {"offered": {"0": 80_000_000_000}, "booked": {}, "others": others or {}, "late": list(late)}
    Host.objects.filter(pk=host.pk).update(bookings=found)


def look(*, after: timedelta = timedelta()) -> None:
    """Have the controller look when so much time has passed."""
    for row in BookingTrouble.objects.all():
        row.began_at -= after
        row.ended_at = row.ended_at and row.ended_at - after
        row.save()
    hosts_watched.send(sender=None)


def notices(user) -> list[Notice]:
    return list(Notice.objects.filter(user=user).order_by("pk"))


def test_operators_are_notified_once_of_what_has_lasted_for_minutes(host, olivia, alice):
    book(host, late=[LATE, HELD], others=OTHERS)
    look()
    look(after=LEAST / 2)
    assert notices(olivia) == []
    look(after=LEAST / 2)
    look(after=LEAST)
    [notice] = notices(olivia)
    assert (notice.kind, notice.facts["host"], notice.facts["cause"]) == ("booking-trouble", "gpu-01", "booking-held")
    assert notice.facts["replicas"] == ["qwen #0"]
    assert notice.facts["others"] == ["RAM: 8.0 GB", "GPU 0: 60.0 GB"]
    assert notice.path.endswith("#host-gpu-01")
    assert notices(alice) == []


def test_what_is_over_sooner_is_no_news_and_begins_again_from_nothing(host, olivia):
    for _ in range(3):
        book(host, late=[HELD])
        look()
        look(after=LEAST * 0.9)
        book(host)
        look()
    assert notices(olivia) == []
    assert not BookingTrouble.objects.exists()


def test_what_comes_and_goes_is_one_notice_and_another_when_it_was_well_for_long(host, olivia):
    def last() -> None:
        book(host, late=[HELD])
        look()
        look(after=LEAST)

    last()
    book(host)
    look()
    last()
    assert len(notices(olivia)) == 1
    book(host)
    look()
    look(after=STEADY)
    last()
    assert len(notices(olivia)) == 2


def test_a_model_that_does_not_run_for_what_others_have_booked_is_named(host, olivia):
    model = ServedModel.objects.create(name="big", engine="vllm", path="/big", nodes=2, tensor_parallel=2)
    Replica.objects.create(model=model, host=host, index=3, state="failed", cause=NO_ROOM)
    book(host, others=OTHERS, late=[LATE])
    look()
    look(after=LEAST)
    [notice] = notices(olivia)
    assert (notice.facts["cause"], notice.facts["replicas"]) == (NO_ROOM, ["big #1"])


def test_without_work_of_others_a_lack_of_room_is_no_matter_of_bookings(host):
    book(host)
    host.refresh_from_db()
    assert find_trouble(host, ["big #0"]) is None


@pytest.mark.parametrize("values", [{"maintenance": True}, {"clustered": False}, {"bookings": "nonsense"}])
def test_a_host_that_takes_no_models_is_left_alone(host, olivia, values):
    book(host, late=[HELD])
    Host.objects.update(**values)
    look()
    look(after=LEAST)
    assert notices(olivia) == []


def test_two_questions_are_asked_if_there_is_nothing_to_do(host, django_assert_num_queries):
    book(host)
    with django_assert_num_queries(2):
        booking_notices.look()
