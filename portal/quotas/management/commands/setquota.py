"""Sets or removes a quota."""

from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.db.models import QuerySet

from modelregistry.models import ServedModel
from modelregistry.plain_numbers import whole_number
from portal.accounts.models import Membership, Tenant, User
from portal.keys.models import ApiKey
from portal.keys.secret import PREFIX_LENGTH
from portal.quotas.administration import MAX_AMOUNT, QuotaKind, QuotaRefused, QuotaTarget, delete_quota
from portal.quotas.cautions import find_cautions
from portal.quotas.models import Quota
from portal.quotas.units import UNITS


def amount(text: str) -> int | None:
    """Return a number, or None for `none`."""
    if text == "none":
        return None
    number = whole_number(text)
    if number < 0:
        raise ArgumentTypeError("no quota is less than 0, which blocks; 'none' removes it")
    if number > MAX_AMOUNT:
        raise ArgumentTypeError(f"no quota can be that large: the most is {MAX_AMOUNT}")
    return number


# What can be named together.
OWNERS = {("tenant",), ("user",), ("tenant", "user"), ("key",), ("default_for",), ("tenant", "default_for")}


class Command(BaseCommand):
    help = (
        "Limits what a tenant, a user, a member (--tenant T --user U), a key, each tenant (--default-for tenant) or"
        " each member or service key of a tenant (--tenant T --default-for member|service) may use. 0 blocks, 'none'"
        " removes it."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", metavar="T")
        parser.add_argument("--user", metavar="U", help="with --tenant as its member, else wherever they work")
        parser.add_argument("--key", metavar="PREFIX")
        parser.add_argument(
            "--default-for", choices=Quota.DefaultFor.values, help="a default for those without such a quota"
        )
        parser.add_argument("--model", metavar="M", help="for this model alone; default: all together")
        parser.add_argument("--unit", required=True, choices=list(UNITS))
        parser.add_argument("--per", default="", choices=Quota.Window.values, help="not for --unit concurrent")
        parser.add_argument("--amount", required=True, type=amount, metavar="N")

    def handle(self, *, unit: str, per: str, **options: Any) -> None:
        if per not in UNITS[unit].windows:
            raise CommandError("--unit concurrent has no --per; all other units need one")
        kind = {**self.owner(options), "model": self.model(options["model"]), "unit": unit, "window": per}
        member = kind["tenant"] and kind["user"]
        if member and not Membership.objects.filter(tenant=kind["tenant"], user=kind["user"]).exists():
            raise CommandError(f"{options['user']} is not a member of {options['tenant']}")
        with transaction.atomic():
            if options["amount"] is None:
                self.remove(Quota.objects.filter(**kind))
            else:
                self.warn(kind, options["amount"])
                quota, _ = Quota.objects.update_or_create(**kind, defaults={"amount": options["amount"]})
                self.stdout.write(str(quota))

    def warn(self, kind: dict[str, Any], amount: int) -> None:
        """Print what a page would have asked about first."""
        owner = {name: kind[name] for name in ("tenant", "user", "key", "default_for")}
        what = QuotaKind(unit=kind["unit"], window=kind["window"], model=kind["model"])
        for caution in find_cautions(QuotaTarget(**owner), what, amount):
            self.stderr.write(f"warning ({caution.code}): {caution.sentence}")

    def remove(self, quotas: QuerySet[Quota]) -> None:
        """Delete them and print which they were. Defaults and quotas of the tenant may limit the owner all the same."""
        for quota in quotas:
            removed = str(quota)
            try:
                delete_quota(quota)  # one by one: the row's signal notifies gateways
            except QuotaRefused as refusal:
                raise CommandError(refusal.sentence) from refusal
            self.stdout.write(f"removed {removed}")

    def owner(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the columns that name the owner of the quota."""
        tenant, user, key, default_for = (options[name] for name in ("tenant", "user", "key", "default_for"))
        given = tuple(name for name in ("tenant", "user", "key", "default_for") if options[name])
        if given not in OWNERS or (default_for == Quota.DefaultFor.TENANT) != (given == ("default_for",)):
            raise CommandError(
                "name the owner: --tenant T, --user U, --tenant T --user U, --key PREFIX, --default-for tenant, or"
                " --tenant T with --default-for member or --default-for service"
            )
        prefix = key and key[:PREFIX_LENGTH]  # a whole key does as well, and is not printed
        return {
            "tenant": self.find("tenant", Tenant.objects.filter(slug=tenant), tenant),
            "user": self.find("user", User.objects.filter(username__iexact=user), user),
            "key": self.find("key", ApiKey.objects.filter(prefix=prefix), prefix),
            "default_for": default_for or "",
        }

    def find(self, noun: str, rows: QuerySet[Any], name: str | None) -> Any:
        """Return the only one of these rows; None if no name was given."""
        if name is None:
            return None
        row = rows.first()
        if row is None:
            raise CommandError(f"no such {noun}: {name}")
        return row

    def model(self, name: str | None) -> ServedModel | None:
        if name is None:
            return None
        try:
            return ServedModel.objects.get(name=name)
        except ServedModel.DoesNotExist as error:
            raise CommandError(f"no such model: {name}") from error
