"""How far people are in the courses, a seminar that is over, and one that is to come."""

from collections.abc import Iterable, Sequence
from datetime import datetime, time, timedelta
from random import Random

from django.contrib.auth.models import AbstractBaseUser

from portal.accounts.models import Tenant, User
from portal.demo.keyrings import Holder
from portal.demo.rows import insert_row
from portal.demo.staff import EMPLOYEE, HOME, Staff
from portal.keys.models import ApiKey
from portal.lessons import seminars
from portal.lessons.courses import Course, all_courses
from portal.lessons.models import Seminar, SeminarInvitation, SeminarParticipant, StepDone
from portal.notifications.models import Notice
from portal.web.notify import notify
from portal.web.workdays import is_working_day

BEGUN = 0.55  # the part of the people with a key who have begun a course
GUESTS = 24  # of the past seminar, at most
INVITED = 12


def create_lessons(chance: Random, now: datetime, staff: Staff, holders: Sequence[Holder]) -> None:
    """Write the progress of people, and two seminars of the demo admin."""
    create_progress(chance, now, holders)
    tenant, admin = staff.tenants[HOME], staff.admin(HOME)
    create_past_seminar(chance, now, tenant, admin, staff.members[HOME])
    create_coming_seminar(chance, now, tenant, admin, staff.members[HOME])


def create_progress(chance: Random, now: datetime, holders: Sequence[Holder]) -> None:
    """Let people do steps one after another from their first key on; many stop on the way."""
    since: dict[int, tuple[User, datetime]] = {}
    for holder in holders:
        if holder.user is not None:
            known = since.get(holder.user.pk)
            since[holder.user.pk] = holder.user, min(holder.since, known[1]) if known else holder.since
    with_key = {holder.user.pk for holder in holders if holder.user and not holder.keys[0].is_playground}
    rows: dict[tuple[int, str], StepDone] = {}
    for user, begun in since.values():
        _do_step(rows, user, "signed-in", begun)
        if user.pk in with_key:
            _do_step(rows, user, "key", begun)
        if user.username == EMPLOYEE:
            _take_course(rows, chance, user, all_courses()["everyone"], 4, begun, now)
        elif chance.random() < BEGUN:
            course = all_courses()[chance.choices(["everyone", "developers"], [3, 1])[0]]
            steps = min(len(course.steps), 1 + int(chance.expovariate(0.25)))
            _take_course(rows, chance, user, course, steps, begun, now)
    StepDone.objects.bulk_create(rows.values(), batch_size=2000)


def _take_course(
    rows: dict[tuple[int, str], StepDone],
    chance: Random,
    user: User,
    course: Course,
    steps: int,
    begun: datetime,
    now: datetime,
) -> None:
    at = begun
    for step in course.steps[:steps]:
        at += timedelta(minutes=step.minutes) if chance.random() < 0.6 else timedelta(days=chance.uniform(0.5, 9))
        if at < now:
            _do_step(rows, user, step.code, at)


def _do_step(rows: dict[tuple[int, str], StepDone], user: User, step: str, at: datetime) -> None:
    rows.setdefault((user.pk, step), StepDone(user=user, step=step, at=at))


def create_past_seminar(
    chance: Random, now: datetime, tenant: Tenant, organiser: User, members: Sequence[User]
) -> None:
    begins = _at_three(now, tenant, -9)
    ends = begins + timedelta(minutes=90)
    over = ends + seminars.AFTERWARDS
    seminar = _open(tenant, organiser, "はじめての生成 AI（東日本営業部）", begins, ends)
    Seminar.objects.filter(pk=seminar.pk).update(ended_at=over)
    pool = [user for user in members if user != organiser and user.date_joined < begins]
    for user in chance.sample(pool, min(GUESTS, len(pool) // 2)):
        joined = begins + timedelta(seconds=chance.randrange(20, 600))
        key = ApiKey(
            tenant=tenant,
            user=user,
            created_by=user,
            name=str(seminar)[:60],
            purpose="セミナー",
            expires_at=ends + seminars.LATEST,
            revoked_at=over,
            revoked_because="セミナーは終了しました。",
        )
        key.assign_text()
        insert_row(key)
        ApiKey.objects.filter(pk=key.pk).update(created_at=joined)
        insert_row(SeminarParticipant(seminar=seminar, user=user, key=key, joined_at=joined))
    people = User.objects.filter(pk__in=seminar.participants.values("user"))
    _notify(people, "seminar-over", seminar, over, f"/lessons/{seminar.course}/")


def create_coming_seminar(
    chance: Random, now: datetime, tenant: Tenant, organiser: User, members: Sequence[User]
) -> None:
    """Write one to which the demo employee is invited."""
    begins = _at_three(now, tenant, 5)
    seminar = _open(tenant, organiser, "", begins, begins + timedelta(minutes=60))
    pool = [user for user in members if user not in (organiser, members[-1])]
    people = [user for user in members if user.username == EMPLOYEE]
    people += [user for user in chance.sample(pool, min(INVITED, len(pool) // 2)) if user not in people]
    at = now - timedelta(days=1, hours=2)
    SeminarInvitation.objects.bulk_create(SeminarInvitation(seminar=seminar, user=user, at=at) for user in people)
    local = begins.astimezone(tenant.zone).isoformat()
    path = f"/lessons/seminars/{seminar.pk}/join/"
    _notify(people, "seminar-invited", seminar, at, path, by=str(organiser), at=local)


def _open(tenant: Tenant, organiser: User, title: str, begins: datetime, ends: datetime) -> Seminar:
    seminar = Seminar(
        tenant=tenant,
        title=title,
        course="everyone",
        begins_at=begins,
        ends_at=ends,
        tokens=100_000,
        places=40,
        opened_by=organiser,
    )
    seminars.assign_code(seminar)
    return insert_row(seminar)


def _at_three(now: datetime, tenant: Tenant, days: int) -> datetime:
    """Return three o'clock of the nearest working day so many days from now, further away."""
    day = now.astimezone(tenant.zone).date() + timedelta(days=days)
    while not is_working_day(day):
        day += timedelta(days=1 if days > 0 else -1)
    return datetime.combine(day, time(15), tzinfo=tenant.zone)


def _notify(
    people: Iterable[AbstractBaseUser], kind: str, seminar: Seminar, when: datetime, path: str, **facts: str
) -> None:
    notify(people, kind, str(seminar.pk), path=path, title=seminar.title, course=seminar.course, **facts)
    Notice.objects.filter(kind=kind, ref=str(seminar.pk)).update(at=when)
