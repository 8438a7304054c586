"""The events of the audit log."""

from typing import Any, ClassVar

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import Tenant, User


class ImmutableEvent(Exception):
    """An audit event cannot be changed or deleted."""


class AuditQuerySet(models.QuerySet["AuditEvent"]):
    def update(self, **_: Any) -> int:
        raise ImmutableEvent

    def delete(self) -> tuple[int, dict[str, int]]:
        raise ImmutableEvent


class AuditEvent(models.Model):
    """Who did what, written by `tracking.record_event` and never changed.

    An event outlives the objects that it is about, so it holds their names.
    """

    class Via(models.TextChoices):
        PAGE = "page", _("page")
        API = "api", _("API")
        ADMIN = "admin", _("administration")
        COMMAND = "command", _("command")
        DIRECTORY = "directory", _("directory")
        GATEWAY = "gateway", _("gateway")

    at = models.DateTimeField(_("time"), default=timezone.now)
    # No constraints: what is deleted along with a person or tenant is recorded after their events were detached.
    actor = models.ForeignKey(
        User, models.SET_NULL, null=True, related_name="+", db_constraint=False, verbose_name=_("who")
    )
    actor_name = models.CharField(_("name"), max_length=150, blank=True)
    action = models.CharField(_("action"), max_length=60)
    object_kind = models.CharField(_("kind"), max_length=40)
    object_id = models.CharField(_("object ID"), max_length=64)
    object_name = models.CharField(_("object"), max_length=200)
    tenant = models.ForeignKey(
        Tenant, models.SET_NULL, null=True, related_name="+", db_constraint=False, verbose_name=_("tenant")
    )
    # The fields that differ; secrets as "set" or "changed". Null: there was or is no such object.
    before = models.JSONField(_("before"), null=True, encoder=DjangoJSONEncoder)
    after = models.JSONField(_("after"), null=True, encoder=DjangoJSONEncoder)
    address = models.GenericIPAddressField(_("address"), null=True)
    via = models.CharField(_("by way of"), max_length=10, choices=Via)

    objects: ClassVar[Any] = AuditQuerySet.as_manager()

    class Meta:
        verbose_name = _("audit event")
        verbose_name_plural = _("audit events")
        ordering: ClassVar = ["-at", "-pk"]
        indexes: ClassVar = [
            models.Index(fields=["at"], name="audit_by_time"),
            models.Index(fields=["object_kind", "object_id", "at"], name="audit_by_object"),
            models.Index(fields=["tenant", "at"], name="audit_by_tenant"),
            models.Index(fields=["actor", "at"], name="audit_by_actor"),
        ]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.actor_name} {self.action} {self.object_name}"

    def save(self, *args: Any, **options: Any) -> None:
        if not self._state.adding:
            raise ImmutableEvent
        super().save(*args, **options)

    def delete(self, *args: Any, **options: Any) -> tuple[int, dict[str, int]]:
        raise ImmutableEvent
