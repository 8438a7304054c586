from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from modelregistry import addresses
from modelregistry.cluster.site import ClusterSite, NoCluster
from modelregistry.install.engine_environments import RAY


class Command(BaseCommand):
    help = (
        "Prepares a cluster of GPU hosts whose head is this machine: a token, an authority for certificates, and the "
        "head's own. Prints the command that runs the head."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("address", help="of this machine, as the hosts reach it")
        parser.add_argument(
            "--redis",
            default="",
            metavar="HOST:PORT",
            help="a Redis with persistence, of the cluster's own: with it the head may be restarted at any time",
        )

    def handle(self, *args: Any, **options: Any) -> str:
        try:
            addresses.validate(options["address"])
            site = ClusterSite(directory=settings.VAR / "cluster", cache=settings.CACHE)
            home = site.create(options["address"], options["redis"])
        except ValidationError as error:
            raise CommandError(error.messages[0]) from error
        except (NoCluster, OSError) as error:
            raise CommandError(str(error)) from error
        return f"{RAY.python(settings.CACHE)} -m modelregistry.cluster.head {home.directory}"
