"""Notices by mail, for people who want them, have an address and have not read them on the pages meanwhile.

One mail contains all that is new to a person. Each notice is mailed at most once: it is marked before its mail is sent,
and stays marked when the mail server refuses this person for good.
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

from portal.adoption import tips
from portal.notifications.inbox import NotificationRow, notification_rows
from portal.notifications.models import Notice
from portal.notifications.types import KINDS

log = logging.getLogger(__name__)

# Older notices are no longer news: mail was not configured yet, or its server was away for a long time.
FRESH = timedelta(days=2)
# Notices of one person in one mail; the next mail contains the rest.
MAX_PER_MAIL = 50


class MailServerUnavailable(Exception):
    """The mail server cannot be used now. Nothing is lost: the next run tries again."""


def send_mails(now: datetime) -> int:
    """Mail the notices that are due, if there is a mail server; return the number of mails.

    Raises MailServerUnavailable.
    """
    if not settings.SENDS_MAIL:
        return 0
    sent = 0
    try:
        with get_connection() as connection:
            for _user, notices in groupby(due_notifications(now), key=lambda notice: notice.user_id):
                sent += _send_mail(list(notices)[:MAX_PER_MAIL], connection, now)
    except (smtplib.SMTPException, OSError) as error:
        raise MailServerUnavailable(f"{settings.EMAIL_HOST}: {error}") from error
    return sent


def due_notifications(now: datetime) -> QuerySet[Notice]:
    """Return the notices to mail, person by person, oldest first."""
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


def _send_mail(notices: Sequence[Notice], connection: BaseEmailBackend, now: datetime) -> bool:
    """Mail these notices of one person; return whether a mail was sent.

    Raises smtplib.SMTPException and OSError for faults that do not concern this person alone.
    """
    rows = Notice.objects.filter(pk__in=[notice.pk for notice in notices])
    if rows.filter(mailed_at=None).update(mailed_at=now) != len(notices):
        return False  # another run has them
    user = notices[0].user
    try:
        with override(user.language or "ja"):
            readable = notification_rows(notices)
            if readable:
                compose_mail(readable, user.email, connection, tips_off=tips.link_of(user)).send()
    except smtplib.SMTPRecipientsRefused as error:
        code, reason = next(iter(error.recipients.values()))
        log.warning("The mail server does not accept mail for %s: %s %r", user.email, code, reason)
        if code < 500:  # perhaps later
            rows.update(mailed_at=None)
        return False
    except BaseException:
        rows.update(mailed_at=None)
        raise
    return bool(readable)


def compose_mail(
    notices: Sequence[NotificationRow],
    address: str,
    connection: BaseEmailBackend | None = None,
    *,
    tips_off: str = "",
) -> EmailMessage:
    """Return a mail in the active language. Plain text: every mail program shows it, and nothing is loaded for it.

    `tips_off`: the path at which tips can be switched off without signing in; mail programs offer it as well.
    """
    site = str(settings.SITE_NAME)
    if len(notices) == 1:
        subject = notices[0].title
    else:
        number = len(notices)
        subject = ngettext("%(number)s notice", "%(number)s notices", number) % {"number": number}
    parts = [f"■ {one.title}\n{one.text}\n{_link(one)}".rstrip() for one in notices]
    parts.append(
        "-- \n"
        + _("Sent by %(site)s. You can choose under Settings whether to receive notices by mail.") % {"site": site}
        + (f"\n{settings.PUBLIC_URL}{reverse('settings')}" if settings.PUBLIC_URL else "")
    )
    headers = {}
    if tips_off and settings.PUBLIC_URL and any(one.is_tip for one in notices):
        parts.insert(-1, _("No more tips: %(address)s") % {"address": settings.PUBLIC_URL + tips_off})
        # RFC 8058: the mail program sends a POST, so that no scanner which follows links switches anything off.
        headers = {
            "List-Unsubscribe": f"<{settings.PUBLIC_URL}{tips_off}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        }
    # It may contain what people wrote: a line feed would begin another header.
    subject = " ".join(f"[{site}] {subject}".split())
    return EmailMessage(subject, "\n\n".join(parts) + "\n", to=[address], connection=connection, headers=headers)


def _link(one: NotificationRow) -> str:
    """Return the address of the page; "" if the site's is not configured: commands have no request to take it from."""
    return settings.PUBLIC_URL + one.path if settings.PUBLIC_URL and one.path else ""
