"""Recognise which steps people have done, from what is recorded anyway: never from what they wrote or read.

A step that was seen done once is stored and stays done. What is looked at is bounded: of one person's calls the newest
MOST_CALLS, of a seminar's participants those since it began.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Min, Q, Value
from django.utils import timezone

from portal.accounts.models import User
from portal.feedback.models import Feedback
from portal.keys.models import ApiKey
from portal.lessons.courses import Course, CourseStep, all_courses
from portal.lessons.models import CoursesDeclined, StepDone
from portal.quotas.models import QuotaRequest
from portal.usage.client_classes import CURL, DIFY, OPEN_WEBUI, OPENAI
from portal.usage.models import UsageRecord
from portal.use_cases.models import HelpedMark

MOST_CALLS = 1000
MOST_KEYS = 2000
PRACTISED = 3  # answers in the playground
MODELS = 3  # different ones
# By what a call shows. `prefill_ms` is measured of streamed answers only.
FIRST_CALLS = {
    "playground": Q(key__is_playground=True),
    "curl": Q(client_class=CURL),
    "openai": Q(client_class=OPENAI),
    "stream": Q(prefill_ms__isnull=False, key__is_playground=False),
    "embedding": Q(endpoint="embeddings"),
    "dify": Q(client_class=DIFY),
    "openwebui": Q(client_class=OPEN_WEBUI),
}
OF_CALLS = {*FIRST_CALLS, "practised", "three-models"}
OF_KEYS = {"key", "dify", "openwebui"}
# Parts of the names of keys, and of services, that programs without a name of their own are recognised by.
HINTS = {"dify": "dify", "webui": "openwebui"}
Done = dict[int, dict[str, datetime]]  # by person and step


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    step: CourseStep
    done_at: datetime | None
    is_next: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseProgress:
    """How far one person is in a course."""

    course: Course
    steps: tuple[StepState, ...]

    @property
    def done(self) -> int:
        return sum(state.done_at is not None for state in self.steps)

    @property
    def next(self) -> CourseStep | None:
        return next((state.step for state in self.steps if state.is_next), None)

    @property
    def is_finished(self) -> bool:
        return all(state.done_at or state.step.optional for state in self.steps)


def read_progress(user: User) -> list[CourseProgress]:
    """Return the person's progress in all courses, looked up now. Five queries at most."""
    done = update_steps([user])[user.pk]
    return [progress_in(course, done) for course in all_courses().values()]


def progress_in(course: Course, done: dict[str, datetime]) -> CourseProgress:
    """Return the progress. The next step is the first open one that is needed, then the first optional one."""
    open_ = [step for step in course.steps if step.code not in done]
    following = next((step for step in open_ if not step.optional), open_[0] if open_ else None)
    return CourseProgress(
        course=course,
        steps=tuple(
            StepState(step=step, done_at=done.get(step.code), is_next=step is following) for step in course.steps
        ),
    )


def read_suggestion(user: User) -> CourseProgress | None:
    """Return the course to go on with on the home page; None: declined, or all are finished."""
    if CoursesDeclined.objects.filter(user=user).exists():
        return None
    unfinished = [one for one in read_progress(user) if not one.is_finished]
    # The one that was begun; signing in begins none.
    return max(unfinished, key=lambda one: one.done - ("signed-in" in _codes_done(one)), default=None)


def _codes_done(progress: CourseProgress) -> set[str]:
    return {state.step.code for state in progress.steps if state.done_at}


def decline(user: User, *, declined: bool) -> None:
    """Hide the courses from the person's home page, or show them again."""
    if declined:
        CoursesDeclined.objects.get_or_create(user=user)
    else:
        CoursesDeclined.objects.filter(user=user).delete()


def note_step(user: User, step: str) -> None:
    """Store that the person has just done this step; a repetition changes nothing. One query."""
    StepDone.objects.bulk_create([StepDone(user=user, step=step, at=timezone.now())], ignore_conflicts=True)


def update_steps(users: Sequence[User], since: datetime | None = None) -> Done:
    """Return what these people have done, and store what is new of it. Five queries at most.

    Of several people only calls from `since` on are looked at, which must then be given.
    """
    stored: Done = {user.pk: {} for user in users}
    for row in StepDone.objects.filter(user__in=stored):
        stored[row.user_id][row.step] = row.at
    codes = {step.code for course in all_courses().values() for step in course.steps}
    missing = {code for code in codes if any(code not in done for done in stored.values())}
    now, new = timezone.now(), []
    for number, step, at in _recognise(users, missing, since, now):
        if step not in stored[number]:
            stored[number][step] = at
            new.append(StepDone(user_id=number, step=step, at=at))
    if new:
        StepDone.objects.bulk_create(new, ignore_conflicts=True)
    return stored


def _recognise(
    users: Sequence[User], missing: set[str], since: datetime | None, now: datetime
) -> Iterator[tuple[int, str, datetime]]:
    """Yield (person, step, when)."""
    numbers = [user.pk for user in users]
    if "signed-in" in missing:
        for user in users:
            yield user.pk, "signed-in", user.last_login or now
    if missing & OF_CALLS:
        for row in _summed_calls(numbers, since):
            yield from _steps_of_calls(row, now)
    if missing & OF_KEYS:
        yield from _steps_of_keys(set(numbers))
    firsts: dict[str, tuple[Any, str]] = {
        "feedback": (Feedback.objects.filter(user__in=numbers), "user"),
        "helped": (HelpedMark.objects.filter(user__in=numbers), "user"),
        "quota": (QuotaRequest.objects.filter(asked_by__in=numbers), "asked_by"),
    }
    counted = [
        rows.order_by().values_list(whose).annotate(first=Min("asked_at" if step == "quota" else "at"), of=Value(step))
        for step, (rows, whose) in firsts.items()
        if step in missing
    ]
    if counted:
        for number, at, step in counted[0].union(*counted[1:], all=True):
            yield number, step, at


def _summed_calls(numbers: Sequence[int], since: datetime | None) -> list[dict[str, Any]]:
    calls = UsageRecord.objects.filter(status=UsageRecord.Status.FINISHED)
    sums: dict[str, Any] = {
        name.replace("-", "_"): Min("started_at", filter=shown) for name, shown in FIRST_CALLS.items()
    }
    sums["answers"] = Count("pk", filter=FIRST_CALLS["playground"])
    sums["models"] = Count("model", distinct=True)
    if since is not None:
        rows: Any = calls.filter(user__in=numbers, started_at__gte=since).order_by().values("user_id")
        return list(rows.annotate(**sums))
    (number,) = numbers
    newest = calls.filter(user=number).order_by("-started_at")[:MOST_CALLS]
    return [{"user_id": number, **newest.aggregate(**sums)}]


def _steps_of_calls(row: dict[str, Any], now: datetime) -> Iterator[tuple[int, str, datetime]]:
    for step in FIRST_CALLS:
        if row[step] is not None:
            yield row["user_id"], step, row[step]
    if row["answers"] >= PRACTISED:
        yield row["user_id"], "practised", now
    if row["models"] >= MODELS:
        yield row["user_id"], "three-models", now


def _steps_of_keys(numbers: set[int]) -> Iterator[tuple[int, str, datetime]]:
    """Yield the steps that the newest keys show, each by the oldest of them."""
    found: dict[tuple[int, str], datetime] = {}
    keys = ApiKey.objects.filter(Q(user__in=numbers) | Q(responsible__in=numbers), is_playground=False)
    for key in keys.order_by("-pk")[:MOST_KEYS]:
        person: int = key.user_id or key.responsible_id or 0
        if key.user_id:
            found[person, "key"] = key.created_at
        for part, step in HINTS.items():
            if key.last_used_at and part in f"{key.name} {key.service}".lower():
                found[person, step] = key.last_used_at
    for (person, step), at in found.items():
        if person in numbers:
            yield person, step, at
