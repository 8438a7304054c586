"""Tells people of what comes by itself: keys that expire, limits that are near. Then mails what is to be mailed."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from portal.api import keys as management
from portal.keys import expiry
from portal.metering import nearness
from portal.notices import inbox, mailing


class Command(BaseCommand):
    help = "Tells people of keys that expire and of other things that come by themselves, and sends notices by mail."

    def handle(self, **options: Any) -> None:
        now = timezone.now()
        expiry.tell_ends(now)
        expiry.tell_leavers()
        management.tell_ends(now)
        nearness.tell_near(now)
        inbox.forget(now)
        try:
            sent = mailing.send(now)
        except mailing.Undelivered as error:
            raise CommandError(f"notices were told, but not mailed: {error}") from error
        self.stdout.write(f"{sent} mailed")
