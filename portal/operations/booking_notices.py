"""Notify operators when memory that models need is booked in Ray by other work, or is not booked for models, for long.

The controller has this looked at every few seconds (`controller.watching`). Ray's figures come and go with its other
work, so only what has lasted for LEAST is reported, once for each host; it may be reported again when it has been well
for STEADY.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.urls import reverse
from django.utils import timezone

from modelregistry.controller.booker import HELD, LATE, NOT_OFFERED
from modelregistry.database_clock import database_now
from modelregistry.failure_advice import NO_ROOM
from modelregistry.models import Host, Replica
from modelregistry.process.gpus import RAM
from portal.accounts.permissions import operators
from portal.operations.lasting_troubles import continue_trouble, end_trouble
from portal.operations.models import BookingTrouble
from portal.web.notify import notify

LEAST, STEADY = timedelta(minutes=5), timedelta(minutes=5)
# What may be wrong, the gravest first: a model does not run; or it runs, and others may take its memory.
CAUSES = (NO_ROOM, HELD, NOT_OFFERED, LATE)
MOST_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTrouble:
    """What is wrong with a host's bookings now. `cause`: of CAUSES; `others`: texts as "GPU 0: 60.0 GB"."""

    cause: str
    replicas: tuple[str, ...]
    others: tuple[str, ...]


def look(**_: Any) -> None:
    """Notify of what is due now, as a receiver of `hosts_watched`. Two queries if there is nothing to do."""
    hosts = list(Host.objects.filter(clustered=True).exclude(bookings=None).annotate(now=database_now()))
    known = {row.host_id: row for row in BookingTrouble.objects.all()}
    without_room = _find_without_room([host for host in hosts if _read(host, "others")])
    for host in hosts:
        found = find_trouble(host, without_room[host.pk])
        row = known.get(host.pk)
        if found:
            _continue(host, found, row, host.now)
        elif row:
            end_trouble(row, host.now, STEADY)


def _read(host: Host, name: str) -> Any:
    return host.bookings.get(name) if isinstance(host.bookings, Mapping) else None


def _find_without_room(hosts: list[Host]) -> dict[int, list[str]]:
    """Return the replicas that do not run on these hosts because there is no room for them."""
    found: dict[int, list[str]] = defaultdict(list)
    if hosts:
        rows = Replica.objects.filter(host__in=hosts, cause=NO_ROOM, model__enabled=True).select_related("model")
        for row in rows.order_by("model__name", "index"):
            found[row.host_id].append(f"{row.model.name} #{row.index // row.model.nodes}")
    return found


def find_trouble(host: Host, without_room: list[str]) -> FoundTrouble | None:
    """Return what is wrong with a host's bookings; None: nothing. `without_room`: what does not run there for that."""
    if host.maintenance:
        return None
    others = tuple(_describe(device, size) for device, size in sorted((_read(host, "others") or {}).items()))
    late = _read(host, "late") or []
    if without_room and others:
        return FoundTrouble(cause=NO_ROOM, replicas=tuple(without_room[:MOST_NAMED]), others=others)
    for cause in CAUSES:
        if names := [str(one["replica"]) for one in late if one.get("code") == cause]:
            return FoundTrouble(cause=cause, replicas=tuple(names[:MOST_NAMED]), others=others)
    return None


def _describe(device: str, size: int) -> str:
    return f"{'RAM' if device == str(RAM) else f'GPU {device}'}: {size / 1e9:.1f} GB"


def _continue(host: Host, found: FoundTrouble, row: BookingTrouble | None, now: datetime) -> None:
    if row is None:
        BookingTrouble.objects.get_or_create(host=host, defaults={"began_at": now})
        return

    def notify_operators() -> None:
        facts = {"cause": found.cause, "replicas": list(found.replicas), "others": list(found.others)}
        path = f"{reverse('operations')}#host-{host.name}"
        ref = f"bookings {host.pk} {row.began_at.isoformat()}"
        at = timezone.localtime(row.began_at)
        notify(operators(), "booking-trouble", ref, path=path, host=host.name, at=at, **facts)

    continue_trouble(row, now, LEAST, notify_operators)
