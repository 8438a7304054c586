"""What is recorded of hosts and models over time, and the pages and the API that show it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.core.management import call_command
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from modelregistry.controller.watching import hosts_watched
from modelregistry.models import Host, HostReport, Replica, ServedModel
from modelregistry.supervisor import tasks
from portal.operations import figure_history
from portal.operations.figure_history import (
    EVERY,
    FIVE_MINUTES,
    HOUR,
    FigureRecorder,
    prune_figures,
    read_device_history,
    read_model_history,
    record_figures,
    start_of_bucket,
)
from portal.operations.history import MOST_LINES, PERIODS, chart_devices, chart_model
from portal.operations.models import DeviceBucket, ModelBucket, QueueReport
from portal.usage.models import UsageHour
from tests.clock import Clock
from tests.html import has

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 19, 6, 22, tzinfo=UTC)
RAM = {"index": -1, "kind": "ram", "name": "RAM", "total": 512, "used": 100, "free": 412, "fault": ""}


def gpu(index: int = 0, **sensors: Any) -> dict[str, Any]:
    known = {"utilisation": 50, "temperature": 60, "power": 300, **sensors}
    return {"index": index, "kind": "gpu", "name": "H100", "total": 80, "used": 60, "free": 20, "fault": "", **known}


@pytest.fixture
def clock():
    with time_machine.travel(NOW, tick=False) as traveller:
        yield traveller


@pytest.fixture
def host(clock) -> Host:
    host = Host.objects.create(name="gpu-01", seen_at=NOW, watched_at=NOW)
    HostReport.objects.create(host=host, devices=[gpu(), RAM], at=NOW)
    return host


@pytest.fixture
def model(host) -> ServedModel:
    model = ServedModel.objects.create(name="qwen", engine="vllm", path="/m")
    live = {"running": 3, "waiting": 2, "tokens_per_second": 41.5}
    Replica.objects.create(model=model, host=host, state="ready", live=live)
    return model


@pytest.fixture
def page(olivia):
    client = Client(headers={"accept-language": "en"})
    client.force_login(olivia, backend="portal.accounts.backends.LocalBackend")
    return lambda path: client.get(path).content.decode()


def report(host: Host, *devices: object, at: datetime | None = None) -> None:
    """Have the host answer now, with these devices."""
    now = at or timezone.now()
    HostReport.objects.filter(host=host).update(devices=list(devices), at=now)
    Host.objects.filter(pk=host.pk).update(seen_at=now, watched_at=now)


def read_devices(length: timedelta = FIVE_MINUTES) -> list[Any]:
    return read_device_history("gpu-01", NOW - timedelta(days=40), NOW + timedelta(days=40), length)


def test_measurements_of_five_minutes_and_of_an_hour_are_means_and_highest_values(host, clock):
    for minute, busy in ((0, 10), (1, 90), (4, 20)):
        clock.move_to(NOW + timedelta(minutes=minute))
        report(host, gpu(utilisation=busy), RAM)
        record_figures()
    first, second = [row for row in read_devices() if row.subject == 0]
    assert (first.at, second.at) == (NOW.replace(minute=20), NOW.replace(minute=25))
    found = first.figures["utilisation"]
    assert (found.count, found.mean, found.highest) == (2, 50, 90)
    assert second.figures["utilisation"].mean == 20
    [hour] = [row for row in read_devices(HOUR) if row.subject == 0]
    found = hour.figures["utilisation"]
    assert (hour.at, found.count, found.mean, found.highest) == (NOW.replace(minute=0), 3, 40, 90)
    [ram, *_] = [row for row in read_devices() if row.subject == -1]
    assert set(ram.figures) == {"memory"}
    assert ram.figures["memory"].mean == 100


def test_what_is_not_known_leaves_a_gap_and_no_zero(host, clock):
    report(host, {**gpu(), "power": None})
    record_figures()
    assert set(read_devices()[0].figures) == {"utilisation", "memory", "temperature"}
    DeviceBucket.objects.all().delete()
    report(host, {**gpu(), "fault": "fell off the bus"})
    record_figures()
    assert read_devices() == []
    report(host, gpu())
    clock.move_to(NOW + timedelta(hours=1))  # in which it has not answered
    record_figures()
    assert read_devices() == []


def test_a_models_replicas_calls_and_speed_are_recorded(model, clock):
    snapshot = {"models": [{"model": "qwen", "waiting": {"interactive": 4, "batch": 3}}], "replicas": []}
    QueueReport.objects.create(worker="here/1", at=NOW, snapshot=snapshot)
    record_figures()
    [row] = read_model_history("qwen", NOW - HOUR, NOW + HOUR, FIVE_MINUTES)
    assert {name: figure.mean for name, figure in row.figures.items()} == {"ready": 1, "waiting": 9, "speed": 41.5}
    Host.objects.update(seen_at=NOW - HOUR, watched_at=NOW - HOUR)  # what its engines do is not known any more
    clock.move_to(NOW + FIVE_MINUTES)
    record_figures()
    row = read_model_history("qwen", NOW - HOUR, NOW + HOUR, FIVE_MINUTES)[-1]
    assert {name: figure.mean for name, figure in row.figures.items()} == {"ready": 0, "waiting": 0}


def test_the_controller_measures_every_thirty_seconds(host, monkeypatch):
    clock, measured = Clock(), []
    recorder = FigureRecorder(clock)
    monkeypatch.setattr(figure_history, "record_figures", lambda: measured.append(clock.now))
    begin = clock.now
    for _ in range(13):
        recorder.look()
        clock.now += 5
    assert [at - begin for at in measured] == [0, EVERY, 2 * EVERY]


def test_the_controller_asks_a_recorder(host):
    asked = [getattr(receiver, "__self__", None) for receiver, _ in hosts_watched.send(sender=None)]
    assert [one for one in asked if isinstance(one, FigureRecorder)]


def test_a_turn_without_the_database_is_lost_and_the_next_turn_measures(host, monkeypatch):
    clock, fails = Clock(), [True]
    recorder = FigureRecorder(clock)
    measure = figure_history.read_figures

    def read_sometimes() -> Any:
        if fails:
            fails.pop()
            raise OperationalError("away")
        return measure()

    monkeypatch.setattr(figure_history, "read_figures", read_sometimes)
    with pytest.raises(OperationalError):  # the controller's task says it
        recorder.look()
    recorder.look()  # five seconds later
    assert read_devices() == []
    clock.now += EVERY
    recorder.look()
    assert len(read_devices()) == 2


def test_a_turn_is_recorded_as_a_whole_or_not_at_all(model, monkeypatch):
    def refuse(*_: Any) -> Any:
        raise OperationalError("away")

    with monkeypatch.context() as patched:
        patched.setattr(figure_history, "measure_models", refuse)
        with pytest.raises(OperationalError):
            record_figures()
    with CaptureQueriesContext(connection) as asked:
        record_figures()
    written = [
        query["sql"].split()[0] for query in asked if query["sql"].startswith(("INSERT", "SAVEPOINT", "RELEASE"))
    ]
    assert written == ["SAVEPOINT", "INSERT", "INSERT", "RELEASE"]
    assert read_devices()[0].figures["memory"].count == 1


@pytest.mark.parametrize("index", [2**63, 2**15, -2, 1e300])
def test_a_host_with_an_odd_index_of_a_device_keeps_no_other_from_being_recorded(host, index):
    odd = Host.objects.create(name="odd", seen_at=NOW, watched_at=NOW)
    HostReport.objects.create(host=odd, devices=[gpu(index), gpu(1)], at=NOW)
    record_figures()
    found = DeviceBucket.objects.filter(length=HOUR.total_seconds()).values_list("host", "device")
    assert sorted(found) == [("gpu-01", -1), ("gpu-01", 0), ("odd", 1)]


def test_a_figure_that_no_device_has_is_not_added_up(host):
    report(host, gpu(power=1.7e308))
    for _ in range(2):
        record_figures()
    assert set(read_devices()[0].figures) == {"utilisation", "memory", "temperature"}


def test_a_turn_takes_as_many_statements_for_many_devices_as_for_one(host, model):
    record_figures()  # what is read once is read
    with CaptureQueriesContext(connection) as few:
        record_figures()
    for number in range(20):
        other = Host.objects.create(name=f"more-{number}", seen_at=NOW, watched_at=NOW)
        HostReport.objects.create(host=other, devices=[*map(gpu, range(8)), RAM], at=NOW)
    with CaptureQueriesContext(connection) as many:
        record_figures()
    assert len(many) == len(few)
    assert DeviceBucket.objects.count() == 2 * (20 * 9 + 2)


def test_old_figures_and_those_of_a_clock_that_was_ahead_are_deleted(host, clock, settings):
    settings.HISTORY_KEPT_DAYS = 10
    for days in (-400, -11, -9, -1, 0, 400):
        clock.move_to(NOW + timedelta(days=days))
        report(host, gpu())
        record_figures()
    clock.move_to(NOW)
    assert prune_figures(NOW) == 4 + 3
    days = [[(row.at - NOW).days for row in read_devices(length)] for length in (FIVE_MINUTES, HOUR)]
    assert days == [[-2, -1], [-10, -2, -1]]  # the beginnings of buckets lie before the measurements
    assert prune_figures(NOW) == 0


def test_the_pruning_is_a_periodic_task(host, clock):
    clock.move_to(NOW - timedelta(days=500))
    report(host, gpu())
    record_figures()
    clock.move_to(NOW)
    [task] = [one for one in tasks.registered_tasks() if one.name == "prunehistory"]
    call_command(*task.argv)
    assert not DeviceBucket.objects.exists()


def test_a_bucket_begins_at_a_multiple_of_its_length_whatever_the_clock_says():
    for moment in (NOW, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), datetime(2200, 3, 1, 1, 2, 3, tzinfo=UTC)):
        begin = start_of_bucket(moment, FIVE_MINUTES)
        assert (begin.minute % 5, begin.second, moment - begin < FIVE_MINUTES) == (0, 0, True)


def test_a_chart_has_gaps_where_nothing_was_measured(host, clock):
    for minutes in (-60, 0):
        clock.move_to(NOW + timedelta(minutes=minutes))
        report(host, gpu(utilisation=30 - minutes), gpu(1, utilisation=10), RAM)
        record_figures()
    charts = chart_devices(read_devices(), NOW, PERIODS["day"], UTC)  # type: ignore[arg-type]
    busy = next(one for one in charts if one.chart.name == "utilisation")
    assert [series.values[-5:] for series in busy.chart.series] == [
        (90, None, None, None, 30),
        (10, None, None, None, 10),
        (90, None, None, None, 30),
    ]
    assert len(busy.chart.slots) == 24 * 4 + 1
    assert busy.highest == 90
    assert [one.chart.name for one in charts] == ["utilisation", "memory", "temperature", "power", "ram"]


def test_more_gpus_than_there_are_lines_are_one_mean(host):
    report(host, *(gpu(number, utilisation=number) for number in range(MOST_LINES + 1)))
    record_figures()
    [busy, *_] = chart_devices(read_devices(), NOW, PERIODS["month"], UTC)  # type: ignore[arg-type]
    assert [series.values[-1] for series in busy.chart.series] == [4, 8]


@pytest.mark.parametrize("period", PERIODS)
def test_a_hosts_page_has_a_chart_of_each_figure(page, host, period):
    record_figures()
    shown = page(f"/operations/hosts/{host.pk}/history/?period={period}")
    for name in ("utilisation", "memory", "temperature", "power", "ram"):
        assert has(shown, f"[data-history={name}] table")
    assert has(page("/operations/"), f'a[href="/operations/hosts/{host.pk}/history/"]')
    assert has(page(f"/operations/hosts/{host.pk}/"), f'a[href="/operations/hosts/{host.pk}/history/"]')


def test_a_models_page_has_its_figures_and_its_times_to_the_first_token(page, model, research):
    record_figures()
    UsageHour.objects.create(hour=NOW.replace(minute=0), tenant=research, model="qwen", ttft_bucket_3=7)
    for period in PERIODS:
        shown = page(f"/operations/history/qwen/?period={period}")
        for name in ("ready", "waiting", "speed", "first-token"):
            assert has(shown, f"[data-history={name}] table")
    assert has(page("/operations/models/qwen/"), 'a[href="/operations/history/qwen/"]')


def test_times_to_the_first_token_of_the_first_hour_are_drawn(model, research):
    begun = (NOW - timedelta(days=1)).replace(minute=0)
    UsageHour.objects.create(hour=begun, tenant=research, model="qwen", ttft_bucket_3=7)
    [chart] = chart_model([], "qwen", NOW, PERIODS["day"], UTC)  # type: ignore[arg-type]
    assert chart.chart.slots[0] == begun
    assert chart.chart.series[0].values[0] is not None


def test_a_page_without_figures_says_so(page, host):
    assert has(page(f"/operations/hosts/{host.pk}/history/"), "[data-empty]")


def test_an_unknown_period_is_no_page(olivia, host):
    client = Client()
    client.force_login(olivia, backend="portal.accounts.backends.LocalBackend")
    assert client.get(f"/operations/hosts/{host.pk}/history/?period=year").status_code == 404
    assert client.get(f"/api/v1/hosts/{host.pk}/history/?period=year").status_code == 400


def test_the_api_has_the_buckets(olivia, model, host):
    record_figures()
    client = Client()
    client.force_login(olivia, backend="portal.accounts.backends.LocalBackend")
    ram, card = client.get(f"/api/v1/hosts/{host.pk}/history/").json()
    assert (ram["device"], ram["power"], ram["memory"]) == (-1, None, {"mean": 100, "highest": 100})
    assert card["temperature"] == {"mean": 60, "highest": 60}
    [row] = client.get(f"/api/v1/models/{model.pk}/history/?period=month").json()
    assert (row["at"], row["speed"]["mean"]) == ("2026-11-19T06:00:00Z", 41.5)
    assert ModelBucket.objects.count() == 2
