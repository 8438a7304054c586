from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from modelregistry.install.build_cache import CannotFetch
from modelregistry.install.demo_models import DEMO_MODELS, fetch_models


class Command(BaseCommand):
    help = "Fetches the small demo models into MADOGUCHI_CACHE and prints the path of each."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        for model in DEMO_MODELS:
            try:
                self.stdout.write(str(fetch_models(model, settings.CACHE, self.stderr.write)))
            except CannotFetch as error:
                raise CommandError(str(error)) from error
