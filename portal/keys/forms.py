"""The forms for a new personal key and for one that was found."""

from datetime import datetime, timedelta

from django import forms
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant, User
from portal.accounts.tenancy import own_tenants
from portal.keys.access import open_to

NEVER = "never"
LIFETIMES = [("30", _("30 days")), ("90", _("90 days")), ("365", _("1 year")), (NEVER, _("no expiry"))]


class FoundKeyForm(forms.Form):
    """For a key that somebody found where it must not be."""

    text = forms.CharField(
        label=_("What you found"),
        max_length=100_000,
        widget=forms.Textarea(attrs={"rows": 4, "autocomplete": "off", "spellcheck": "false"}),
        help_text=_("The key itself, or the text around it. It is not stored."),
    )


class NewKeyForm(forms.Form):
    """Offers only tenants that the person belongs to and models that these may use."""

    name = forms.CharField(
        label=_("Name"),
        max_length=60,
        help_text=_("So that you recognise it later: what it is for, or where it is kept."),
    )
    tenant = forms.ModelChoiceField(
        Tenant.objects.none(), label=_("Tenant"), empty_label=None, help_text=_("Usage counts for this tenant.")
    )
    lifetime = forms.ChoiceField(label=_("Valid for"), choices=LIFETIMES, initial="90", widget=forms.RadioSelect)
    models = forms.ModelMultipleChoiceField(
        ServedModel.objects.none(),
        label=_("Models"),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text=_("Choose none and the key works for all models of the tenant, also for those that come later."),
    )
    ticket = forms.CharField(widget=forms.HiddenInput)

    def __init__(self, user: User, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        tenants = own_tenants(user)
        self.tenants = list(tenants)
        self.model_field("tenant").queryset = tenants
        self.model_field("models").queryset = open_to(self.tenants)
        if len(self.tenants) == 1:
            self.fields["tenant"].widget = forms.HiddenInput()
            self.fields["tenant"].initial = self.tenants[0]

    def model_field(self, name: str) -> forms.ModelChoiceField:  # type: ignore[type-arg]
        field = self.fields[name]
        assert isinstance(field, forms.ModelChoiceField)
        return field

    def clean(self) -> dict[str, object]:
        cleaned = self.cleaned_data
        tenant, chosen = cleaned.get("tenant"), cleaned.get("models")
        if tenant and chosen:
            allowed = set(open_to([tenant]).values_list("pk", flat=True))
            for model in chosen:
                if model.pk not in allowed:
                    self.add_error(
                        "models",
                        forms.ValidationError(
                            _("%(tenant)s may not use %(model)s. Choose another model or another tenant."),
                            params={"tenant": tenant, "model": model},
                        ),
                    )
        return cleaned

    def expires_at(self, now: datetime | None = None) -> datetime | None:
        """When the key that was asked for ends; None = never."""
        chosen = self.cleaned_data["lifetime"]
        return None if chosen == NEVER else (now or timezone.now()) + timedelta(days=int(chosen))
