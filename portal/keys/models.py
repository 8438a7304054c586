"""API keys and who may use which model."""

from datetime import date, datetime
from ipaddress import ip_network
from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
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


def check_networks(networks: object) -> None:
    """A list of IP networks in CIDR form, 20 at most; their own address each, without bits of hosts."""
    if not isinstance(networks, list) or len(networks) > 20:
        raise ValidationError(_("At most 20 networks."))
    for network in networks:
        try:
            if not isinstance(network, str) or str(ip_network(network)) != network:
                raise ValueError
        except ValueError as error:
            raise ValidationError(
                _("%(network)s is not a network. Examples: 10.1.0.0/16, 192.168.7.5/32"), params={"network": network}
            ) from error


YEARS = 100


def check_end(end: datetime | date | None) -> None:
    """Raise ValidationError for an end so far away that some time zone, or a successor, would have none."""
    if end is not None and end.year > timezone.now().year + YEARS:
        raise ValidationError(_("Choose a time within %(years)d years, or no expiry."), params={"years": YEARS})


class ApiKey(models.Model):
    """A key of a person (`user`) or of a tenant's service (`service`). The key itself is never stored; see `issue`.

    A service key belongs to its tenant: it outlives who made it, and who is `responsible` is told of it.
    """

    class Class(models.TextChoices):
        INTERACTIVE = "interactive", _("interactive")
        BATCH = "batch", _("batch")

    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="keys", verbose_name=_("tenant"))
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="keys", verbose_name=_("user")
    )
    service = models.CharField(
        _("service"), max_length=60, blank=True, help_text=_("For a service key: Dify, batch, …")
    )
    responsible = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="answers_for",
        verbose_name=_("responsible"),
        help_text=_("Of a service key: who is told of it and asked about it."),
    )
    name = models.CharField(_("name"), max_length=60)
    purpose = models.CharField(_("purpose"), max_length=200, blank=True)
    key_class = models.CharField(
        _("class"),
        max_length=12,
        choices=Class,
        default=Class.INTERACTIVE,
        help_text=_("Batch: nobody waits for the answer, so calls of interactive keys go first."),
    )
    networks = models.JSONField(
        _("allowed networks"),
        default=list,
        blank=True,
        validators=[check_networks],
        help_text=_("Calls from elsewhere are refused. Empty: from everywhere."),
    )
    takes_user_headers = models.BooleanField(
        _("end users from Open WebUI"),
        default=False,
        help_text=_("Usage is listed by the people whom Open WebUI names in the headers of its calls."),
    )
    # Made by the playground page for itself, for some hours; not listed among a person's keys.
    is_playground = models.BooleanField(default=False, editable=False)
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
    replaces = models.OneToOneField(
        "self",
        models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="replaced_by",
        verbose_name=_("replaces"),
    )
    last_used_at = models.DateTimeField(_("last used"), null=True, blank=True, editable=False)
    last_used_from = models.GenericIPAddressField(_("last used from"), null=True, blank=True, editable=False)
    last_used_with = models.CharField(_("last used with"), max_length=80, blank=True, editable=False)

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


class ManagementKey(models.Model):
    """A person's key for `/api/v1/`: it may do what its `scopes` say and the person may do, never more."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="management_keys", verbose_name=_("user")
    )
    name = models.CharField(_("name"), max_length=60)
    prefix = models.CharField(_("prefix"), max_length=12, unique=True)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    scopes = models.JSONField(_("scopes"), default=list)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    revoked_at = models.DateTimeField(_("revoked"), null=True, blank=True)
    last_used_at = models.DateTimeField(_("last used"), null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("management key")
        verbose_name_plural = _("management keys")
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.prefix}… {self.name}"


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
