"""The search form of the audit log."""

from datetime import date
from typing import Any

from django import forms
from django.core.validators import MaxValueValidator, MinValueValidator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from portal.accounts.models import User
from portal.accounts.permissions import administered_tenants
from portal.audit.audit_log import SUBJECTS, AuditQuery

# Days beyond these bounds are out of range in some time zone.
DAYS = [MinValueValidator(date(1970, 1, 2)), MaxValueValidator(date(9998, 12, 31))]


class SearchForm(forms.Form):
    """An invalid field shows its error and is left out of `wanted`."""

    text = forms.CharField(label=_("Person or object"), required=False, max_length=100)
    who = forms.CharField(label=_("Done by (user name)"), required=False, max_length=150)
    what = forms.ChoiceField(label=_("About"), required=False)
    tenant = forms.ChoiceField(label=_("Tenant"), required=False)
    since = forms.DateField(
        label=_("From"), required=False, validators=DAYS, widget=forms.DateInput({"type": "date"}, "%Y-%m-%d")
    )
    until = forms.DateField(
        label=pgettext_lazy("day", "Until"),
        required=False,
        validators=DAYS,
        widget=forms.DateInput({"type": "date"}, "%Y-%m-%d"),
    )
    kind = forms.SlugField(required=False, max_length=40, widget=forms.HiddenInput)
    number = forms.SlugField(required=False, max_length=64, widget=forms.HiddenInput)

    def __init__(self, *args: Any, user: User, **options: Any) -> None:
        super().__init__(*args, **options)
        tenants = administered_tenants(user).values_list("slug", "name")
        self.fields["what"].choices = [("", _("everything")), *SUBJECTS.items()]  # type: ignore[attr-defined]
        self.fields["tenant"].choices = [("", _("all")), *tenants]  # type: ignore[attr-defined]
        if not tenants:
            del self.fields["tenant"]
        self.full_clean()
        self.wanted = AuditQuery(**self.cleaned_data)

    @property
    def is_narrowed(self) -> bool:
        """Whether one of the fields that are hidden by default is filled in, also with an invalid value."""
        return any(self.data.get(name) for name in ("who", "tenant", "since", "until"))
