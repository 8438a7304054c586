"""Recognise which steps people have done, from what is recorded anyway: never from what they wrote or read.

Pages look steps up and write nothing. A step is stored where it happens (signing in, trying a use case), else by
`record_steps` each night, long before the records that show it may be pruned; a stored step stays done. What is looked
at is bounded: of one person's calls the newest MOST_CALLS, of several people's those of a time.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any, TypeVar

from django.db.models import Count, F, Max, Min, Model, OuterRef, Q, QuerySet, Subquery, Value
from django.db.models.functions import Coalesce
from django.utils import timezone

from portal.accounts.models import Tenant, User
from portal.adoption.suppression import LEAST, round_people
from portal.feedback.models import Feedback
from portal.keys.models import ApiKey
from portal.lessons.courses import Course, CourseStep, all_courses
from portal.lessons.models import CoursesDeclined, SeminarParticipant, StepDone
from portal.quotas.models import QuotaRequest
from portal.usage.client_classes import CURL, DIFY, OPEN_WEBUI, OPENAI
from portal.usage.models import UsageRecord
from portal.use_cases.models import HelpedMark

MOST_CALLS = 1000
DECLINED = ""  # among steps: that the person does not want to be shown any
NIGHT = timedelta(days=2)  # longer than a day: a night may be missed
LOOK_BACK = timedelta(days=35)  # records are kept for 40 days at least, see `pruneusage`
AT_ONCE = 200  # people of one query
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
# Parts of the names of keys, and of services, that programs without a name of their own are recognised by.
HINTS = {"dify": "dify", "webui": "openwebui"}
HINTED = frozenset(HINTS.values())  # with the time of the last use, which moves
Row = TypeVar("Row", bound=Model)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseCounts:
    """How many members of a tenant did what, to the nearest LEAST. None: fewer than LEAST did, or did not."""

    name: str
    members: int
    finished: int | None
    steps: list[dict[str, Any]]  # "code" and "people"


def read_progress(user: User) -> list[CourseProgress]:
    """Return the person's progress in all courses, looked up now. Three queries at most."""
    done = find_steps([user])[user.pk]
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
    """Return the course to go on with on the home page; None: declined, or all are finished. Three queries at most."""
    done = StepDone.objects.filter(user=user).annotate(code=F("step"), when=F("at"))
    declined = CoursesDeclined.objects.filter(user=user).annotate(code=Value(DECLINED), when=F("at"))
    rows = done.order_by().values_list("code", "when").union(declined.values_list("code", "when"), all=True)
    stored = dict(rows)
    if DECLINED in stored:
        return None
    found = {**_find_new([user], {user.pk: stored}, None)[user.pk], **stored}
    courses = [progress_in(course, found) for course in all_courses().values()]
    unfinished = [one for one in courses if not one.is_finished]
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


def find_steps(users: Sequence[User], since: datetime | None = None) -> Done:
    """Return what these people have done. Three queries at most.

    Of several people only calls from `since` on are looked at, which must then be given.
    """
    return {number: {**new, **stored} for number, (stored, new) in _look_up(users, since).items()}


def find_steps_of_seminar(people: Sequence[SeminarParticipant], until: datetime) -> Done:
    """Return what these participants of one seminar have done from their joining until then. Three queries at most.

    A step that was done before as well counts if it is done again; trying a use case is recorded once in all. Who joins
    is signed in and gets a key. What changes with every later use, such as the last sign-in, is not looked at: that a
    step disappears would say that a person did something afterwards.
    """
    joined = {row.user_id: row.joined_at for row in people}
    done: Done = {number: {"signed-in": at, "key": at} for number, at in joined.items()}
    for row in StepDone.objects.filter(user__in=joined, at__lte=until).exclude(step__in=HINTED):
        if row.at >= joined[row.user_id]:
            done[row.user_id].setdefault(row.step, row.at)
    for number, step, at in _recognise([row.user for row in people], _missing(done), _SinceJoining(people, until)):
        if joined[number] <= at <= until:
            done[number].setdefault(step, at)
    return done


@dataclass(frozen=True, slots=True)
class _SinceJoining:
    """The time that the organiser of one seminar sees of its participants: each from their joining on."""

    people: Sequence[SeminarParticipant]
    until: datetime

    def limit(self, rows: QuerySet[Row], *, whose: str, at: str) -> QuerySet[Row]:
        """Return those of the rows that are of this time and these people."""
        joined = SeminarParticipant.objects.filter(seminar=self.people[0].seminar_id, user=OuterRef(whose))
        return rows.filter(
            Q(**{f"{at}__gte": min(row.joined_at for row in self.people)}),  # which an index finds
            **{
                f"{whose}__in": [row.user_id for row in self.people],
                f"{at}__gte": Subquery(joined.values("joined_at")[:1]),
                f"{at}__lte": self.until,
            },
        )


def calls_since_joining(people: Sequence[SeminarParticipant], until: datetime) -> QuerySet[UsageRecord]:
    """Return the answered calls of these participants of one seminar, each from their joining on."""
    calls = UsageRecord.objects.filter(status=UsageRecord.Status.FINISHED)
    return _SinceJoining(people, until).limit(calls, whose="user", at="started_at")


def record_steps(now: datetime) -> int:
    """Store the steps of all who did anything since NIGHT, from calls since LOOK_BACK; return how many are new."""
    people = list(User.objects.filter(pk__in=_active_since(now - NIGHT)).order_by("pk"))
    new: list[StepDone] = []
    for at_once in range(0, len(people), AT_ONCE):
        for number, (_stored, found) in _look_up(people[at_once : at_once + AT_ONCE], now - LOOK_BACK).items():
            new += [StepDone(user_id=number, step=step, at=at) for step, at in found.items()]
    StepDone.objects.bulk_create(new, 500, ignore_conflicts=True)
    return len(new)


def _active_since(at: datetime) -> set[int]:
    """Return the people who may have done a step since then. Five queries."""
    found: set[int | None] = set(
        UsageRecord.objects.filter(started_at__gte=at).order_by().values_list("user", flat=True).distinct()
    )
    # A service key's first use is its responsible person's step.
    keys = ApiKey.objects.filter(Q(created_at__gte=at) | Q(last_used_at__gte=at), is_playground=False)
    for own, responsible in keys.values_list("user", "responsible"):
        found |= {own, responsible}
    found |= set(Feedback.objects.filter(at__gte=at).values_list("user", flat=True))
    found |= set(HelpedMark.objects.filter(at__gte=at).values_list("user", flat=True))
    found |= set(QuotaRequest.objects.filter(asked_at__gte=at).values_list("asked_by", flat=True))
    return {number for number in found if number is not None}


def _look_up(
    users: Sequence[User], since: datetime | None
) -> dict[int, tuple[dict[str, datetime], dict[str, datetime]]]:
    """Return for each person the stored steps and those that only records show."""
    stored: Done = {user.pk: {} for user in users}
    for row in StepDone.objects.filter(user__in=stored):
        stored[row.user_id][row.step] = row.at
    new = _find_new(users, stored, since)
    return {number: (stored[number], new[number]) for number in stored}


def _find_new(users: Sequence[User], stored: Done, since: datetime | None) -> Done:
    """Return the steps that only records show. Two queries at most."""
    new: Done = {number: {} for number in stored}
    for number, step, at in _recognise(users, _missing(stored), since):
        if step not in stored[number]:
            new[number].setdefault(step, at)
    return new


def _missing(done: Done) -> set[str]:
    """Return the steps that not all of these people have done."""
    codes = {step.code for course in all_courses().values() for step in course.steps}
    return {code for code in codes if any(code not in steps for steps in done.values())}


def count_members(tenant: Tenant, now: datetime) -> list[CourseCounts]:
    """Return how many active members of a tenant have done which steps, by course. Two queries.

    Only stored steps count that were done before today, by the tenant's zone: a count that changed during the day would
    say what a person does who is seen signing in just then. Fewer than LEAST people are None, and so are all but fewer
    than LEAST: with the number of members they would say who has not. Zero and all as well, for they would say it of
    each member. There are no sums from which these could be computed: a person has done many steps. What is left is in
    multiples of LEAST, since the counts of one night less those of the night before would say what one person did.
    """
    today = datetime.combine(now.astimezone(tenant.zone), time(), tenant.zone)
    members = User.objects.filter(memberships__tenant=tenant, is_active=True)
    number_of_members = members.count()
    done: dict[int, set[str]] = defaultdict(set)
    for number, step in StepDone.objects.filter(user__in=members, at__lt=today).values_list("user_id", "step"):
        done[number].add(step)
    return [
        CourseCounts(
            name=course.name,
            members=number_of_members,
            finished=shown_count(
                sum(all(step.optional or step.code in steps for step in course.steps) for steps in done.values()),
                number_of_members,
            ),
            steps=[
                {
                    "code": step.code,
                    "people": shown_count(sum(step.code in steps for steps in done.values()), number_of_members),
                }
                for step in course.steps
            ],
        )
        for course in all_courses().values()
    ]


def shown_count(people: int, members: int) -> int | None:
    """Return to the nearest LEAST how many of the members did something; None: fewer than LEAST did, or did not."""
    return round_people(people) if LEAST <= people <= members - LEAST else None


def _recognise(
    users: Sequence[User], missing: set[str], since: datetime | _SinceJoining | None
) -> Iterator[tuple[int, str, datetime]]:
    """Yield (person, step, when). `since`: from when on calls are looked at, or the time of all that is looked at."""
    numbers = [user.pk for user in users]
    if "signed-in" in missing:
        for user in users:
            yield user.pk, "signed-in", user.last_login or user.date_joined
    if missing & OF_CALLS:
        for row in _summed_calls(numbers, since):
            yield from _steps_of_calls(row)
    limited = since if isinstance(since, _SinceJoining) else None
    counted = [
        *_steps_of_keys(numbers, missing - HINTED if limited else missing),
        *_steps_of_words(numbers, missing, limited),
    ]
    if counted:
        for number, at, step in counted[0].union(*counted[1:], all=True):
            yield number, step, at


def _summed_calls(numbers: Sequence[int], since: datetime | _SinceJoining | None) -> list[dict[str, Any]]:
    calls = UsageRecord.objects.filter(status=UsageRecord.Status.FINISHED)
    sums: dict[str, Any] = {
        name.replace("-", "_"): Min("started_at", filter=shown) for name, shown in FIRST_CALLS.items()
    }
    sums["answers"] = Count("pk", filter=FIRST_CALLS["playground"])
    sums["last_answer"] = Max("started_at", filter=FIRST_CALLS["playground"])
    sums["models"] = Count("model", distinct=True)
    sums["last_call"] = Max("started_at")
    if since is not None:
        if isinstance(since, _SinceJoining):
            found = since.limit(calls, whose="user", at="started_at")
        else:
            found = calls.filter(user__in=numbers, started_at__gte=since)
        rows: Any = found.order_by().values("user_id")
        return list(rows.annotate(**sums))
    (number,) = numbers
    newest = calls.filter(user=number).order_by("-started_at")[:MOST_CALLS]
    return [{"user_id": number, **newest.aggregate(**sums)}]


def _steps_of_calls(row: dict[str, Any]) -> Iterator[tuple[int, str, datetime]]:
    """Yield the steps that a person's calls show; of those that need several, with the time of the newest."""
    for step in FIRST_CALLS:
        if row[step] is not None:
            yield row["user_id"], step, row[step]
    if row["answers"] >= PRACTISED:
        yield row["user_id"], "practised", row["last_answer"]
    if row["models"] >= MODELS:
        yield row["user_id"], "three-models", row["last_call"]


def _steps_of_keys(numbers: Sequence[int], missing: set[str]) -> Iterator[QuerySet[ApiKey, Any]]:
    """Yield what finds (person, when, step) by keys: by their first one, and by the names of those that were used."""
    keys = ApiKey.objects.filter(is_playground=False).order_by()
    if "key" in missing:
        yield keys.filter(user__in=numbers).values_list("user").annotate(first=Min("created_at"), of=Value("key"))
    for part, step in HINTS.items():
        if step in missing:
            whose = Q(user__in=numbers) | Q(user=None, responsible__in=numbers)
            named = keys.filter(whose, Q(name__icontains=part) | Q(service__icontains=part), last_used_at__isnull=False)
            by_person = named.annotate(person=Coalesce("user", "responsible")).values_list("person")
            yield by_person.annotate(first=Min("last_used_at"), of=Value(step))


def _steps_of_words(
    numbers: Sequence[int], missing: set[str], limited: _SinceJoining | None
) -> Iterator[QuerySet[Any, Any]]:
    """Yield what finds (person, when, step) by what people said: a thumb, "helped me", a request."""
    said: dict[str, tuple[QuerySet[Any], str, str]] = {
        "feedback": (Feedback.objects.all(), "user", "at"),
        "helped": (HelpedMark.objects.all(), "user", "at"),
        "quota": (QuotaRequest.objects.all(), "asked_by", "asked_at"),
    }
    for step, (rows, whose, at) in said.items():
        if step in missing:
            found = limited.limit(rows, whose=whose, at=at) if limited else rows.filter(**{f"{whose}__in": numbers})
            yield found.order_by().values_list(whose).annotate(first=Min(at), of=Value(step))
