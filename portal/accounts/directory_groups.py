"""Remember which groups of the directory the settings mean; notify operators when one is missing, moved or replaced.

The settings name a group by its DN, which changes when the group is renamed or moved. Its id does not change, so a
group that was found once is found again.
"""

import hashlib
from datetime import datetime

from django.db import transaction
from django.urls import reverse

from portal.accounts.ldap import DirectorySettings, Groups, LdapGroup
from portal.accounts.models import DirectoryGroup, User
from portal.web.notify import notify


def remembered_groups() -> dict[str, str]:
    """Return the id of each group that was found before, by its DN in the settings."""
    return dict(DirectoryGroup.objects.exclude(directory_id="").values_list("dn", "directory_id"))


def record_groups(directory: DirectorySettings, groups: Groups, now: datetime) -> None:
    """Record where each group is, and notify operators once of each change."""
    with transaction.atomic():
        rows = {row.dn: row for row in DirectoryGroup.objects.select_for_update()}
        for dn in rows.keys() - set(directory.groups):
            rows.pop(dn).delete()
        for dn, group in groups.found.items():
            _record_found(directory, rows.get(dn) or DirectoryGroup(dn=dn, found_dn=group.dn), group)
        for dn in groups.missing:
            row = rows.get(dn) or DirectoryGroup(dn=dn)
            if row.missing_since is None:
                row.missing_since = now
                row.save()
                _notify_operators(directory, dn, "missing", now.isoformat())


def _record_found(directory: DirectorySettings, row: DirectoryGroup, group: LdapGroup) -> None:
    is_another = bool(row.directory_id and group.id and row.directory_id != group.id)
    if is_another:
        _notify_operators(directory, row.dn, "replaced", group.id)
    elif group.is_moved and row.found_dn != group.dn:
        _notify_operators(directory, row.dn, "moved", group.dn, now=group.dn)
    before = (row.directory_id, row.found_dn, row.missing_since)
    row.directory_id, row.found_dn, row.missing_since = group.id or row.directory_id, group.dn, None
    if row.pk is None or before != (row.directory_id, row.found_dn, row.missing_since):
        row.save()


def _notify_operators(directory: DirectorySettings, dn: str, problem: str, occasion: str, now: str = "") -> None:
    ref = hashlib.sha256(f"{dn} {problem} {occasion}".encode()).hexdigest()[:40]
    notify(
        User.objects.filter(is_staff=True, is_active=True),
        "directory-group",
        ref,
        path=reverse("operations-directory"),
        group=dn,
        settings=", ".join(directory.settings_of(dn)),
        problem=problem,
        now=now,
    )
