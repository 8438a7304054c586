"""What needs an operator now, for the page of operations and for their home page."""

from dataclasses import dataclass
from datetime import datetime

from django.conf import settings

from portal.accounts.models import DirectoryState
from portal.backups.watching import BackupState, read_backup_state
from portal.canary.models import CanaryRun
from portal.canary.reports import list_failing
from portal.operations.overview import OperationsOverview
from portal.usage.loop_rates import RaisedRate, read_loop_troubles
from portal.usage.models import UsageSetAside


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationsAttention:
    """What needs attention, each as the page shows it. Empty in all parts: nothing does."""

    overview: OperationsOverview
    directory_problem: DirectoryState | None
    set_aside: list[UsageSetAside]  # usage that could not be recorded
    raised_loops: list[RaisedRate]  # models that loop more than they used to
    unwatched: dict[str, int]  # answers that were not watched for loops, by model
    failing_canaries: list[tuple[CanaryRun, list[str]]]
    old_backup: BackupState | None  # set if the newest backup is too old

    @property
    def is_needed(self) -> bool:
        return bool(
            self.overview.needs_attention
            or self.directory_problem
            or self.set_aside
            or self.raised_loops
            or self.unwatched
            or self.failing_canaries
            or self.old_backup
        )


def read_attention(overview: OperationsOverview, now: datetime) -> OperationsAttention:
    """Read the rest of what needs attention beside hosts and models. Three queries, one more with a directory.

    Two or three more where backups are watched.
    """
    backups = read_backup_state(now) if settings.BACKUP_MAX_AGE is not None else None
    raised, unwatched = read_loop_troubles(now)
    return OperationsAttention(
        overview=overview,
        directory_problem=DirectoryState.objects.exclude(problem="").first() if settings.DIRECTORY else None,
        set_aside=list(UsageSetAside.objects.order_by("host")),
        raised_loops=raised,
        unwatched=unwatched,
        failing_canaries=list_failing(),
        old_backup=backups if backups and backups.is_overdue else None,
    )
