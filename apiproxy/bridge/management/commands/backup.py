"""Backs up the database, secrets, configuration and what the gateway's spool holds, while everything runs."""

import contextlib
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import Error
from django.utils import timezone

from apiproxy.dataplane.spool_copies import copy_spool
from modelregistry.plain_numbers import whole_number
from portal.backups import runs
from portal.backups.backup import StoredBackup, make_backup, remove_older
from portal.backups.encryption import Recipient
from portal.backups.errors import BackupRefused


class Command(BaseCommand):
    help = (
        "Backs up the database, the secrets, the configuration and usage that is not in the database yet, into a new "
        "directory below DIR, while everything runs. Prints one line and ends with 0 when the backup is complete and "
        "was read back; otherwise it leaves nothing, and ends with 1."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("directory", nargs="?", metavar="DIR", help="where backups are kept; default: BACKUP_DIR")
        recipient = parser.add_mutually_exclusive_group()
        recipient.add_argument("--age-recipient", metavar="KEY", help="encrypts for this public key of age (age1…)")
        recipient.add_argument("--gpg-recipient", metavar="KEY", help="encrypts for this key of GnuPG, by fingerprint")
        parser.add_argument("--keep", type=whole_number, metavar="N", help="removes all backups in DIR but the last N")

    def handle(self, **options: Any) -> None:
        if not (name := options["directory"] or settings.BACKUP_DIR):
            raise CommandError("name the directory of the backups, or set BACKUP_DIR")
        if options["keep"] is not None and options["keep"] < 1:
            raise CommandError("--keep 1 or more: the new backup stays")
        directory, began_at = Path(name).absolute(), timezone.now()
        try:
            backup = make_backup(
                directory, copy_spool(settings.SPOOL), recipient=choose_recipient(options), now=began_at
            )
        except BackupRefused as error:
            with contextlib.suppress(Error):
                runs.record_failure(directory, began_at, str(error))
            raise CommandError(str(error)) from error
        self._finish(backup, options["keep"])

    def _finish(self, backup: StoredBackup, keep: int | None) -> None:
        try:
            runs.record_success(backup)
        except Error as error:
            self.stderr.write(f"the backup is complete, but pages will not show it: {error}")
        seconds = (timezone.now() - backup.manifest.made_at).total_seconds()
        calls = backup.manifest.rows.get("usage_usagerecord", 0)
        self.stdout.write(f"{backup.path}: {backup.manifest.size} bytes, {calls} calls, {seconds:.1f} s")
        if keep is not None:
            try:
                removed = remove_older(backup.path.parent, keep)
            except OSError as error:
                raise CommandError(f"the backup is complete, but older ones cannot be removed: {error}") from error
            for path in removed:
                self.stdout.write(f"removed {path}")


def choose_recipient(options: dict[str, Any]) -> Recipient | None:
    """Return for which key to encrypt; None: the backup is not encrypted."""
    for tool in ("age", "gpg"):
        if name := options[f"{tool}_recipient"]:
            return Recipient(tool, name)
    return None
