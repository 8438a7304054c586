"""API keys and who may use which model."""

from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant


class KeyQuerySet(models.QuerySet["ApiKey"]):
    def usable(self) -> "KeyQuerySet":
        """Not revoked, not expired, of an active tenant and (if personal) of an active member of it."""
        return self.filter(
            Q(expires_at__isnull=True) | Q(expires_at__gt=timezone.now()),
            Q(user__isnull=True) | Q(user__is_active=True, user__memberships__tenant=models.F("tenant")),
            revoked_at__isnull=True,
            tenant__is_active=True,
        )


class ApiKey(models.Model):
    """A key of a person (`user`) or of a tenant's service (`service`). The key itself is never stored; see `issue`."""

    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="keys", verbose_name=_("tenant"))
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="keys", verbose_name=_("user")
    )
    service = models.CharField(
        _("service"), max_length=60, blank=True, help_text=_("For a service key: Dify, batch, …")
    )
    name = models.CharField(_("name"), max_length=60)
    prefix = models.CharField(_("prefix"), max_length=12, unique=True)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    # A fact of its own: were it read from an empty list, a key for one model would open all when that model is deleted.
    every_model = models.BooleanField(
        _("all models"), default=True, help_text=_("All that the tenant may use. Off: only those chosen here.")
    )
    allowed_models = models.ManyToManyField(ServedModel, blank=True, related_name="+", verbose_name=_("models"))
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+", verbose_name=_("created by")
    )
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    revoked_at = models.DateTimeField(_("revoked"), null=True, blank=True)
    revoked_because = models.CharField(_("why it was revoked"), max_length=200, blank=True)
    last_used_at = models.DateTimeField(_("last used"), null=True, blank=True, editable=False)

    objects: ClassVar[Any] = KeyQuerySet.as_manager()

    class Meta:
        verbose_name = _("API key")
        verbose_name_plural = _("API keys")
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(user__isnull=True) ^ Q(service=""), name="key_of_a_person_or_of_a_service"
            )
        ]

    def __str__(self) -> str:
        return f"{self.prefix}… {self.name}"

    @property
    def state(self) -> str:
        """ "active", "expired" or "revoked"."""
        if self.revoked_at:
            return "revoked"
        if self.expires_at and self.expires_at <= timezone.now():
            return "expired"
        return "active"


class ModelAccess(models.Model):
    """Restricts a model to tenants. A model without any such row is open to all tenants."""

    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="+", verbose_name=_("model"))
    # Not CASCADE: with its last tenant gone, the model would be open to all.
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+", verbose_name=_("tenant"))

    class Meta:
        verbose_name = _("access to a model")
        verbose_name_plural = _("access to models")
        constraints: ClassVar = [models.UniqueConstraint(fields=["model", "tenant"], name="one_access_per_tenant")]

    def __str__(self) -> str:
        return f"{self.model} → {self.tenant}"
