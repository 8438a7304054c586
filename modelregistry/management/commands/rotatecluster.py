from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from modelregistry.cluster.site import ClusterSite, NoCluster
from modelregistry.management.commands.removehost import explain_next_steps


class Command(BaseCommand):
    help = "Gives the cluster another token and other certificates, and writes a file for each host to get them."

    def handle(self, *args: Any, **options: Any) -> str:
        try:
            written = ClusterSite(directory=settings.VAR / "cluster", cache=settings.CACHE).rotate()
        except (NoCluster, OSError) as error:
            raise CommandError(str(error)) from error
        return explain_next_steps(written)
