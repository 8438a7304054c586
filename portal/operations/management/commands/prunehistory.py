"""Deletes old figures of hosts and models; the supervisor runs it every hour."""

from typing import Any

from django.core.management.base import BaseCommand

from modelregistry.database_clock import read_now
from portal.operations.figure_history import prune_figures


class Command(BaseCommand):
    help = "Deletes figures of five minutes older than two days, and those of hours older than HISTORY_KEPT_DAYS."

    def handle(self, **options: Any) -> str:
        return f"{prune_figures(read_now())} deleted"
