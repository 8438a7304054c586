"""Record the runs of backups, for operators' pages and notices."""

from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from portal.backups.backup import StoredBackup
from portal.backups.models import BackupRun


def record_success(backup: StoredBackup) -> None:
    """Record a backup that is complete. Raises DatabaseError."""
    manifest = backup.manifest
    _record(backup.path, manifest.made_at, manifest.host, size=manifest.size, encryption=manifest.encryption)


def record_failure(directory: Path, began_at: datetime, error: str) -> None:
    """Record a backup that could not be made. Raises DatabaseError."""
    _record(directory, began_at, settings.HOST_NAME, error=error[:500] or "?")


def _record(path: Path, began_at: datetime, host: str, *, size: int = 0, encryption: str = "", error: str = "") -> None:
    BackupRun.objects.create(
        began_at=began_at,
        ended_at=timezone.now(),
        host=host[:100],
        path=str(path)[:500],
        size=size,
        encryption=encryption,
        error=error,
    )
    kept = BackupRun.objects.values_list("pk", flat=True)[: BackupRun.KEPT]
    BackupRun.objects.exclude(pk__in=list(kept)).delete()
