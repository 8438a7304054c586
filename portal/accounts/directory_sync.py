"""Hold our people against the directory: who left, who came back, who changed.

`follow` is the whole of it, for `manage.py syncdirectory` (hourly, by a supervisor) and for the operators' page: it
writes down how it went, and tells operators once of each trouble.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from django.db import transaction
from django.db.models import Prefetch
from django.urls import reverse
from django.utils import timezone

from modelregistry.supervisor.tasks import PeriodicTask
from portal.accounts import directory_groups, directory_users
from portal.accounts.ldap import (
    Directory,
    DirectoryError,
    Findings,
    Group,
    Groups,
    NameTaken,
    NoAnswer,
    Person,
    look_up_people,
)
from portal.accounts.models import DirectoryState, Membership, User
from portal.web.notify import notify

T = TypeVar("T")

# So many are written in one transaction (some 0.5 s), for whoever else writes waits for its end.
BATCH = 50
WORK = PeriodicTask(name="syncdirectory", every=timedelta(hours=1), argv=("syncdirectory",))


class SuspiciousChange(Exception):
    """The directory says so much that something is more likely wrong with it, or with our settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`leaving` are active now; `differing`, of those who stay, are to follow what the directory says. `ours` counts
    the active people of the directory whom we have, `losing` those of them who would lose all they may do here."""

    leaving: tuple[User, ...]
    gone: int
    staying: int
    differing: tuple[tuple[User, Person], ...]
    ours: int
    losing: int
    groups: Groups
    unclear: tuple[str, ...]  # names of those whose entry could not be used: they stay as they are

    def check(self) -> None:
        """Raise Implausible if more than half of our people would lose what they have here, or if all have gone."""
        if self.ours and not self.staying:
            raise SuspiciousChange(
                f"None of our {self.ours} people is in the directory; nothing was changed."
                " Are LDAP_USER_BASE, LDAP_USER_FILTER and LDAP_ID_ATTRIBUTE still right?"
            )
        if self.losing * 2 > self.ours:
            raise SuspiciousChange(
                f"{self.losing} of our {self.ours} people would lose their access; nothing was changed."
                " See with checkdirectory whom each group holds; if it is right, repeat it with --force."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    people: int
    left: int
    returned: int
    changed: int
    name_taken: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()
    kept_operator: str = ""  # who would have been dropped as the last operator
    missing_groups: tuple[str, ...] = ()
    moved_groups: tuple[tuple[str, str], ...] = ()  # (as the settings have it, where it is)

    def __str__(self) -> str:
        same = self.people - self.left - self.returned - self.changed - len(self.name_taken)
        line = f"{self.people} people: {self.left} left, {self.returned} came back, {self.changed} changed,"
        line += f" {same} as before"
        line += "".join(f"; {name} not changed, a local account has the name" for name in self.name_taken)
        line += "".join(f"; {name} not changed, the entry cannot be used (the log says why)" for name in self.unclear)
        if self.kept_operator:
            line += f"; {self.kept_operator} stays operator, being the last one"
        return line + "".join(f"; {dn} is now {now}: change the setting" for dn, now in self.moved_groups)


def sync_directory(directory: Directory, *, force: bool = False, now: datetime | None = None) -> Outcome:
    """Make our people what the directory says, or change nothing; either way writes it down as DirectoryState.

    Blocks for as long as the directory needs. `force`: even if most of our people would lose their access. Raises
    directory.DirectoryError and Implausible.
    """
    now = now or timezone.now()
    try:
        found = plan_changes(directory)
        directory_groups.record_groups(directory, found.groups, now)
        if not force:
            found.check()
        outcome = apply_changes(found)
    except Exception as error:
        _note_trouble(now, error)
        raise
    DirectoryState.objects.update_or_create(
        pk=1,
        defaults={"tried_at": now, "succeeded_at": now, "outcome": asdict(outcome), "problem": "", "detail": ""},
    )
    return outcome


def _note_trouble(now: datetime, error: Exception) -> None:
    problem = _problem(error)
    detail = str(error) if problem != DirectoryState.Problem.FAULT else f"{type(error).__name__}: {error}"
    with transaction.atomic():
        state, _ = DirectoryState.objects.update_or_create(
            pk=1, defaults={"tried_at": now, "problem": problem, "detail": detail[:500]}
        )
        # Once for each trouble: until it was followed again, what is the same kind of trouble is the same.
        ref = f"{problem} since {state.succeeded_at.isoformat() if state.succeeded_at else 'the beginning'}"
        notify(
            User.objects.filter(is_staff=True, is_active=True),
            "directory-trouble",
            ref,
            path=reverse("operations-directory"),
            problem=problem,
            # Of an implausible answer the problem itself says all; the others quote the server.
            detail="" if problem == DirectoryState.Problem.IMPLAUSIBLE else detail[:500],
            at=timezone.localtime(now),
        )


def _problem(error: Exception) -> DirectoryState.Problem:
    match error:
        case NoAnswer():
            return DirectoryState.Problem.AWAY
        case SuspiciousChange():
            return DirectoryState.Problem.IMPLAUSIBLE
        case DirectoryError():
            return DirectoryState.Problem.REFUSED
    return DirectoryState.Problem.FAULT


def plan_changes(directory: Directory) -> Plan:
    """Ask the directory about everybody whom we have from it, and about its groups also if that is nobody.

    Changes nothing. Raises directory.DirectoryError.
    """
    users = list(
        User.objects.exclude(directory_id=None)
        .order_by("pk")
        .prefetch_related(Prefetch("memberships", Membership.objects.select_related("tenant")))
    )
    ids = [user.directory_id for user in users if user.directory_id]
    found = look_up_people(directory, ids, directory_groups.remembered_groups())
    missing: list[User] = []
    staying: list[tuple[User, Person | None]] = []  # None: as they are
    for user in users:
        person = found.people.get(user.directory_id or "")
        if may_stay(user, person, found):
            staying.append((user, person if person and person.is_admitted is not None else _as_is(user, person)))
        else:
            missing.append(user)
    known = [(user, person) for user, person in staying if person is not None]
    return Plan(
        leaving=tuple(user for user in missing if user.is_active),
        gone=len(missing),
        staying=len(staying),
        differing=tuple((user, person) for user, person in known if _differs(user, person)),
        ours=sum(user.is_active for user in users),
        losing=sum(user.is_active for user in missing) + sum(_loses_all(user, person) for user, person in known),
        groups=found.groups,
        unclear=tuple(user.get_username() for user in users if user.directory_id in found.unclear),
    )


def _differs(user: User, person: Person) -> bool:
    """Also of a last operator, who is kept as one each time: that is told."""
    return (user.is_staff and person.is_operator is False) or not directory_users.agrees_with_entry(user, person)


def may_stay(user: User, person: Person | None, found: Findings) -> bool:
    """Whether somebody keeps what they have here: not who is gone, lost the group, or whose account ended or lapsed.

    What is not known (an entry that cannot be used, a group that was not found) takes nothing from anybody.
    """
    if person is None:
        return user.directory_id in found.unclear
    return not person.ended and not person.has_lapsed and person.is_admitted is not False


def _as_is(user: User, person: Person | None) -> Person | None:
    """Nobody who is out comes back while it is not known whether they may."""
    return person if user.is_active else None


def apply_changes(plan: Plan) -> Outcome:
    """Write it down, BATCH people at a time. What a failure leaves undone, the next run does."""
    changed = returned = 0
    taken = []
    kept = ""
    for leaving in _batches(plan.leaving):
        with transaction.atomic():
            for user in leaving:
                directory_users.deactivate(user)
    # Who becomes an operator first, so that nobody counts as the last one who is not.
    for differing in _batches(tuple(sorted(plan.differing, key=lambda pair: pair[1].is_operator is not True))):
        with transaction.atomic():
            for user, person in differing:
                try:
                    followed, differs = directory_users.apply_entry(person)
                except NameTaken:
                    taken.append(person.username)
                    continue
                if followed.is_staff and person.is_operator is False:
                    kept = person.username
                returned += bool(user.left_directory_at)
                changed += differs and not user.left_directory_at
    return Outcome(
        people=plan.gone + plan.staying,
        left=len(plan.leaving),
        returned=returned,
        changed=changed,
        name_taken=tuple(taken),
        unclear=plan.unclear,
        kept_operator=kept,
        missing_groups=tuple(sorted(plan.groups.missing)),
        moved_groups=tuple((group.configured, group.dn) for group in _moved(plan.groups)),
    )


def _moved(groups: Groups) -> list[Group]:
    return [group for group in groups.found.values() if group.is_moved]


def _batches(people: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    for start in range(0, len(people), BATCH):
        yield people[start : start + BATCH]


def _loses_all(user: User, person: Person) -> bool:
    """Of the places that the directory gave. `memberships` are prefetched by `plan`."""
    directory = Membership.Source.DIRECTORY
    tenants = {place.tenant.slug for place in user.memberships.all() if place.source == directory}
    return user.is_active and bool(tenants) and tenants.isdisjoint(person.roles.keys() | person.undecided)
