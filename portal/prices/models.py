"""What tokens cost, from which day on; what tenants may spend in a month; and who sees it. Amounts are yen."""

from datetime import date
from decimal import Decimal
from typing import Any, ClassVar

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from modelregistry.one_line import check_one_line
from portal.accounts.models import Tenant

MOST = Decimal(100_000)  # yen for 1,000 tokens: a thousand times the dearest service
MOST_BUDGET = 1_000_000_000_000


def amount_field(label: Any, **more: Any) -> Any:
    return models.DecimalField(
        label,
        max_digits=12,
        decimal_places=6,
        validators=[MinValueValidator(Decimal(0)), MaxValueValidator(MOST)],
        **more,
    )


class TokenPrice(models.Model):
    """The price of a model's tokens from a day on, until its last day, or the day before the model's next price.

    Models are named, not referred to: a deleted one keeps its prices.
    """

    class Kind(models.TextChoices):
        INTERNAL = "internal", _("internal price")
        OUTSIDE = "outside", _("price elsewhere")

    kind = models.CharField(_("list"), max_length=10, choices=Kind, default=Kind.INTERNAL)
    model = models.CharField(_("model"), max_length=100, validators=[check_one_line])
    first_day = models.DateField(_("from"))
    last_day = models.DateField(_("until"), null=True, blank=True, help_text=_("Empty: until the next price."))
    input_price = amount_field(_("tokens in"))
    output_price = amount_field(_("tokens out"))
    cached_price = amount_field(_("cached tokens in"), null=True, blank=True, help_text=_("Empty: as other tokens in."))
    reference = models.CharField(
        _("service"),
        max_length=100,
        blank=True,
        validators=[check_one_line],
        help_text=_("Whose price it is: the service and its model."),
    )

    class Meta:
        verbose_name = _("price of tokens")
        verbose_name_plural = _("prices of tokens")
        ordering: ClassVar = ["kind", "model", "first_day"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["kind", "model", "first_day"], name="one_price_per_day")
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.model} {self.first_day}"

    def validate_constraints(self, exclude: Any = None) -> None:
        """Leave them to `price_list.check_price`, whose errors say what to do."""

    @property
    def texts(self) -> dict[str, str]:
        """The amounts without zeros at their end, by name: "input", "output", and "cached", which may be "".

        As people type them in every language.
        """
        amounts = {"input": self.input_price, "output": self.output_price, "cached": self.cached_price}
        return {name: "" if amount is None else f"{amount.normalize():f}" for name, amount in amounts.items()}

    def cost(self, prompt: int, cached: int, completion: int) -> Decimal:
        """Return the exact yen of so many tokens; `cached` are some of `prompt`."""
        of_cached: Decimal = self.input_price if self.cached_price is None else self.cached_price
        thousandths: Decimal = (
            (prompt - cached) * self.input_price + cached * of_cached + completion * self.output_price
        )
        return thousandths / 1000

    def is_valid_on(self, day: date) -> bool:
        """Return whether it applies on a day on which no later price has begun."""
        return self.first_day <= day and (self.last_day is None or day <= self.last_day)


class TenantBudget(models.Model):
    """What a tenant means to spend in a month. Nothing is refused beyond it; admins are notified."""

    tenant = models.OneToOneField(Tenant, models.CASCADE, related_name="budget", verbose_name=_("tenant"))
    yen = models.PositiveBigIntegerField(
        _("yen per month"), validators=[MinValueValidator(1), MaxValueValidator(MOST_BUDGET)]
    )

    class Meta:
        verbose_name = _("budget")
        verbose_name_plural = _("budgets")

    def __str__(self) -> str:
        return f"{self.tenant.slug}: {self.yen}"


class PriceOptions(models.Model):
    """Who sees amounts. One row; none: only operators and tenant admins."""

    shown_to_people = models.BooleanField(_("everyone sees what their own usage costs"), default=False)

    class Meta:
        verbose_name = _("display of prices")
        verbose_name_plural = _("display of prices")

    def __str__(self) -> str:
        return "shown to people" if self.shown_to_people else "shown to admins"
