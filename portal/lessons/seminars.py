"""Seminars: a course that people take together, with a key for the day. Open, join, end.

A tenant admin opens one for the members of the tenant; an operator may open one for the whole company, for which people
are members of its tenant until it is over. Seminars may overlap: a tenant has more than one room.

The code of a seminar is derived from a random number, which is stored, and API_KEY_SECRET, which no database holds. It
is looked up by its digest. Keys end in two ways: `close_due_seminars` revokes them AFTERWARDS past the end, and their
own expiry stops them LATEST past it, should no task run.
"""

import base64
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Min, QuerySet
from django.utils.translation import gettext as _

from portal.accounts import permissions
from portal.accounts.models import Membership, Tenant, User
from portal.keys import lifecycle
from portal.keys.models import ApiKey
from portal.keys.secret import digest_of
from portal.lessons import progress
from portal.lessons.courses import all_courses
from portal.lessons.models import Seminar, SeminarParticipant
from portal.lessons.progress import CourseProgress
from portal.quotas.administration import QuotaKind, QuotaTarget, effective_amount
from portal.quotas.models import Quota
from portal.quotas.units import TOKENS
from portal.usage.models import UsageRecord
from portal.web.notify import notify
from portal.web.refusals import Refused
from portal.web.templatetags.formatting import figure

CODE_LENGTH = 16  # characters of base 32: 80 bits
GROUP = 4
EARLY = timedelta(hours=1)  # before its beginning, people may join
AFTERWARDS = timedelta(minutes=30)
LATEST = timedelta(hours=1)
LONGEST = timedelta(hours=12)
MOST_AHEAD = timedelta(days=366)
MOST_PEOPLE = 300
PER_DAY = QuotaKind(unit=TOKENS.name, window="day")
MISREAD = str.maketrans("018", "OIB")  # what base 32 has no digits for


class SeminarRefused(Refused):
    """What was asked of a seminar cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantRow:
    """What the organiser sees of a participant: no contents, only that and when."""

    person: User
    joined_at: datetime
    has_key: bool
    answered_at: datetime | None
    progress: CourseProgress


def code_of(seminar: Seminar) -> str:
    """Return the code in groups, as people type it."""
    code = _derive_code(seminar.nonce)
    return "-".join(code[at : at + GROUP] for at in range(0, CODE_LENGTH, GROUP))


def _derive_code(nonce: str) -> str:
    digest = hmac.digest(settings.API_KEY_SECRET.encode(), b"seminar:" + nonce.encode(), "sha256")
    return base64.b32encode(digest).decode()[:CODE_LENGTH]


def clean_code(typed: str) -> str:
    """Return what was typed as the code that it can only mean: without separators, in capitals."""
    kept = "".join(letter for letter in typed[:100].upper() if letter.isascii() and letter.isalnum())
    return kept.translate(MISREAD)


def _digest(code: str) -> str:
    return digest_of(f"seminar:{code}", settings.API_KEY_SECRET)


def organised_by(user: User) -> QuerySet[Seminar]:
    """Return the seminars whose progress this person may see: those of tenants they administer, operators all."""
    found = Seminar.objects.select_related("tenant")
    if permissions.may_operate(user):
        return found
    return found.filter(tenant__in=permissions.administered_tenants(user), is_company_wide=False)


def joined_by(user: User, now: datetime) -> QuerySet[Seminar]:
    """Return the seminars that this person takes part in now."""
    return Seminar.objects.filter(participants__user=user, ended_at=None, ends_at__gt=now).order_by("begins_at")


def open_seminar(by: User, seminar: Seminar, now: datetime) -> Seminar:
    """Store a new seminar, which gets its code. Raises SeminarRefused and PermissionDenied."""
    permissions.check_access(by, None if seminar.is_company_wide else seminar.tenant)
    if seminar.ends_at <= seminar.begins_at:
        raise SeminarRefused(_("The seminar ends before it begins."), code="order")
    if seminar.ends_at <= now:
        raise SeminarRefused(_("This day and hour are past."), code="past")
    if seminar.ends_at - seminar.begins_at > LONGEST or seminar.begins_at > now + MOST_AHEAD:
        raise SeminarRefused(_("A seminar lasts 12 hours at most and begins within a year."), code="too-long")
    most = effective_amount(QuotaTarget(tenant=seminar.tenant), PER_DAY)
    if most is not None and (seminar.tokens is None or seminar.tokens > most):
        raise SeminarRefused(
            _("%(tenant)s itself has %(amount)s tokens per day. Give each participant at most that.")
            % {"tenant": seminar.tenant, "amount": figure(most)},
            code="more-than-tenant",
        )
    seminar.nonce, seminar.opened_by = secrets.token_hex(16), by
    seminar.code_digest = _digest(_derive_code(seminar.nonce))
    seminar.save()
    return seminar


def join_seminar(user: User, typed: str, now: datetime) -> tuple[SeminarParticipant, str]:
    """Return the participant, and the text of the new key; "" for a person who has joined before.

    Raises SeminarRefused with the same words for a code that is unknown, over or not for this person.
    """
    digest = _digest(clean_code(typed))
    with transaction.atomic():
        # Two windows of one person queue here, so that only one makes a key.
        seminar = Seminar.objects.select_for_update(of=("self",)).filter(code_digest=digest).first()
        if seminar is None or not _is_open(seminar, user, now):
            raise SeminarRefused(
                _("No seminar that is open to you has this code now. Check the code, or ask the organiser."),
                code="unknown-code",
            )
        known = seminar.participants.select_related("key", "seminar__tenant").filter(user=user).first()
        if known is not None:
            return known, ""
        if seminar.participants.count() >= MOST_PEOPLE:
            raise SeminarRefused(_("The seminar is full. Ask the organiser."), code="full")
        added = False
        if seminar.is_company_wide:
            _row, added = Membership.objects.get_or_create(user=user, tenant=seminar.tenant)
        key, text = lifecycle.issue_key(
            tenant=seminar.tenant,
            user=user,
            name=seminar.title[:60],
            purpose=_("Seminar"),
            expires_at=seminar.ends_at + LATEST,
            created_by=user,
        )
        if seminar.tokens is not None:
            Quota.objects.create(key=key, unit=PER_DAY.unit, window=PER_DAY.window, amount=seminar.tokens)
        row = SeminarParticipant.objects.create(seminar=seminar, user=user, key=key, added_to_tenant=added)
    return row, text


def _is_open(seminar: Seminar, user: User, now: datetime) -> bool:
    in_time = seminar.ended_at is None and seminar.begins_at - EARLY <= now < seminar.ends_at
    if not in_time or not seminar.tenant.is_active or not user.is_active:
        return False
    return seminar.is_company_wide or Membership.objects.filter(user=user, tenant=seminar.tenant).exists()


def end_seminar(seminar: Seminar, now: datetime) -> None:
    """End it for good: its keys are revoked, people who were added leave, and each is notified once."""
    with transaction.atomic():
        row = Seminar.objects.select_for_update(of=("self",)).select_related("tenant").get(pk=seminar.pk)
        if row.ended_at is not None:
            return
        row.ended_at = now
        row.save(update_fields=["ended_at"])
        people = list(row.participants.select_related("key", "user"))
        for one in people:
            if one.key is not None:
                lifecycle.revoke_silently(one.key, _("The seminar is over."))
        added = {one.user_id for one in people if one.added_to_tenant}
        added -= _hand_on_memberships(row, added)
        Membership.objects.filter(
            tenant=row.tenant, user__in=added, source=Membership.Source.MANUAL, role=Membership.Role.MEMBER
        ).delete()
        notify(
            [one.user for one in people],
            "seminar-over",
            str(row.pk),
            path=f"/lessons/{row.course}/",
            title=row.title,
        )


def _hand_on_memberships(seminar: Seminar, added: Collection[int]) -> set[int]:
    """Return those who also take part in another seminar of its tenant: they are members until that one is over."""
    others = SeminarParticipant.objects.filter(
        user__in=added, seminar__tenant=seminar.tenant, seminar__ended_at=None, seminar__is_company_wide=True
    )
    found = {one.user_id: one.pk for one in others}
    SeminarParticipant.objects.filter(pk__in=found.values()).update(added_to_tenant=True)
    return found.keys() & set(added)


def close_due_seminars(now: datetime) -> int:
    """End the seminars that have been over for AFTERWARDS; return how many."""
    due = list(Seminar.objects.filter(ended_at=None, ends_at__lte=now - AFTERWARDS)[:100])
    for seminar in due:
        end_seminar(seminar, now)
    return len(due)


def follow_key(old: ApiKey, new: ApiKey, **_facts: Any) -> None:
    """Let a successor of a seminar's key end with the seminar too."""
    row = SeminarParticipant.objects.select_related("seminar").filter(key=old).first()
    if row is not None:
        row.key, new.expires_at = new, row.seminar.ends_at + LATEST
        row.save(update_fields=["key"])
        new.save(update_fields=["expires_at"])


def read_participants(seminar: Seminar) -> list[ParticipantRow]:
    """Return what the organiser sees of each, in the order in which they joined. Nine queries at most."""
    rows = list(seminar.participants.select_related("user", "key").order_by("joined_at", "pk")[:MOST_PEOPLE])
    if not rows:
        return []
    people, since = [row.user for row in rows], rows[0].joined_at
    calls = UsageRecord.objects.filter(
        user__in=people, tenant=seminar.tenant, started_at__gte=since, status=UsageRecord.Status.FINISHED
    )
    answered = dict(calls.order_by().values_list("user_id").annotate(first=Min("started_at")))
    done = progress.update_steps(people, since=since)
    course = all_courses()[seminar.course]
    return [
        ParticipantRow(
            person=row.user,
            joined_at=row.joined_at,
            has_key=row.key is not None and row.key.state == "active",
            answered_at=answered.get(row.user_id),
            progress=progress.progress_in(course, done[row.user_id]),
        )
        for row in rows
    ]


def tenants_to_open_for(user: User) -> QuerySet[Tenant]:
    """Return the active tenants that this person may open seminars for."""
    return permissions.administered_tenants(user).filter(is_active=True).order_by("name")
