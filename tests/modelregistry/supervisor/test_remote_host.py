"""A supervisor that works on another machine, which may fall silent, die and come back: nothing is lost or doubled."""

import json
import os
import signal
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.utils import timezone

from modelregistry.hostside.launching import metadata_of
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.models import LogSubscription, LogTail, ServedModel
from modelregistry.process import process
from modelregistry.process.process import Life, Run
from modelregistry.supervisor.adoption import ADOPTED
from modelregistry.supervisor.loop import HOST_UNHEARD
from tests.modelregistry.remote_site import RemoteSite
from tests.modelregistry.site import stream
from tests.waiting import until

# What RemoteHost logs of its own accord.
SILENT, HEARD = "the host is silent", "the host answers again"


@pytest.fixture
def site(transactional_db, tmp_path) -> Iterator[RemoteSite]:
    site = RemoteSite(tmp_path)
    site.start_machine()
    yield site
    site.close()


def logged(site: RemoteSite, what: str) -> int:
    return site.log.read_text().count(what)


def fall_silent(site: RemoteSite) -> None:
    before = logged(site, SILENT)
    site.fall_silent()
    until(lambda: logged(site, SILENT) > before)


def answer_again(site: RemoteSite) -> None:
    before = logged(site, HEARD)
    site.answer_again()
    until(lambda: logged(site, HEARD) > before)


def living_runs(site: RemoteSite) -> list[Run]:
    return [run for run in site.runs.all() if process.life_of(run) in (Life.RUNNING, Life.ENDING)]


def test_engines_start_serve_and_stop_without_the_supervisor_touching_its_own_machine(site):
    site.supervise()
    model = site.model("m", "chatty")
    ready = site.reaches("ready")
    assert stream(ready, 2).rest().endswith("[DONE]\n\n")
    assert ready.pid == site.run_of(ready).engine.pid
    LogSubscription.objects.create(replica=ready, until=timezone.now() + timedelta(minutes=5))
    until(lambda: LogTail.objects.filter(replica=ready, text__contains="line 2").exists())
    until(lambda: site.replica().memory_bytes > 1_000_000)
    ServedModel.objects.filter(pk=model.pk).update(enabled=False)
    site.reaches("stopped")
    assert site.living() == []


def test_a_crashed_engine_is_started_again(site):
    site.supervise()
    site.model()
    first = site.reaches("ready")
    os.kill(first.pid, signal.SIGKILL)
    down = until(lambda: (row := site.replica()).state == "backoff" and row.pid is None and row)
    assert (down.cause, down.restarts) == ("killed", 1)
    assert site.reaches("ready").pid != first.pid
    assert len(living_runs(site)) == 1


def test_a_supervisor_that_follows_a_killed_one_adopts(site):
    first = site.supervise()
    model = site.model()
    ready = site.reaches("ready")
    first.kill()
    first.wait()
    second = site.supervise()
    until(lambda: logged(site, ADOPTED % (f"{model.name} #0", ready.pid)))
    second.terminate()
    assert second.wait(30) == 0
    assert site.replica().run_id == ready.run_id
    assert [run.run_id for run in living_runs(site)] == [ready.run_id]


def test_a_silent_host_keeps_its_engines_in_service(site):
    site.supervise()
    site.model()
    ready = site.reaches("ready")
    checked = until(lambda: (row := site.replica()).live and row.live["at"])
    fall_silent(site)
    # Checks of the engine itself go on.
    until(lambda: (site.replica().live or {}).get("at") not in (None, checked))
    assert site.replica().state == "ready"
    answer_again(site)
    now = site.replica()
    assert (now.state, now.run_id, now.restarts) == ("ready", ready.run_id, 0)


def test_an_engine_that_dies_while_its_host_is_silent_is_started_again_once_and_later(site):
    site.supervise()
    site.model()
    first = site.reaches("ready")
    fall_silent(site)
    os.kill(first.pid, signal.SIGKILL)
    doubted = site.reaches("unhealthy")  # off the catalogue, and not known to be over
    assert (doubted.run_id, doubted.restarts) == (first.run_id, 0)
    site.answer_again()
    again = site.reaches("ready")
    assert (again.restarts, len(site.runs.all())) == (1, 2)
    assert [run.run_id for run in living_runs(site)] == [again.run_id]


def test_what_is_to_restart_waits_for_its_silent_host(site):
    site.supervise()
    site.model()
    first = site.reaches("ready")
    fall_silent(site)
    ServedModel.objects.update(generation=1)
    site.reaches("draining")
    assert process.life_of(site.run_of(first)) is Life.RUNNING
    site.answer_again()
    again = until(lambda: (row := site.replica()).state == "ready" and row.run_id != first.run_id and row)
    assert [run.run_id for run in living_runs(site)] == [again.run_id]
    assert again.restarts == 0


def test_a_start_whose_answer_is_lost_is_found_again(site):
    (site.var / "lose-launch").touch()
    site.supervise()
    site.model()
    until(lambda: logged(site, "m #0: launch: "))
    ready = site.reaches("ready")
    assert [run.run_id for run in site.runs.all()] == [ready.run_id]
    assert ready.restarts == 0


def test_a_start_that_arrives_late_starts_nothing(site):
    (site.var / "delay-launch").touch()
    site.supervise()
    model = site.model()
    ready = site.reaches("ready")
    (site.var / "delayed-launch").unlink()
    answer = json.loads(until(lambda: (site.var / "late-answer").exists() and (site.var / "late-answer").read_bytes()))
    # It is answered with the engine that the replica has.
    assert answer["value"]["run_id"] == ready.run_id
    [run] = site.runs.all()
    assert (run.run_id, metadata_of(run).key) == (ready.run_id, ReplicaKey(model.pk, 0))


def test_a_start_that_arrives_after_its_model_was_stopped_starts_nothing(site):
    (site.var / "delay-launch").touch()
    site.supervise()
    site.model()
    site.reaches("ready")
    ServedModel.objects.update(enabled=False)
    site.reaches("stopped")
    (site.var / "delayed-launch").unlink()
    answer = json.loads(until(lambda: (site.var / "late-answer").exists() and (site.var / "late-answer").read_bytes()))
    assert "refused" in answer
    assert site.living() == []


def test_engines_survive_what_acts_on_their_machine(site):
    site.supervise()
    site.model()
    ready = site.reaches("ready")
    silent, heard = logged(site, SILENT), logged(site, HEARD)
    site.kill_machine()
    until(lambda: logged(site, SILENT) > silent)
    assert site.replica().state == "ready"
    site.start_machine()
    until(lambda: logged(site, HEARD) > heard)
    ServedModel.objects.update(generation=1)  # it acts again
    again = until(lambda: (row := site.replica()).state == "ready" and row.run_id != ready.run_id and row)
    assert (again.restarts, [run.run_id for run in living_runs(site)]) == (0, [again.run_id])


def test_a_supervisor_that_starts_while_its_host_is_silent_waits_and_adopts(site):
    first = site.supervise()
    model = site.model()
    ready = site.reaches("ready")
    first.kill()
    first.wait()
    site.kill_machine()
    second = site.supervise()
    silent = "nothing is started or stopped there until it answers"
    until(lambda: logged(site, silent))
    second.terminate()
    assert second.wait(30) == 0
    site.supervise()
    until(lambda: logged(site, silent) > 1)
    assert site.replica().state == "ready"
    site.start_machine()
    until(lambda: logged(site, ADOPTED % (f"{model.name} #0", ready.pid)))
    now = site.reaches("ready")
    assert (now.run_id, now.restarts) == (ready.run_id, 0)
    assert [run.run_id for run in living_runs(site)] == [ready.run_id]


def test_engines_of_a_host_that_is_silent_from_the_start_are_doubted_if_they_do_not_answer(site):
    first = site.supervise()
    site.model()
    ready = site.reaches("ready")
    first.kill()
    first.wait()
    site.kill_machine()
    os.kill(ready.pid, signal.SIGKILL)
    site.supervise()
    doubted = site.reaches("unhealthy")
    assert (doubted.detail, doubted.run_id) == (HOST_UNHEARD, ready.run_id)
    site.start_machine()
    again = until(lambda: (row := site.replica()).state == "ready" and row.run_id != ready.run_id and row)
    assert [run.run_id for run in living_runs(site)] == [again.run_id]
