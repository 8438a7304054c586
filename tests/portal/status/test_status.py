"""The status page: what is recorded when models stop answering, and what the days of it show."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.core.management import call_command
from django.utils import timezone

from modelregistry.models import Host, Replica, ServedModel
from modelregistry.overview import MADE_UP
from portal.keys.model_access import available_models
from portal.keys.models import ModelAccess
from portal.notifications.models import Notice
from portal.status import availability, recording
from portal.status.models import StatusInterval, StatusWatch
from tests.html import all_of, has, one_of
from tests.pages import serve
from tests.portal.browsing import client_of, read

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=ZoneInfo("Asia/Tokyo"))
ZONE = ZoneInfo("Asia/Tokyo")
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture
def clock(time_machine):
    time_machine.move_to(NOON, tick=False)
    return time_machine


def become(state: str) -> None:
    """Let a supervisor, which is alive, write the state of the only replica."""
    Host.objects.update(seen_at=timezone.now())
    row = Replica.objects.get()
    row.state = state
    row.save()


def kinds() -> list[tuple[str, str, bool]]:
    """Return kind, reason and whether it is over, the oldest first, without the marker of the first answer."""
    rows = StatusInterval.objects.exclude(reason=recording.NEW, ended_at__isnull=False).order_by("pk")
    return [(row.kind, row.reason, row.ended_at is not None) for row in rows]


class TestRecording:
    def test_a_failure_is_down_until_it_answers_again(self, clock):
        serve()
        become("failed")
        clock.shift(HOUR)
        become("starting")
        assert kinds() == [("down", "failed", False)]
        become("ready")
        assert kinds() == [("down", "failed", True)]
        row = StatusInterval.objects.get(kind="down")
        assert row.ended_at - row.began_at == HOUR

    @pytest.mark.parametrize("in_maintenance", ["gpu-01", "gpu-02"])
    def test_maintenance_is_the_reason_from_when_engines_drain_for_it(self, clock, in_maintenance):
        ServedModel.objects.filter(pk=serve().pk).update(nodes=2)
        second = Host.objects.create(name="gpu-02", seen_at=timezone.now())
        Replica.objects.create(model=ServedModel.objects.get(), host=second, index=1, state="ready")
        Host.objects.filter(name=in_maintenance).update(maintenance=True)
        for state in ("draining", "stopped"):
            for row in Replica.objects.order_by("index"):
                row.state = state
                row.save()
            assert kinds() == [("down", "maintenance", False)]

    @pytest.mark.parametrize("state", ["asleep", "starting"])
    def test_sleeping_and_waking_are_available(self, clock, state):
        serve()
        become(state)
        assert kinds() == []

    def test_a_model_that_never_answered_is_not_down(self, clock):
        serve(state="starting")
        become("failed")
        assert kinds() == [("off", "new", False)]
        become("ready")
        become("failed")
        assert kinds() == [("down", "failed", False)]

    def test_a_model_that_operators_stop_is_off(self, clock):
        model = serve()
        model.enabled = False
        model.save()
        become("stopped")
        assert [kind for kind, *_ in kinds()][-1] == "off"
        clock.shift(HOUR)
        model.enabled = True
        model.save()
        become("ready")
        assert all(is_over for *_, is_over in kinds())

    def test_a_short_break_belongs_to_the_outage(self, clock):
        serve()
        for _ in range(20):
            become("backoff")
            clock.shift(MINUTE)
            become("ready")
            clock.shift(MINUTE)
        assert kinds() == [("down", "backoff", True)]

    def test_a_silent_host_is_noticed_by_the_task_from_when_it_was_last_heard_of(self, clock):
        serve()
        seen = Host.objects.get().seen_at
        call_command("watchstatus", verbosity=0)
        clock.shift(5 * MINUTE)
        call_command("watchstatus", verbosity=0)
        row = StatusInterval.objects.get(kind="down")
        assert (row.reason, row.began_at) == ("unsure", seen)

    def test_time_without_the_task_is_not_watched(self, clock):
        call_command("watchstatus", verbosity=0)
        clock.shift(10 * MINUTE)
        call_command("watchstatus", verbosity=0)
        assert kinds() == []
        clock.shift(HOUR)
        call_command("watchstatus", verbosity=0)
        [row] = StatusInterval.objects.all()
        assert (row.kind, row.model, row.ended_at - row.began_at) == ("unwatched", None, HOUR)

    def test_what_is_old_is_deleted_but_not_that_a_model_has_answered(self, clock):
        serve()
        become("failed")
        become("ready")
        clock.shift(recording.KEPT + HOUR)
        Host.objects.update(seen_at=timezone.now())
        recording.watch(timezone.now())
        assert not StatusInterval.objects.filter(kind="down").exists()
        become("failed")
        assert [kind for kind, *_ in kinds()][-1] == "down"

    def test_nothing_is_written_while_nothing_changes(self, clock, django_assert_max_num_queries):
        model = recording.load_model(serve().pk)
        with django_assert_max_num_queries(1):
            recording.note_state(model, timezone.now())


class TestNotices:
    @pytest.fixture(autouse=True)
    def watched(self, clock, olivia):
        serve()
        self.watch(clock, 0 * MINUTE)

    def watch(self, clock, after: timedelta) -> list[str]:
        """Run the task after this time; return the kinds of all notices that operators have."""
        clock.shift(after)
        Host.objects.update(seen_at=timezone.now())
        call_command("watchstatus", verbosity=0)
        return list(Notice.objects.order_by("pk").values_list("kind", flat=True))

    def test_an_outage_is_notified_once_and_its_end_once(self, clock, olivia):
        become("failed")
        assert self.watch(clock, 5 * MINUTE) == ["model-down"]
        assert self.watch(clock, 5 * MINUTE) == ["model-down"]
        become("ready")
        assert self.watch(clock, 5 * MINUTE) == ["model-down", "model-up"]
        assert self.watch(clock, 5 * MINUTE) == ["model-down", "model-up"]
        assert set(Notice.objects.values_list("user", flat=True)) == {olivia.pk}

    def test_a_short_failure_is_not(self, clock):
        become("failed")
        assert self.watch(clock, 2 * MINUTE) == []
        become("ready")
        assert self.watch(clock, 10 * MINUTE) == []

    def test_one_that_comes_and_goes_is_one_outage(self, clock):
        become("failed")
        for _ in range(4):
            self.watch(clock, 5 * MINUTE)
            become("ready")
            self.watch(clock, 3 * MINUTE)
            become("backoff")
        assert self.watch(clock, 5 * MINUTE) == ["model-down"]

    def test_one_that_operators_stop_does_not_answer_again(self, clock):
        become("failed")
        self.watch(clock, 5 * MINUTE)
        ServedModel.objects.update(enabled=False)
        become("stopped")
        assert self.watch(clock, 10 * MINUTE) == ["model-down"]


class TestAvailability:
    def shares(self, now: datetime) -> list[float | None]:
        [status] = availability.read_statuses(available_models(ServedModel.objects.all()), ZONE, now)
        return [day.share for day in status.days]

    def test_a_day_is_the_part_in_which_the_model_answered(self, clock):
        model = serve()
        StatusWatch.objects.create(since=NOON - timedelta(days=3), last_at=NOON)
        StatusInterval.objects.all().delete()
        midnight = NOON.replace(hour=0)
        add = StatusInterval.objects.create
        add(model=model, kind="down", began_at=midnight + HOUR, ended_at=midnight + 4 * HOUR)
        add(model=model, kind="off", began_at=midnight + 3 * HOUR, ended_at=midnight + 6 * HOUR)
        today = self.shares(NOON)
        # Of 12 hours 3 do not count; of the other 9 it was down for 2.
        assert today[-1] == pytest.approx(7 / 9)
        assert today[-2] == 1
        assert today[-4] == 1  # half of it was watched
        assert today[-5] is None
        assert len(today) == availability.DAYS
        [status] = availability.read_statuses(available_models(ServedModel.objects.all()), ZONE, NOON)
        rows = [((row.last - row.first).days + 1, row.share) for row in status.days_alike]
        assert rows == [(1, pytest.approx(7 / 9, abs=1e-4)), (3, 1), (26, None)]

    def test_an_open_outage_counts_until_now(self, clock):
        model = serve()
        StatusWatch.objects.create(since=NOON - timedelta(days=3), last_at=NOON)
        StatusInterval.objects.all().delete()
        StatusInterval.objects.create(model=model, kind="down", began_at=NOON - timedelta(days=1, hours=12))
        assert self.shares(NOON)[-3:] == [1, 0, 0]

    @pytest.mark.parametrize("answers", [False, True])
    def test_before_a_model_answered_for_the_first_time_there_is_no_data(self, clock, answers):
        StatusWatch.objects.create(since=NOON - timedelta(days=60), last_at=NOON)
        serve(state="failed")
        clock.shift(HOUR)
        if answers:
            become("ready")
        clock.shift(HOUR)
        now = NOON + 2 * HOUR
        assert self.shares(now) == [None] * (availability.DAYS - 1) + [1 if answers else None]
        assert availability.read_shares(["qwen"], ZONE, now) == {"qwen": 1 if answers else None}

    def test_a_model_that_answers_at_once_has_no_days_before_it_was_registered(self, clock):
        StatusWatch.objects.create(since=NOON - timedelta(days=60), last_at=NOON)
        serve()
        assert self.shares(NOON + HOUR) == [None] * (availability.DAYS - 1) + [1]

    def test_without_a_watch_there_is_no_data(self, clock):
        serve()
        assert set(self.shares(NOON)) == {None}


class TestPage:
    def test_every_person_sees_the_models_they_may_call(self, alice, olivia, sales):
        ModelAccess.objects.create(model=serve("hidden"), tenant=sales)
        serve("open")
        names = [
            [row["data-model"] for row in all_of(client_of(who).get("/status/"), "[data-model]")]
            for who in (alice, olivia)
        ]
        assert names == [["open"], ["hidden", "open"]]

    def test_it_says_how_each_is_now_and_what_failed(self, as_alice, clock, alice):
        as_alice.force_login(alice)
        serve("qwen")
        assert one_of(as_alice.get("/status/"), "#summary")["data-troubled"] == "0"
        become("failed")
        clock.shift(HOUR)
        Host.objects.update(seen_at=timezone.now())
        page = as_alice.get("/status/")
        assert one_of(page, "#summary")["data-troubled"] == "1"
        assert has(page, "[data-model=qwen] .state.broken")
        assert has(page, "[data-incident=qwen] .state.broken")
        assert all_of(page, "[data-model=qwen] details tbody tr")
        assert len(all_of(page, "[data-model=qwen] .days rect")) == availability.DAYS
        assert has(page, "[data-model=qwen] a[href='/models/qwen/']")
        assert has(page, "[data-legend=off] .off")

    def test_it_says_whether_others_work_as_far_as_they_do(self, as_alice):
        serve("down", state="failed")
        assert one_of(as_alice.get("/status/"), "#summary")["data-working"] == "0"
        serve("sample").replica_set.update(host=Host.objects.create(name="made-up", seen_at=MADE_UP))
        alone = one_of(as_alice.get("/status/"), "#summary")
        assert alone["data-working"] == "0"
        serve("up")
        summary = one_of(as_alice.get("/status/"), "#summary")
        assert (summary["data-troubled"], summary["data-working"]) == ("1", "1")
        assert summary.text != alone.text

    def test_more_models_cost_no_more_queries(self, as_alice, django_assert_num_queries):
        serve("a")
        read(as_alice, "/status/")
        for n in range(9):
            serve(f"m{n}")
        with django_assert_num_queries(11):
            as_alice.get("/status/")
