"""Sets or removes a quota."""

from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant, User
from portal.keys.models import ApiKey
from portal.keys.secret import PREFIX
from portal.metering.models import Quota


def amount(text: str) -> int | None:
    """A number, or None for `none`."""
    if text == "none":
        return None
    if not text.isdecimal() or int(text) >= 2**63:
        raise ArgumentTypeError(f"{text!r} is neither a whole number nor 'none'")
    return int(text)


class Command(BaseCommand):
    help = "Limits what a tenant, a user or a key may use. 0 blocks, 'none' removes the limit."

    def add_arguments(self, parser: ArgumentParser) -> None:
        owner = parser.add_mutually_exclusive_group(required=True)
        owner.add_argument("--tenant", metavar="T")
        owner.add_argument("--user", metavar="U")
        owner.add_argument("--key", metavar="PREFIX")
        parser.add_argument("--model", metavar="M", help="for this model alone; default: all together")
        parser.add_argument("--unit", required=True, choices=Quota.Unit.values)
        parser.add_argument("--per", default="", choices=Quota.Window.values, help="not for --unit concurrent")
        parser.add_argument("--amount", required=True, type=amount, metavar="N")

    def handle(self, *, unit: str, per: str, **options: Any) -> None:
        if (unit == Quota.Unit.CONCURRENT) == bool(per):
            raise CommandError("--unit concurrent has no --per; requests and tokens need one")
        kind = {**self.owner(options), "model": self.model(options["model"]), "unit": unit, "window": per}
        with transaction.atomic():
            if options["amount"] is None:
                for quota in Quota.objects.filter(**kind):
                    quota.delete()  # one by one: gateways are told by the row's signal
                self.stdout.write("unlimited")
            else:
                quota, _ = Quota.objects.update_or_create(**kind, defaults={"amount": options["amount"]})
                self.stdout.write(str(quota))

    def owner(self, options: dict[str, Any]) -> dict[str, Any]:
        none: dict[str, Any] = {"tenant": None, "user": None, "key": None}
        try:
            if options["tenant"]:
                return {**none, "tenant": Tenant.objects.get(slug=options["tenant"])}
            if options["user"]:
                return {**none, "user": User.objects.get(username__iexact=options["user"])}
            return {**none, "key": ApiKey.objects.get(prefix=options["key"][:PREFIX])}
        except ObjectDoesNotExist as error:
            named = options["tenant"] or options["user"] or options["key"][:PREFIX]
            raise CommandError(f"there is no {named}") from error

    def model(self, name: str | None) -> ServedModel | None:
        if name is None:
            return None
        try:
            return ServedModel.objects.get(name=name)
        except ServedModel.DoesNotExist as error:
            raise CommandError(f"no such model: {name}") from error
