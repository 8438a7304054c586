"""What operators do to hosts, and what the host's supervisor makes of it."""

import json
from datetime import timedelta
from io import StringIO

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.utils import timezone

from modelregistry import hosts, overview, routes
from modelregistry.controller.repository import note_host
from modelregistry.models import ControllerClaim, Host, HostReport, Replica, ReplicaPlacement, ServedModel
from modelregistry.overview import ModelState
from modelregistry.supervisor.adoption import ADOPTED
from tests.modelregistry.site import stream
from tests.output import lines_of
from tests.waiting import until

# RFC 5737's block for documentation: no machine has it.
NOBODYS = "192.0.2.77"


def test_e9_engines_follow_the_address_of_their_host(site):
    site.supervise()
    site.model("first")
    before = site.reaches("ready", "first")
    answer = stream(before, 20)

    # An address that is not here ends nothing, and starts nothing.
    Host.objects.update(address=NOBODYS)
    site.model("second")
    refused = site.reaches("failed", "second")
    assert (refused.cause, refused.restarts, refused.pid) == ("bad-address", 0, None)
    assert NOBODYS in refused.detail
    assert site.replica("first").pid == before.pid

    Host.objects.update(address="127.0.0.2")
    assert site.reaches("draining", "first").pid == before.pid
    assert answer.rest().endswith("[DONE]\n\n")
    assert site.reaches("ready", "second").url.startswith("http://127.0.0.2:")
    until(lambda: site.replica("first").pid not in (None, before.pid))
    assert site.reaches("ready", "first").url.startswith("http://127.0.0.2:")

    # The address as it is: the next supervisor leaves them as they are.
    pids = {site.replica(name).pid for name in ("first", "second")}
    site.processes[-1].terminate()
    site.processes[-1].wait(30)
    site.supervise()
    until(lambda: len(lines_of(ADOPTED, site.log.read_text())) == 2)
    site.model("third")
    site.reaches("ready", "third")
    assert {site.replica(name).pid for name in ("first", "second")} == pids


def test_e9_maintenance_drains_a_host_and_takes_nothing_until_it_is_over(site):
    site.supervise()
    site.model()
    ready = site.reaches("ready")
    answer = stream(ready, 60)  # 3 s, longer than gateways may still route to it
    host = hosts.change_host(Host.objects.get(name="here"), maintenance=True)
    site.reaches("draining")
    assert routes.ready_replicas() == []
    assert answer.rest().endswith("[DONE]\n\n")
    stopped = site.reaches("stopped")
    assert (stopped.pid, stopped.detail) == (None, "")
    assert site.living() == []
    assert overview.model_now(ServedModel.objects.get(), timezone.now()).state == ModelState.MAINTENANCE

    site.model("waiting")
    seen = HostReport.objects.get(host=host).at
    until(lambda: HostReport.objects.get(host=host).at > seen)  # it has read what is wanted since
    assert not ReplicaPlacement.objects.filter(model__name="waiting").exists()

    hosts.change_host(host, maintenance=False)
    assert site.reaches("ready").pid != ready.pid
    site.reaches("ready", "waiting")


# --- the verbs


@pytest.fixture
def host(db) -> Host:
    return Host.objects.create(name="gpu-01", address="10.0.0.1", seen_at=timezone.now(), claim="c", holder="h")


def of_host(host: Host, **values) -> ServedModel:
    return ServedModel.objects.create(name="qwen", engine="vllm", path="/models/qwen", host=host, **values)


def test_a_change_leaves_alone_what_the_supervisor_wrote_meanwhile(host):
    as_read = Host.objects.get()
    Host.objects.update(claim="another", seen_at=timezone.now() + timedelta(seconds=5))
    hosts.change_host(as_read, address="10.0.0.2", maintenance=True)
    now = Host.objects.get()
    assert (now.address, now.maintenance, now.claim) == ("10.0.0.2", True, "another")
    assert now.seen_at > as_read.seen_at


def test_an_unreachable_address_is_refused_at_its_field(host):
    with pytest.raises(ValidationError) as refusal:
        hosts.change_host(host, address="0.0.0.0")
    assert set(refusal.value.message_dict) == {"address"}
    assert Host.objects.get().address == "10.0.0.1"


def test_the_address_of_a_host_of_the_cluster_is_its_own_to_say(host):
    Host.objects.update(clustered=True)
    with pytest.raises(ValidationError) as refusal:
        hosts.change_host(host, address="10.0.0.2")
    assert set(refusal.value.message_dict) == {"address"}
    note_host("gpu-01", "0.0.0.0", {})
    assert Host.objects.get().address == "10.0.0.1"
    note_host("gpu-01", "10.0.0.3", {})
    assert Host.objects.get().address == "10.0.0.3"


def test_an_address_of_an_earlier_release_keeps_no_host_from_maintenance(host):
    Host.objects.update(address="0.0.0.0")
    assert hosts.change_host(host, maintenance=True, address="0.0.0.0").maintenance


def test_a_host_that_lives_or_has_models_is_not_removed(host):
    model = of_host(host)
    for claim, seen, named in (("c", 0, host.name), ("c", 300, model.name), ("", 0, model.name)):
        Host.objects.update(claim=claim, seen_at=timezone.now() - timedelta(seconds=seen))
        with pytest.raises(ValidationError, match=named):
            hosts.remove_host(host)
    assert Host.objects.exists()


def test_a_host_that_is_gone_is_removed_with_the_rows_of_its_replicas(host):
    model = of_host(host)
    Replica.objects.create(model=model, host=host, state="ready")
    model.host = Host.objects.create(name="gpu-02")
    model.save()
    Host.objects.filter(pk=host.pk).update(seen_at=timezone.now() - timedelta(seconds=300))
    hosts.remove_host(host)
    assert not Replica.objects.exists()
    assert [row.name for row in Host.objects.all()] == ["gpu-02"]


@pytest.mark.parametrize(
    ("silent", "watched", "removed"),
    [
        (None, 1, False),
        (20, 1, False),  # it may be starting
        (40, 1, True),
        (None, 300, False),  # no controller is there to see whether it is silent
        (40, 300, True),
    ],
)
def test_a_host_of_the_cluster_is_removed_only_when_it_is_silent(host, silent, watched, removed):
    now = timezone.now()
    at = None if silent is None else now - timedelta(seconds=silent)
    seen = now - timedelta(seconds=max(watched, silent or 0))
    Host.objects.update(clustered=True, silent_since=at, watched_at=now - timedelta(seconds=watched), seen_at=seen)
    if removed:
        hosts.remove_host(host)
    else:
        with pytest.raises(ValidationError, match=host.name):
            hosts.remove_host(host)
    assert Host.objects.exists() is not removed


# --- How models of a host in maintenance are shown


@pytest.mark.parametrize(
    ("state", "engine", "told"),
    [
        ("ready", "vllm", ModelState.READY),
        ("draining", "vllm", ModelState.DRAINING),
        ("stopped", "vllm", ModelState.MAINTENANCE),
        ("ready", "external", ModelState.READY),
        ("stopped", "external", ModelState.UNPLACED),
    ],
)
def test_why_a_model_does_not_run_is_shown(host, state, engine, told):
    model = of_host(host)
    ServedModel.objects.update(engine=engine)
    Replica.objects.create(model=model, host=host, state=state)
    hosts.change_host(host, maintenance=True)
    assert overview.model_now(ServedModel.objects.get(), timezone.now()).state == told


# --- the command


def run_command(*args: str) -> str:
    out = StringIO()
    call_command("hosts", *args, stdout=out)
    return out.getvalue()


def test_o11_a_host_is_shown_and_changed_by_a_command(host):
    of_host(host)
    (before,) = json.loads(run_command("--json"))
    assert (before["name"], before["address"], before["maintenance"]) == ("gpu-01", "10.0.0.1", False)
    assert (before["supervised"], before["models"]) == (True, ["qwen"])
    (after,) = json.loads(run_command("gpu-01", "--address", "gpu1.example.internal", "--maintenance", "on", "--json"))
    assert (after["address"], after["maintenance"]) == ("gpu1.example.internal", True)
    assert json.loads(run_command("gpu-01", "--maintenance", "off", "--json"))[0]["maintenance"] is False
    table = run_command()
    assert all(word in table for word in ("gpu-01", "gpu1.example.internal", "qwen"))


def test_a_host_of_the_cluster_shows_its_agent_its_silence_and_what_was_moved(host):
    at = timezone.now() - timedelta(minutes=3)
    agent = {"version": "1.4.2", "python": "3.11.2", "boot": "6f1d5a20-1111", "fenced": True}
    booked = {"offered": {"0": 80 * 10**9}, "booked": {"0": 61 * 10**9}, "others": {"0": 10**10}, "late": []}
    Host.objects.update(
        clustered=True, agent=agent, bookings=booked, silent_since=at, seen_at=at, watched_at=timezone.now()
    )
    other = Host.objects.create(name="gpu-02", clustered=True, seen_at=timezone.now())
    model = of_host(host)
    ServedModel.objects.update(host=None)
    Replica.objects.create(model=model, host=host, state="unhealthy")
    Replica.objects.create(model=model, host=other, state="ready")
    ReplicaPlacement.objects.create(model=model, number=0, host=other, at=at)
    ControllerClaim.objects.create(number="n", term=7, holder="site-1", seen_at=timezone.now(), since=at)
    silent, online = json.loads(run_command("--json"))
    assert (silent["reach"], silent["clustered"], silent["agent"]) == ("silent", True, agent)
    assert silent["silent_since"] == at.isoformat()
    assert (silent["controller"]["term"], silent["controller"]["alive"]) == (7, True)
    assert silent["bookings"] == [{"device": 0, "offered": 80 * 10**9, "booked": 61 * 10**9, "others": 10**10}]
    assert (silent["models"], online["models"]) == ([], ["qwen"])
    assert [(one["state"], one["moved_to"], one["bound"]) for one in silent["replicas"] + online["replicas"]] == [
        ("unhealthy", "gpu-02", False),
        ("ready", "", False),
    ]
    table = run_command()
    assert all(word in table for word in ("1.4.2", "3.11.2", "6f1d5a20", "gpu-02", "site-1", "GPU 0 61.0"))


def test_a_host_is_removed_by_a_command(host):
    Host.objects.update(claim="")
    assert run_command("gpu-01", "--remove").strip() == "gpu-01"
    assert not Host.objects.exists()


@pytest.mark.parametrize(
    "args",
    [
        ("",),  # which does not show all of them
        ("elsewhere",),
        ("elsewhere", "--maintenance", "on"),
        ("--address", "10.0.0.2"),
        ("--remove",),
        ("gpu-01", "--remove"),  # it lives
        ("gpu-01", "--remove", "--maintenance", "on"),
        ("gpu-01", "--address", "10.0.0.1:80"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(host, args):
    before = list(Host.objects.values())
    with pytest.raises(CommandError):
        run_command(*args)
    assert list(Host.objects.values()) == before
