"""Create an API key and print it, once."""

import re
from argparse import ArgumentParser, ArgumentTypeError
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant, User
from portal.keys import networks
from portal.keys.lifecycle import KeyRefused, issue_key
from portal.keys.models import ApiKey, check_expiry

UNITS = {"h": "hours", "d": "days", "w": "weeks"}
NEVER = "never"


def parse_expiry(text: str) -> datetime | str:
    """Return the moment that `text` names, or "never".

    `text` is 90d, 12h or 8w from now, a date such as 2027-03-31 (the end of that day in the server's time zone), or
    "never".
    """
    if text == NEVER:
        return text
    if match := re.fullmatch(r"([1-9]\d{0,4})([hdw])", text):
        return timezone.now() + timedelta(**{UNITS[match[2]]: int(match[1])})
    try:
        day = datetime.strptime(text, "%Y-%m-%d")
    except ValueError as error:
        raise ArgumentTypeError(
            f"{text!r} is neither like 90d, 12h, 8w nor a date like 2027-03-31 nor never"
        ) from error
    try:
        check_expiry(day)
    except ValidationError as error:
        raise ArgumentTypeError("; ".join(error.messages)) from error
    end = timezone.make_aware(day) + timedelta(days=1)
    if end <= timezone.now():
        raise ArgumentTypeError(f"{text} is over")
    return end


def named_models(text: str) -> list[ServedModel]:
    """Return the models in a comma-separated list. Raises CommandError for one that does not exist."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    found = {model.name: model for model in ServedModel.objects.filter(name__in=names)}
    if missing := [name for name in names if name not in found]:
        raise CommandError(f"no such model: {', '.join(missing)}")
    return list(found.values())


def find_person(name: str | None) -> User | None:
    """Return the person with this user name, None for no name. Raises CommandError for one who does not exist."""
    if not name:
        return None
    try:
        return User.objects.get(username__iexact=name)
    except User.DoesNotExist as error:
        raise CommandError(f"no such user: {name}") from error


def choose_expiry(chosen: datetime | str | None, tenant: Tenant) -> datetime | None:
    """Return the chosen expiry, else the one that the tenant proposes for new keys."""
    if chosen is None:
        return timezone.now() + timedelta(days=tenant.key_days) if tenant.key_days else None
    return None if isinstance(chosen, str) else chosen


class Command(BaseCommand):
    help = "Creates an API key for a person or a service and prints it. It is not stored and cannot be printed again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="short name of the tenant")
        owner = parser.add_mutually_exclusive_group(required=True)
        owner.add_argument("--user", metavar="U", help="a personal key of this member")
        owner.add_argument("--service", metavar="NAME", help="a service key of the tenant, for example Dify")
        parser.add_argument("--responsible", metavar="U", help="of a service key: the member to notify")
        parser.add_argument("--name", default="", help="its name in lists; default: the service")
        parser.add_argument("--purpose", default="", help="what it is for")
        parser.add_argument(
            "--class",
            dest="key_class",
            choices=[name for name, _ in ApiKey.CHOOSABLE],
            default=ApiKey.Class.INTERACTIVE,
        )
        parser.add_argument(
            "--expires",
            type=parse_expiry,
            metavar="90d",
            help="90d, 12h, 8w, a date or never; default: as the tenant proposes",
        )
        parser.add_argument("--models", default="", metavar="a,b", help="only these models")
        parser.add_argument(
            "--networks", default="", metavar="N,N", help="only from these, such as 10.1.0.0/16,192.168.7.5"
        )
        parser.add_argument(
            "--takes-user-headers", action="store_true", help="list usage by the people that Open WebUI names"
        )
        parser.add_argument(
            "--no-loop-guard", dest="loop_guard", action="store_false", help="do not watch its answers for word loops"
        )

    def handle(self, *, tenant: str, user: str, service: str, name: str, models: str, **options: Any) -> None:
        if options["responsible"] and not service:
            raise CommandError("--responsible is for service keys only: the person of a personal key is responsible")
        try:
            department = Tenant.objects.get(slug=tenant)
            _, text = issue_key(
                tenant=department,
                user=find_person(user),
                service=service or "",
                responsible=find_person(options["responsible"]),
                name=name or service or "command line",
                purpose=options["purpose"],
                key_class=options["key_class"],
                networks=networks.parse_networks(options["networks"]),
                takes_user_headers=options["takes_user_headers"],
                loop_guard=options["loop_guard"],
                allowed_models=named_models(models),
                expires_at=choose_expiry(options["expires"], department),
            )
        except Tenant.DoesNotExist as error:
            raise CommandError(f"no such tenant: {tenant}") from error
        except KeyRefused as error:
            raise CommandError(str(error)) from error
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        self.stdout.write(text)
