"""Prints a new API key, once."""

import re
from argparse import ArgumentParser, ArgumentTypeError
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant, User
from portal.keys.issuing import NotAMember, issue

UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def moment(text: str) -> datetime:
    """`90d`, `12h`, `8w` from now, or a date such as 2027-03-31 (the end of that day, server's time zone)."""
    if match := re.fullmatch(r"([1-9]\d{0,4})([hdw])", text):
        return timezone.now() + timedelta(**{UNITS[match[2]]: int(match[1])})
    try:
        day = datetime.strptime(text, "%Y-%m-%d")
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is neither like 90d, 12h, 8w nor a date like 2027-03-31") from error
    end = timezone.make_aware(day) + timedelta(days=1)
    if end <= timezone.now():
        raise ArgumentTypeError(f"{text} is over")
    return end


def named_models(text: str) -> list[ServedModel]:
    """The models of a comma-separated list. Raises CommandError for one that does not exist."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    found = {model.name: model for model in ServedModel.objects.filter(name__in=names)}
    if missing := [name for name in names if name not in found]:
        raise CommandError(f"no such model: {', '.join(missing)}")
    return list(found.values())


class Command(BaseCommand):
    help = "Creates an API key for a person or a service and prints it. It is not stored and cannot be printed again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="short name of the tenant")
        owner = parser.add_mutually_exclusive_group(required=True)
        owner.add_argument("--user", metavar="U", help="a personal key of this member")
        owner.add_argument("--service", metavar="NAME", help="a service key of the tenant, for example Dify")
        parser.add_argument("--name", default="", help="what the key is for")
        parser.add_argument("--expires", type=moment, metavar="90d", help="90d, 12h, 8w or a date; default: never")
        parser.add_argument("--models", default="", metavar="a,b", help="only these models")

    def handle(self, *, tenant: str, user: str, service: str, name: str, models: str, **options: Any) -> None:
        try:
            department = Tenant.objects.get(slug=tenant)
            person = User.objects.get(username__iexact=user) if user else None
            _, text = issue(
                tenant=department,
                user=person,
                service=service or "",
                name=name or service or "command line",
                allowed_models=named_models(models),
                expires_at=options["expires"],
            )
        except Tenant.DoesNotExist as error:
            raise CommandError(f"no such tenant: {tenant}") from error
        except User.DoesNotExist as error:
            raise CommandError(f"no such user: {user}") from error
        except NotAMember as error:
            raise CommandError(str(error)) from error
        self.stdout.write(text)
