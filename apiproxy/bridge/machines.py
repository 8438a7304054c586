"""Which machines of the site run Madoguchi, and of which version: what a rollback of one of them has to know.

Each gateway process and each controller reports its machine every REPORT_SECONDS, and gateways that retire after a
reload no more. What has not reported for RUNNING_SECONDS does not run. All times are the database's: the clocks of
machines may differ.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings

from apiproxy.bridge.models import ControllerMachine, GatewayMachine
from modelregistry.database_clock import database_now
from modelregistry.version import VERSION

REPORT_SECONDS = 20.0
RUNNING_SECONDS = 90.0
KEPT = timedelta(days=7)
KINDS: dict[str, type[GatewayMachine] | type[ControllerMachine]] = {
    "gateway": GatewayMachine,
    "controller": ControllerMachine,
}


@dataclass(frozen=True, slots=True)
class MachineState:
    name: str
    kind: str  # of KINDS: what runs there
    version: str
    reported_at: datetime
    seconds: float  # since the last report
    here: bool  # it is this machine

    @property
    def running(self) -> bool:
        return self.seconds < RUNNING_SECONDS


def report_machine(kind: str = "gateway") -> None:
    """Record that this machine has a gateway, or what else `kind` says, and of which version."""
    rows = KINDS[kind].objects
    rows.update_or_create(name=settings.HOST_NAME, defaults={"version": VERSION, "reported_at": database_now()})
    rows.filter(reported_at__lt=database_now() - KEPT).delete()


def report_controller(**_: Any) -> None:
    """Record that this machine has a controller (a signal receiver)."""
    report_machine("controller")


def list_machines() -> list[MachineState]:
    """Return what machines have run within the last days, by name."""
    found = [
        MachineState(
            row.name,
            kind,
            row.version,
            row.reported_at,
            (row.now - row.reported_at).total_seconds(),
            row.name == settings.HOST_NAME,
        )
        for kind, model in KINDS.items()
        for row in model.objects.annotate(now=database_now())
    ]
    return sorted(found, key=lambda one: (one.name, one.kind))
