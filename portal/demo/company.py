"""Put the whole company into an empty database."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from random import Random

from django.db import transaction

from modelregistry.models import Host, Replica, ServedModel
from portal.accounts.models import Tenant, User
from portal.adoption import summary
from portal.audit.models import AuditEvent
from portal.demo import (
    availability,
    journal,
    keyrings,
    learning,
    machines,
    money,
    news,
    notifications,
    policy,
    staff,
    traffic,
    use_cases,
    visitors,
)
from portal.usage import records
from portal.usage.models import UsageRecord

LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that looks like another


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large the company is."""

    people: int = 2000
    days: int = 90  # of usage, until now
    amount: float = 1.0  # times the calls in the plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What the database contains now."""

    tenants: int
    people: int
    keys: int
    calls: int
    password: str  # of the demo accounts, to be shown once; empty: there are none


class NotEmpty(Exception):
    """The database contains data that must not be mixed with a demonstration."""


def check_empty() -> None:
    """Raise NotEmpty unless the database is empty."""
    for model in (User, Tenant, ServedModel, Host, UsageRecord, AuditEvent):
        if model._default_manager.exists():
            raise NotEmpty(str(model._meta.verbose_name_plural))


@transaction.atomic
def fill_database(
    size: Size, now: datetime, seed: int, *, directory: bool, say: Callable[[str], None] = lambda _: None
) -> Filled:
    """Write the whole company or nothing. `directory`: people sign in with it, so there are no demo accounts.

    Sends no signals of rows: a running gateway reads all of it within a minute.
    """
    chance = Random(seed)  # noqa: S311 -- nothing secret follows from it
    password = "" if directory else "-".join("".join(secrets.choice(LETTERS) for _ in range(4)) for _ in range(4))
    say("people and tenants")
    people = staff.create_people(chance, now, size.people, password=password, directory=not directory)
    say("hosts and models")
    models = machines.create_hosts(chance, now, people.tenants)
    say("keys")
    holders = keyrings.create_keys(chance, now, people, models, size.days)
    # Each drawn apart, so that the rest of the company stays as it was.
    coming, learned = (Random(seed + number) for number in (1, 2))  # noqa: S311 -- nothing secret follows from it
    guests, others = visitors.create_visitors(coming, now, people, holders, size.days)
    calls = _record_calls(chance, holders, now, size) + _record_calls(coming, guests, now, size)
    say(f"{calls} calls")
    policy.create_policy(chance, now, people, holders, models, size.days)
    journal.clear_unused_keys()
    journal.write_journal(chance, now, people, holders, models, directory=not directory)
    journal.write_sign_ins(coming, now, guests, others)
    keyrings.create_management_keys(chance, now, people)
    money.create_prices(now, people, size.days)
    news.create_news(now, people)
    news.create_rules(now)
    learning.create_lessons(learned, now, people, [*holders, *guests])
    notifications.notify_all(now, people)
    use_cases.create_use_cases(chance, now, people)
    availability.create_intervals(now, models, size.days)
    summary.update_if_due(now)
    return Filled(
        tenants=len(people.tenants),
        people=User.objects.count(),
        keys=sum(len(holder.keys) for holder in holders),
        calls=calls,
        password=password,
    )


def _record_calls(chance: Random, holders: list[keyrings.Holder], now: datetime, size: Size) -> int:
    served = Replica.objects.exclude(state=Replica.State.UNHEALTHY)  # not what is left on the silent host
    engines = dict(served.values_list("model__name", "pk"))
    calls = 0
    for rows in traffic.daily_calls(chance, holders, now, size.days, size.amount):
        for row in rows:
            row["replica_id"] = engines[row["model"]]
        records.record_usage(rows)
        calls += len(rows)
    return calls
