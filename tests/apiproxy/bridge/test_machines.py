"""Which machines have gateways, as they report it and as `gateways` lists it."""

import json
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.utils import timezone

from apiproxy.bridge.machines import KEPT, RUNNING_SECONDS, report_machine
from apiproxy.bridge.models import ControllerMachine, GatewayMachine
from modelregistry.controller.reporting import controller_runs
from modelregistry.database_clock import read_now
from modelregistry.version import VERSION

pytestmark = pytest.mark.django_db


def gateways(*words: str) -> str:
    out = StringIO()
    call_command("gateways", *words, stdout=out)
    return out.getvalue()


def report_other(*, seconds: float) -> None:
    at = timezone.now() - timedelta(seconds=seconds)
    GatewayMachine.objects.create(name="other", version="0.9.0", reported_at=at)


def test_this_machine_and_those_of_other_versions_are_listed(settings):
    settings.HOST_NAME = "this"
    report_other(seconds=10)
    report_machine()
    rows = json.loads(gateways("--json"))
    assert [(row["name"], row["version"], row["running"], row["here"]) for row in rows] == [
        ("other", "0.9.0", True, False),
        ("this", VERSION, True, True),
    ]


def test_a_machine_that_has_not_reported_for_long_does_not_run():
    report_other(seconds=RUNNING_SECONDS + 1)
    (row,) = json.loads(gateways("--json"))
    assert not row["running"]
    assert "0.9.0" in gateways()


def test_a_machine_that_is_gone_for_good_is_forgotten():
    report_other(seconds=KEPT.total_seconds() + 60)
    report_machine()
    assert not GatewayMachine.objects.filter(name="other").exists()


def test_a_machine_with_a_controller_alone_is_listed(settings):
    settings.HOST_NAME = "this"
    controller_runs.send(sender=None)
    [row] = json.loads(gateways("--json"))
    assert (row["name"], row["kind"], row["version"], row["running"], row["here"]) == (
        "this",
        "controller",
        VERSION,
        True,
        True,
    )
    assert ControllerMachine.objects.get().reported_at <= read_now()
