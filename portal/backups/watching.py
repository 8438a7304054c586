"""Whether the newest backup is too old, and operators' notices of that."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Min
from django.urls import reverse
from django.utils import timezone

from portal.accounts.models import User
from portal.accounts.permissions import operators
from portal.backups.models import BackupRun
from portal.web.notify import notify


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupState:
    """What is known of the backups. `newest`: that succeeded; `failed`: a later one that did not."""

    newest: BackupRun | None
    failed: BackupRun | None
    max_age: timedelta | None  # None: not watched
    is_overdue: bool

    @property
    def hours(self) -> int:
        """Return the greatest age in hours; 0 if backups are not watched."""
        return round(self.max_age.total_seconds() / 3600) if self.max_age else 0


def read_backup_state(now: datetime) -> BackupState:
    """Read the state of the backups. Two queries, three where there has been none."""
    newest = BackupRun.objects.filter(error="").first()
    last = BackupRun.objects.first()
    return BackupState(
        newest=newest,
        failed=last if last is not None and last.error else None,
        max_age=settings.BACKUP_MAX_AGE,
        is_overdue=settings.BACKUP_MAX_AGE is not None and _age(newest, now) > settings.BACKUP_MAX_AGE,
    )


def _age(newest: BackupRun | None, now: datetime) -> timedelta:
    """Return the age of the newest backup; without one, of the installation, which may just have begun."""
    since = newest.began_at if newest else User.objects.aggregate(at=Min("date_joined"))["at"]
    return now - (since or now)


def notify_of_age(now: datetime) -> int:
    """Notify operators once a day for as long as the newest backup is too old; return whether it is."""
    if settings.BACKUP_MAX_AGE is None or not (state := read_backup_state(now)).is_overdue:
        return 0
    facts = {
        "at": timezone.localtime(state.newest.began_at) if state.newest else None,
        "hours": state.hours,
        "error": state.failed.error if state.failed else "",
    }
    with transaction.atomic():
        path = reverse("operations-data")
        notify(operators(), "backup-overdue", f"backup {timezone.localtime(now):%Y-%m-%d}", path=path, **facts)
    return 1
