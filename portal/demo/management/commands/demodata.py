from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from modelregistry.plain_numbers import decimal_number, whole_number
from portal.demo import company, staff
from portal.site import first_run

DONE = """
A company was made up: {tenants} tenants, {people} people, {keys} keys, {calls} calls of the last {days} days.
No one knows the texts of these keys. Their models are on hosts that do not exist, so they do not answer. smollm2 and
minilm do: `make run` fetches and starts them on this machine.
{sign_in}
Start it with: make run
"""
LOCAL = """
Sign in with one of these (the password is shown only now):
    {employee:<14} an employee
    {admin:<14} the admin of a tenant
    {operator:<14} an operator
    password       {password}
"""
DIRECTORY = """
Sign in with accounts of your directory. Members of its group of operators see everything.
"""


class Command(BaseCommand):
    help = (
        "Fills an empty database with a believable company: 20 tenants, 2,000 people, 90 days of usage, quotas, "
        "requests, an audit log, and hosts and models as if they ran. Never into a database that is in use."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--people", type=whole_number, default=2000)
        parser.add_argument("--days", type=whole_number, default=90, help="of usage, until now")
        parser.add_argument("--amount", type=decimal_number, default=1.0, help="times the usual number of calls")
        parser.add_argument("--seed", type=whole_number, default=5, help="another one: another company")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            company.check_empty()
        except company.NotEmpty as error:
            raise CommandError(
                f"This database is in use: there are {error} in it. Demonstration data cannot be removed again, so it"
                " is written to an empty database only. Set another MADOGUCHI_VAR (or DATABASE_URL) and try again."
            ) from error
        size = company.Size(people=options["people"], days=options["days"], amount=options["amount"])
        filled = company.fill_database(
            size, timezone.now(), options["seed"], directory=bool(settings.DIRECTORY), say=self.say
        )
        first_run.register_models(settings.CACHE)
        sign_in = LOCAL.format(
            employee=staff.EMPLOYEE, admin=staff.ADMIN, operator=staff.OPERATOR, password=filled.password
        )
        self.stdout.write(
            DONE.format(
                tenants=filled.tenants,
                people=filled.people,
                keys=filled.keys,
                calls=filled.calls,
                days=size.days,
                sign_in=sign_in if filled.password else DIRECTORY,
            )
        )

    def say(self, text: str) -> None:
        self.stdout.write(f"→ {text}")
        self.stdout.flush()
