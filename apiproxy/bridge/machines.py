"""Which machines of the site have gateways, and of which version: what a rollback of one of them has to know.

Each gateway process reports its machine every REPORT_SECONDS, and those that retire after a reload no more. A machine
that has not reported for RUNNING_SECONDS does not run.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.utils import timezone

from apiproxy.bridge.models import GatewayMachine
from modelregistry.version import VERSION

REPORT_SECONDS = 20.0
RUNNING_SECONDS = 90.0
KEPT = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class MachineState:
    name: str
    version: str
    reported_at: datetime
    seconds: float  # since the last report
    here: bool  # it is this machine

    @property
    def running(self) -> bool:
        return self.seconds < RUNNING_SECONDS


def report_machine() -> None:
    """Record that this machine has a gateway, and of which version."""
    now = timezone.now()
    GatewayMachine.objects.update_or_create(name=settings.HOST_NAME, defaults={"version": VERSION, "reported_at": now})
    GatewayMachine.objects.filter(reported_at__lt=now - KEPT).delete()


def list_machines() -> list[MachineState]:
    """Return the machines that have had gateways within the last days, by name."""
    now = timezone.now()
    return [
        MachineState(
            row.name,
            row.version,
            row.reported_at,
            (now - row.reported_at).total_seconds(),
            row.name == settings.HOST_NAME,
        )
        for row in GatewayMachine.objects.order_by("name")
    ]
