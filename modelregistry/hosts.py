"""Operators' changes to hosts: change the address, begin and end maintenance, remove one that is gone.

A host's supervisor follows at its next exchange with the database; nothing here waits for it. A change that is not
possible raises ValidationError with sentences, by field where one is about a field.
"""

from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext as _

from modelregistry.database_clock import read_now
from modelregistry.models import Host
from modelregistry.overview import is_supervised

FIELDS = ("address", "maintenance")
# How long a host of the cluster has to be silent before it may be removed: one that is started again is back sooner.
SILENT_FOR = timedelta(seconds=30)
NAMED = 10  # models in a sentence


def change_host(host: Host, **values: Any) -> Host:
    """Change these `values`, by the names in FIELDS, and return the row."""
    if unknown := sorted(values.keys() - set(FIELDS)):
        raise TypeError(f"no fields of a host that operators change: {unknown}")
    with transaction.atomic():
        row = _lock_row(host)
        changed = [name for name, value in values.items() if getattr(row, name) != value]
        if "address" in changed and row.clustered:
            reason = _("A host of the cluster says its address itself: let it join again with another one.")
            raise ValidationError({"address": ValidationError(reason, code="address-of-cluster")})
        for name in changed:
            setattr(row, name, values[name])
        if changed:
            # Not the other fields: an address that was allowed once must not keep its host from maintenance.
            row.full_clean(exclude=[field.name for field in Host._meta.fields if field.name not in changed])
            row.save(update_fields=changed)  # not the others, which its supervisor writes
    return row


def remove_host(host: Host) -> None:
    """Delete a host that is gone, with its reports and the rows of its replicas."""
    with transaction.atomic():
        row = _lock_row(host)
        if reason := find_removal_obstacle(row):
            raise ValidationError(reason, code="host-needed")
        row.delete()


def find_removal_obstacle(host: Host) -> str:
    """Return why the host cannot be removed, as a sentence; empty: it can."""
    if reason := _find_life(host, read_now()):
        return reason % {"host": host.name}
    names = list(host.models.order_by("name").values_list("name", flat=True)[: NAMED + 1])
    if not names:
        return ""
    shown = ", ".join(names[:NAMED]) + (" …" if len(names) > NAMED else "")
    return _("Models belong to %(host)s: %(models)s. Give them another host first, or unregister them.") % {
        "host": host.name,
        "models": shown,
    }


def _find_life(host: Host, now: datetime) -> str:
    """Return why the host is not gone, as a sentence; empty: it is. One in the cluster would join again at once."""
    if not host.clustered:
        alive = host.claim and is_supervised(host, now)
        return _("%(host)s is alive: put it into maintenance, then stop its supervisor.") if alive else ""
    if host.silent_since is None:
        return _(
            "%(host)s is in the cluster, and a host of the cluster can be removed only when it is silent. Put it into"
            " maintenance, then let it leave: on the host, run the command of deploy/RAY.md, or switch it off."
        )
    if now - host.silent_since < SILENT_FOR:
        return _("%(host)s has just fallen silent and may be back in a moment. Try again in half a minute.")
    return ""


def _lock_row(host: Host) -> Host:
    """Return the row as it is now, locked until the transaction ends."""
    row = Host.objects.select_for_update().filter(pk=host.pk).first()
    if row is None:
        raise ValidationError(_("%(host)s is not a host any more.") % {"host": host.name}, code="host-gone")
    return row
