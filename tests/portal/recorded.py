"""What an action leaves behind: notices, events of the audit log, memberships, the catalogue's revision."""

from typing import Any

from django.db import connection

from apiproxy.bridge.models import CatalogueRevision
from portal.accounts.models import User
from portal.audit.models import AuditEvent
from portal.notifications.models import Notice


def roles_of(user: User) -> dict[str, str]:
    """Return the person's roles by the short names of their tenants."""
    return dict(user.memberships.values_list("tenant__slug", "role"))


def notified(kind: str) -> list[str]:
    """Return who has notices of this kind, a name for each notice, oldest first."""
    return list(Notice.objects.filter(kind=kind).order_by("pk").values_list("user__username", flat=True))


def notice_facts(kind: str, **columns: Any) -> list[dict[str, Any]]:
    """Return the facts of the notices of this kind, oldest first."""
    return list(Notice.objects.filter(kind=kind, **columns).order_by("pk").values_list("facts", flat=True))


def audited(**columns: Any) -> list[str]:
    """Return the actions of the events with these columns, oldest first."""
    return list(AuditEvent.objects.filter(**columns).order_by("pk").values_list("action", flat=True))


def clear_audit_log() -> None:
    """Delete all events past the model, which refuses it."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM audit_auditevent")


def catalogue_revision() -> int:
    return CatalogueRevision.objects.values_list("number", flat=True).get()
