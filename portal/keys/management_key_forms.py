"""The form for a new management key."""

from datetime import datetime, timedelta

from django import forms
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import User
from portal.keys.management_keys import usable_scopes

LIFETIMES = [("30", _("30 days")), ("90", _("90 days")), ("365", _("1 year"))]


class NewManagementKeyForm(forms.Form):
    """Offers only what the person may do."""

    name = forms.CharField(
        label=_("Name"), max_length=60, help_text=_("So that you recognise it later: which program uses it, and where.")
    )
    scopes = forms.MultipleChoiceField(
        label=_("What it may do"),
        widget=forms.CheckboxSelectMultiple,
        help_text=_("Choose only what the program needs. It can never do more than you yourself."),
    )
    lifetime = forms.ChoiceField(label=_("Valid for"), choices=LIFETIMES, initial="90", widget=forms.RadioSelect)
    ticket = forms.CharField(widget=forms.HiddenInput)

    def __init__(self, user: User, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        chosen = self.fields["scopes"]
        assert isinstance(chosen, forms.MultipleChoiceField)
        chosen.choices = [(scope.name, scope.label) for scope in usable_scopes(user)]

    def expires_at(self) -> datetime:
        return timezone.now() + timedelta(days=int(self.cleaned_data["lifetime"]))
