"""E11: a model is pinned to a version of its engine or follows the newest proven one; a new one proves itself first."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from modelregistry.engines import base, version_trials
from modelregistry.engines.version_trials import (
    FAILED,
    PROVEN,
    Installed,
    NoVersion,
    Trial,
    choose_version,
    explain_difference,
)
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.run_metadata import RunMetadata, metadata_of
from modelregistry.models import EngineTrial, Host, ServedModel
from modelregistry.supervisor import repository
from modelregistry.supervisor.database import Database
from modelregistry.supervisor.launching import SupervisorConfig
from modelregistry.supervisor.loop import Supervisor
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.office import Office
from modelregistry.supervisor.plan import ReplicaState
from tests.modelregistry.site import FAKE
from tests.waiting import until


def build(version: str, stamp: str = "s") -> Installed:
    return Installed(launcher="vllm", version=version, stamp=stamp, program=(f"/{version}",))


def trial(version: str, state: str, stamp: str = "s", **more) -> Trial:
    return Trial(launcher="vllm", version=version, stamp=stamp, state=state, **more)


NEW, OLD, OLDER = build("0.33"), build("0.32"), build("0.31")


def test_e11_a_new_version_is_tried_with_the_proven_one_behind_it():
    found = choose_version([NEW, OLD, OLDER], [trial("0.32", PROVEN), trial("0.31", PROVEN)])
    assert (found.installed, found.trial, found.instead) == (NEW, True, "0.32")


def test_e11_the_others_stay_with_the_proven_one_while_it_is_tried():
    found = choose_version([NEW, OLD], [trial("0.32", PROVEN)], tried_now=["0.33"])
    assert (found.installed, found.trial) == (OLD, False)
    assert choose_version([NEW, OLD], [trial("0.32", PROVEN), trial("0.33", PROVEN)]).installed == NEW


def test_e11_a_failed_one_is_left_alone_until_it_changes():
    known = [trial("0.32", PROVEN), trial("0.33", FAILED)]
    assert choose_version([NEW, OLD], known).installed == OLD
    assert choose_version([build("0.33", "anew"), OLD], known).trial
    assert choose_version([build("0.34"), NEW, OLD], known).installed.version == "0.34"


def test_e11_a_new_model_begins_with_the_newest_and_has_something_to_fall_back_to():
    found = choose_version([NEW, OLD], [])
    assert (found.installed, found.trial, found.instead) == (NEW, True, "0.32")
    assert choose_version([NEW, OLD], [trial("0.33", FAILED)]).installed == OLD
    assert choose_version([NEW], []).instead == ""
    assert choose_version([NEW, OLD], [trial("0.33", FAILED), trial("0.32", FAILED)]).installed == NEW


def test_e11_a_pinned_model_stays_where_it_is_whatever_was_tried():
    assert choose_version([NEW, OLD], [trial("0.32", FAILED)], pinned="0.32").installed == OLD
    with pytest.raises(NoVersion) as refusal:
        choose_version([NEW, OLD], [], pinned="0.30")
    assert refusal.value.installed == ("0.33", "0.32")


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ({"text": "One, two, three, four"}, {"text": "One, two, three, four"}, True),
        ({"text": "One, two, three, four, five"}, {"text": "One, two, three and four"}, True),
        ({"text": "One, two, three"}, {"text": "!!!!!!!!!!!!!!!!!!!!!!!!"}, False),
        ({"text": "One, two, three"}, {"text": " \n"}, False),
        ({"text": "One, two, three, four"}, {"text": "給紙ßßq#8@ÖÄ%%&/("}, False),
        ({"text": "!!!!!!!!!!!!!!!!"}, {"text": "!!!!!!!!!!!!!!!!"}, True),  # a random model
        ({"vector": [1.0, 0.0, 0.5]}, {"vector": [1.0, 0.01, 0.5]}, True),
        ({"vector": [1.0, 0.0, 0.5]}, {"vector": [0.0, 1.0, 0.5]}, False),
        ({"vector": [1.0, 0.0]}, {"vector": [1.0, 0.0, 0.0]}, False),
        ({"vector": [1.0, 0.0]}, {"vector": [0.0, 0.0]}, False),
        ({"best": 2}, {"best": 2}, True),
        ({"best": 2}, {"best": 0}, False),
        (None, {"text": "x"}, True),
        ({"text": "x"}, None, True),
        ({"text": "x"}, {"vector": [1.0]}, True),
    ],
)
def test_e11_answers_of_two_versions_are_held_to_each_other(before, after, same):
    assert (explain_difference(before, after) == "") is same


def test_e11_the_last_proven_answer_is_the_measure():
    known = [trial("0.31", PROVEN, answer={"text": "a"}), trial("0.32", PROVEN, answer={"text": "b"})]
    known.append(trial("0.33", FAILED, answer={"text": "c"}))
    assert version_trials.find_reference(known, "vllm") == {"text": "b"}
    assert version_trials.find_reference(known, "xllamacpp") is None


def test_e11_the_fingerprint_of_models_that_are_not_pinned_is_as_before():
    """Deploying this unloads nothing: what runs was labelled by a release without versions."""
    spec = base.Spec(engine="vllm", name="m", path="/m")
    assert spec.fingerprint() == "33c5b89fb60cee4c"
    assert base.Spec(engine="vllm", name="m", path="/m", version="0.32.0").fingerprint() != spec.fingerprint()


@pytest.mark.django_db
def test_e11_what_was_tried_is_kept_and_replaced():
    host = Host.objects.create(name="here")
    model = ServedModel.objects.create(name="m", engine="vllm", path="/m", host=host)
    repository.record_trial(host.pk, model.pk, trial("0.33", FAILED, cause="driver", detail="it died"))
    repository.record_trial(host.pk, model.pk, trial("0.33", PROVEN, stamp="anew", answer={"text": "a"}))
    repository.record_trial(host.pk, model.pk + 1, trial("0.33", PROVEN))  # deleted meanwhile
    assert repository.load_trials(host.pk) == {model.pk: [trial("0.33", PROVEN, stamp="anew", answer={"text": "a"})]}
    repository.record_trial(host.pk, model.pk, trial("0.33", version_trials.UNTRIED))
    assert repository.load_trials(host.pk) == {}


# --- A supervisor with two versions of a stand-in


def install(cache: Path, version: str, *behave: str, launcher: str = "llama-server") -> Path:
    """Return an engine of this version, as `installengine` would have put it there: by one rename."""
    made = cache / f".{version}" / "bin" / ("llama-server" if launcher == "llama-server" else "python")
    made.parent.mkdir(parents=True)
    words = shlex.join(f"--behave={each}" for each in behave)
    made.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@" {words}\n')
    made.chmod(0o755)
    target = cache / "engines" / f"{launcher}-{version}"
    target.parent.mkdir(exist_ok=True)
    return made.parent.parent.rename(target)


@pytest.fixture
def cache(site):
    site.environment |= {"MADOGUCHI_CACHE": str(site.var / "cache"), "LLAMA_SERVER_COMMAND": ""}
    return site.var / "cache"


def started_from(site, replica) -> str:
    return site.run_of(replica).label["installed"]


def test_e11_a_broken_new_version_costs_one_start_and_is_reported(site, cache):
    install(cache, "1.0")
    site.supervise()
    model = site.model(replicas=2)
    for number in (0, 1):
        assert started_from(site, site.reaches("ready", number=number)) == "1.0"
    until(lambda: EngineTrial.objects.filter(version="1.0", state="proven", answer={"text": "pong"}).exists())

    install(cache, "2.0", "exit=undefined symbol: ggml_new")
    ServedModel.objects.update(generation=1)  # an operator's restart
    until(lambda: EngineTrial.objects.filter(version="2.0", state="failed").exists())
    for number in (0, 1):
        again = until(lambda n=number: (row := site.replica(number=n)).state == "ready" and row)
        assert started_from(site, again) == "1.0"
    failed = EngineTrial.objects.get(version="2.0")
    assert (failed.model, failed.cause) == (model, "mixed-packages")
    assert "undefined symbol" in failed.detail
    # Once by each replica at most: the second may start in the moment in which the first dies.
    runs = [run.label["installed"] for run in site.runs.all()]
    assert 1 <= runs.count("2.0") <= 2

    ServedModel.objects.update(engine_version="2.0")  # an operator's word
    until(lambda: "undefined symbol" in site.replica().detail)


def test_e11_a_version_that_answers_otherwise_does_not_serve(site, cache):
    install(cache, "1.0")
    site.supervise()
    site.model()
    site.reaches("ready")
    until(lambda: EngineTrial.objects.filter(version="1.0", state="proven").exists())
    install(cache, "2.0", "says=!!!!!!!!!!!!!!!!!!!!")
    ServedModel.objects.update(generation=1)
    failed = until(lambda: EngineTrial.objects.filter(version="2.0", state="failed").first())
    assert "!!!!!" in failed.detail  # its answer
    assert until(lambda: (row := site.replica()).state == "ready" and started_from(site, row) == "1.0" and row)

    # Installed again, and better: tried again at the next start.
    os.rename(cache / "engines" / "llama-server-2.0", cache / "gone")
    install(cache, "2.0")
    ServedModel.objects.update(generation=2)
    assert until(lambda: (row := site.replica()).state == "ready" and started_from(site, row) == "2.0" and row)
    until(lambda: EngineTrial.objects.get(version="2.0").state == "proven")


def test_e11_a_version_is_not_blamed_for_what_the_one_before_it_fails_of_too(site, cache):
    for version in ("1.0", "2.0"):
        install(cache, version, "exit=undefined symbol: a")
    site.supervise()
    site.model()
    until(lambda: EngineTrial.objects.filter(version="2.0", state="failed").exists())
    until(lambda: not EngineTrial.objects.exists())
    assert [run.label["installed"] for run in site.runs.all()][:2] == ["2.0", "1.0"]


def started_by(site, launcher: str) -> bool:
    row = site.replica()
    return bool(row) and row.state == "ready" and row.launcher == launcher


def proven(launcher: str) -> bool:
    return EngineTrial.objects.filter(launcher=launcher, state="proven").exists()


def test_a_model_stays_with_the_launcher_that_is_proven_until_that_is_gone(site, cache):
    there = install(cache, "1.0", launcher="xllamacpp")
    site.supervise()
    site.model()
    until(lambda: started_by(site, "xllamacpp"))
    until(lambda: proven("xllamacpp"))

    install(cache, "9.0")  # it would come first where nothing is known
    before = site.replica().run_id
    ServedModel.objects.update(generation=1)
    until(lambda: site.replica().run_id not in (before, "") and started_by(site, "xllamacpp"))
    assert not EngineTrial.objects.filter(launcher="llama-server").exists()

    there.rename(cache / "gone")
    ServedModel.objects.update(generation=2)
    until(lambda: started_by(site, "llama-server"))
    until(lambda: proven("llama-server"))


def test_a_launcher_that_fails_at_a_model_costs_one_start_and_the_next_is_taken(site, cache):
    install(cache, "9.0", "exit=undefined symbol: ggml_new")
    install(cache, "1.0", launcher="xllamacpp")
    site.supervise()
    site.model()
    until(lambda: started_by(site, "xllamacpp"))
    failed = EngineTrial.objects.get(launcher="llama-server")
    assert (failed.version, failed.state) == ("9.0", "failed")
    assert [run.label["launcher"] for run in site.runs.all()] == ["llama-server", "xllamacpp"]
    ServedModel.objects.update(generation=1)
    until(lambda: site.replica().state != "ready")
    until(lambda: started_by(site, "xllamacpp"))
    assert [run.label["launcher"] for run in site.runs.all()].count("llama-server") == 1


async def test_e11_what_failed_is_tried_at_once_when_an_engine_was_installed_or_removed(tmp_path):
    cache = tmp_path / "cache"
    config = SupervisorConfig(
        **{"host": "here", "runs": tmp_path / "runs", "cache": cache, "commands": {}, "ports": range(1, 2)},
        **{"start_limit": 1, "stop_grace": 1},
    )
    office = Office(number="n", holder="this test", term=1)
    supervisor = Supervisor(config, office=office, database=Database(), clock=lambda: 1000.0)
    order = repository.DesiredModel(
        **{"spec": base.Spec(engine="vllm", name="m", path="/m"), "enabled": True, "numbers": frozenset([0])},
        **{
            "idle_after": None,
            "hours": None,
            "url": "",
            "upstream_key": "",
            "upstream_model": "",
        },
    )
    failed = ManagedReplica(
        key=ReplicaKey(1, 0), desired=order, fingerprint="f", state=ReplicaState.FAILED, since=0.0, retry_at=1600.0
    )
    supervisor.replicas[failed.key] = failed
    await supervisor.inspect()
    assert failed.retry_at == 1600.0
    there = install(cache, "1.0")
    await supervisor.inspect()
    assert failed.retry_at == 1000.0
    failed.retry_at = 1600.0
    await supervisor.inspect()
    assert failed.retry_at == 1600.0
    there.rename(cache / "gone")
    await supervisor.inspect()
    assert failed.retry_at == 1000.0


def test_e11_a_label_of_an_older_release_is_adopted(site, cache):
    """Runs that were started before there were versions have none."""

    class Run:
        label = json.loads(json.dumps({"model": 1, "replica": 0, "name": "m", "task": "chat", "fingerprint": "f"}))

    Run.label |= {"launcher": "vllm", "slots": None, "port": 1, "url": "u", "api_key": "k"}
    found = metadata_of(Run)
    assert isinstance(found, RunMetadata)
    assert (found.installed, found.trial) == ("", False)
