"""Write tenants and the people in them."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

from django.contrib.auth.hashers import make_password

from portal.accounts.models import Membership, Tenant, User
from portal.demo.names import european_names, japanese_names
from portal.demo.plan import DEPARTMENTS
from portal.demo.rows import insert_row

MAIL = "aoba.example.com"
EMPLOYEE, ADMIN, OPERATOR = "demo.employee", "demo.admin", "demo.operator"
HOME = "sales-east"  # where these belong
OPERATORS_OF = "information-systems"
ADMIN_ROLE, MEMBER_ROLE = Membership.Role.ADMIN, Membership.Role.MEMBER


@dataclass(frozen=True, slots=True)
class Staff:
    """The people of the company. Those in a joint project also belong to a department."""

    tenants: dict[str, Tenant]  # by short name, as `members`
    members: dict[str, list[User]]  # the admins first
    operators: list[User]

    def admin(self, slug: str) -> User:
        return self.members[slug][0]


def create_people(chance: Random, now: datetime, people: int, *, password: str, directory: bool) -> Staff:
    """Create all tenants and people.

    `password`: of the three demo accounts; empty: there are none. `directory`: the other people come from the company
    directory.
    """
    tenants = _tenants(now)
    members = _employees(chance, now, people, tenants, directory=directory)
    source = Membership.Source.DIRECTORY if directory else Membership.Source.MANUAL
    rows = []
    for slug, staff in members.items():
        admins = 1 + (len(staff) > 60) + (len(staff) > 150)
        for place, user in enumerate(staff):
            role = ADMIN_ROLE if place < admins else MEMBER_ROLE
            rows.append(Membership(user=user, tenant=tenants[slug], role=role, source=source, since=user.date_joined))
    for department in DEPARTMENTS:
        if department.joint:
            members[department.slug] = joining = _project_members(chance, members)
            for place, user in enumerate(joining):
                role = ADMIN_ROLE if place == 0 else MEMBER_ROLE
                since = now - timedelta(days=chance.randrange(20, 80))
                rows.append(Membership(user=user, tenant=tenants[department.slug], role=role, since=since))
    rows += _in_two(chance, members, tenants, source, now)
    operators = members[OPERATORS_OF][3:6]
    for user in operators:
        user.is_staff = user.is_superuser = True
    User.objects.bulk_update(operators, ["is_staff", "is_superuser"])
    if password:
        rows += _guests(now, password, tenants, members)
        operators.append(members[OPERATORS_OF][-1])
    Membership.objects.bulk_create(rows, batch_size=2000)
    return Staff(tenants, members, operators)


def _tenants(now: datetime) -> dict[str, Tenant]:
    rows = [
        Tenant(slug=one.slug, name=one.name, time_zone=one.zone, key_days=one.key_days, is_active=True)
        for one in DEPARTMENTS
    ]
    Tenant.objects.bulk_create(rows)
    Tenant.objects.update(created_at=now - timedelta(days=210))
    return {row.slug: row for row in rows}


def _employees(
    chance: Random, now: datetime, people: int, tenants: dict[str, Tenant], *, directory: bool
) -> dict[str, list[User]]:
    japanese, european = japanese_names(chance), european_names(chance)
    whole = sum(one.size for one in DEPARTMENTS)
    no_password = make_password(None)
    members: dict[str, list[User]] = {}
    number = 0
    for department in DEPARTMENTS:
        if department.joint:
            continue
        abroad = department.zone != "Asia/Tokyo"
        staff = members[department.slug] = []
        for _ in range(max(3, round(people * department.size / whole))):
            name, number = next(european if abroad else japanese), number + 1
            staff.append(
                User(
                    username=name.user,
                    first_name=name.given,
                    last_name=name.family,
                    email=f"{name.user}@{MAIL}",
                    password=no_password,
                    language="en" if abroad else chance.choices(["", "ja"], [4, 1])[0],
                    directory_id=f"aoba-{number:05}" if directory else None,
                    date_joined=now - timedelta(days=chance.randrange(91, 200)),
                )
            )
    User.objects.bulk_create([user for staff in members.values() for user in staff], batch_size=500)
    return members


def _project_members(chance: Random, members: dict[str, list[User]]) -> list[User]:
    """Return people of several departments, for a joint project."""
    joining = []
    for slug in ("production-engineering", "quality", "product-design", "dx-promotion"):
        pool = members[slug]
        joining += chance.sample(pool, max(1, min(len(pool), len(pool) // 12 + 2)))
    chance.shuffle(joining)
    return joining


def _in_two(
    chance: Random, members: dict[str, list[User]], tenants: dict[str, Tenant], source: str, now: datetime
) -> list[Membership]:
    """Return second memberships of people who work for two departments."""
    rows = []
    for slug, second in (("dx-promotion", "information-systems"), ("marketing", "sales-east"), ("legal", "research")):
        for user in chance.sample(members[slug][1:], max(1, len(members[slug]) // 10)):
            members[second].append(user)
            since = now - timedelta(days=chance.randrange(10, 90))
            rows.append(Membership(user=user, tenant=tenants[second], source=source, since=since))
    return rows


def _guests(
    now: datetime, password: str, tenants: dict[str, Tenant], members: dict[str, list[User]]
) -> list[Membership]:
    """Create the three demo accounts, the admin as the first of the department, the others as the last.

    Returns their memberships.
    """
    digest = make_password(password)
    rows = []
    for username, family, given, slug, role in (
        (EMPLOYEE, "青葉", "花子", HOME, MEMBER_ROLE),
        (ADMIN, "青葉", "太郎", HOME, ADMIN_ROLE),
        (OPERATOR, "窓口", "管理", OPERATORS_OF, ADMIN_ROLE),
    ):
        operator = username == OPERATOR
        user = insert_row(
            User(
                username=username,
                first_name=given,
                last_name=family,
                email=f"{username}@{MAIL}",
                password=digest,
                is_staff=operator,
                is_superuser=operator,
            )
        )
        User.objects.filter(pk=user.pk).update(date_joined=now - timedelta(days=120))
        place = 0 if username == ADMIN else len(members[slug])
        members[slug].insert(place, user)
        since = now - timedelta(days=120)
        rows.append(Membership(user=user, tenant=tenants[slug], role=role, since=since))
    return rows
