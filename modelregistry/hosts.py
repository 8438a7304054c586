"""Operators' changes to hosts: change the address, begin and end maintenance, remove one that is gone.

A host's supervisor follows at its next exchange with the database; nothing here waits for it. A change that is not
possible raises ValidationError with sentences, by field where one is about a field.
"""

from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from modelregistry.models import Host
from modelregistry.overview import is_supervised

FIELDS = ("address", "maintenance")
NAMED = 10  # models in a sentence


def change_host(host: Host, **values: Any) -> Host:
    """Change these `values`, by the names in FIELDS, and return the row."""
    if unknown := sorted(values.keys() - set(FIELDS)):
        raise TypeError(f"no fields of a host that operators change: {unknown}")
    with transaction.atomic():
        row = _lock_row(host)
        changed = [name for name, value in values.items() if getattr(row, name) != value]
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
    if host.claim and is_supervised(host, timezone.now()):
        return _("%(host)s is alive: put it into maintenance, then stop its supervisor.") % {"host": host.name}
    names = list(host.models.order_by("name").values_list("name", flat=True)[: NAMED + 1])
    if not names:
        return ""
    shown = ", ".join(names[:NAMED]) + (" …" if len(names) > NAMED else "")
    return _("Models belong to %(host)s: %(models)s. Give them another host first, or unregister them.") % {
        "host": host.name,
        "models": shown,
    }


def _lock_row(host: Host) -> Host:
    """Return the row as it is now, locked until the transaction ends."""
    row = Host.objects.select_for_update().filter(pk=host.pk).first()
    if row is None:
        raise ValidationError(_("%(host)s is not a host any more.") % {"host": host.name}, code="host-gone")
    return row
