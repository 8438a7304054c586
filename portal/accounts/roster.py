"""Hold our people against the directory: who left, who came back, who changed. Used by `manage.py syncdirectory`."""

from dataclasses import dataclass

from django.db import transaction
from django.db.models import Prefetch

from portal.accounts import people
from portal.accounts.directory import Directory, NameTaken, Person, look_up
from portal.accounts.models import Membership, User


class Implausible(Exception):
    """The directory says so much that something is more likely wrong with it, or with our settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`leaving` are active now; `staying` are to follow what the directory says. `ours` counts the active people of
    the directory whom we have, `losing` those of them who would lose all they may do here."""

    leaving: tuple[User, ...]
    gone: int
    staying: tuple[tuple[User, Person], ...]
    ours: int
    losing: int

    def check(self) -> None:
        """Raises Implausible if more than half of our people would lose what they have here, or if all have gone."""
        if self.ours and not self.staying:
            raise Implausible(f"None of our {self.ours} people is in the directory; nothing was changed.")
        if self.losing * 2 > self.ours:
            raise Implausible(
                f"{self.losing} of our {self.ours} people would lose their access; nothing was changed."
                " If that is right, repeat it with --force."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    people: int
    left: int
    returned: int
    changed: int
    name_taken: tuple[str, ...]

    def __str__(self) -> str:
        same = self.people - self.left - self.returned - self.changed - len(self.name_taken)
        line = f"{self.people} people: {self.left} left, {self.returned} came back, {self.changed} changed,"
        line += f" {same} as before"
        return line + "".join(f"; {name} not changed, a local account has the name" for name in self.name_taken)


def plan(directory: Directory) -> Plan:
    """Asks the directory about everybody whom we have from it. Changes nothing. Raises directory.DirectoryError."""
    from_directory = Membership.objects.filter(source=Membership.Source.DIRECTORY).select_related("tenant")
    users = list(
        User.objects.exclude(directory_id=None)
        .order_by("pk")
        .prefetch_related(Prefetch("memberships", from_directory, to_attr="directory_memberships"))
    )
    found = look_up(directory, [user.directory_id for user in users if user.directory_id]) if users else {}
    admitted = {id: person for id, person in found.items() if person.is_admitted}
    missing = [user for user in users if user.directory_id not in admitted]
    staying = [(user, admitted[user.directory_id]) for user in users if user.directory_id in admitted]
    return Plan(
        leaving=tuple(user for user in missing if user.is_active),
        gone=len(missing),
        staying=tuple(staying),
        ours=sum(user.is_active for user in users),
        losing=sum(user.is_active for user in missing) + sum(_loses_all(user, person) for user, person in staying),
    )


def carry_out(plan: Plan) -> Outcome:
    """Writes it down: all of it or, should anything fail, nothing."""
    changed = returned = 0
    taken = []
    with transaction.atomic():
        for user in plan.leaving:
            people.leave(user)
        for user, person in plan.staying:
            try:
                _, differs = people.follow(person)
            except NameTaken:
                taken.append(person.username)
                continue
            returned += bool(user.left_directory_at)
            changed += differs and not user.left_directory_at
    return Outcome(
        people=plan.gone + len(plan.staying),
        left=len(plan.leaving),
        returned=returned,
        changed=changed,
        name_taken=tuple(taken),
    )


def _loses_all(user: User, person: Person) -> bool:
    """`directory_memberships` is prefetched by `plan`."""
    tenants = {membership.tenant.slug for membership in user.directory_memberships}  # type: ignore[attr-defined]
    return user.is_active and bool(tenants) and tenants.isdisjoint(person.roles)
