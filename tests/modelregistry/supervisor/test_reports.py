"""What a supervisor reports of its host, its engines and their files, besides their states."""

import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
import time_machine
from django.utils import timezone

from modelregistry.models import FileReport, Host, HostReport, LogSubscription, LogTail
from modelregistry.supervisor import repository
from tests import engines
from tests.modelregistry.site import REFUSAL, stream
from tests.waiting import until


def report():
    return HostReport.objects.filter(host__name="here").first()


def test_the_host_is_reported(site):
    site.supervise()
    found = until(report)
    assert {"index": -1, "kind": "ram"}.items() <= found.devices[-1].items()
    assert found.devices[-1]["total"] > found.devices[-1]["free"] > 0
    assert found.engines.keys() >= {"llama-server", "xllamacpp"}
    assert found.engines["xllamacpp"][0].isdigit()
    assert found.default_versions.keys() == found.engines.keys()
    assert found.default_versions["llama-server"] == ""  # named in a setting
    assert found.default_versions["xllamacpp"] == found.installed["xllamacpp"][0]
    assert found.stamps.keys() == found.installed.keys()
    assert found.problems == []


def test_engines_of_another_installation_are_named_and_left(site, tmp_path):
    mark = {"MADOGUCHI_RUN": f"{tmp_path}/theirs/run/engines/abc"}
    theirs = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=mark)
    try:
        site.supervise()
        site.model()
        ready = site.reaches("ready")
        strangers = {each["pid"]: each for each in until(report).strangers}
        assert strangers[theirs.pid]["installation"] == f"{tmp_path}/theirs"
        assert strangers[theirs.pid]["bytes"] > 1_000_000
        assert ready.pid not in strangers
        assert theirs.poll() is None
    finally:
        theirs.kill()
        theirs.wait()


def test_what_an_engine_does_is_recorded_without_notifying_gateways(site):
    site.supervise()
    site.model()
    ready = site.reaches("ready")
    with_nothing_to_do = until(lambda: (row := site.replica()).live and row).live
    assert (with_nothing_to_do["running"], with_nothing_to_do["waiting"]) == (0, 0)
    answer = stream(ready, 400)  # 20 tokens a second for 20 s
    busy = until(lambda: (row := site.replica()).live["tokens_per_second"] and row.live["running"] and row, 30).live
    assert 1 <= busy["tokens_per_second"] <= 21
    assert busy["cache_used"] is None
    assert site.replica().changed_at == ready.changed_at
    answer.response.close()


def test_the_engines_version_is_recorded(site):
    site.supervise()
    site.model()
    assert site.reaches("ready").version == "b4711-stand-in"


def test_a_log_is_kept_while_a_page_shows_it(site):
    site.supervise()
    site.model("m", "chatty")
    ready = site.reaches("ready")
    assert not LogTail.objects.exists()
    LogSubscription.objects.create(replica=ready, until=timezone.now() + timedelta(seconds=60))
    first = until(LogTail.objects.first, 30)
    assert "line 1" in first.text
    until(lambda: len(LogTail.objects.get().text) > len(first.text), 30)
    LogSubscription.objects.update(until=timezone.now())
    until(lambda: (text := LogTail.objects.get().at) and text < timezone.now() - timedelta(seconds=3), 60)


def test_the_log_of_a_run_that_is_over_can_be_read(site):
    site.supervise()
    model = site.model("m", "chatty")
    ready = site.reaches("ready")
    model.enabled = False
    model.save()
    site.reaches("stopped")
    LogSubscription.objects.create(replica=ready, until=timezone.now() + timedelta(seconds=60))
    assert "line 1" in until(LogTail.objects.first, 30).text


def test_files_are_read_and_read_again_when_they_change(site):
    site.supervise()
    site.model("m", path=str(engines.chat_model()), enabled=False)
    path = site.var / "broken.gguf"
    path.write_bytes(b"GGUF")
    broken = site.model("broken", path=str(path), enabled=False)
    found = until(lambda: FileReport.objects.filter(model__name="m").first(), 30)
    assert (found.facts["architecture"], found.facts["quantisation"], found.fault) == ("llama", "Q4_1", "")
    fault = until(lambda: FileReport.objects.filter(model=broken).first(), 30)
    assert fault.facts is None
    assert fault.fault
    path.unlink()
    path.symlink_to(engines.chat_model())
    until(lambda: FileReport.objects.get(model=broken).facts, 30)


def test_a_model_whose_file_comes_back_need_not_wait(site):
    site.supervise()
    path = site.var / "late.gguf"
    Host.objects.get_or_create(name="here")
    site.model("m", host=Host.objects.get(name="here"), path=str(path))
    waiting = until(lambda: (row := site.replica()) and row.restarts >= 5 and row, 60)
    assert waiting.cause == "missing-file"
    assert waiting.state == "failed"
    assert (waiting.retry_at - timezone.now()).total_seconds() > 500
    path.symlink_to(site.var / "model.gguf")
    site.reaches("ready", seconds=30)


def test_a_restart_that_an_operator_requests_drains_and_starts_again(site):
    site.supervise()
    model = site.model()
    before = site.reaches("ready")
    answer = stream(before, 90)
    model.generation += 1
    model.save()
    site.reaches("draining")
    assert answer.rest().count("data:") == 91
    after = until(lambda: (row := site.replica()).state == "ready" and row.pid != before.pid and row)
    assert after.restarts == 0


def test_a_restart_ends_the_waiting_of_a_failed_one(site):
    site.supervise()
    model = site.model("m", "exit=out of luck")
    until(lambda: (row := site.replica()) and row.state == "failed" and "out of luck" in row.detail)
    model.generation += 1
    model.args = []
    model.save()
    again = site.reaches("ready")
    assert again.detail == again.cause == ""


@pytest.mark.django_db
def test_a_model_is_not_wanted_from_the_day_on_which_it_retires(site, settings):
    settings.TIME_ZONE = "Asia/Tokyo"
    host = Host.objects.create(name="here")
    model = site.model("m", retires_on=timezone.datetime(2026, 4, 1).date(), host=host)
    with time_machine.travel("2026-03-31T14:59:00Z", tick=False), timezone.override("Asia/Tokyo"):
        assert repository.desired_models(host.id)[model.pk].enabled
    with time_machine.travel("2026-03-31T15:00:00Z", tick=False), timezone.override("Asia/Tokyo"):
        assert not repository.desired_models(host.id)[model.pk].enabled


def test_an_engine_whose_day_has_come_is_drained_and_stopped(site):
    site.supervise()
    model = site.model()
    before = site.reaches("ready")
    answer = stream(before, 60)
    model.retires_on = timezone.localdate()
    model.save()
    site.reaches("draining")
    assert answer.rest().count("data:") == 61
    assert site.reaches("stopped").pid is None


def test_an_adopted_engine_that_lives_but_does_not_answer_is_not_believed(site):
    supervisor = site.supervise()
    site.model()
    before = site.reaches("ready")
    supervisor.kill()
    supervisor.wait()
    os.kill(before.pid, signal.SIGUSR2)  # says that it is well, and refuses its work
    site.supervise()
    ill = site.reaches("unhealthy", seconds=30)
    assert (ill.pid, REFUSAL in ill.detail) == (before.pid, True)
    os.kill(before.pid, signal.SIGUSR2)
    assert site.reaches("ready", seconds=30).pid == before.pid


def test_causes_are_recorded_with_the_failure(site):
    site.supervise()
    site.model("m", "exit=unknown model architecture: 'foo'")
    down = until(lambda: (row := site.replica()) and row.pid is None and row.detail and row)
    assert down.cause == "unknown-architecture"
