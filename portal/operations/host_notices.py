"""Notify operators of hosts that are silent, of replicas that were moved, and of a controller that was replaced.

The controller has this looked at every few seconds (`controller.watching`). A host that falls silent again and again is
one silence until it has answered for STEADY; moves of a while are one notice; a controller that is replaced again and
again is one notice an hour.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from modelregistry.database_clock import database_now
from modelregistry.models import ControllerClaim, Host, ReplicaMove
from modelregistry.moves import SCALING
from portal.accounts.permissions import operators
from portal.operations.models import HostSilence
from portal.web.notify import notify

LEAST_SILENCE = timedelta(seconds=30)  # a host whose network or agent is started again is back sooner
STEADY = timedelta(minutes=5)
KEPT = timedelta(days=92)  # silences that are over
# Replicas of a host are moved one after another, as each has to settle: notified when no more has come for SETTLED, or
# the first one is so old.
SETTLED, LATEST = timedelta(seconds=30), timedelta(minutes=2)
MOVED_AGAIN = timedelta(minutes=10)  # between two notices of moves from the same host


def look(**_: Any) -> None:
    """Notify of what is due now, as a receiver of `hosts_watched`."""
    notify_of_silences(timezone.now())
    notify_of_moves(timezone.now())
    notify_of_controller()


def notify_of_silences(now: datetime) -> None:
    """Begin and end the silences of hosts, and notify of those. Two queries if there is nothing to do."""
    rows = Host.objects.exclude(silent_since=None).annotate(now=database_now())
    silent = {host.pk: host for host in rows if host.silent_since and host.now - host.silent_since >= LEAST_SILENCE}
    going = {one.host_id: one for one in HostSilence.objects.filter(over=False).select_related("host")}
    for host in silent.values():
        if host.pk not in going and not host.maintenance:  # one in maintenance may be switched off
            _begin(host, host.silent_since or now)
    for silence in going.values():
        if silence.host_id in silent:
            HostSilence.objects.filter(pk=silence.pk).exclude(ended_at=None).update(ended_at=None)
        elif silence.host.silent_since is None:
            _end(silence, now)


def _begin(host: Host, since: datetime) -> None:
    with transaction.atomic():
        silence, is_new = HostSilence.objects.get_or_create(host=host, over=False, defaults={"began_at": since})
        if is_new:
            _notify("host-silent", f"silence {silence.pk}", host.name, at=timezone.localtime(silence.began_at))


def _end(silence: HostSilence, now: datetime) -> None:
    """Note since when the host answers again; notify of it once it has for long."""
    mine = HostSilence.objects.filter(pk=silence.pk, over=False)
    if silence.ended_at is None:
        mine.update(ended_at=now)
    elif now - silence.ended_at >= STEADY:
        with transaction.atomic():
            if mine.update(over=True):
                times = {"at": silence.began_at, "ended_at": silence.ended_at}
                shown = {name: timezone.localtime(at) for name, at in times.items()}
                _notify("host-back", f"silence {silence.pk}", silence.host.name, **shown)
        HostSilence.objects.filter(over=True, ended_at__lt=now - KEPT).delete()


def notify_of_moves(now: datetime) -> None:
    """Notify of replicas that were moved, by the host that they were on. One query if there are none."""
    by_source = defaultdict(list)
    for move in ReplicaMove.objects.filter(notified_at=None).select_related("model").order_by("at", "pk"):
        by_source[move.source].append(move)
    for source, moves in by_source.items():
        unexpected = [one for one in moves if one.cause != ReplicaMove.Cause.MAINTENANCE]
        if not unexpected:  # an operator wanted it
            _mark_notified(moves, now)
        elif _are_due(source, unexpected, now):
            _notify_of(source, moves, unexpected, now)


def _are_due(source: str, moves: list[ReplicaMove], now: datetime) -> bool:
    if now - moves[-1].at < SETTLED and now - moves[0].at < LATEST:
        return False
    lately = ReplicaMove.objects.filter(source=source, notified_at__gt=now - MOVED_AGAIN)
    return not lately.exclude(cause__in=[ReplicaMove.Cause.MAINTENANCE, *SCALING]).exists()


def _notify_of(source: str, moves: list[ReplicaMove], unexpected: list[ReplicaMove], now: datetime) -> None:
    with transaction.atomic():
        if _mark_notified(moves, now):
            # Where each is now: one may have been moved twice.
            targets = {f"{one.model.name} #{one.number}": one.target for one in unexpected}
            is_silent = any(one.cause == ReplicaMove.Cause.SILENT for one in unexpected)
            facts = {
                "moved": [f"{name} → {target}" for name, target in sorted(targets.items())],
                "silent": is_silent,
                "at": timezone.localtime(unexpected[0].at),
            }
            _notify("replicas-moved", f"moves {max(one.pk for one in moves)}", source, **facts)


def _mark_notified(moves: Iterable[ReplicaMove], now: datetime) -> int:
    return ReplicaMove.objects.filter(pk__in=[one.pk for one in moves], notified_at=None).update(notified_at=now)


def notify_of_controller() -> None:
    """Notify of a controller that took over from one that had not left. One query if there is none."""
    claim = ControllerClaim.objects.exclude(replaced="").first()
    if claim is None or claim.since is None:
        return
    with transaction.atomic():
        if ControllerClaim.objects.filter(pk=claim.pk, replaced=claim.replaced).update(replaced=""):
            at = timezone.localtime(claim.since)
            facts = {"holder": claim.holder, "before": claim.replaced, "term": claim.term, "at": at}
            path = reverse("operations") + "#hosts"
            notify(operators(), "controller-replaced", f"controller {at:%Y-%m-%d %H}", path=path, **facts)


def _notify(kind: str, ref: str, host: str, **facts: Any) -> None:
    notify(operators(), kind, ref, path=f"{reverse('operations')}#host-{host}", host=host, **facts)
