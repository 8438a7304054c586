"""People who came without a key for a program: to the playground, or only to look around.

Drawn apart from the rest of the company, which stays as it is without them.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from random import Random

from portal.accounts.models import Tenant, User
from portal.demo import workdays
from portal.demo.keyrings import Holder, draw_joining, make_key
from portal.demo.plan import CHAT, DEPARTMENTS, LARGE, SMALL, VISION
from portal.demo.rows import insert_row
from portal.demo.staff import Staff
from portal.keys import playground
from portal.keys.models import ApiKey

# Of the people without a key: the part that uses the playground, has a key and never called, or only signed in.
VISITORS = {"playground": 0.34, "unused": 0.06, "looked": 0.16}
ALSO = 0.3  # the part of the people with a key that uses the playground as well
MIX = {CHAT: 66, LARGE: 24, SMALL: 6, VISION: 4}


def create_visitors(
    chance: Random, now: datetime, staff: Staff, holders: Iterable[Holder], days: int
) -> tuple[list[Holder], list[tuple[User, datetime]]]:
    """Return those who use the playground, and those who signed in without a call, with when they came."""
    begun = {holder.user.pk: holder.since for holder in reversed(list(holders)) if holder.user}
    seen: set[int] = set()
    talking: list[Holder] = []
    others: list[tuple[User, datetime]] = []
    for department in DEPARTMENTS:
        tenant = staff.tenants[department.slug]
        for user in staff.members[department.slug]:
            if user.pk in seen:  # who belongs to two departments came once
                continue
            seen.add(user.pk)
            ago = draw_joining(chance, days)
            since = max(workdays.at_work(chance, now, ago), user.date_joined)
            if user.pk in begun:
                what = "playground" if chance.random() < ALSO else ""
                since = max(since, begun[user.pk])
            else:
                left = 1 - sum(VISITORS.values())
                [what] = chance.choices([*VISITORS, ""], [*VISITORS.values(), left])
            if what == "playground":
                key = _playground_key(chance, tenant, user, since, now)
                heavy = min(3.0, chance.lognormvariate(-1.1, 0.9))
                talking.append(Holder(department, [key], user=user, heavy=heavy, mix=MIX))
            elif what:
                others.append((user, since))
            if what == "unused":
                _store(make_key(chance, tenant, since, None, user=user, name="試用", created_by=user), since)
    return talking, others


def _playground_key(chance: Random, tenant: Tenant, user: User, since: datetime, now: datetime) -> ApiKey:
    """Return the one row of the person's sessions."""
    expires = now + timedelta(minutes=5)
    key = make_key(chance, tenant, since, expires, user=user, name=playground.NAME, is_playground=True, created_by=user)
    return _store(key, since)


def _store(key: ApiKey, since: datetime) -> ApiKey:
    insert_row(key)
    ApiKey.objects.filter(pk=key.pk).update(created_at=since)  # inserting has written the current time
    key.created_at = since
    return key
