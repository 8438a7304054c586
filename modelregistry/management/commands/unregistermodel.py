from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from modelregistry.models import ServedModel


class Command(BaseCommand):
    help = "Removes a model from the catalogue for good; its host's supervisor drains and stops its engines."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--with-aliases", action="store_true", help="delete its other names as well")

    def handle(self, *args: Any, **options: Any) -> str:
        model = ServedModel.objects.filter(name=options["name"]).first()
        if model is None:
            raise CommandError(f"There is no model {options['name']}.")
        aliases = list(model.aliases.values_list("name", flat=True))
        if aliases and not options["with_aliases"]:
            raise CommandError(
                f"Clients also call it {', '.join(aliases)}: move these (`manage.py alias {aliases[0]} OTHER`), or "
                "give --with-aliases."
            )
        model.delete()
        return options["name"]  # type: ignore[no-any-return]
