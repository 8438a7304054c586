from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant
from portal.keys.models import ModelAccess
from portal.operations import actions

EVERYBODY = "all"


class Command(BaseCommand):
    help = "Sets which tenants may call a model, and prints them: a short name on each line, or all."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("model")
        who = parser.add_mutually_exclusive_group()
        who.add_argument("--tenant", action="append", metavar="T", help="only this one; may be given several times")
        who.add_argument("--all", action="store_true", help="every tenant, including future ones")

    def handle(self, *args: Any, **options: Any) -> str:
        model = ServedModel.objects.filter(name=options["model"]).first()
        if model is None:
            raise CommandError(f"There is no model {options['model']}.")
        if options["tenant"]:
            actions.set_visibility(None, model, _tenants(options["tenant"]))
        elif options["all"]:
            actions.set_visibility(None, model, [])
        names = ModelAccess.objects.filter(model=model).order_by("tenant__slug").values_list("tenant__slug", flat=True)
        return "\n".join(names) or EVERYBODY


def _tenants(slugs: list[str]) -> list[Tenant]:
    found = {tenant.slug: tenant for tenant in Tenant.objects.filter(slug__in=slugs)}
    if missing := sorted(set(slugs) - found.keys()):
        raise CommandError(f"no such tenant: {', '.join(missing)}")
    return list(found.values())
