from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class PricesConfig(AppConfig):
    name = "portal.prices"
    verbose_name = _("Prices")

    def ready(self) -> None:
        from portal.audit import tracking
        from portal.prices.models import PriceOptions, TenantBudget, TokenPrice

        tracking.track(TokenPrice, "price")
        tracking.track(TenantBudget, "budget", tenant=lambda budget: budget.tenant)
        tracking.track(PriceOptions, "prices")
