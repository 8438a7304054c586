from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from modelregistry import addresses
from modelregistry.cluster.site import NAME, ClusterSite, NoCluster
from modelregistry.plain_numbers import whole_number

COMMANDS = """\
# On {name}, in a checkout of the same release of Madoguchi. What follows holds secrets: a reader of it can join.
make host && .venv/bin/python -m modelregistry.cluster.join /var/lib/madoguchi-host <<'END'
{invitation}
END"""


class Command(BaseCommand):
    help = "Prints what is to be run on a GPU host that joins the cluster: once, and with secrets in it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="the host's: small letters, digits and hyphens")
        parser.add_argument("--address", required=True, help="of the host, as this machine and other hosts reach it")
        parser.add_argument(
            "--gpus", type=whole_number, default=0, help="how many it has at least: it does not join with fewer"
        )

    def handle(self, *args: Any, **options: Any) -> str:
        name = options["name"]
        if not NAME.fullmatch(name) or name == "head":
            raise CommandError("A host is named by small letters, digits and hyphens, 63 at most; not head.")
        if not 0 <= options["gpus"] <= 64:
            raise CommandError("A host has 0 to 64 GPUs.")
        try:
            addresses.validate(options["address"])
            site = ClusterSite(directory=settings.VAR / "cluster", cache=settings.CACHE)
            invitation = site.invite(name, options["address"], gpus=options["gpus"])
        except ValidationError as error:
            raise CommandError(error.messages[0]) from error
        except (NoCluster, OSError) as error:
            raise CommandError(str(error)) from error
        return COMMANDS.format(name=name, invitation=invitation.written())
