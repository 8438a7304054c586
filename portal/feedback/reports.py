"""Feedback as operators, tenant admins and champions read it: by model, alias and use case, and its comments."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Q, QuerySet

from portal.accounts import permissions
from portal.accounts.models import Tenant, User
from portal.feedback.models import Feedback
from portal.use_cases import gallery
from portal.use_cases.models import UseCase

PERIODS = (7, 30, 90)  # days
MOST_ROWS = 50  # of a table, those with the most feedback
UP, DOWN = Feedback.Score.UP, Feedback.Score.DOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRow:
    """The thumbs for one thing. `key` is a model's name, an alias, or the id of a use case."""

    key: Any
    label: str
    up: int
    down: int
    version: int | None = None

    @property
    def count(self) -> int:
        return self.up + self.down

    @property
    def share(self) -> float:
        """Thumbs up, from 0 to 1."""
        return self.up / self.count if self.count else 0.0


def readable_tenants(user: User) -> QuerySet[Tenant]:
    """Return the tenants whose feedback a person may read: as their champion or admin, operators all."""
    return permissions.without_internal(permissions.publishable_tenants(user)).order_by("name")


def feedback_of(tenants: Iterable[Tenant] | None, since: datetime, until: datetime | None = None) -> QuerySet[Feedback]:
    """Return the joined feedback of these tenants (None: of all) since then, and before `until` if it is given."""
    found = Feedback.objects.filter(at__gte=since).exclude(model="")
    found = found if until is None else found.filter(at__lt=until)
    return found if tenants is None else found.filter(tenant__in=tenants)


def count_by(rows: QuerySet[Feedback], *fields: str) -> list[dict[str, Any]]:
    """Return the thumbs grouped by these fields, those with the most first. One query."""
    counted = (
        rows.order_by()
        .values(*fields)
        .annotate(up=Count("pk", filter=Q(score=UP)), down=Count("pk", filter=Q(score=DOWN)), total=Count("pk"))
    )
    return list(counted.order_by("-total", *fields)[:MOST_ROWS])


def rows_by_model(rows: QuerySet[Feedback]) -> list[FeedbackRow]:
    return [
        FeedbackRow(key=one["model"], label=one["model"], up=one["up"], down=one["down"])
        for one in count_by(rows, "model")
    ]


def rows_by_alias(rows: QuerySet[Feedback]) -> list[FeedbackRow]:
    return [
        FeedbackRow(key=one["called_as"], label=one["called_as"], up=one["up"], down=one["down"])
        for one in count_by(rows.exclude(called_as=""), "called_as")
    ]


def rows_by_use_case(rows: QuerySet[Feedback], cases: QuerySet[UseCase]) -> list[FeedbackRow]:
    """Return a row for each version of each of these use cases, named in the reader's language.

    `cases`: those whose names the reader may see. Who is in two tenants may try one's case with the other's key.
    """
    found = count_by(rows.filter(use_case__in=cases.values("pk")), "use_case", "use_case_version")
    titles = {
        case.pk: case.title for case in gallery.with_texts(cases.filter(pk__in={one["use_case"] for one in found}))
    }
    return [
        FeedbackRow(
            key=one["use_case"],
            label=titles[one["use_case"]],
            version=one["use_case_version"],
            up=one["up"],
            down=one["down"],
        )
        for one in found
    ]


def sum_up(rows: QuerySet[Feedback]) -> FeedbackRow:
    sums = rows.aggregate(up=Count("pk", filter=Q(score=UP)), down=Count("pk", filter=Q(score=DOWN)))
    return FeedbackRow(key="", label="", **sums)


def comments_of(rows: QuerySet[Feedback]) -> QuerySet[Feedback]:
    """Return the feedback with comments, newest first."""
    found = rows.exclude(comment="").select_related("tenant", "use_case__current")
    return found.prefetch_related("use_case__current__texts").order_by("-at", "-pk")


def use_case_feedback(case: UseCase, now: datetime) -> FeedbackRow:
    """Return the thumbs for a use case in the last three months."""
    return sum_up(feedback_of(None, now - timedelta(days=PERIODS[-1])).filter(use_case=case))
