"""The people that the organiser of a seminar names: they see it on their home page and join it without the code.

Only those may be named who could join with the code: members of the tenant, or for the whole company all with an
account. All others read the same, so that no admin learns who works elsewhere.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Q, QuerySet, Value
from django.db.models.functions import Concat, Lower, Replace
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from portal.accounts.models import User
from portal.audit import tracking
from portal.lessons.models import MOST_PEOPLE, Seminar, SeminarInvitation
from portal.lessons.seminars import (
    SeminarRefused,
    awaited_invitations,
    check_organiser,
    count_places_taken,
    people_concerned,
)
from portal.web.notify import notify

BETWEEN = re.compile(r"[\n\r,;、，；]+")
SPACES = re.compile(r"\s+")
MOST_TEXT = 20_000  # characters of the field


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPeople:
    """What a list of names means. `unknown` and `ambiguous`: the names as they were typed."""

    people: Sequence[User]
    unknown: Sequence[str]
    ambiguous: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What became of people who were named. `let_back`: those of the invited whose key had been taken back."""

    invited: Sequence[User]
    let_back: Sequence[User]
    already: Sequence[User]  # were invited or take part


def people_to_name(seminar: Seminar) -> QuerySet[User]:
    """Return those who may be named for the seminar."""
    found = User.objects.filter(is_active=True, is_break_glass=False)
    return found if seminar.is_company_wide else found.filter(memberships__tenant=seminar.tenant)


def split_names(typed: str) -> list[str]:
    """Return the names in what was typed into a field, one per line or with commas between them."""
    return [name for part in BETWEEN.split(typed) if (name := part.strip())]


def find_people(seminar: Seminar, typed: Sequence[str]) -> FoundPeople:
    """Return the people that user names, mail addresses or whole names mean. One query."""
    names = list(dict.fromkeys(typed))
    if len(names) > MOST_PEOPLE:
        raise SeminarRefused(
            _("At most %(most)d people can be invited at a time.") % {"most": MOST_PEOPLE}, code="many"
        )
    wanted = {_simplify(name) for name in names}
    given, family = "first_name", "last_name"
    rows = people_to_name(seminar).alias(
        by_user_name=Lower("username"),
        by_mail=Lower("email"),
        eastern=_joined(family, given),
        western=_joined(given, family),
    )
    known: dict[str, dict[int, User]] = defaultdict(dict)
    is_meant = Q(by_user_name__in=wanted) | Q(by_mail__in=wanted) | Q(eastern__in=wanted) | Q(western__in=wanted)
    for one in rows.filter(is_meant).order_by("pk"):
        own = (one.username, one.email, one.last_name + one.first_name, one.first_name + one.last_name)
        for name in {_simplify(part) for part in own if part}:
            known[name][one.pk] = one
    found: dict[int, User] = {}
    unknown, ambiguous = [], []
    for name in names:
        those = known.get(_simplify(name), {})
        if len(those) == 1:
            found.update(those)
        elif those:
            ambiguous.append(name)
        else:
            unknown.append(name)
    return FoundPeople(people=list(found.values()), unknown=unknown, ambiguous=ambiguous)


def _simplify(name: str) -> str:
    return SPACES.sub("", name).lower()


def _joined(first: str, second: str) -> Lower:
    """Return the whole name without spaces, as `_simplify` makes it."""
    whole = Concat(first, second)
    for space in (" ", "\u3000"):
        whole = Replace(whole, Value(space), Value(""))  # type: ignore[assignment]
    return Lower(whole)


def name_people(by: User, seminar: Seminar, people: Iterable[User]) -> Naming:
    """Name people for a seminar, and notify those who neither are named already nor take part.

    Whose key was taken back may join again. Raises SeminarRefused and PermissionDenied.
    """
    check_organiser(by, seminar)
    with transaction.atomic():
        row = Seminar.objects.select_for_update(of=("self",)).select_related("tenant").get(pk=seminar.pk)
        if row.ended_at is not None:
            raise SeminarRefused(_("The seminar is over."), code="over")
        there = set(User.objects.filter(people_concerned(row)).values_list("pk", flat=True))
        allowed = set(people_to_name(row).filter(pk__in=[one.pk for one in people]).values_list("pk", flat=True))
        new = [one for one in people if one.pk in allowed - there]
        out = set(row.participants.filter(user__in=new).values_list("user", flat=True))
        naming = Naming(
            invited=new,
            let_back=[one for one in new if one.pk in out],
            already=[one for one in people if one.pk in allowed & there],
        )
        if count_places_taken(row) + len(new) > row.places:
            raise SeminarRefused(
                ngettext(
                    "The seminar has %(places)d place. Add places first.",
                    "The seminar has %(places)d places. Add places first.",
                    row.places,
                )
                % {"places": row.places},
                code="places",
            )
        if not new:
            return naming
        row.invitations.filter(user__in=out).delete()  # that led to the key which was taken back
        added = SeminarInvitation.objects.bulk_create([SeminarInvitation(seminar=row, user=one) for one in new])
        _record("seminar.invite", row, new)
        notify(
            [one for one in new if one != by],
            "seminar-invited",
            f"{row.pk} {added[0].pk}",  # for who was taken off the list and is named again, another one
            path=f"/lessons/seminars/{row.pk}/join/",
            title=row.title,
            course=row.course,
            by=str(by),
            at=row.begins_at.astimezone(row.tenant.zone).isoformat(),
        )
    return naming


def withdraw_name(by: User, seminar: Seminar, person: User) -> None:
    """Take a person off the list who has not joined. Who has joined stays: see `seminars.take_back_key`."""
    check_organiser(by, seminar)
    with transaction.atomic():
        if SeminarInvitation.objects.filter(seminar=seminar, user=person).delete()[0]:
            _record("seminar.uninvite", seminar, [person])


def awaited(seminar: Seminar) -> list[User]:
    """Return those who are named and may still join, by name. One query."""
    named = User.objects.filter(pk__in=awaited_invitations(seminar).values("user"))
    return list(named.order_by("last_name", "first_name", "pk"))


def _record(action: str, seminar: Seminar, people: Sequence[User]) -> None:
    names = [one.get_username() for one in people]
    tracking.record_event(action, seminar, "seminar", after={"people": names}, tenant=seminar.tenant)
