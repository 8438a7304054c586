"""Seminars: a course that people take together, with a key for the day. Open, change, join, end.

A tenant admin opens one for the members of the tenant; an operator may open one for the whole company, for which people
are members of its tenant until it is over. Seminars may overlap: a tenant has more than one room. People join with the
code, or without it if the organiser named them (`invitations`).

The code of a seminar is derived from a random number, which is stored, and API_KEY_SECRET, which no database holds. It
is looked up by its digest. Keys end in two ways: `close_due_seminars` revokes them AFTERWARDS past the end, and their
own expiry stops them LATEST past it, should no task run. Participants may replace their key. What ends it, ends its
predecessors as well, and then it gets no successor. Whose key was taken back joins again if the organiser invites
them again, with a key that replaces it.
"""

import base64
import hmac
import secrets
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypedDict, Unpack

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, Min, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from portal.accounts import permissions
from portal.accounts.models import Membership, Tenant, User
from portal.keys import lifecycle
from portal.keys.lineage import lineage_of
from portal.keys.models import ApiKey
from portal.keys.secret import digest_of
from portal.keys.site_secrets import accepted_secrets, digests_of
from portal.lessons import guests, progress
from portal.lessons.courses import all_courses
from portal.lessons.guests import PER_DAY
from portal.lessons.models import MOST_PEOPLE, Seminar, SeminarInvitation, SeminarParticipant
from portal.lessons.progress import CourseProgress
from portal.quotas.administration import QuotaKind, QuotaTarget, effective_amount
from portal.quotas.models import Quota
from portal.quotas.units import TOKENS
from portal.web.notify import notify
from portal.web.refusals import Refused
from portal.web.templatetags.formatting import figure

CODE_LENGTH = 16  # characters of base 32: 80 bits
GROUP = 4
EARLY = timedelta(hours=1)  # before its beginning, people may join
AFTERWARDS = timedelta(minutes=30)  # in the words of consent
NAMES_KEPT = timedelta(days=7)  # after the end; in the words of consent
LATEST = timedelta(hours=1)
LONGEST = timedelta(hours=12)
MOST_AHEAD = timedelta(days=366)
PER_MONTH = QuotaKind(unit=TOKENS.name, window="month")
USUAL_PLACES = 40  # of a room: also the most without a limit of tokens
USUAL_TOKENS = 100_000  # of a participant: some hours of questions
MOST_TOKENS = 10_000_000  # of a participant: a hundred times that, which no one uses in LONGEST
MISREAD = str.maketrans("018", "OIB")  # what base 32 has no digits for
MOST_TYPED = 300  # characters: a code, or a link that ends with it


class SeminarRefused(Refused):
    """What was asked of a seminar cannot be."""


class KeyOfTheSeminar(lifecycle.KeyRefused):
    """The organiser took the key back, or its seminar is over: it gets no successor."""


class GuestOfTheSeminar(lifecycle.KeyRefused):
    """A person is a member of the tenant through a seminar alone, whose key has a limit: they make no other one."""


class SeminarChanges(TypedDict, total=False):
    """What an organiser may change of a seminar."""

    title: str
    course: str
    begins_at: datetime
    ends_at: datetime
    tokens: int | None
    places: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantRow:
    """What the organiser sees of a participant: no contents, only that and when."""

    pk: int  # of the participant
    person: User
    joined_at: datetime
    has_key: bool
    is_out: bool  # the key was taken back
    answered_at: datetime | None
    progress: CourseProgress


def code_of(seminar: Seminar) -> str:
    """Return the code in groups, as people type it."""
    code = _find_code(seminar)
    return "-".join(code[at : at + GROUP] for at in range(0, CODE_LENGTH, GROUP))


def _find_code(seminar: Seminar) -> str:
    """Return its code; one from before API_KEY_SECRET was replaced comes from the former one."""
    for secret in accepted_secrets():
        code = _derive_code(seminar.nonce, secret)
        if digest_of(f"seminar:{code}", secret) == seminar.code_digest:
            return code
    return _derive_code(seminar.nonce, settings.API_KEY_SECRET)


def _derive_code(nonce: str, secret: str) -> str:
    digest = hmac.digest(secret.encode(), b"seminar:" + nonce.encode(), "sha256")
    return base64.b32encode(digest).decode()[:CODE_LENGTH]


def clean_code(typed: str) -> str:
    """Return what was typed as the code that it can only mean: without separators, in capitals.

    Full-width letters, as Japanese input gives, are the usual ones. Of the link to join, the code is the fragment.
    """
    _address, _sign, code = unicodedata.normalize("NFKC", typed[:MOST_TYPED]).rpartition("#")
    kept = "".join(letter for letter in code.upper() if letter.isascii() and letter.isalnum())
    return kept.translate(MISREAD)


def organised_by(user: User) -> QuerySet[Seminar]:
    """Return the seminars whose progress this person may see: those of tenants they administer, operators all."""
    found = Seminar.objects.select_related("tenant")
    if permissions.may_operate(user):
        return found
    return found.filter(tenant__in=permissions.administered_tenants(user), is_company_wide=False)


def seminars_of(user: User, now: datetime) -> QuerySet[Seminar]:
    """Return the seminars that are not over which this person takes part in or is named for, the next first.

    Each `has_joined` or not.
    """
    return seminars_known_to(user, now).filter(is_out=False)  # type: ignore[misc]  # an annotation


def seminars_known_to(user: User, now: datetime) -> QuerySet[Seminar]:
    """Return the `seminars_of` a person, and with `is_out` those whose organiser took their key back."""
    rows = SeminarParticipant.objects.filter(seminar=OuterRef("pk"), user=user)
    joined, named = Exists(rows.filter(taken_back_at=None)), Exists(_awaited_of(seminar=OuterRef("pk"), user=user))
    found = Seminar.objects.select_related("tenant").filter(ended_at=None, ends_at__gt=now, tenant__is_active=True)
    found = found.annotate(has_joined=joined, is_out=Exists(rows) & ~joined & ~named)
    return found.filter(Q(has_joined=True) | Q(is_out=True) | named).order_by("begins_at", "pk")


def _awaited_of(**which: Any) -> QuerySet[SeminarInvitation]:
    """Return the invitations of people who may still join: who have not, or whose key was taken back before it."""
    rows = SeminarParticipant.objects.filter(seminar=OuterRef("seminar"), user=OuterRef("user"))
    is_used = Exists(rows.filter(Q(taken_back_at=None) | Q(taken_back_at__gte=OuterRef("at"))))
    return SeminarInvitation.objects.filter(~is_used, **which)


def awaited_invitations(seminar: Seminar) -> QuerySet[SeminarInvitation]:
    """Return the invitations of people who may still join this seminar."""
    return _awaited_of(seminar=seminar)


def people_concerned(seminar: Seminar) -> Q:
    """Return the condition for people who take part or are awaited."""
    joined = seminar.participants.filter(taken_back_at=None)
    return Q(pk__in=joined.values("user")) | Q(pk__in=awaited_invitations(seminar).values("user"))


def check_organiser(by: User, seminar: Seminar) -> None:
    """Raise PermissionDenied unless this person may open, change and end the seminar."""
    permissions.check_access(by, None if seminar.is_company_wide else seminar.tenant)


def open_seminar(by: User, seminar: Seminar, now: datetime) -> Seminar:
    """Store a new seminar, which gets its code. Raises SeminarRefused and PermissionDenied."""
    check_organiser(by, seminar)
    _check_hours(seminar, now)
    _check_tokens(seminar)
    seminar.opened_by = by
    assign_code(seminar)
    seminar.save()
    return seminar


def assign_code(seminar: Seminar) -> None:
    """Give a new seminar its code."""
    seminar.nonce = secrets.token_hex(16)
    code = _derive_code(seminar.nonce, settings.API_KEY_SECRET)
    seminar.code_digest = digests_of(f"seminar:{code}")[0]


def _check_hours(seminar: Seminar, now: datetime) -> None:
    """Raise SeminarRefused for hours that cannot be."""
    if seminar.ends_at <= seminar.begins_at:
        raise _refuse_hours("ends_at", "order", _("The seminar ends before it begins."))
    if seminar.ends_at <= now:
        raise _refuse_hours("ends_at", "past", _("This day and hour are past."))
    if seminar.ends_at - seminar.begins_at > LONGEST or seminar.begins_at > now + MOST_AHEAD:
        sentence = _("A seminar lasts 12 hours at most and begins within a year.")
        raise _refuse_hours("ends_at" if seminar.begins_at <= now + MOST_AHEAD else "begins_at", "too-long", sentence)


def _refuse_hours(field: str, code: str, sentence: str) -> SeminarRefused:
    return SeminarRefused(sentence, {field: [sentence]}, code=code)


def _check_tokens(seminar: Seminar) -> None:
    """Raise SeminarRefused for more tokens than the tenant has, than a person uses, or no limit for many people."""
    for what, sentence in (
        (PER_DAY, _("%(tenant)s itself has %(amount)s tokens per day. Give each participant at most that.")),
        (PER_MONTH, _("%(tenant)s itself has %(amount)s tokens per month. Give each participant at most that.")),
    ):
        most = effective_amount(QuotaTarget(tenant=seminar.tenant), what)
        if most is not None and (seminar.tokens is None or seminar.tokens > most):
            raise _refuse_tokens("more-than-tenant", sentence % {"tenant": seminar.tenant, "amount": figure(most)})
    if seminar.tokens is None and seminar.places > USUAL_PLACES:
        sentence = _(
            "Without a limit of tokens a seminar has at most %(places)d places. Give each participant a limit."
        )
        raise _refuse_tokens("no-limit", sentence % {"places": USUAL_PLACES})
    if seminar.tokens is not None and seminar.tokens > MOST_TOKENS:
        sentence = _("Give each participant at most %(amount)s tokens: no one uses more in a day.")
        raise _refuse_tokens("too-many-tokens", sentence % {"amount": figure(MOST_TOKENS)})


def _refuse_tokens(code: str, sentence: str) -> SeminarRefused:
    return SeminarRefused(sentence, {"tokens": [sentence]}, code=code)


def change_seminar(by: User, seminar: Seminar, now: datetime, **changes: Unpack[SeminarChanges]) -> Seminar:
    """Change a seminar that is not over, and with it the keys of those who have joined.

    People who are named or have joined are notified of new hours. Once a person has joined, the beginning stays. Raises
    SeminarRefused and PermissionDenied.
    """
    check_organiser(by, seminar)
    with transaction.atomic():
        row = Seminar.objects.select_for_update(of=("self",)).select_related("tenant").get(pk=seminar.pk)
        if row.ended_at is not None:
            raise SeminarRefused(_("The seminar is over."), code="over")
        before = {name: getattr(row, name) for name in changes}
        for name, value in changes.items():
            setattr(row, name, value)
        changed = {name for name, value in before.items() if getattr(row, name) != value}
        if not changed:
            return row
        _check_changes(row, changed, now)
        row.save(update_fields=list(changed))
        if "ends_at" in changed:
            _move_ends_of_keys(row)
        if "tokens" in changed:
            _set_limits(row, now)
        if {"begins_at", "ends_at"} & changed:
            _notify_of_hours(row, by, now)
    return row


def _check_changes(seminar: Seminar, changed: Collection[str], now: datetime) -> None:
    """Raise SeminarRefused. A limit that older versions took stays until it, or the places, are changed."""
    _check_hours(seminar, now)
    if "begins_at" in changed and seminar.participants.exists():
        # With its beginning the end could move for months, until which its organiser sees what they do.
        raise SeminarRefused(
            _("People have joined, so the beginning stays. End this seminar and open another one."), code="joined"
        )
    if "tokens" in changed or "places" in changed:
        _check_tokens(seminar)
    if "places" in changed and seminar.places < count_places_taken(seminar):
        raise SeminarRefused(_("More people have joined or are invited already."), code="places")


def _working_keys(seminar: Seminar) -> QuerySet[ApiKey]:
    return ApiKey.objects.filter(pk__in=seminar.participants.values("key"), revoked_at=None)


def _move_ends_of_keys(seminar: Seminar) -> None:
    for key in _working_keys(seminar):
        key.expires_at = seminar.ends_at + LATEST
        key.save(update_fields=["expires_at"])  # one by one: gateways do not notice update()


def _set_limits(seminar: Seminar, now: datetime) -> None:
    for key in _working_keys(seminar):
        _limit_key(key, seminar.tokens)
    guests.limit_guests(seminar.tenant, seminar.participants.values_list("user", flat=True), now)


def _limit_key(key: ApiKey, tokens: int | None) -> None:
    if tokens is None:
        for quota in Quota.objects.filter(key=key, unit=PER_DAY.unit, window=PER_DAY.window, model=None):
            quota.delete()
    else:
        Quota.objects.update_or_create(
            key=key, unit=PER_DAY.unit, window=PER_DAY.window, model=None, defaults={"amount": tokens}
        )


def _notify_of_hours(seminar: Seminar, by: User, now: datetime) -> None:
    begins = seminar.begins_at.astimezone(seminar.tenant.zone).isoformat()
    notify(
        User.objects.filter(people_concerned(seminar), is_active=True).exclude(pk=by.pk),
        "seminar-moved",
        f"{seminar.pk} {now.isoformat()}",  # also where it is moved back to hours that were notified before
        path="/lessons/",
        title=seminar.title,
        course=seminar.course,
        at=begins,
        until=seminar.ends_at.astimezone(seminar.tenant.zone).isoformat(),
    )


def join_seminar(user: User, typed: str, now: datetime) -> tuple[SeminarParticipant, str]:
    """Return the participant, and the text of the new key; "" for a person who has joined before.

    Raises SeminarRefused: with the same words for a code that is unknown, over or not for this person, for a full
    seminar, and for a person whose key was taken back.
    """
    with transaction.atomic():
        seminar = _lock_seminar(code_digest__in=digests_of(f"seminar:{clean_code(typed)}"))
        if seminar is None or not _is_open(seminar, user, now):
            raise SeminarRefused(
                _("No seminar that is open to you has this code now. Check the code, or ask the organiser."),
                code="unknown-code",
            )
        return _add_participant(seminar, user)


def join_as_named(user: User, seminar: Seminar, now: datetime) -> tuple[SeminarParticipant, str]:
    """Let a person join that the organiser named, as `join_seminar` does with a code. Raises SeminarRefused.

    Who has joined already, by the code, need not be named.
    """
    with transaction.atomic():
        row = _lock_seminar(pk=seminar.pk)
        if row is None or not _is_open(row, user, now) or not _is_known(row, user):
            raise SeminarRefused(_("You cannot join this seminar now. Ask the organiser."), code="closed")
        return _add_participant(row, user)


def _is_known(seminar: Seminar, user: User) -> bool:
    return any(rows.filter(user=user).exists() for rows in (seminar.invitations, seminar.participants))


def _lock_seminar(**which: Any) -> Seminar | None:
    """Return the seminar once those who join or change it at the same time are done.

    So two windows of one person make one key, and the last place is given once.
    """
    return Seminar.objects.select_for_update(of=("self",)).select_related("tenant").filter(**which).first()


def _add_participant(seminar: Seminar, user: User) -> tuple[SeminarParticipant, str]:
    known = seminar.participants.select_related("key__tenant", "seminar__tenant").filter(user=user).first()
    if known is not None and known.taken_back_at is None:
        return known, ""
    if known is not None and not awaited_invitations(seminar).filter(user=user).exists():
        raise SeminarRefused(taken_back_sentence(), code="taken-back")
    if count_places_taken(seminar, but=user) >= seminar.places:
        raise SeminarRefused(_("The seminar is full. Ask the organiser."), code="full")
    added = False
    if seminar.is_company_wide:
        _row, added = Membership.objects.get_or_create(user=user, tenant=seminar.tenant)
    key, text = lifecycle.issue_key(
        tenant=seminar.tenant,
        user=user,
        name=str(seminar)[:60],
        purpose=_("Seminar"),
        expires_at=seminar.ends_at + LATEST,
        created_by=user,
        # Of who was let back: so that one gets no other successor, and what it used counts.
        replaces=known.key if known is not None else None,
    )
    if seminar.tokens is not None:
        _limit_key(key, seminar.tokens)
    row = known or SeminarParticipant(seminar=seminar, user=user)
    row.key, row.added_to_tenant, row.taken_back_at = key, added, None
    row.joined_at = key.created_at  # the key is the first step
    row.save()
    guests.limit_guests(seminar.tenant, [user.pk], row.joined_at)
    return row, text


def taken_back_sentence() -> str:
    """Return what a person reads who is out."""
    return _("The organiser took your key of this seminar back. To join again, ask them to invite you again.")


def count_places_taken(seminar: Seminar, but: User | None = None) -> int:
    """Return how many places people have, without the one that is kept for `but`.

    Who is named has a place, joined or not; whose key was taken back has none.
    """
    awaited = awaited_invitations(seminar)
    if but is not None:
        awaited = awaited.exclude(user=but)
    return seminar.participants.filter(taken_back_at=None).count() + awaited.count()


def _is_open(seminar: Seminar, user: User, now: datetime) -> bool:
    in_time = seminar.ended_at is None and seminar.begins_at - EARLY <= now < seminar.ends_at
    if not in_time or not seminar.tenant.is_active or not user.is_active:
        return False
    return seminar.is_company_wide or Membership.objects.filter(user=user, tenant=seminar.tenant).exists()


def take_back_key(by: User, participant: SeminarParticipant, reason: str = "") -> None:
    """Revoke a participant's keys for good; the person is notified, and gets no other one unless invited again.

    Their place is free for another person. A guest leaves the tenant, and with it the playground. Raises SeminarRefused
    once the seminar is over, and PermissionDenied.
    """
    check_organiser(by, participant.seminar)
    with transaction.atomic():
        seminar = _lock_seminar(pk=participant.seminar_id)
        if seminar is None or seminar.ended_at is not None:
            raise SeminarRefused(_("The seminar is over."), code="over")
        keys = _lock_keys(SeminarParticipant.objects.filter(pk=participant.pk))
        now = timezone.now()
        row = seminar.participants.get(pk=participant.pk)
        was_added, row.added_to_tenant, row.taken_back_at = row.added_to_tenant, False, row.taken_back_at or now
        row.save(update_fields=["added_to_tenant", "taken_back_at"])
        for key in keys:
            if key.state == "active" or key is keys[-1]:
                lifecycle.revoke_on_behalf(key, reason, by)
            else:  # expired, but its person could make it last longer
                lifecycle.revoke_silently(key, reason)
        if was_added:
            guests.end_guests(seminar, {row.user_id})
        guests.limit_guests(seminar.tenant, [row.user_id], now)


def _lock_keys(participants: QuerySet[SeminarParticipant]) -> list[ApiKey]:
    """Return all keys of these participants, oldest first, and lock them: none gets a successor meanwhile."""
    locked: dict[int, ApiKey] = {}
    while True:  # again while one is being replaced
        last = set(participants.exclude(key=None).values_list("key", flat=True))
        if last <= locked.keys():
            return list(locked.values())
        lineage = lineage_of(last)
        chains = {number for key in last for number in lineage.chain(key)}
        keys = ApiKey.objects.select_for_update(of=("self",)).select_related("tenant", "user")
        locked = {key.pk: key for key in keys.filter(pk__in=chains).order_by("pk")}


def end_seminar(seminar: Seminar, now: datetime) -> None:
    """End it for good: its keys are revoked, people who were added leave, and each who takes part is notified."""
    with transaction.atomic():
        row = Seminar.objects.select_for_update(of=("self",)).select_related("tenant").get(pk=seminar.pk)
        if row.ended_at is not None:
            return
        row.ended_at = now
        row.save(update_fields=["ended_at"])
        for key in _lock_keys(row.participants.all()):
            lifecycle.revoke_silently(key, _("The seminar is over."))
        people = list(row.participants.select_related("user"))
        guests.end_guests(row, {one.user_id for one in people if one.added_to_tenant})
        guests.limit_guests(row.tenant, [one.user_id for one in people], now)
        notify(
            [one.user for one in people if one.taken_back_at is None],
            "seminar-over",
            str(row.pk),
            path=f"/lessons/{row.course}/",
            title=row.title,
            course=row.course,
        )


def close_due_seminars(now: datetime) -> int:
    """End the seminars that have been over for AFTERWARDS, and refresh the limits of guests; return how many."""
    due = list(Seminar.objects.filter(ended_at=None, ends_at__lte=now - AFTERWARDS)[:100])
    for seminar in due:
        end_seminar(seminar, now)
    guests.refresh_limits(now)
    return len(due)


def check_request(tenant: Tenant, user: User | None, **_facts: Any) -> None:
    """Raise GuestOfTheSeminar for a key of their own that a guest asks for."""
    if user is not None and guests.is_guest(user, tenant):
        raise GuestOfTheSeminar(
            _("You are a member of %(tenant)s for the time of a seminar only. Use the key of the seminar.")
            % {"tenant": tenant},
            code="guest",
        )


def check_replacement(key: ApiKey, **_facts: Any) -> None:
    """Raise KeyOfTheSeminar for a key that ended with its seminar, or that the organiser took back."""
    row = SeminarParticipant.objects.select_related("seminar").filter(key=key).first()
    if row is None:
        return
    if row.taken_back_at is not None:
        raise KeyOfTheSeminar(_("The organiser of the seminar took this key back for good."), code="taken-back")
    if row.seminar.ended_at is not None:
        raise KeyOfTheSeminar(_("The seminar of this key is over. Create a key of your own."), code="over")


def follow_key(old: ApiKey, new: ApiKey, **_facts: Any) -> None:
    """Let a successor of a seminar's key end with the seminar too."""
    row = SeminarParticipant.objects.select_related("seminar").filter(key=old).first()
    if row is not None:
        row.key, new.expires_at = new, row.seminar.ends_at + LATEST
        row.save(update_fields=["key"])
        new.save(update_fields=["expires_at"])


def closes_at(seminar: Seminar) -> datetime:
    """Return when it is over for its participants: what they do later is not its organiser's."""
    latest = seminar.ends_at + AFTERWARDS
    return latest if seminar.ended_at is None else min(seminar.ended_at, latest)


def shows_names(seminar: Seminar, now: datetime) -> bool:
    """Return whether the organiser still sees who has done what; later only how many."""
    return now < closes_at(seminar) + NAMES_KEPT


def read_participants(seminar: Seminar, **which: int) -> list[ParticipantRow]:
    """Return what the organiser sees of each, or of those which, in the order in which they joined. Nine queries.

    From joining until `closes_at`. Show it by name only while `shows_names`. Those whose key was taken back, whose
    places others may have, are last.
    """
    found = seminar.participants.filter(**which).select_related("user", "key")
    rows = list(found.order_by(F("taken_back_at").asc(nulls_first=True), "joined_at", "pk")[:MOST_PEOPLE])
    if not rows:
        return []
    until = closes_at(seminar)
    calls = progress.calls_since_joining(rows, until).filter(tenant=seminar.tenant)
    answered = dict(calls.order_by().values_list("user_id").annotate(first=Min("started_at")))
    done = progress.find_steps_of_seminar(rows, until)
    course = all_courses()[seminar.course]
    return [
        ParticipantRow(
            pk=row.pk,
            person=row.user,
            joined_at=row.joined_at,
            has_key=row.key is not None and row.key.state == "active",
            is_out=row.taken_back_at is not None,
            answered_at=answered.get(row.user_id),
            progress=progress.progress_in(course, done[row.user_id]),
        )
        for row in rows
    ]


def tenants_to_open_for(user: User) -> QuerySet[Tenant]:
    """Return the active tenants that this person may open seminars for."""
    mine = permissions.without_internal(permissions.administered_tenants(user))
    return mine.filter(is_active=True).order_by("name")
