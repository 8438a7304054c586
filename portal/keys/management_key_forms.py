"""The form for a new management key."""

from datetime import datetime, timedelta

from django import forms
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from modelregistry.one_line import check_one_line
from portal.accounts.models import User
from portal.keys.forms import LIFETIMES
from portal.keys.management_keys import usable_scopes


class NewManagementKeyForm(forms.Form):
    """The form for a new management key, with the scopes that the person may use."""

    name = forms.CharField(
        validators=[check_one_line],
        label=_("Name"),
        max_length=60,
        help_text=_("To recognise the key later: which program uses it, and where."),
    )
    scopes = forms.MultipleChoiceField(
        label=_("What it may do"),
        widget=forms.CheckboxSelectMultiple,
        help_text=_("Choose only what the program needs. It can never do more than you can."),
    )
    lifetime = forms.TypedChoiceField(
        label=_("Valid for"), choices=list(LIFETIMES.items()), coerce=int, initial=90, widget=forms.RadioSelect
    )
    token = forms.CharField(widget=forms.HiddenInput)

    def __init__(self, user: User, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        chosen = self.fields["scopes"]
        assert isinstance(chosen, forms.MultipleChoiceField)
        chosen.choices = [(scope.name, scope.label) for scope in usable_scopes(user)]

    def expires_at(self) -> datetime:
        return timezone.now() + timedelta(days=self.cleaned_data["lifetime"])
