"""Every page of the site, as the people of the made-up company would open it: for counting queries and for timing.

Nothing here needs pytest: the benchmark walks as well.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.db.models import QuerySet
from django.test import Client
from django.urls import URLPattern, get_resolver
from django.utils import timezone

from modelregistry.models import Host, Replica, ServedModel
from portal.accounts.models import Tenant, User
from portal.adoption import tips
from portal.audit.models import AuditEvent
from portal.canary.models import CanaryRun
from portal.demo.staff import ADMIN, EMPLOYEE, HOME, OPERATOR
from portal.keys.models import ApiKey, ManagementKey
from portal.lessons.models import Seminar, SeminarParticipant
from portal.news.models import Announcement
from portal.notifications.models import Notice, Webhook
from portal.prices.models import TokenPrice
from portal.quotas.models import Quota, QuotaRequest
from portal.usage.calls import visible_calls
from portal.usage.models import UsageRecord
from portal.use_cases.models import UseCase, UseCaseComment

WHO = {"employee": EMPLOYEE, "tenant admin": ADMIN, "operator": OPERATOR}
# What usage pages can be asked for: whose, by who may; of when; by what.
SCOPES = {"employee": ("me",), "tenant admin": (f"tenant:{HOME}",), "operator": ("all",)}
PERIODS = ("today", "this-month", "30", "90", "fiscal-year")
GROUPS = ("model", "key", "user", "end_user", "tenant")


@dataclass(frozen=True, slots=True)
class Page:
    """An address for `who` of WHO. `pattern`: what it is called in the table."""

    who: str
    pattern: str
    address: str


def addresses(resolver: Any = None, prefix: str = "") -> Iterator[str]:
    """Yield every pattern of the site."""
    for pattern in (resolver or get_resolver()).url_patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLPattern):
            yield path
        else:
            yield from addresses(pattern, path)


def pages() -> list[Page]:
    """Return where each of them might go. Some answer otherwise than with 200: not theirs, or not to be gone to."""
    patterns = [*(path for path in addresses() if not path.startswith("admin/")), *admin_lists()]
    return [
        Page(who, _called(pattern, address), address)
        for who in WHO
        for pattern in patterns
        for address in _variants(who, pattern, "/" + filled(pattern, who))
    ]


def client_of(who: str) -> Client:
    """Signed in as this one of WHO."""
    client = Client(SERVER_NAME="localhost", raise_request_exception=False)
    client.force_login(User.objects.get(username=WHO[who]), "portal.accounts.backends.LocalBackend")
    return client


def read(client: Client, address: str) -> int:
    """Return the whole answer is read, as it may be made while it is sent. Its status."""
    response = client.get(address)
    if response.streaming:
        for _ in response:
            pass
    return response.status_code


def admin_lists() -> list[str]:
    models = [model for model in apps.get_models() if admin.site.is_registered(model)]
    return [f"admin/{model._meta.app_label}/{model._meta.model_name}/" for model in models]


def filled(pattern: str, who: str) -> str:
    """Return the pattern with what `who` would have in its place. Raises LookupError for a part without a value."""
    pattern = pattern.replace("<id:", "<int:")
    if "<str:token>" in pattern:
        person = User.objects.get(username=WHO[who])
        pattern = pattern.replace("<str:token>", tips.link_of(person).strip("/").rpartition("/")[2])
    for part, rows, column in _standing(who):
        if part in pattern:
            value = rows.values_list(column, flat=True).first()
            pattern = pattern.replace(part, re.sub("<.*>", str(value if value is not None else 0), part))
    pattern = re.sub(r"<\w+:rest>", "nowhere", pattern).replace("<slug:course>", "developers")
    if "<" in pattern:
        raise LookupError(f"Say in tests/walk.py what stands for the variable part of {pattern}")
    return pattern


def _standing(who: str) -> list[tuple[str, QuerySet[Any], str]]:
    """Return (end of a pattern, rows, column): the first row's value is put in its place. Longer ones first."""
    person = User.objects.get(username=WHO[who])
    at_home = Tenant.objects.filter(slug=HOME)
    wishes = QuotaRequest.objects.order_by("state", "-pk")  # "open" is after "granted" and before "refused"
    mine = wishes.filter(asked_by=person, state="open")
    running = Seminar.objects.filter(ended_at=None)
    given = Quota.objects.filter(tenant__slug=HOME, default_for="")
    return [
        ("tenants/quotas/<int:pk>", Quota.objects.filter(default_for="tenant"), "pk"),
        ("quotas/<int:pk>", given, "pk"),
        ("people/<int:pk>", User.objects.filter(memberships__tenant__slug=HOME), "pk"),
        ("members/<int:pk>", User.objects.filter(memberships__tenant__slug=HOME), "pk"),
        ("requests/<int:pk>", wishes.filter(tenant__slug=HOME, state="open").exclude(asked_by=person), "pk"),
        ("more/<int:pk>", mine, "pk"),
        ("prices/<int:pk>", TokenPrice.objects.all(), "pk"),
        ("canary/<int:pk>", CanaryRun.objects.all(), "pk"),
        ("webhooks/<int:pk>", Webhook.objects.all(), "pk"),
        ("<int:person_pk>", User.objects.filter(memberships__tenant__slug=HOME), "pk"),
        ("<int:participant_pk>", SeminarParticipant.objects.filter(seminar__in=running[:1]), "pk"),
        ("seminars/<int:pk>", running, "pk"),
        ("news/<int:pk>", Announcement.objects.all(), "pk"),
        ("<int:comment_pk>", UseCaseComment.objects.all(), "pk"),
        ("use-cases/<int:pk>", UseCase.objects.filter(retired_at=None, is_company_wide=True), "pk"),
        ("notices/<int:pk>", Notice.objects.filter(user=person), "pk"),
        ("audit/<int:pk>", AuditEvent.objects.filter(tenant__slug=HOME), "pk"),
        ("tenants/<int:pk>", at_home, "pk"),
        ("<slug:slug>", at_home, "slug"),
        ("<str:request_id>", visible_calls(person, UsageRecord.objects.order_by("-started_at")), "request_id"),
        ("<str:username>", User.objects.filter(memberships__tenant__slug=HOME), "username"),
        ("management/<slug:prefix>", ManagementKey.objects.filter(user=person), "prefix"),
        ("management-keys/<slug:prefix>", ManagementKey.objects.filter(user=person), "prefix"),
        ("<slug:prefix>", ApiKey.objects.filter(user=person, revoked_at=None).order_by("-pk"), "prefix"),
        ("<path:name>", ServedModel.objects.filter(replicas=2), "name"),
        ("<model:name>", ServedModel.objects.filter(replicas=2), "name"),
        ("hosts/<int:pk>", Host.objects.all(), "pk"),
        ("models/<int:pk>", ServedModel.objects.all(), "pk"),
        ("replicas/<int:pk>", Replica.objects.all(), "pk"),
    ]


def _variants(who: str, pattern: str, address: str) -> list[str]:
    if pattern == "usage/":
        asked = product(SCOPES[who], PERIODS, ("model",))
        more = product(SCOPES[who], ("90",), GROUPS[1:])
        return [f"{address}?of={of}&period={period}&by={group}" for of, period, group in (*asked, *more)]
    if pattern == "usage/export/":
        of = SCOPES[who][0]
        return [f"{address}?of={of}&period=90&format={kind}&by={by}" for kind in ("csv", "json") for by in GROUPS]
    if pattern == "audit/export/":  # all of it may be hundreds of thousands of lines, sent as they are read
        return [f"{address}?since={timezone.localdate() - timedelta(days=1)}"]
    if pattern == "search/":
        return [f"{address}?q=an"]
    return [address]


def _called(pattern: str, address: str) -> str:
    """Return a page's address without the day of today."""
    _, mark, query = address.partition("?")
    return "/" + pattern + mark + query.partition("since")[0]
