"""Figures of backups for monitoring."""

from dataclasses import dataclass

from django.conf import settings
from django.db.models import Max

from portal.backups.models import BackupRun


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFigures:
    """`made_at`: when the last one that succeeded began, in Unix seconds; None: there is none.

    `max_age`: how old it may become, in seconds; None: no backups are expected.
    """

    made_at: float | None
    max_age: float | None


def read_backup_figures() -> BackupFigures:
    """Read the figures of this site's backups. One query. Raises django.db.Error."""
    last = BackupRun.objects.filter(error="").aggregate(last=Max("began_at"))["last"]
    max_age = settings.BACKUP_MAX_AGE
    return BackupFigures(
        made_at=last.timestamp() if last else None, max_age=max_age.total_seconds() if max_age is not None else None
    )
