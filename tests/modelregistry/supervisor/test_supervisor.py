"""The supervisor as operators run it, with a stand-in for llama-server as a real process."""

import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from django.db import connections
from django.utils import timezone

from apiproxy.bridge.models import CatalogueRevision
from modelregistry import routes
from modelregistry.models import Host, WakeRequest
from modelregistry.process import process
from modelregistry.supervisor.adoption import ADOPTED
from modelregistry.supervisor.database import DATABASE_AWAY, DATABASE_BACK
from modelregistry.supervisor.loop import SHIM_KILLED
from tests import ports
from tests.modelregistry import paper_models
from tests.modelregistry.site import FAKE, REFUSAL, stream
from tests.output import lines_of
from tests.waiting import until


def gone(run):
    return process.life_of(run) is process.Life.ENDED and not process.find_leftovers(run)


def test_a_model_is_started_and_offered_once_it_answers(site):
    site.supervise()
    model = site.model("m", "loading=1.5", slots=3)
    starting = site.reaches("starting")
    assert routes.ready_replicas() == []
    ready = site.reaches("ready")

    [route] = routes.ready_replicas()
    assert (route.model_id, route.url, route.api_key) == (model.pk, ready.url, ready.api_key)
    assert (route.upstream_model, route.launcher, route.slots) == ("m", "llama-server", 3)
    assert stream(ready, 2).rest().endswith("[DONE]\n\n")
    assert ready.pk == starting.pk
    assert ready.pid == site.run_of(ready).engine.pid
    until(lambda: (site.replica().memory_bytes or 0) > 1_000_000)
    assert Host.objects.get(name="here").seen_at


def test_an_engine_answers_no_caller_without_its_key(site):
    site.supervise()
    site.model()
    ready = site.reaches("ready")
    with pytest.raises(HTTPError) as refusal:
        urlopen(Request(f"{ready.url}/v1/models"), timeout=5)
    assert refusal.value.code == 401
    assert ready.api_key not in Path(f"/proc/{ready.pid}/cmdline").read_text()


def test_an_unregistered_model_finishes_what_runs_and_is_gone(site):
    site.supervise()
    model = site.model()
    ready = site.reaches("ready")
    run = site.run_of(ready)
    answer = stream(ready, 90)  # 4.5 s, longer than gateways may still route to it
    model.delete()
    assert site.replica() is None
    assert answer.rest().count("data:") == 91
    until(lambda: gone(run), 30)


def test_a_crashed_engine_is_started_again(site):
    site.supervise()
    site.model()
    first = site.reaches("ready")
    os.kill(first.pid, signal.SIGKILL)
    down = until(lambda: (row := site.replica()).state == "backoff" and row.pid is None and row)
    assert (down.url, down.api_key, down.restarts) == ("", "", 1)
    assert (process.exit_of(site.run_of(first)).signal, down.cause) == (signal.SIGKILL, "killed")
    again = site.reaches("ready")
    assert again.pid != first.pid
    assert again.detail == ""


def test_an_engine_that_dies_at_start_says_why_and_is_tried_later_and_later(site):
    site.supervise()
    site.model("m", "exit=unknown model architecture: foo")
    down = until(lambda: (row := site.replica()) and row.state == "backoff" and row.detail and row)
    ended = process.exit_of(site.run_of(down))
    first, *log = down.detail.splitlines()
    assert (ended.code, first) == (3, f"{ended}: error: unknown model architecture: foo")
    assert "loading model" in log  # as the stand-in writes
    third = until(lambda: (row := site.replica()).restarts == 3 and row.retry_at and row)
    assert 2 < (third.retry_at - timezone.now()).total_seconds() <= 4


def test_a_model_whose_file_went_away_says_so(site):
    site.supervise()
    Host.objects.get_or_create(name="here")
    site.model("m", host=Host.objects.get(name="here"), path=str(site.var / "gone.gguf"))
    down = until(lambda: (row := site.replica()) and row.state == "backoff" and row)
    assert down.cause == "missing-file"
    assert str(site.var / "gone.gguf") in down.detail


def test_a_host_without_the_engine_says_so(site):
    site.supervise(MADOGUCHI_CACHE=str(site.var / "cache"))
    site.model("m", engine="vllm", path=str(paper_models.small_llama(site.var / "model")))
    down = until(lambda: (row := site.replica()) and row.state == "backoff" and row)
    assert down.cause == "no-engine"
    assert "VLLM_COMMAND" in down.detail


def test_a_start_that_the_supervisor_itself_stumbles_over_fails_with_a_cause_and_is_tried_again(site):
    site.supervise(LLAMA_SERVER_COMMAND="'a quotation without its end")
    site.model()
    down = until(lambda: (row := site.replica()) and row.restarts >= 2 and row)
    assert (down.cause, down.pid) == ("start-fault", None)
    assert "ValueError" in down.detail  # of shlex


def test_a_slow_start_has_its_limit(site):
    site.supervise(ENGINE_START_TIMEOUT="1.5")
    site.model("m", "loading=600")
    down = until(lambda: (row := site.replica()) and row.state == "backoff" and row.pid is None and row)
    assert down.cause == "too-slow"
    assert "1.5 s" in down.detail


def test_an_engine_that_runs_but_refuses_its_work_is_not_ready(site):
    site.supervise()
    site.model("m", "refuse")
    down = until(lambda: (row := site.replica()) and row.state == "backoff" and row.pid is None and row)
    assert process.exit_of(site.run_of(down)).asked  # it ran until then
    assert f"/v1/chat/completions: 400 {REFUSAL}" in down.detail


def test_an_ill_engine_is_off_the_catalogue_until_it_is_well(site):
    site.supervise()
    site.model()
    ready = site.reaches("ready")
    os.kill(ready.pid, signal.SIGUSR1)
    ill = site.reaches("unhealthy")
    assert routes.ready_replicas() == []
    assert REFUSAL in ill.detail
    os.kill(ready.pid, signal.SIGUSR1)
    well = site.reaches("ready")
    assert (well.pid, well.detail, well.restarts) == (ready.pid, "", 0)


@pytest.fixture
def occupied():
    """Provide a port in use whose successor is free."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
            yield port
            return


def test_a_port_in_use_is_left_to_its_owner(site, occupied):
    site.supervise(ENGINE_PORTS=f"{occupied}-{occupied + 1}")
    site.model()
    assert site.reaches("ready").url == f"http://127.0.0.1:{occupied + 1}"


def test_engines_that_start_at_once_get_different_ports(site):
    """Each has looked for a free one before another one listens."""
    first = ports.in_a_row(4, random.Random())
    for number in range(4):
        site.model(f"m{number}")
    site.supervise(ENGINE_PORTS=f"{first}-{first + 3}")
    ready = [site.reaches("ready", f"m{number}") for number in range(4)]
    assert len({replica.url for replica in ready}) == 4
    assert [replica.restarts for replica in ready] == [0] * 4


def test_no_free_port_is_reported(site, occupied):
    site.supervise(ENGINE_PORTS=f"{occupied}-{occupied}")
    site.model()
    down = until(lambda: (row := site.replica()) and row.state == "backoff" and row)
    assert down.cause == "port-in-use"
    assert all(word in down.detail for word in ("ENGINE_PORTS", str(occupied)))


def test_changed_settings_restart_the_engine(site):
    site.supervise()
    model = site.model(slots=2)
    before = site.reaches("ready")
    model.slots = 5
    model.save(update_fields=["slots"])  # its host is known by now
    site.reaches("draining")
    after = site.reaches("ready")
    assert (before.slots, after.slots) == (2, 5)
    assert after.pid != before.pid
    assert after.restarts == 0


def test_a_changed_description_restarts_nothing(site):
    site.supervise()
    model = site.model()
    before = site.reaches("ready")
    model.description_en = "for everybody"
    model.save(update_fields=["description_en"])
    later = site.model("later")
    site.reaches("ready", later.name)
    assert site.replica().pid == before.pid


def test_a_disabled_model_stops_and_comes_back(site):
    site.supervise()
    model = site.model()
    run = site.run_of(site.reaches("ready"))
    model.enabled = False
    model.save(update_fields=["enabled"])
    stopped = site.reaches("stopped")
    assert (stopped.url, stopped.api_key, stopped.pid) == ("", "", None)
    assert gone(run)
    model.enabled = True
    model.save(update_fields=["enabled"])
    site.reaches("ready")


def test_replicas_come_and_go(site):
    site.supervise()
    model = site.model(replicas=2)
    first, second = site.reaches("ready"), site.reaches("ready", number=1)
    assert first.url != second.url
    model.replicas = 1
    model.save(update_fields=["replicas"])
    until(lambda: site.replica(number=1) is None)
    assert site.replica().pid == first.pid
    assert site.living() != []


def test_an_idle_model_sleeps_and_a_request_wakes_it(site):
    site.supervise()
    model = site.model(idle_after=1)
    run = site.run_of(site.reaches("ready"))
    asleep = site.reaches("asleep")
    assert (asleep.pid, asleep.url) == (None, "")
    assert gone(run)
    WakeRequest.objects.create(model=model, at=timezone.now())
    site.reaches("ready")
    until(lambda: not WakeRequest.objects.exists())


def test_a_model_is_kept_awake_at_its_hours_and_loaded_when_they_come(site):
    far = (timezone.localtime() + timedelta(days=3)).strftime("%a 00:00-24:00")
    site.supervise()
    model = site.model(idle_after=1, hours=far)
    site.reaches("ready")
    site.reaches("asleep")
    model.hours = "00:00-24:00"
    model.save(update_fields=["hours"])
    site.reaches("ready")
    assert not WakeRequest.objects.exists()


def test_hours_that_another_version_wrote_keep_nothing_from_running(site):
    site.supervise()
    site.model(hours="by the moon")
    site.reaches("ready")


def test_a_model_in_use_does_not_sleep(site):
    site.supervise()
    site.model(idle_after=3)
    ready = site.reaches("ready")
    answer = stream(ready, 160)  # 8 s
    assert answer.rest().count("data:") == 161
    assert site.replica().state == "ready"
    site.reaches("asleep")


@pytest.fixture
def outside():
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    engine = subprocess.Popen(
        [sys.executable, FAKE, "--host=127.0.0.1", f"--port={port}", "--alias=theirs"],
        env={"LLAMA_API_KEY": "their-key"},
    )
    yield f"http://127.0.0.1:{port}", engine
    engine.kill()
    engine.wait()


def test_an_external_engine_is_looked_at_and_never_launched(site, outside):
    url, engine = outside
    site.supervise()
    site.model("m", engine="external", path="", url=url + "/", upstream_key="their-key", upstream_model="theirs")
    site.reaches("ready")
    [route] = routes.ready_replicas()
    assert (route.url, route.api_key, route.upstream_model, route.launcher) == (url, "their-key", "theirs", "")
    assert site.runs.all() == []
    engine.kill()
    down = site.reaches("unhealthy")
    assert "connect" in down.detail.lower()


def test_an_external_engine_that_refuses_our_key_is_not_offered(site, outside):
    site.supervise()
    site.model("m", engine="external", path="", url=outside[0], upstream_key="wrong")
    assert "401" in site.reaches("unhealthy").detail


def test_only_one_supervisor_runs_on_a_host(site):
    first = site.supervise()
    until(lambda: Host.objects.filter(name="here", seen_at__isnull=False).exists())
    site.log.write_text("")
    second = site.supervise()
    assert second.wait(20) == 1
    assert str(first.pid) in site.log.read_text().splitlines()[-1]
    assert first.poll() is None


def test_a_killed_supervisor_is_followed_by_one_that_adopts(site):
    supervisor = site.supervise()
    site.model()
    before = site.reaches("ready")
    answer = stream(before, 100)  # 5 s
    supervisor.kill()
    supervisor.wait()
    site.supervise()
    until(lambda: lines_of(ADOPTED, site.log.read_text()))
    assert answer.rest().count("data:") == 101
    after = site.replica()
    assert (after.pid, after.url, after.api_key, after.state) == (before.pid, before.url, before.api_key, "ready")
    assert after.changed_at == before.changed_at


def test_an_engine_that_died_without_a_supervisor_is_started_again(site):
    supervisor = site.supervise()
    site.model("m", "worker")
    before = site.reaches("ready")
    supervisor.kill()
    supervisor.wait()
    os.kill(before.pid, signal.SIGKILL)
    run = site.run_of(before)
    until(lambda: gone(run))
    site.supervise()
    again = until(lambda: (row := site.replica()).pid not in (None, before.pid) and row.state == "ready" and row)
    assert again.restarts == 1


def test_an_unregistered_model_is_stopped_although_the_supervisor_was_away(site):
    supervisor = site.supervise()
    model = site.model()
    run = site.run_of(site.reaches("ready"))
    supervisor.kill()
    supervisor.wait()
    model.delete()
    site.supervise()
    until(lambda: gone(run))


def test_an_engine_without_its_shim_is_replaced(site):
    site.supervise()
    site.model("m", "worker")
    before = site.reaches("ready")
    run = site.run_of(before)
    assert len(process.find_leftovers(run)) == 2
    os.kill(run.shim.pid, signal.SIGKILL)
    down = until(lambda: (row := site.replica()).state == "backoff" and row.pid is None and row)
    assert down.detail.startswith(SHIM_KILLED)
    assert process.find_leftovers(run) == []
    site.reaches("ready")


def test_ending_the_supervisor_leaves_its_engines(site):
    supervisor = site.supervise()
    site.model()
    ready = site.reaches("ready")
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(10) == 0
    assert stream(ready, 1).rest().endswith("[DONE]\n\n")
    assert site.replica().state == "ready"


def test_stop_engines_leaves_no_process(site):
    supervisor = site.supervise("--stop-engines")
    site.model("m", "worker", replicas=2)
    site.reaches("ready")
    site.reaches("ready", number=1)
    assert len(site.living()) == 6  # of each a shim, a front and a worker
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(15) == 0
    assert site.living() == []
    assert {site.replica(number=number).state for number in (0, 1)} == {"stopped"}


def test_logs_of_a_model_that_is_gone_are_not_kept_for_ever(site):
    supervisor = site.supervise("--stop-engines")
    model = site.model()
    site.reaches("ready")
    supervisor.send_signal(signal.SIGTERM)
    supervisor.wait(15)
    assert len(site.runs.all()) == 1
    model.delete()
    site.supervise()
    until(lambda: site.runs.all() == [])


def test_a_second_signal_stops_stubborn_engines_at_once(site):
    supervisor = site.supervise("--stop-engines", ENGINE_STOP_GRACE="60")
    site.model("m", "stubborn", "worker")
    site.reaches("ready")
    supervisor.send_signal(signal.SIGINT)
    site.reaches("draining")
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(10) == 0
    assert site.living() == []


def test_engines_do_not_mind_a_database_that_is_away(site):
    site.supervise()
    site.model()
    before = site.reaches("ready")
    away(True)
    until(lambda: lines_of(DATABASE_AWAY, site.log.read_text()))
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: len(site.runs.all()) == 2, 30)  # a second after the crash, in which other reads failed
    away(False)
    again = until(lambda: (row := site.replica()).state == "ready" and row.restarts == 1 and row)
    assert again.pid != before.pid
    until(lambda: lines_of(DATABASE_BACK, site.log.read_text()))
    assert len(lines_of(DATABASE_AWAY, site.log.read_text())) == 1


def away(is_away: bool) -> None:
    """Make every read of what is wanted fail in the database, or work again."""
    names = ("modelregistry_wakerequest", "renamed_away")
    source, target = names if is_away else names[::-1]
    with sqlite3.connect(connections["default"].settings_dict["NAME"], timeout=10) as database:
        database.execute(f"ALTER TABLE {source} RENAME TO {target}")
    database.close()


def test_what_gateways_need_not_know_does_not_make_them_look(site):
    site.supervise()
    site.model()
    site.reaches("ready")
    until(lambda: site.replica().memory_bytes and site.replica().live)
    revision = CatalogueRevision.objects.get().number
    live = site.replica().live
    until(lambda: site.replica().live != live)
    assert CatalogueRevision.objects.get().number == revision
