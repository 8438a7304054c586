import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from modelregistry.cluster.site import ClusterSite, NoCluster, NotInvited


class Command(BaseCommand):
    help = (
        "Takes a GPU host out of the cluster for good, also one that cannot be trusted any more: the cluster gets "
        "another token and other certificates, and a file is written for each of the other hosts to get them."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="the host's, as it was invited")

    def handle(self, *args: Any, **options: Any) -> str:
        name = options["name"]
        try:
            site = ClusterSite(directory=settings.VAR / "cluster", cache=settings.CACHE)
            written = site.remove(name, at=time.time())
        except NotInvited as error:
            raise CommandError(f"Nothing was changed: {error}. To change the token alone: rotatecluster.") from error
        except (NoCluster, OSError) as error:
            raise CommandError(str(error)) from error
        return f"{name} is removed: its certificates are refused from now on.\n{explain_next_steps(written)}"


def explain_next_steps(written: Sequence[Path]) -> str:
    """Return what an operator has to do until the former token and certificates are worth nothing."""
    changed = (
        "The cluster has another token and other certificates. The former ones are good for as long as the head and "
        "the hosts run with them.\n"
    )
    if not written:
        return f"{changed}Restart the head (madoguchi-head). The cluster has no other hosts."
    return (
        f"{changed}1. {explain_renewal(written)}\n"
        "2. Restart the head (madoguchi-head), then the service of each host (madoguchi-host), all within HOST_LEASE:\n"
        "   engines go on for that long."
    )


def explain_renewal(written: Sequence[Path]) -> str:
    """Return what an operator does with the files of hosts that were invited before."""
    join = ".venv/bin/python -m modelregistry.cluster.join --renew /var/lib/madoguchi-host"
    files = "\n".join(f"    {path}" for path in written)
    return (
        f"Copy each file to its host as `invitation`, run there as the user of its service `{join} < invitation`, and "
        f"delete the file, here and there (a host that has not joined yet joins with it, without --renew):\n{files}"
    )
