"""Notify operators of full disks, certificates that end, faults of GPUs, and usage that is not recorded.

The controller has this looked at every few seconds (`controller.watching`). What has lasted for LEAST is notified once;
again when it has been well for STEADY. A fault of a GPU is an event: it is notified at once, and again when there are
more of them STEADY later. Usage that waits on a gateway's disk has done so for ten minutes before it is
reported. While the database is away nothing is looked at, and usage waits for that alone. Of a host that is silent
nothing is known: what was found of it stays as it is.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.urls import reverse
from django.utils import timezone

from modelregistry.database_clock import database_now
from modelregistry.host_figures import DeviceFigures, read_device_figures, read_disk_figures
from modelregistry.models import Host
from modelregistry.overview import HostReach, reach_of
from portal.accounts.permissions import operators
from portal.operations.lasting_troubles import continue_trouble, end_trouble
from portal.operations.models import MachineTrouble
from portal.usage.models import UsageBacklog
from portal.web.notify import notify

LEAST, STEADY = timedelta(minutes=5), timedelta(hours=1)
DAYS_BEFORE = (30, 7)  # days before a certificate ends, each notified once
MOST_FAULTS = 10**9  # whatever a host reports: the column has 32 bits
REPORTED = timedelta(minutes=5)  # a backlog that was not reported for longer is over, or its worker is
DISK, CERTIFICATE, XID, SPOOL = "disk-nearly-full", "certificate-ends", "gpu-xid", "spool-growing"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTrouble:
    """What is wrong with a host now. `kind`: of notices; `subject`: of which there is one trouble at a time.

    `least`: how long it lasts before it is notified. `count`: of faults until now; 0: it is none that can be counted.
    """

    kind: str
    subject: str
    host: str
    facts: Mapping[str, Any]
    least: timedelta = LEAST
    count: int = 0


def look(**_: Any) -> None:
    """Notify of what is due now, as a receiver of `hosts_watched`. Three queries if there is nothing to do."""
    hosts = list(Host.objects.select_related("report").annotate(now=database_now()))
    known = list(MachineTrouble.objects.all())
    for host in hosts:
        if reach_of(host, host.now) == HostReach.ONLINE:
            of_host = [row for row in known if row.subject.startswith(f"{host.pk} ")]
            _compare(find_troubles(host, host.now), of_host, host.now)
    now = timezone.now()
    _compare(find_backlogs(now), [row for row in known if row.kind == SPOOL], now)


def _compare(troubles: Iterable[HostTrouble], known: Iterable[MachineTrouble], now: datetime) -> None:
    """Continue what is wrong, and end what was. `known`: all rows that may be of these."""
    found = {(one.kind, one.subject): one for one in troubles}
    rows = {(row.kind, row.subject): row for row in known}
    for key, trouble in found.items():
        _continue(trouble, rows.get(key), now)
    for key, row in rows.items():
        if key not in found:
            end_trouble(row, now, STEADY)


def find_backlogs(now: datetime) -> Iterator[HostTrouble]:
    """Yield usage that is not recorded, by the machine on whose disk it waits. One query."""
    sizes: Counter[str] = Counter()
    for row in UsageBacklog.objects.filter(reported_at__gt=now - REPORTED):
        sizes[row.worker.rpartition("/")[0]] += row.size
    for host, size in sizes.items():
        yield HostTrouble(kind=SPOOL, subject=host, host=host, facts={"megabytes": round(size / 1e6)})


def find_troubles(host: Host, now: datetime) -> Iterator[HostTrouble]:
    """Yield what is wrong with a host now."""
    report = getattr(host, "report", None)
    for disk in read_disk_figures(report.disks if report else []):
        if disk.is_nearly_full:
            facts = {"directory": disk.path, "free_gb": round(disk.free / 1e9, 1)}
            yield HostTrouble(kind=DISK, subject=f"{host.pk} {disk.path}", host=host.name, facts=facts)
    for device in read_device_figures(report.devices if report else []):
        if (faults := int(device.sensors.get("xid_faults", 0))) > 0:
            yield _find_faults(host, device, min(faults, MOST_FAULTS))
    ends = host.agent.get("certificate_ends") if isinstance(host.agent, Mapping) else None
    if isinstance(ends, int | float) and 0 < ends < datetime.max.replace(tzinfo=UTC).timestamp():
        at = datetime.fromtimestamp(ends, UTC)
        if near := [days for days in DAYS_BEFORE if at - now < timedelta(days=days)]:
            subject = f"{host.pk} {at:%Y-%m-%d} {min(near)}"
            facts = {"ends_at": timezone.localtime(at)}
            yield HostTrouble(kind=CERTIFICATE, subject=subject, host=host.name, facts=facts)


def _find_faults(host: Host, device: DeviceFigures, count: int) -> HostTrouble:
    facts = {"device": device.name, "code": int(device.sensors.get("last_xid", 0)), "count": count}
    subject = f"{host.pk} {device.name}"
    return HostTrouble(kind=XID, subject=subject, host=host.name, facts=facts, least=timedelta(), count=count)


def _continue(found: HostTrouble, row: MachineTrouble | None, now: datetime) -> None:
    if row is None:
        began = {"began_at": now}
        row = MachineTrouble.objects.get_or_create(kind=found.kind, subject=found.subject, defaults=began)[0]
    if _has_more(found, row, now):
        row.notified_at = None
        row.save(update_fields=["notified_at"])

    def notify_operators() -> None:
        MachineTrouble.objects.filter(pk=row.pk).update(notified_count=found.count)
        path = f"{reverse('operations')}#host-{found.host}"
        at = timezone.localtime(now if found.count else row.began_at)
        ref = f"trouble {row.pk} {now.timestamp()}" if found.count else f"trouble {row.pk}"
        notify(operators(), found.kind, ref, path=path, host=found.host, at=at, **found.facts)

    continue_trouble(row, now, found.least, notify_operators)


def _has_more(found: HostTrouble, row: MachineTrouble, now: datetime) -> bool:
    """Return whether faults were counted since operators were last notified, STEADY ago or earlier.

    A lower count began at zero when the host's agent did. So did one that was zero meanwhile.
    """
    if row.ended_at is not None and row.notified_count:
        row.notified_count = 0
        row.save(update_fields=["notified_count"])
    is_quiet = row.notified_at is not None and now - row.notified_at >= STEADY
    return is_quiet and found.count != row.notified_count
