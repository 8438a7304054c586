"""Sets what a model's tokens cost from a day on."""

from argparse import ArgumentParser, ArgumentTypeError
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from portal.prices import cautions, price_list
from portal.prices.models import TokenPrice


def parse_yen(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise ArgumentTypeError(f"{text!r} is no amount of yen") from error


def parse_day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no day, such as 2026-12-01") from error


class Command(BaseCommand):
    help = "Sets the price of a model's tokens, in yen for 1,000, from a day on; or removes the price of that day."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--model", required=True, metavar="M")
        parser.add_argument("--from", required=True, type=parse_day, dest="first_day", metavar="DAY")
        parser.add_argument("--until", type=parse_day, dest="last_day", metavar="DAY", help="default: the next price")
        parser.add_argument("--input", type=parse_yen, dest="input_price", metavar="YEN")
        parser.add_argument("--output", type=parse_yen, dest="output_price", metavar="YEN")
        parser.add_argument("--cached", type=parse_yen, dest="cached_price", metavar="YEN", help="default: as --input")
        parser.add_argument("--outside", default="", dest="reference", metavar="SERVICE", help="its price elsewhere")
        parser.add_argument("--remove", action="store_true")

    def handle(self, *, remove: bool, **options: Any) -> str:
        names = ("model", "first_day", "last_day", "input_price", "output_price", "cached_price", "reference")
        values = {name: options[name] for name in names}
        kind = TokenPrice.Kind.OUTSIDE if values["reference"] else TokenPrice.Kind.INTERNAL
        known = TokenPrice.objects.filter(kind=kind, model=values["model"], first_day=values["first_day"]).first()
        try:
            if remove:
                if known is None:
                    raise CommandError("there is no such price")
                price_list.remove_price(known, by=None)
                return "removed"
            if values["input_price"] is None or values["output_price"] is None:
                raise CommandError("give --input and --output")
            price = TokenPrice(pk=known.pk if known else None, kind=kind, **values)
            price._state.adding = known is None
            found = cautions.find_cautions(price)
            price_list.save_price(price, by=None, today=timezone.localdate())
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        for caution in found:
            self.stderr.write(f"warning ({caution.code}): {caution.sentence}")
        return "set"
