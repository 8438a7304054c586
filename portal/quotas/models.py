"""How much may be used (Quota, policy) and what was used (UsageRecord and sums of it, written by the ledger)."""

from typing import ClassVar, TypeVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant
from portal.keys.models import ApiKey
from portal.quotas.units import UNITS, unit_choices

Row = TypeVar("Row", bound=models.Model)


class KnownUnits(models.Manager[Row]):
    """Rows whose unit this version has. A newer one that was put back may have left others: they wait for it."""

    def get_queryset(self) -> models.QuerySet[Row]:
        return super().get_queryset().filter(unit__in=list(UNITS))


class Quota(models.Model):
    """At most `amount` of `unit` per `window`, for all models together or one.

    Its owner, by what is set: `tenant`; `user`, everywhere (operators set it); `tenant` and `user`, a member's use of
    that tenant's keys; `key`. With `default_for` it is a default for all of a kind that have none of their own for the
    same model, unit and window: each tenant (`tenant` is empty), each member or each service key of `tenant`.
    """

    class DefaultFor(models.TextChoices):
        TENANT = "tenant", _("each tenant")
        MEMBER = "member", _("each member")
        SERVICE = "service", _("each service key")

    class Window(models.TextChoices):
        MINUTE = "minute", _("minute")
        DAY = "day", _("day")
        MONTH = "month", _("month")

    tenant = models.ForeignKey(
        Tenant, models.CASCADE, null=True, blank=True, related_name="quotas", verbose_name=_("tenant")
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, null=True, blank=True, related_name="quotas", verbose_name=_("user")
    )
    key = models.ForeignKey(
        ApiKey, models.CASCADE, null=True, blank=True, related_name="quotas", verbose_name=_("API key")
    )
    default_for = models.CharField(
        _("default for"),
        max_length=7,
        choices=DefaultFor,
        blank=True,
        help_text=_("Applies to all of a kind that have no such quota of their own."),
    )
    model = models.ForeignKey(
        ServedModel,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("model"),
        help_text=_("Empty: all models together."),
    )
    unit = models.CharField(_("unit"), max_length=10, choices=unit_choices)
    window = models.CharField(
        _("per"), max_length=10, choices=Window, blank=True, help_text=_("Empty for requests at the same time.")
    )
    amount = models.PositiveBigIntegerField(_("at most"), help_text=_("0 blocks."))

    objects = KnownUnits()

    class Meta:
        verbose_name = _("quota")
        verbose_name_plural = _("quotas")
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=(
                    Q(default_for="", tenant__isnull=False, key__isnull=True)
                    | Q(default_for="", tenant__isnull=True, user__isnull=False, key__isnull=True)
                    | Q(default_for="", tenant__isnull=True, user__isnull=True, key__isnull=False)
                    | Q(default_for="tenant", tenant__isnull=True, user__isnull=True, key__isnull=True)
                    | Q(
                        default_for__in=["member", "service"], tenant__isnull=False, user__isnull=True, key__isnull=True
                    )
                ),
                name="quota_of_one_thing",
                violation_error_message=_("Choose one: a tenant, a user, a member of a tenant, a key or a default."),
            ),
            models.CheckConstraint(
                condition=Q(unit="concurrent", window="") | (~Q(unit="concurrent") & ~Q(window="")),
                name="quota_window_fits_unit",
                violation_error_message=_("Requests at the same time have no window; all other units need one."),
            ),
            models.UniqueConstraint(
                # 0 stands for null, which would make every row different
                *(Coalesce(field, 0) for field in ("tenant", "user", "key", "model")),
                "default_for",
                "unit",
                "window",
                name="one_quota_of_a_kind",
                violation_error_message=_("There is already such a quota: change that one."),
            ),
        ]

    def __str__(self) -> str:
        owners = (self.tenant, self.user, self.key, self.get_default_for_display())
        owner = " · ".join(str(owner) for owner in owners if owner)
        return f"{owner}: {self.amount} {self.unit}{' / ' + self.window if self.window else ''}"


class QuotaRequest(models.Model):
    """A request for more than a quota gives, and how it was decided.

    A member asks for themselves (`user`) or a key (`key`) the admins of the `tenant`; an admin asks for the tenant
    (neither is set) the operators. `amount` is what is requested, `granted` what was given.
    """

    class State(models.TextChoices):
        OPEN = "open", _("open")
        GRANTED = "granted", _("granted")
        REFUSED = "refused", _("refused")
        WITHDRAWN = "withdrawn", _("withdrawn")

    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="quota_requests", verbose_name=_("tenant"))
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, null=True, blank=True, related_name="+", verbose_name=_("member")
    )
    key = models.ForeignKey(ApiKey, models.CASCADE, null=True, blank=True, related_name="+", verbose_name=_("API key"))
    model = models.ForeignKey(
        ServedModel, models.CASCADE, null=True, blank=True, related_name="+", verbose_name=_("model")
    )
    unit = models.CharField(_("unit"), max_length=10, choices=unit_choices)
    window = models.CharField(_("per"), max_length=10, choices=Quota.Window, blank=True)
    amount = models.PositiveBigIntegerField(_("requested amount"))
    previous_amount = models.PositiveBigIntegerField(_("so far"), help_text="When it was asked for.")
    reason = models.CharField(_("what for"), max_length=500, blank=True)
    asked_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+", verbose_name=_("asked by")
    )
    asked_at = models.DateTimeField(_("asked"), default=timezone.now)
    state = models.CharField(_("state"), max_length=10, choices=State, default=State.OPEN)
    granted = models.PositiveBigIntegerField(_("granted"), null=True, blank=True)
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+", verbose_name=_("decided by")
    )
    decided_at = models.DateTimeField(_("decided"), null=True, blank=True)
    note = models.CharField(_("note"), max_length=500, blank=True)

    objects = KnownUnits()

    class Meta:
        verbose_name = _("request for more")
        verbose_name_plural = _("requests for more")
        ordering: ClassVar = ["-asked_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                *(Coalesce(field, 0) for field in ("tenant", "user", "key", "model")),
                "unit",
                "window",
                condition=Q(state="open"),
                name="one_open_request_of_a_kind",
                violation_error_message=_("This has been requested already and waits for a decision."),
            ),
            models.CheckConstraint(
                condition=Q(user__isnull=True) | Q(key__isnull=True), name="request_for_a_member_or_a_key"
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["tenant", "state"], name="requests_by_tenant")]

    def __str__(self) -> str:
        return f"{self.tenant} · {self.user or self.key or ''}: {self.amount} {self.unit} ({self.state})"
