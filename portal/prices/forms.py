from typing import Any

from django import forms
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import Tenant, User
from portal.accounts.permissions import without_internal
from portal.prices import cautions, price_list
from portal.prices.models import MOST_BUDGET, TokenPrice
from portal.web.cautions import Caution
from portal.web.editions import EditionForm


class DateInput(forms.DateInput):
    input_type = "date"

    def __init__(self) -> None:
        super().__init__(format="%Y-%m-%d")


class PriceForm(EditionForm, forms.ModelForm):  # type: ignore[type-arg]
    """A price. It is checked beside the others of its model when it is saved, see `store`."""

    class Meta:
        model = TokenPrice
        fields = (
            *("kind", "model", "first_day", "last_day", "input_price", "output_price", "cached_price", "reference"),
        )
        widgets = {"first_day": DateInput(), "last_day": DateInput()}

    def __init__(self, *args: Any, models: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.models = models
        self.cautions: list[Caution] = []
        self.fields["model"].widget.attrs["list"] = "known-models"
        for name in ("input_price", "output_price", "cached_price"):
            self.fields[name].label = _("%(what)s, yen per 1,000") % {"what": self.fields[name].label}

    def validate_unique(self) -> None:
        """Leave it to `price_list.check_price`, whose error says what to do."""

    def confirmation(self) -> str:
        """Return what the page sends back when the cautions about exactly this price were read."""
        price = self.instance
        return "/".join([price.kind, price.model, str(price.first_day), *price.texts.values()])

    def store(self, by: User) -> bool:
        """Save the price if it is sound; return whether it was. Otherwise its fields have errors, or it `cautions`.

        The same numbers sent again with `confirmed` are saved.
        """
        if not self.is_valid():
            return False
        self.cautions = cautions.find_cautions(self.instance)
        if self.cautions and self.data.get("confirmed") != self.confirmation():
            return False
        try:
            price_list.save_price(self.instance, by=by, today=timezone.localdate())
        except forms.ValidationError as error:
            self.add_error(None, error)
            return False
        return True


class BudgetForm(forms.Form):
    tenant = forms.ModelChoiceField(
        without_internal(Tenant.objects.order_by("name")), to_field_name="slug", label=_("Tenant"), empty_label=None
    )
    yen = forms.IntegerField(
        label=_("Yen per month"),
        required=False,
        min_value=1,
        max_value=MOST_BUDGET,
        help_text=_("Empty: no budget. Nothing is refused; the tenant’s admins are notified at 80% and 100%."),
    )
