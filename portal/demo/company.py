"""Puts the whole company into an empty database."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from random import Random

from django.db import transaction

from modelregistry.models import Host, ServedModel
from portal.accounts.models import Tenant, User
from portal.audit.models import AuditEvent
from portal.demo import journal, keyrings, machines, notifications, policy, staff, traffic
from portal.usage import records
from portal.usage.models import UsageRecord

LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that could be taken for another


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """`days` of usage until now; `amount`: times the calls that the plan has."""

    people: int = 2000
    days: int = 90
    amount: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What is there now. `password`: of the accounts to look around with, to be shown once; empty: there are none."""

    tenants: int
    people: int
    keys: int
    calls: int
    password: str


class NotEmpty(Exception):
    """There is something already that a demonstration must not be mixed with."""


def check_empty() -> None:
    """Raise NotEmpty."""
    for model in (User, Tenant, ServedModel, Host, UsageRecord, AuditEvent):
        if model._default_manager.exists():
            raise NotEmpty(str(model._meta.verbose_name_plural))


@transaction.atomic
def fill_database(
    size: Size, now: datetime, seed: int, *, directory: bool, say: Callable[[str], None] = lambda _: None
) -> Filled:
    """Write all of it or nothing. `directory`: people sign in with it, so there are no accounts to look around with.

    Past the signals of rows: a gateway that runs follows with its next full look, within a minute.
    """
    chance = Random(seed)  # noqa: S311 -- nothing secret follows from it
    password = "" if directory else "-".join("".join(secrets.choice(LETTERS) for _ in range(4)) for _ in range(4))
    say("people and tenants")
    people = staff.create_people(chance, now, size.people, password=password, directory=not directory)
    say("hosts and models")
    models = machines.create_hosts(chance, now, people.tenants)
    say("keys")
    holders = keyrings.create_keys(chance, now, people, models, size.days)
    calls = 0
    for rows in traffic.calls(chance, holders, now, size.days, size.amount):
        records.record_usage(rows)
        calls += len(rows)
    say(f"{calls} calls")
    policy.decide(chance, now, people, holders, models, size.days)
    journal.last_used(holders)
    journal.write_journal(chance, now, people, holders, models, directory=not directory)
    keyrings.create_management_keys(chance, now, people)
    notifications.notify_all(now, people)
    return Filled(
        tenants=len(people.tenants),
        people=User.objects.count(),
        keys=sum(len(holder.keys) for holder in holders),
        calls=calls,
        password=password,
    )
