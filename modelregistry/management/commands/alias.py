from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from modelregistry.models import Alias, ServedModel


class Command(BaseCommand):
    help = (
        "Makes an alias point to a model, whatever it pointed to before, and prints it; clients that use the alias "
        "notice nothing. Without a model, prints the model that the alias points to."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("alias", help="another name of a model, for example default")
        parser.add_argument("model", nargs="?")
        parser.add_argument("--remove", action="store_true", help="delete the name")

    def handle(self, *args: Any, **options: Any) -> str:
        with transaction.atomic():
            alias = Alias.objects.select_for_update().filter(name=options["alias"]).first()
            if options["model"] and not options["remove"]:
                return _point_alias(alias or Alias(name=options["alias"]), options["model"])
            if options["model"]:
                raise CommandError("Give a model or --remove, not both.")
            if alias is None:
                raise CommandError(f"There is no alias {options['alias']}.")
            if not options["remove"]:
                return alias.model.name
            alias.delete()
            return alias.name


def _point_alias(alias: Alias, name: str) -> str:
    model = ServedModel.objects.filter(name=name).first()
    if model is None:
        raise CommandError(f"There is no model {name}.")
    alias.model = model
    try:
        alias.full_clean()
    except ValidationError as error:
        raise CommandError(" ".join(error.messages)) from error
    alias.save()
    return alias.name
