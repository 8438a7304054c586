"""Scopes of management keys, such as "keys:write": each has a subject and a degree.

A scope restricts and never grants: a key may do what both its scopes and its person allow.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Audience(Enum):
    """Who can use the scope at all."""

    EVERYBODY = 0
    TENANT_ADMINS = 1
    OPERATORS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    name: str
    label: Promise
    audience: Audience = Audience.EVERYBODY


# `read` before `write` of the same subject: pages list them in this order.
SCOPES = {
    scope.name: scope
    for scope in (
        Scope(name="keys:read", label=_("See API keys, without their secrets")),
        Scope(name="keys:write", label=_("Create, change and revoke API keys")),
        Scope(name="usage:read", label=_("Read usage")),
        Scope(name="quotas:read", label=_("See quotas, what is left of them, and quota requests")),
        Scope(name="quotas:write", label=_("Request more; set quotas where you may")),
        Scope(name="tenants:read", label=_("See your tenants; as their admin also their members")),
        Scope(name="tenants:write", label=_("Change tenants and their members"), audience=Audience.TENANT_ADMINS),
        Scope(name="catalogue:read", label=_("See which models there are")),
        Scope(name="use-cases:read", label=_("Read use cases")),
        Scope(name="use-cases:write", label=_("Propose use cases")),
        Scope(name="lessons:read", label=_("See courses and your progress; as an organiser also seminars")),
        Scope(name="lessons:write", label=_("Open, change and end seminars"), audience=Audience.TENANT_ADMINS),
        Scope(name="news:read", label=_("Read news, the house rules and the status")),
        Scope(name="news:write", label=_("Write news and the house rules"), audience=Audience.OPERATORS),
        Scope(name="notices:read", label=_("Read your notices and settings")),
        Scope(name="notices:write", label=_("Mark your notices as read; change your settings")),
        Scope(name="audit:read", label=_("Search the audit log")),
        Scope(
            name="operations:read",
            label=_("See hosts, models, webhooks and the directory"),
            audience=Audience.OPERATORS,
        ),
        Scope(
            name="operations:write",
            label=_("Run models; change webhooks; synchronise with the directory"),
            audience=Audience.OPERATORS,
        ),
    )
}


def required_scope(subject: str, method: str) -> str:
    """Return the scope that a request of this method about this subject needs."""
    return f"{subject}:{'read' if method in READING else 'write'}"


def covers(granted: Collection[str], wanted: str) -> bool:
    """Return whether the scopes `granted` include the wanted one: write includes read."""
    subject, _, degree = wanted.partition(":")
    return wanted in granted or (degree == "read" and f"{subject}:write" in granted)
