from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from modelregistry.cluster.node import CODE
from modelregistry.cluster.site import NAME, ClusterSite, NoCluster
from modelregistry.host_port import bracket_host
from modelregistry.management.commands.createcluster import check_reachable
from modelregistry.plain_numbers import whole_number

COMMANDS = """\
Written to {path}: a reader of it can join in the place of {name}. Copy it there, then delete it here and there:
scp {path} {host}:invitation
# On {name}, as root, where the user madoguchi has a checkout of the same release of Madoguchi (deploy/RAY.md):
runuser -l madoguchi -c 'make -C /srv/madoguchi host'
runuser -l madoguchi -c \
  'cd /srv/madoguchi && .venv/bin/python -m modelregistry.cluster.join{renew} /var/lib/madoguchi-host' < invitation
rm invitation{again}"""
# Of a site that was installed from a bundle.
OF_BUNDLE = """\
Written to {path}: a reader of it can join in the place of {name}. Copy it there, then delete it here and there:
scp {path} {host}:invitation
# On {name}, as root, once deploy/install-host of the bundle of this version was run there (deploy/RAY.md):
runuser -l madoguchi -s /bin/sh -c 'cd /opt/madoguchi-host/current && \
  .venv/bin/python -m modelregistry.cluster.join{renew} /var/lib/madoguchi-host' < invitation
rm invitation{again}"""
AGAIN = """
# It was invited before. Until it has joined it joins without --renew; with it, restart its service (madoguchi-host)."""


class Command(BaseCommand):
    help = "Writes a file with which a GPU host joins the cluster, and prints what is to be run on that host."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="the host's: small letters, digits and hyphens")
        parser.add_argument("--address", required=True, help="of the host, as this machine and other hosts reach it")
        parser.add_argument(
            "--gpus", type=whole_number, default=0, help="how many it has at least: it does not join with fewer"
        )

        parser.add_argument(
            "--replaces", default="", metavar="HOST", help="a host that has left, and had this machine or its address"
        )

    def handle(self, *args: Any, **options: Any) -> str:
        name = options["name"]
        if not NAME.fullmatch(name) or name == "head":
            raise CommandError("A host is named by small letters, digits and hyphens, 63 at most; not head.")
        if not 0 <= options["gpus"] <= 64:
            raise CommandError("A host has 0 to 64 GPUs.")
        try:
            check_reachable(options["address"])
            site = ClusterSite(directory=settings.VAR / "cluster", cache=settings.CACHE, models=settings.MODELS)
            is_known = name in site.invited()
            path = site.write_invitation(name, options["address"], gpus=options["gpus"], replaces=options["replaces"])
        except ValidationError as error:
            raise CommandError(error.messages[0]) from error
        except (NoCluster, OSError) as error:
            raise CommandError(str(error)) from error
        renew, again = (" --renew", AGAIN) if is_known else ("", "")
        commands = OF_BUNDLE if (CODE / "bundle.json").exists() else COMMANDS
        return commands.format(name=name, path=path, host=bracket_host(options["address"]), renew=renew, again=again)
