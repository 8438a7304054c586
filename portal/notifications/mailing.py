"""Notices by mail, for whom it finds: those who want it, have an address and have not read them here meanwhile.

One mail holds all that is new to a person. At most once: a notice is marked before its mail goes out, and stays marked
when the mail server refuses this person for good.
"""

import logging
import smtplib
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import groupby

from django.conf import settings
from django.core.mail import EmailMessage, get_connection
from django.core.mail.backends.base import BaseEmailBackend
from django.db.models import Q, QuerySet
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, override

from portal.notifications.inbox import NotificationRow, notification_row
from portal.notifications.models import Notice
from portal.notifications.types import KINDS

log = logging.getLogger(__name__)

# Older ones are not news any more: mail was not configured yet, or its server was away for long.
FRESH = timedelta(days=2)
# Of one person in one mail; what is beyond comes with the next.
IN_ONE = 50


class Undelivered(Exception):
    """The mail server cannot be used at present. Nothing is lost: the next run tries again."""


def send_mails(now: datetime) -> int:
    """Mail what is due; how many mails went out. None without a mail server. Raises Undelivered."""
    if not settings.SENDS_MAIL:
        return 0
    sent = 0
    try:
        with get_connection() as connection:
            for _user, notices in groupby(due_notifications(now), key=lambda notice: notice.user_id):
                sent += _mailed(list(notices)[:IN_ONE], connection, now)
    except (smtplib.SMTPException, OSError) as error:
        raise Undelivered(f"{settings.EMAIL_HOST}: {error}") from error
    return sent


def due_notifications(now: datetime) -> QuerySet[Notice]:
    """What is to be mailed, person by person, oldest first."""
    leavers = [name for name, kind in KINDS.items() if kind.to_leavers]
    return (
        Notice.objects.filter(
            Q(user__is_active=True) | Q(kind__in=leavers),
            kind__in=list(KINDS),
            mailed_at=None,
            read_at=None,
            at__gt=now - FRESH,
            user__wants_mail=True,
        )
        .exclude(user__email="")
        .select_related("user")
        .order_by("user", "at", "pk")
    )


def _mailed(notices: Sequence[Notice], connection: BaseEmailBackend, now: datetime) -> bool:
    """Return whether a mail went out. Raises smtplib.SMTPException and OSError for what the person is no reason of."""
    rows = Notice.objects.filter(pk__in=[notice.pk for notice in notices])
    if rows.filter(mailed_at=None).update(mailed_at=now) != len(notices):
        return False  # another run has them
    user = notices[0].user
    try:
        with override(user.language or "ja"):
            readable = notification_row(notices)
            if readable:
                compose(readable, user.email, connection).send()
    except smtplib.SMTPRecipientsRefused as error:
        code, reason = next(iter(error.recipients.values()))
        log.warning("The mail server does not take mail for %s: %s %r", user.email, code, reason)
        if code < 500:  # later perhaps
            rows.update(mailed_at=None)
        return False
    except BaseException:
        rows.update(mailed_at=None)
        raise
    return bool(readable)


def compose(
    notices: Sequence[NotificationRow], address: str, connection: BaseEmailBackend | None = None
) -> EmailMessage:
    """In the present language. Plain text: it is read everywhere, and nothing in it is loaded from anywhere."""
    site = str(settings.SITE_NAME)
    if len(notices) == 1:
        subject = notices[0].title
    else:
        number = len(notices)
        subject = ngettext("%(number)s notice", "%(number)s notices", number) % {"number": number}
    parts = [f"■ {one.title}\n{one.text}\n{_link(one)}".rstrip() for one in notices]
    parts.append(
        "-- \n"
        + _("Sent by %(site)s. You choose there under Settings whether notices come by mail.") % {"site": site}
        + (f"\n{settings.PUBLIC_URL}{reverse('settings')}" if settings.PUBLIC_URL else "")
    )
    # What people wrote may stand in it: a line feed would begin another header
    subject = " ".join(f"[{site}] {subject}".split())
    return EmailMessage(subject, "\n\n".join(parts) + "\n", to=[address], connection=connection)


def _link(one: NotificationRow) -> str:
    """Nothing where the address of the site is not known: a command has no request to take it from."""
    return settings.PUBLIC_URL + one.path if settings.PUBLIC_URL and one.path else ""
