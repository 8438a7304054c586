"""Restores a backup, or rehearses that."""

import os
import socket
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import Error, connection

from apiproxy.dataplane.file_locks import try_to_acquire
from apiproxy.dataplane.spool_copies import add_to_spool
from apiproxy.server.portal_proxy import short_socket_path
from portal.backups import runs
from portal.backups.backup import StoredBackup
from portal.backups.databases import other_connections
from portal.backups.errors import BackupRefused
from portal.backups.restore import RESTORED, RestoreReport, count_lost, open_backup, rehearse, restore
from portal.environment import make_private_directory

NEXT = (
    "Next: start Madoguchi again. Keys and sessions of the backup work, the next gateway records the calls that were "
    "in its spool, and models start by themselves."
)


class Command(BaseCommand):
    help = (
        "Restores a backup that `backup` made: checks all of it, then puts database, secrets and the spool in place, "
        "and applies newer migrations. Configuration is laid beside, to be compared. Nothing of Madoguchi may run on "
        "this state directory and this database meanwhile."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("backup", type=Path, help="the directory of one backup")
        parser.add_argument(
            "--identity", type=Path, metavar="FILE", help="the private key of a backup that age encrypted"
        )
        parser.add_argument(
            "--check",
            action="store_true",
            help="only rehearses: restores into a database of its own, migrates and counts, and removes it again",
        )
        parser.add_argument("--replace", action="store_true", help="replaces a database in which there is something")

    def handle(self, **options: Any) -> None:
        path: Path = options["backup"].absolute()
        try:
            restoration = open_backup(path, options["identity"])
            manifest = restoration.manifest
            calls = manifest.rows.get("usage_usagerecord", 0)
            shown = f"{path}: version {manifest.version}, made {manifest.made_at:%Y-%m-%d %H:%M} UTC, {calls} calls"
            if options["check"]:
                rehearse(restoration)
                self.stdout.write(f"{shown}: complete, and it can be restored here")
                return
            with stopped_state():
                self._check_replaced(replace=options["replace"])
                report = restore(restoration, partial(add_to_spool, settings.SPOOL))
        except BackupRefused as error:
            raise CommandError(str(error)) from error
        with suppress(Error):  # the newest backup, whose run is not in it
            runs.record_success(StoredBackup(path=path, manifest=manifest))
        self.stdout.write(f"{shown}: restored")
        self._report(report)

    def _check_replaced(self, *, replace: bool) -> None:
        """Refuse to replace what people made, unless that is wanted. Raises BackupRefused."""
        try:
            lost = count_lost()
            shown = ", ".join(f"{count} {name}" for name, count in lost.items())
        except Error as error:
            lost, shown = {"?": 1}, f"what is in a database that cannot be read ({error})"
        if any(lost.values()) and not replace:
            raise BackupRefused(f"the database is not empty: {shown} would be lost. To replace them, add --replace")
        if any(lost.values()):
            self.stdout.write(f"replacing {shown}")

    def _report(self, report: RestoreReport) -> None:
        self.stdout.write(f"files of the spool: {report.spool_files}")
        for place in report.differing:
            self.stdout.write(f"differs from {place}: {settings.VAR / RESTORED}{place}")
        self.stdout.write(NEXT)


@contextmanager
def stopped_state() -> Iterator[None]:
    """Keep gateways and supervisors from starting on this state directory. Raises BackupRefused if something runs."""
    make_private_directory(settings.RUN)
    held: list[int] = []
    try:
        for name, command in (("gateway.lock", "up"), ("supervisor.lock", "supervise")):
            if (descriptor := try_to_acquire(settings.RUN / name)) is None:
                raise BackupRefused(f"`{command}` runs on {settings.VAR}: stop it first")
            held.append(descriptor)
        with socket.socket(socket.AF_UNIX) as portal:
            if portal.connect_ex(short_socket_path(settings.PORTAL_SOCKET)) == 0:
                raise BackupRefused(f"the portal runs on {settings.VAR}: stop it first")
        _check_connections()
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def _check_connections() -> None:
    try:
        others = other_connections()
    except Error as error:
        raise BackupRefused(f"the database does not answer: {error}") from error
    finally:
        connection.close()
    if others:
        raise BackupRefused(
            f"{others} other connections to the database are open: stop Madoguchi on all hosts and other clients first"
        )
