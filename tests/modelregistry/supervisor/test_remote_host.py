"""A supervisor that works on another machine, which may fall silent, die and come back: nothing is lost or doubled."""

import json
import os
import signal
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.utils import timezone

from modelregistry.engines.selection import ChosenEngine
from modelregistry.engines.version_trials import Choice, Installed
from modelregistry.failure_advice import SILENT_HOST
from modelregistry.hostside import wire
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.run_metadata import metadata_of
from modelregistry.models import HostReport, LogSubscription, LogTail, ServedModel
from modelregistry.process import process
from modelregistry.process.process import Life, Run
from modelregistry.supervisor.adoption import ADOPTED
from modelregistry.supervisor.doubts import HOST_UNHEARD
from modelregistry.supervisor.loop import UNREADABLE
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
    until(lambda: (site.replica().memory_bytes or 0) > 1_000_000)
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


RUN = {"run_id": "r", "pid": 1, "of_this_boot": True, "life": "RUNNING"}
LABEL = {
    **{"model": 1, "replica": 0, "name": "m", "task": "chat", "fingerprint": "", "launcher": "llama-server"},
    **{"slots": 1, "port": 0, "url": "", "api_key": ""},
}


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("inspect", {"devices": [{}] * 3_000}),
        ("inspect", {"strangers": [{}] * 20_000}),
        ("list_runs", [{**RUN, "label": {**LABEL, "replica": "zero"}}]),
        ("list_runs", [{**RUN, "label": {**LABEL, "rank": 7}}]),
    ],
)
def test_what_a_host_answers_beyond_types_and_bounds_is_reported_in_words(site, method, answer):
    forged = site.var / f"answer-{method}"
    forged.write_text(json.dumps({"value": answer}))
    site.supervise()
    site.model()
    found = until(lambda: (row := HostReport.objects.first()) and row.problems and row)
    assert [one["code"] for one in found.problems] == [UNREADABLE]
    assert method in found.problems[0]["detail"]
    assert not found.devices
    assert not found.strangers
    if method == "inspect":  # its engines are started all the same
        site.reaches("ready")
    forged.unlink()
    site.reaches("ready")
    until(lambda: HostReport.objects.get().devices and not HostReport.objects.get().problems)
    assert logged(site, found.problems[0]["detail"]) == 1
    assert logged(site, "Traceback") == 0


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
    assert (doubted.detail, doubted.cause, doubted.run_id) == (HOST_UNHEARD, SILENT_HOST, ready.run_id)
    site.start_machine()
    again = until(lambda: (row := site.replica()).state == "ready" and row.run_id != ready.run_id and row)
    assert [run.run_id for run in living_runs(site)] == [again.run_id]


# --- A host that answers, and cannot


def break_down(site: RemoteSite, method: str) -> None:
    (site.var / f"fault-{method}").touch()


def meets(site: RemoteSite, method: str) -> None:
    """Wait until the supervisor has met the fault."""
    until(lambda: (site.var / f"met-{method}").exists(), 60)


def repair(site: RemoteSite, method: str) -> None:
    (site.var / f"fault-{method}").unlink()


@pytest.mark.parametrize("method", ["kill_strays", "list_runs"])
def test_a_supervisor_waits_for_a_host_that_cannot_list_its_engines_and_adopts(site, method):
    first = site.supervise()
    model = site.model()
    ready = site.reaches("ready")
    first.kill()
    first.wait()
    break_down(site, method)
    second = site.supervise()
    meets(site, method)
    assert second.poll() is None
    repair(site, method)
    until(lambda: logged(site, ADOPTED % (f"{model.name} #0", ready.pid)))
    assert [run.run_id for run in living_runs(site)] == [ready.run_id]


def test_an_engine_that_cannot_be_stopped_yet_is_stopped_later(site):
    site.supervise()
    site.model()
    ready = site.reaches("ready")
    break_down(site, "stop")
    ServedModel.objects.update(enabled=False)
    meets(site, "stop")
    assert site.replica().run_id == ready.run_id
    assert [run.run_id for run in living_runs(site)] == [ready.run_id]
    repair(site, "stop")
    site.reaches("stopped")
    assert site.living() == []


def test_a_crashed_engine_whose_record_cannot_be_read_is_started_again(site):
    site.supervise()
    site.model()
    first = site.reaches("ready")
    break_down(site, "describe_end")
    os.kill(first.pid, signal.SIGKILL)
    meets(site, "describe_end")
    again = until(lambda: (row := site.replica()).state == "ready" and row.run_id != first.run_id and row)
    assert again.restarts == 1


@pytest.mark.parametrize("method", ["choose_engine", "launch"])
def test_a_start_that_its_host_cannot_carry_out_is_repeated(site, method):
    break_down(site, method)
    site.supervise()
    site.model()
    down = until(lambda: (row := site.replica()) and row.state in ("backoff", "failed") and row)
    assert "Input/output error" in down.detail
    repair(site, method)
    site.reaches("ready")


@pytest.mark.parametrize("method", ["log_tail", "measure_use", "cpu_seconds", "find_address_fault", "inspect"])
def test_what_a_host_cannot_look_at_stops_no_exchange(site, method):
    site.supervise()
    site.model()
    ready = site.reaches("ready")
    LogSubscription.objects.create(replica=ready, until=timezone.now() + timedelta(minutes=5))
    break_down(site, method)
    if method in ("log_tail", "inspect"):
        meets(site, method)
    ServedModel.objects.update(generation=1)
    again = until(lambda: (row := site.replica()).state == "ready" and row.run_id != ready.run_id and row)
    assert again.restarts == 0


@pytest.mark.parametrize("version", ["", "b2"], ids=["another engine", "another version"])
def test_an_engine_that_is_not_the_one_wanted_is_not_started_and_the_reason_is_shown(site, version):
    """As an agent of an earlier release offers, which does not know all of what a model asks for."""
    launcher = "llama-server" if version else "vllm"
    other = Installed(launcher=launcher, version="b1", program=("/bin/false",), stamp="s")
    offered = ChosenEngine(launcher=launcher, program=other.program, choice=Choice(installed=other))
    answer = site.var / "answer-choose_engine"
    answer.write_bytes(wire.write_message({"value": offered}))
    site.supervise()
    site.model(engine_version=version)
    down = until(lambda: (row := site.replica()) and row.state in ("backoff", "failed") and row)
    assert down.cause == "no-engine"
    assert launcher in down.detail
    assert (version or "llama.cpp") in down.detail
    assert site.runs.all() == []
    ServedModel.objects.update(engine_version="")
    answer.unlink()
    site.reaches("ready")
