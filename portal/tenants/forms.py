"""Forms of tenants, members and quotas: amounts as people write them, one list in place of unit and window."""

from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from modelregistry.models import ServedModel
from portal.accounts.models import Membership, Tenant, time_zones
from portal.quotas import amounts
from portal.quotas.administration import QuotaKind
from portal.quotas.units import kind_choices
from portal.web.editions import EditionForm


class AmountField(forms.Field):
    """A whole number as people write it; see `amounts.parse_amount`."""

    widget = forms.TextInput(attrs={"autocomplete": "off", "maxlength": amounts.LONGEST})

    def to_python(self, value: Any) -> Any:
        if value in self.empty_values or not str(value).strip():
            return None
        try:
            return amounts.parse_amount(str(value))
        except ValueError as error:
            raise ValidationError(_("Enter a number, for example 500,000, 50万 or 2M.")) from error

    def prepare_value(self, value: Any) -> Any:
        return f"{value:,}" if isinstance(value, int) else value


class QuotaForm(forms.Form):
    """The form for a quota. `fixed`: for an existing one, of which only the amount can change."""

    kind = forms.ChoiceField(label=_("What is limited"), choices=kind_choices)
    model = forms.ModelChoiceField(
        ServedModel.objects.order_by("name"),
        to_field_name="name",
        label=_("Model"),
        required=False,
        empty_label=_("all models combined"),
    )
    amount = AmountField(label=_("At most"), help_text=_("For example 500,000, 50万 or 2M. 0 blocks all requests."))

    def __init__(self, *args: Any, fixed: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if fixed:
            self.fields["kind"].disabled = self.fields["model"].disabled = True

    def quota_kind(self) -> QuotaKind:
        """Return what the quota counts."""
        unit, _, window = self.cleaned_data["kind"].partition("/")
        return QuotaKind(unit=unit, window=window, model=self.cleaned_data["model"])

    def confirmation(self) -> str:
        """Return what the page sends back when the cautions about exactly this quota were read."""
        model = self.cleaned_data["model"]
        return f"{self.cleaned_data['kind']} {model.name if model else ''} {self.cleaned_data['amount']}"


class AddMemberForm(forms.Form):
    username = forms.CharField(
        label=_("User name"),
        max_length=150,
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}),
        help_text=_("The name with which the person signs in here."),
    )
    role = forms.ChoiceField(label=_("Role"), choices=Membership.Role, initial=Membership.Role.MEMBER)


class RoleForm(forms.Form):
    role = forms.ChoiceField(label=_("Role"), choices=Membership.Role)


class QuotaRequestForm(forms.Form):
    """How much is requested, and what for."""

    amount = AmountField(label=_("How much"), help_text=_("For example 500,000, 50万 or 2M."))
    reason = forms.CharField(
        label=_("What for"),
        required=False,
        max_length=500,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text=_("Helps the people who decide."),
    )


class TenantForm(EditionForm, forms.ModelForm):  # type: ignore[type-arg]  # generic in its stubs only
    """The form for a tenant. Its short name cannot change: addresses, commands and directory groups contain it."""

    time_zone = forms.ChoiceField(
        label=_("Time zone"), help_text=_("Daily and monthly quotas begin at midnight here."), initial="Asia/Tokyo"
    )

    class Meta:
        model = Tenant
        fields: ClassVar = ["name", "slug", "time_zone", "key_days", "weight"]
        error_messages: ClassVar = {
            "slug": {
                "unique": _("There is a tenant with this short name already."),
                "invalid": _("Use letters without accents, digits, - and _ only."),
            }
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["time_zone"].choices = [(name, name) for name in sorted(time_zones())]  # type: ignore[attr-defined]
        self.fields["weight"].required = False  # a form without it leaves it as it is
        if self.instance.pk:
            self.fields["slug"].disabled = True

    def clean_weight(self) -> float:
        given: float | None = self.cleaned_data["weight"]
        return self.instance.weight if given is None else given
