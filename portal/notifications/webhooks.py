"""Send operators' notices to incoming webhooks of Teams, Slack and what speaks as they do.

A notice is queued where it happens and sent by a periodic task, never while a page or a call waits. The address of a
webhook is a secret: who knows it can post. It is shown shortened and in no log, and neither are the errors of the HTTP
library, which may hold it.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import Error, connection, connections, transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, override

from portal.notifications.inbox import NotificationRow
from portal.notifications.models import Webhook, WebhookMessage
from portal.notifications.posting import Delivery, Parcel, post_all
from portal.notifications.types import KINDS
from portal.web.refusals import Refused
from portal.web.row_locks import lock_kind

log = logging.getLogger(__name__)

MOST_WEBHOOKS = 20
MOST_MESSAGES = 20  # of one webhook in one run
PATIENCE = 3.0  # seconds for which a page waits for the result of a test
FIRST_PAUSE = timedelta(minutes=2)  # after a failure, doubled by each further one
LONGEST_PAUSE = timedelta(hours=4)
KEPT = timedelta(days=2)  # older messages are no longer news; delivered ones are kept that long as well

# Kinds that operators receive for their work, and not as the bearer of a key.
OPERATOR_KINDS: Mapping[str, Any] = {
    "model-down": gettext_lazy("A model does not answer"),
    "model-up": gettext_lazy("A model answers again"),
    "host-silent": gettext_lazy("A host is silent"),
    "host-back": gettext_lazy("A host answers again"),
    "replicas-moved": gettext_lazy("Replicas were moved to other hosts"),
    "booking-trouble": gettext_lazy("Memory of a host is not booked in Ray as models need it"),
    "disk-nearly-full": gettext_lazy("A disk of a host is nearly full"),
    "gpu-xid": gettext_lazy("The driver of a GPU reports a fault"),
    "certificate-ends": gettext_lazy("A certificate of a host in the cluster ends soon"),
    "spool-growing": gettext_lazy("Usage is not recorded"),
    "controller-replaced": gettext_lazy("Another controller has taken over"),
    "backup-overdue": gettext_lazy("The newest backup is too old"),
    "canary-failed": gettext_lazy("A model fails the canary"),
    "canary-passed": gettext_lazy("A model passes the canary again"),
    "engine-version-failed": gettext_lazy("A new engine version failed with a model"),
    "directory-trouble": gettext_lazy("The company directory cannot be synchronised"),
    "directory-group": gettext_lazy("A group of the directory is missing or changed"),
    "last-operator-kept": gettext_lazy("The last operator was kept although the directory says otherwise"),
    "request-asked": gettext_lazy("A quota request waits for operators"),
    "break-glass-used": gettext_lazy("The account for emergencies was used"),
}


class TooManyWebhooks(Refused):
    """There are as many as there may be."""


def lock_webhooks() -> None:
    """Let others that write webhooks wait for the end of this transaction."""
    lock_kind(Webhook)


def save_webhook(row: Webhook) -> Webhook:
    """Save a new or changed webhook; it is tried at once. Raises TooManyWebhooks."""
    with transaction.atomic():
        lock_webhooks()
        if row.pk is None and Webhook.objects.count() >= MOST_WEBHOOKS:
            raise TooManyWebhooks(_("There are too many webhooks. Delete one."), code="too-many")
        row.retry_at = None
        row.save()
    return row


def queue_messages(kind: str, ref: str, path: str, facts: Mapping[str, Any], now: datetime) -> None:
    """Queue a notice for each webhook that wants its kind, once. Within the caller's transaction."""
    wanting = [one for one in Webhook.objects.filter(is_active=True) if kind in one.kinds]
    WebhookMessage.objects.bulk_create(
        [WebhookMessage(webhook=one, kind=kind, ref=ref, path=path, facts=dict(facts), at=now) for one in wanting],
        ignore_conflicts=True,
    )


def send_due(now: datetime) -> int:
    """Send what is due, of each webhook the oldest first; return how many were delivered.

    All webhooks at the same time and for `posting.SECONDS` at most, so that none waits for another one. One that fails
    is left alone for a while, longer each time, so that its messages do not all wait in vain. What breaks with one
    stops no other one, and is raised at the end.
    """
    WebhookMessage.objects.filter(at__lt=now - KEPT).delete()
    due = []
    for webhook in Webhook.objects.filter(is_active=True).exclude(retry_at__gt=now):
        waiting = list(webhook.messages.filter(delivered_at=None, kind__in=KINDS).order_by("pk")[:MOST_MESSAGES])
        if waiting:
            due.append((webhook, waiting))
    if not due:
        return 0
    parcels = [make_parcel(webhook, *(_readable(one, webhook) for one in messages)) for webhook, messages in due]
    sent = 0
    for at, number, delivery in post_all(parcels):
        webhook, messages = due[at]
        sent += not delivery.fault
        try:
            if not delivery.fault:
                WebhookMessage.objects.filter(pk=messages[number].pk).update(delivered_at=now)
            note_delivery(webhook, delivery, now)
        except Error:  # of the others, what was posted must still be marked, or it is posted again
            log.exception("the result of a message to webhook %s is lost", webhook.pk)
            if not connection.in_atomic_block:
                connection.close_if_unusable_or_obsolete()  # the next one opens another
    return sent


def send_test(webhook: Webhook, now: datetime) -> Delivery | None:
    """Send a message that says it is a test, and note what came of it. Blocks for PATIENCE at most.

    None: there is no answer yet. It is noted when it comes, or when it is too late for one. Raises what breaks it.
    """
    with override(webhook.language):
        title = _("Test message")
        text = _("Notices of %(site)s arrive here.") % {"site": settings.SITE_NAME}
    row = NotificationRow(pk=0, title=title, text=text, tone="fine", path="", at=now, is_read=False)
    answer: Future[Delivery] = Future()
    arguments = (make_parcel(webhook, row), answer)
    threading.Thread(target=_post_test, args=arguments, name="webhook test", daemon=True).start()
    try:
        delivery = answer.result(PATIENCE)
    except TimeoutError:
        answer.add_done_callback(lambda late: _note_late(webhook.pk, late))
        return None
    note_delivery(webhook, delivery, now)
    return delivery


def _post_test(parcel: Parcel, answer: "Future[Delivery]") -> None:
    try:
        for _parcel, _body, delivery in post_all([parcel]):
            answer.set_result(delivery)  # in this thread it is noted as well, if it comes late
    except Exception as error:  # noqa: BLE001 - raised where the answer is awaited
        answer.set_exception(error)
    finally:
        connections.close_all()


def _note_late(pk: int, answer: "Future[Delivery]") -> None:
    if broken := answer.exception():
        log.error("a test of webhook %s could not be posted", pk, exc_info=broken)
        return
    try:
        webhook = Webhook.objects.filter(pk=pk).first()
        if webhook is not None:
            note_delivery(webhook, answer.result(), timezone.now())
    except Error:
        log.exception("the result of a test of webhook %s is lost", pk)


def make_parcel(webhook: Webhook, *notices: NotificationRow) -> Parcel:
    """Return the notices as the webhook's program reads them, in its language."""
    with override(webhook.language):
        bodies = [BODIES[webhook.style](notice) for notice in notices]
    return Parcel(url=webhook.url, bodies=tuple(json.dumps(body).encode() for body in bodies))


def note_delivery(webhook: Webhook, delivery: Delivery, now: datetime) -> None:
    """Keep the result for the page, and when to try again."""
    if delivery.fault:
        pause = min(FIRST_PAUSE * 2 ** min(webhook.failures, 10), LONGEST_PAUSE)
        webhook.failures += 1
        webhook.failed_at, webhook.fault, webhook.status = now, delivery.fault, delivery.status
        webhook.retry_at = now + pause
        log.warning("webhook %s: %s %s; tried again in %s", webhook.pk, delivery.fault, delivery.status, pause)
    else:
        webhook.failures, webhook.succeeded_at, webhook.retry_at = 0, now, None
    # Without a signal: this is no change by a person for the audit log.
    fields = ("failures", "failed_at", "fault", "status", "retry_at", "succeeded_at")
    Webhook.objects.filter(pk=webhook.pk).update(**{name: getattr(webhook, name) for name in fields})


def _readable(message: WebhookMessage, webhook: Webhook) -> NotificationRow:
    kind = KINDS[message.kind]
    with override(webhook.language):
        return NotificationRow(
            pk=message.pk,
            title=kind.title(message.facts),
            text=kind.text(message.facts),
            tone=kind.tone,
            path=message.path,
            at=message.at,
            is_read=False,
        )


def _link_of(notice: NotificationRow) -> str:
    return settings.PUBLIC_URL + notice.path if settings.PUBLIC_URL and notice.path else ""


def slack_body(notice: NotificationRow) -> dict[str, Any]:
    """Return the body for Slack, Mattermost and Rocket.Chat."""
    link, word = _link_of(notice), _("Open")
    lines = [f"*{escape_slack(notice.title)}*", escape_slack(notice.text), f"<{link}|{word}>" if link else ""]
    return {"text": "\n".join(line for line in lines if line)}


# "&" comes first: it is in what the next two become.
HARMLESS = (
    ("&", "&amp;"),
    ("<", "&lt;"),
    (">", "&gt;"),
    ("@", "@\u200b"),
    ("\uff20", "\uff20\u200b"),
    ("]", "]\u200b"),
)


def escape_slack(text: str) -> str:
    """Return the text without meaning for these programs: what people wrote must not call a whole channel.

    Mattermost and Rocket.Chat know @channel, @all and @here without brackets, and links as in Markdown. Slack would
    show a backslash, so a character without width parts what has a meaning.
    """
    for sign, harmless in HARMLESS:
        text = text.replace(sign, harmless)
    return text


def teams_body(notice: NotificationRow) -> dict[str, Any]:
    """Return an adaptive card for Teams. Text runs: in them Markdown means nothing."""
    run: dict[str, Any] = {"type": "TextRun", "text": notice.title, "weight": "Bolder", "size": "Medium"}
    card: dict[str, Any] = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [
            {"type": "RichTextBlock", "inlines": [run]},
            {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": notice.text}]},
        ],
    }
    if link := _link_of(notice):
        card["actions"] = [{"type": "Action.OpenUrl", "title": _("Open"), "url": link}]
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


BODIES: Mapping[str, Callable[[NotificationRow], dict[str, Any]]] = {
    Webhook.Style.SLACK: slack_body,
    Webhook.Style.TEAMS: teams_body,
}


def shorten_url(url: str) -> str:
    """Return enough of an address to recognise it, without its secret part."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]  # with its port, without a name and password
    return f"{parts.scheme}://{host}/…{url[-3:]}"
