"""Compare our people with the directory: who left, who came back, who changed.

`sync_directory` does all of it, for `manage.py syncdirectory` (hourly, by a supervisor) and for the operators' page. It
records the outcome, and notifies operators once of each failure.
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
    DirectoryError,
    DirectorySettings,
    DirectoryUnavailable,
    Findings,
    Groups,
    LdapGroup,
    NameTaken,
    Person,
    look_up_people,
)
from portal.accounts.models import DirectoryState, Membership, User
from portal.web.notify import notify

T = TypeVar("T")

# People written in one transaction (some 0.5 s): other writers wait until it is over.
BATCH = 50
SYNC_TASK = PeriodicTask(name="syncdirectory", every=timedelta(hours=1), argv=("syncdirectory",))


class SuspiciousChange(Exception):
    """So many people (`losing` of `ours`) would lose access that the directory, or our settings, are likely wrong."""

    def __init__(self, sentence: str, losing: int, ours: int) -> None:
        super().__init__(sentence)
        self.losing = losing
        self.ours = ours


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPlan:
    """What a synchronisation would change."""

    leaving: tuple[User, ...]  # active now, to be deactivated
    gone: int  # all who may not stay, active or not
    staying: int
    differing: tuple[tuple[User, Person], ...]  # of those who stay: accounts that must be updated
    ours: int  # active people here who come from the directory
    losing: int  # those of `ours` who would lose all their access
    groups: Groups
    unclear: tuple[str, ...]  # names of people whose entry could not be used: they stay as they are

    def check(self) -> None:
        """Raise SuspiciousChange if more than half of our people would lose their access, or if all are gone."""
        if self.ours and not self.staying:
            raise SuspiciousChange(
                f"None of our {self.ours} people is in the directory; nothing was changed."
                " Are LDAP_USER_BASE, LDAP_USER_FILTER and LDAP_ID_ATTRIBUTE still right?",
                self.ours,
                self.ours,
            )
        if self.losing * 2 > self.ours:
            raise SuspiciousChange(
                f"{self.losing} of our {self.ours} people would lose their access; nothing was changed."
                " checkdirectory shows the members of each group; if they are right, repeat this with --force.",
                self.losing,
                self.ours,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a synchronisation changed."""

    people: int
    left: int
    returned: int
    changed: int
    name_taken: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()
    kept_operator: str = ""  # the last operator, who stays one although the directory says otherwise
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


def sync_directory(directory: DirectorySettings, *, force: bool = False, now: datetime | None = None) -> Outcome:
    """Update our people to match the directory, or change nothing; record the result as DirectoryState either way.

    Blocks for as long as the directory needs. `force`: even if most of our people would lose their access. Raises
    DirectoryError and SuspiciousChange.
    """
    now = now or timezone.now()
    try:
        plan = plan_changes(directory)
        directory_groups.record_groups(directory, plan.groups, now)
        if not force:
            plan.check()
        outcome = apply_changes(plan)
    except Exception as error:
        _record_failure(now, error)
        raise
    DirectoryState.objects.update_or_create(
        pk=1,
        defaults={"tried_at": now, "succeeded_at": now, "outcome": asdict(outcome), "problem": "", "detail": ""},
    )
    return outcome


def _record_failure(now: datetime, error: Exception) -> None:
    problem = _classify_error(error)
    detail = str(error) if problem != DirectoryState.Problem.FAULT else f"{type(error).__name__}: {error}"
    with transaction.atomic():
        state, _ = DirectoryState.objects.update_or_create(
            pk=1, defaults={"tried_at": now, "problem": problem, "detail": detail[:500]}
        )
        # Once for each failure: until the next success, failures of the same kind count as the same one.
        ref = f"{problem} since {state.succeeded_at.isoformat() if state.succeeded_at else 'the beginning'}"
        notify(
            User.objects.filter(is_staff=True, is_active=True),
            "directory-trouble",
            ref,
            path=reverse("operations-directory"),
            problem=problem,
            # For an implausible answer the problem itself says everything; the others quote the server.
            detail="" if problem == DirectoryState.Problem.IMPLAUSIBLE else detail[:500],
            at=timezone.localtime(now),
        )


def _classify_error(error: Exception) -> DirectoryState.Problem:
    match error:
        case DirectoryUnavailable():
            return DirectoryState.Problem.AWAY
        case SuspiciousChange():
            return DirectoryState.Problem.IMPLAUSIBLE
        case DirectoryError():
            return DirectoryState.Problem.REFUSED
    return DirectoryState.Problem.FAULT


def plan_changes(directory: DirectorySettings) -> SyncPlan:
    """Look up all our people of the directory, and its groups even if we have no people of it yet.

    Changes nothing. Raises DirectoryError.
    """
    users = list(
        User.objects.exclude(directory_id=None)
        .order_by("pk")
        .prefetch_related(Prefetch("memberships", Membership.objects.select_related("tenant")))
    )
    ids = [user.directory_id for user in users if user.directory_id]
    found = look_up_people(directory, ids, directory_groups.remembered_groups())
    missing: list[User] = []
    staying: list[tuple[User, Person | None]] = []  # None: the account stays as it is
    for user in users:
        person = found.people.get(user.directory_id or "")
        if may_stay(user, person, found):
            staying.append((user, _entry_to_apply(user, person)))
        else:
            missing.append(user)
    known = [(user, person) for user, person in staying if person is not None]
    return SyncPlan(
        leaving=tuple(user for user in missing if user.is_active),
        gone=len(missing),
        staying=len(staying),
        differing=tuple((user, person) for user, person in known if _needs_update(user, person)),
        ours=sum(user.is_active for user in users),
        losing=sum(user.is_active for user in missing) + sum(_loses_all(user, person) for user, person in known),
        groups=found.groups,
        unclear=tuple(user.get_username() for user in users if user.directory_id in found.unclear),
    )


def _needs_update(user: User, person: Person) -> bool:
    """Return whether the account must be written. True for a last operator each time, so that they are notified."""
    return (user.is_staff and person.is_operator is False) or not directory_users.agrees_with_entry(user, person)


def may_stay(user: User, person: Person | None, found: Findings) -> bool:
    """Return whether a person keeps their access: not if gone, out of the group, or with an account ended or lapsed.

    What is unknown (an entry that cannot be used, a group that was not found) takes nothing from anyone.
    """
    if person is None:
        return user.directory_id in found.unclear
    return not person.end_reason and not person.has_lapsed and person.is_admitted is not False


def _entry_to_apply(user: User, person: Person | None) -> Person | None:
    """Return the entry to update the account from; None if it stays as it is.

    An inactive person does not come back while it is unknown whether they may sign in.
    """
    is_admission_unknown = person is not None and person.is_admitted is None
    return None if is_admission_unknown and not user.is_active else person


def apply_changes(plan: SyncPlan) -> Outcome:
    """Carry out the plan, BATCH people at a time. What a failure leaves undone, the next run does."""
    changed = returned = 0
    taken = []
    kept = ""
    for leaving in _batches(plan.leaving):
        with transaction.atomic():
            for user in leaving:
                directory_users.deactivate(user)
    # New operators first, so that no one counts as the last operator who is not.
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
        moved_groups=tuple((group.configured, group.dn) for group in _moved_groups(plan.groups)),
    )


def _moved_groups(groups: Groups) -> list[LdapGroup]:
    return [group for group in groups.found.values() if group.is_moved]


def _batches(people: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    for start in range(0, len(people), BATCH):
        yield people[start : start + BATCH]


def _loses_all(user: User, person: Person) -> bool:
    """Return whether the person would lose every membership that the directory gave.

    `plan_changes` has prefetched `memberships`.
    """
    directory = Membership.Source.DIRECTORY
    tenants = {row.tenant.slug for row in user.memberships.all() if row.source == directory}
    return user.is_active and bool(tenants) and tenants.isdisjoint(person.roles.keys() | person.undecided)
