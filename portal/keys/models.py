"""API keys, management keys, and which tenants may use which model."""

import hashlib
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
from modelregistry.one_line import check_one_line
from portal.accounts.models import Tenant
from portal.keys import secret


class KeyQuerySet(models.QuerySet["ApiKey"]):
    def usable(self) -> "KeyQuerySet":
        """Return the keys that are not revoked or expired, of an active tenant and (if personal) an active member."""
        return self.filter(
            Q(expires_at__isnull=True) | Q(expires_at__gt=timezone.now()),
            Q(user__isnull=True) | Q(user__is_active=True, user__memberships__tenant=models.F("tenant")),
            revoked_at__isnull=True,
            tenant__is_active=True,
        )


def check_networks(networks: object) -> None:
    """Raise ValidationError unless these are 20 IP networks at most, in CIDR form and without host bits."""
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


# Of a service key, which may answer a whole company.
LEAST_SERVICE_WEIGHT, MOST_SERVICE_WEIGHT = 0.1, 100


def check_service_weight(value: float) -> None:
    """Raise ValidationError for what is no weight of a service key, also for NaN, which no bound refuses."""
    if not LEAST_SERVICE_WEIGHT <= value <= MOST_SERVICE_WEIGHT:
        raise ValidationError(
            _("A weight is from %(least)s to %(most)s."),
            code="no-weight",
            params={"least": LEAST_SERVICE_WEIGHT, "most": MOST_SERVICE_WEIGHT},
        )


# Further away some time zone, or a successor of the key, would have no date for its expiry.
MAX_YEARS = 100


def check_expiry(expiry: datetime | date | None) -> None:
    """Raise ValidationError for an expiry too far away."""
    if expiry is not None and expiry.year > timezone.now().year + MAX_YEARS:
        raise ValidationError(_("Choose a time within %(years)d years, or no expiry."), params={"years": MAX_YEARS})


class IssuedKey(models.Model):
    """What every key has. Its text is shown once and never stored, only its first characters and its digest are."""

    TEXT_PREFIX: ClassVar[str]  # what the texts of such keys begin with

    name = models.CharField(_("name"), max_length=60, validators=[check_one_line])
    prefix = models.CharField(_("prefix"), max_length=12, unique=True)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    digest_under = models.CharField(
        max_length=16,
        default="",
        db_default="",
        editable=False,
        help_text=_("Fingerprint of the API_KEY_SECRET that made the digest."),
    )
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    revoked_at = models.DateTimeField(_("revoked"), null=True, blank=True)
    last_used_at = models.DateTimeField(_("last used"), null=True, blank=True, editable=False)

    class Meta:
        abstract = True
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.prefix}… {self.name}"

    def assign_text(self) -> str:
        """Give the key, which is still to be saved, a new text; return the text."""
        text = secret.make_secret(self.TEXT_PREFIX)
        self.prefix = text[: secret.PREFIX_LENGTH]
        self.digest = secret.digest_of(text, settings.API_KEY_SECRET)
        self.digest_under = secret.fingerprint_of(settings.API_KEY_SECRET)
        return text

    @property
    def state(self) -> str:
        """The state by the dates of the key: "active", "expired" or "revoked"."""
        if self.revoked_at:
            return "revoked"
        if self.expires_at and self.expires_at <= timezone.now():
            return "expired"
        return "active"


class ApiKey(IssuedKey):
    """A key for models, of a person (`user`) or of a tenant's service (`service`).

    A service key belongs to its tenant: it outlives the membership of its creator. Its `responsible` person is
    notified of what happens to it.
    """

    TEXT_PREFIX = secret.PREFIX

    class Class(models.TextChoices):
        INTERACTIVE = "interactive", _("interactive")
        BATCH = "batch", _("batch")
        CANARY = "canary", _("canary")

    # The canary is Madoguchi itself, see `canary_key`: scheduled as batch, but its calls may choose their replica.
    CHOOSABLE = tuple(Class.choices[:2])

    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="keys", verbose_name=_("tenant"))
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="keys", verbose_name=_("user")
    )
    service = models.CharField(
        _("service"),
        max_length=60,
        blank=True,
        validators=[check_one_line],
        help_text=_("For a service key: Dify, batch, …"),
    )
    responsible = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="answers_for",
        verbose_name=_("responsible"),
        help_text=_("Of a service key: the person who is notified and asked about it."),
    )
    purpose = models.CharField(_("purpose"), max_length=200, blank=True, validators=[check_one_line])
    key_class = models.CharField(
        _("class"),
        max_length=12,
        choices=Class,
        default=Class.INTERACTIVE,
        help_text=_("Batch: no person waits for the answer, so calls of interactive keys go first."),
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
        help_text=_("Usage is listed by the people that Open WebUI names in the headers of its calls."),
    )
    # Of the secret with which the key's program signs its end users, see `end_user_secret`; empty: there is none.
    end_user_nonce = models.CharField(
        _("secret that signs end users"), max_length=32, blank=True, default="", db_default="", editable=False
    )
    separates_users = models.BooleanField(
        _("each end user is a caller of their own"),
        default=False,
        db_default=False,
        help_text=_("Where calls wait, the people behind the key take their own turns instead of sharing the key’s."),
    )
    weight = models.FloatField(
        _("weight"),
        null=True,
        blank=True,
        validators=[check_service_weight],
        help_text=_("Of a service key: how many people it counts as where calls wait. Empty: as its class."),
    )
    loop_guard = models.BooleanField(
        _("guarded against word loops"),
        default=True,
        db_default=True,
        help_text=_("Answers that repeat themselves without end are treated as their model's settings say."),
    )
    # Made by the playground page for itself, for some hours; not listed among a person's keys.
    is_playground = models.BooleanField(_("of the playground"), default=False, editable=False)
    # A fact of its own: were it read from an empty list, a key for one model would open all when that model is deleted.
    every_model = models.BooleanField(
        _("all models"), default=True, help_text=_("All that the tenant may use. Off: only those chosen here.")
    )
    allowed_models = models.ManyToManyField(ServedModel, blank=True, related_name="+", verbose_name=_("models"))
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+", verbose_name=_("created by")
    )
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
    last_used_from = models.GenericIPAddressField(_("last used from"), null=True, blank=True, editable=False)
    last_used_with = models.CharField(_("last used with"), max_length=80, blank=True, editable=False)

    objects: ClassVar[Any] = KeyQuerySet.as_manager()

    class Meta(IssuedKey.Meta):
        verbose_name = _("API key")
        verbose_name_plural = _("API keys")
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(user__isnull=True) ^ Q(service=""), name="key_of_a_person_or_of_a_service"
            )
        ]

    @property
    def user_secret_mark(self) -> str:
        """What forms name the secret by that signs its end users: changes with it; empty: there is none."""
        return hashlib.sha256(self.end_user_nonce.encode()).hexdigest()[:16] if self.end_user_nonce else ""

    @property
    def is_of_portal(self) -> bool:
        """Whether the portal made it for itself and renews its text."""
        return self.is_playground or self.is_canary

    @property
    def is_canary(self) -> bool:
        """Whether Madoguchi itself uses it, so that people can only revoke it."""
        return self.key_class == self.Class.CANARY


class ClassWeight(models.Model):
    """How many people a service key of a class counts as, where operators have set it; see `weights`."""

    key_class = models.CharField(_("class"), max_length=12, primary_key=True, choices=ApiKey.CHOOSABLE)
    weight = models.FloatField(_("weight"), validators=[check_service_weight])

    class Meta:
        verbose_name = _("weight of a class")
        verbose_name_plural = _("weights of classes")

    def __str__(self) -> str:
        return f"{self.key_class}: {self.weight:g}"


class ManagementKey(IssuedKey):
    """A person's key for `/api/v1/`: it may do what its `scopes` say and the person may do, never more."""

    TEXT_PREFIX = secret.MANAGEMENT_PREFIX

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="management_keys", verbose_name=_("user")
    )
    scopes = models.JSONField(_("scopes"), default=list)

    class Meta(IssuedKey.Meta):
        verbose_name = _("management key")
        verbose_name_plural = _("management keys")


class SiteSecret(models.Model):
    """Which secret the processes of this site share, see `site_secrets`."""

    setting = models.CharField(max_length=20, primary_key=True)
    fingerprint = models.CharField(max_length=16)
    before = models.CharField(max_length=16, default="")  # fingerprint of the one that it replaced
    since = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.setting} {self.fingerprint}"


class ModelAccess(models.Model):
    """A tenant that may use a model. A model without any such row is open to all tenants."""

    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="+", verbose_name=_("model"))
    # Not CASCADE: with its last tenant gone, the model would be open to all.
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+", verbose_name=_("tenant"))

    class Meta:
        verbose_name = _("access to a model")
        verbose_name_plural = _("access to models")
        constraints: ClassVar = [models.UniqueConstraint(fields=["model", "tenant"], name="one_access_per_tenant")]

    def __str__(self) -> str:
        return f"{self.model} → {self.tenant}"
