"""Send operators' notices to incoming webhooks of Teams, Slack and what speaks as they do.

A notice is queued where it happens and sent by a periodic task, never while a page or a call waits. The address of a
webhook is a secret: who knows it can post. It is shown shortened and in no log, and neither are the errors of the HTTP
library, which may hold it.
"""

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx2
from django.conf import settings
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, override

from portal.notifications.inbox import NotificationRow
from portal.notifications.models import Webhook, WebhookMessage
from portal.notifications.types import KINDS

log = logging.getLogger(__name__)

Fault = Webhook.Fault

SECONDS = 10.0  # for one message, from the connection to the end of the answer
MOST_ANSWER = 64 * 1024  # bytes of an answer that are read; only its status matters
MOST_MESSAGES = 20  # of one webhook in one run
FIRST_PAUSE = timedelta(minutes=2)  # after a failure, doubled by each further one
LONGEST_PAUSE = timedelta(hours=4)
# Of a cloud, beside 169.254.169.254, which is link-local.
METADATA = frozenset({ip_address("fd00:ec2::254"), ip_address("100.100.100.200")})
KEPT = timedelta(days=2)  # older messages are no longer news; delivered ones are kept that long as well

# Kinds that operators receive for their work, and not as the bearer of a key.
OPERATOR_KINDS: Mapping[str, Any] = {
    "model-down": gettext_lazy("A model does not answer"),
    "model-up": gettext_lazy("A model answers again"),
    "canary-failed": gettext_lazy("A model fails the canary"),
    "canary-passed": gettext_lazy("A model passes the canary again"),
    "engine-version-failed": gettext_lazy("A new engine version failed with a model"),
    "directory-trouble": gettext_lazy("The company directory cannot be synchronised"),
    "directory-group": gettext_lazy("A group of the directory is missing or changed"),
    "last-operator-kept": gettext_lazy("The last operator was kept although the directory says otherwise"),
    "request-asked": gettext_lazy("A quota request waits for operators"),
    "break-glass-used": gettext_lazy("The account for emergencies was used"),
}


class ForbiddenAddress(Exception):
    """The name of a webhook's host leads to an address to which nothing is posted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How a message was received. `fault` "": it was. `status`: of the answer, 0 without one."""

    fault: str = ""
    status: int = 0


def queue_messages(kind: str, ref: str, path: str, facts: Mapping[str, Any], now: datetime) -> None:
    """Queue a notice for each webhook that wants its kind, once. Within the caller's transaction."""
    wanting = [one for one in Webhook.objects.filter(is_active=True) if kind in one.kinds]
    WebhookMessage.objects.bulk_create(
        [WebhookMessage(webhook=one, kind=kind, ref=ref, path=path, facts=dict(facts), at=now) for one in wanting],
        ignore_conflicts=True,
    )


def send_due(now: datetime) -> int:
    """Send what is due, the oldest first; return how many were delivered.

    A webhook that fails is left alone for a while, longer each time, so that its messages do not all wait in vain.
    """
    WebhookMessage.objects.filter(at__lt=now - KEPT).delete()
    sent = 0
    for webhook in Webhook.objects.filter(is_active=True).exclude(retry_at__gt=now):
        for message in webhook.messages.filter(delivered_at=None).order_by("pk")[:MOST_MESSAGES]:
            delivery = send(webhook, _readable(message, webhook)) if message.kind in KINDS else Delivery()
            note_delivery(webhook, delivery, now)
            if delivery.fault:
                break
            message.delivered_at = now
            message.save(update_fields=["delivered_at"])
            sent += 1
    return sent


def send_test(webhook: Webhook, now: datetime) -> Delivery:
    """Send a message that says it is a test, and note what came of it. Blocks for SECONDS at most."""
    with override(webhook.language):
        title = _("Test message")
        text = _("Notices of %(site)s arrive here.") % {"site": settings.SITE_NAME}
    row = NotificationRow(pk=0, title=title, text=text, tone="fine", path="", at=now, is_read=False)
    delivery = send(webhook, row)
    note_delivery(webhook, delivery, now)
    return delivery


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


def send(webhook: Webhook, notice: NotificationRow) -> Delivery:
    """Send one notice. Blocks for SECONDS at most."""
    with override(webhook.language):
        body = BODIES[webhook.style](notice)
    return asyncio.run(_post(webhook.url, json.dumps(body).encode()))


def is_forbidden(host: str) -> bool:
    """Return whether this is an IP address to which nothing is posted.

    Chat programs are inside the company's network, also on this host, so private and loopback addresses are fine. At
    link-local ones are the services from which machines of a cloud get their own credentials.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:  # a name
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_link_local or address.is_multicast or address.is_unspecified or address in METADATA


async def _check_addresses(url: str) -> None:
    """Raise ForbiddenAddress if the host of the address is forbidden, in whatever way it is written."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, parts.port or 443, type=socket.SOCK_STREAM)
    except OSError:  # a name that perhaps the company's proxy alone can look up
        return
    if any(is_forbidden(str(address[0])) for *_rest, address in found):
        raise ForbiddenAddress


async def _post(url: str, body: bytes) -> Delivery:
    try:
        async with asyncio.timeout(SECONDS):
            await _check_addresses(url)
            # The certificates of the system, among which is the company's own authority. No redirects: an address that
            # leads elsewhere is not the one that the operator trusted.
            async with httpx2.AsyncClient(
                verify=ssl.create_default_context(), follow_redirects=False, timeout=SECONDS
            ) as client:
                headers = {"content-type": "application/json"}
                async with client.stream("POST", url, content=body, headers=headers) as answer:
                    return await _read(answer)
    except TimeoutError:
        return Delivery(fault=Fault.TIMEOUT)
    except httpx2.TimeoutException:
        return Delivery(fault=Fault.TIMEOUT)
    except (httpx2.HTTPError, httpx2.InvalidURL, ForbiddenAddress, OSError, ValueError):
        return Delivery(fault=Fault.UNREACHABLE)


async def _read(answer: httpx2.Response) -> Delivery:
    if answer.is_redirect:
        return Delivery(fault=Fault.REDIRECT, status=answer.status_code)
    if not answer.is_success:
        return Delivery(fault=Fault.REFUSED, status=answer.status_code)
    read = 0
    async for piece in answer.aiter_raw():
        read += len(piece)
        if read > MOST_ANSWER:  # it was accepted; the rest is of no interest
            break
    return Delivery(status=answer.status_code)


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


def escape_slack(text: str) -> str:
    """Return the text without meaning for Slack: names that people chose must not call a whole channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


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
    return f"{parts.scheme}://{parts.hostname or ''}/…{url[-3:]}"
