from datetime import datetime
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import User
from portal.lessons import seminars
from portal.lessons.courses import all_courses
from portal.lessons.models import Seminar
from portal.quotas.administration import MAX_AMOUNT

TOKENS = 100_000  # of a participant: some hours of questions


class JoinForm(forms.Form):
    code = forms.CharField(
        label=_("Code"),
        max_length=40,
        help_text=_("Sixteen letters and digits. Capitals and hyphens do not matter."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "characters", "spellcheck": "false"}),
    )


class SeminarForm(forms.Form):
    """A new seminar. Day and hours are of the tenant's zone."""

    tenant = forms.ChoiceField(label=_("Tenant"))
    title = forms.CharField(label=_("Title"), max_length=80)
    course = forms.ChoiceField(label=_("Course"))
    day = forms.DateField(label=_("Day of the seminar"), widget=forms.DateInput(attrs={"type": "date"}))
    begins = forms.TimeField(label=_("Begins"), widget=forms.TimeInput(attrs={"type": "time"}))
    ends = forms.TimeField(label=_("Ends"), widget=forms.TimeInput(attrs={"type": "time"}))
    tokens = forms.IntegerField(
        label=_("Tokens per day for each participant"),
        required=False,
        min_value=1,
        max_value=MAX_AMOUNT,
        initial=TOKENS,
        help_text=_("Empty: no limit but the tenant’s."),
    )

    def __init__(self, *args: Any, user: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tenants = {one.slug: one for one in seminars.tenants_to_open_for(user)}
        self.fields["tenant"].choices = [(slug, one.name) for slug, one in self.tenants.items()]  # type: ignore[attr-defined]
        courses = [(name, course.title) for name, course in all_courses().items()]
        self.fields["course"].choices = courses  # type: ignore[attr-defined]
        if user.is_staff:
            self.fields["company"] = forms.BooleanField(
                label=_("For the whole company"),
                required=False,
                help_text=_("Any signed-in person may join, and is a member of the tenant until the seminar is over."),
            )

    def seminar(self) -> Seminar:
        """Return what the valid form describes, not stored."""
        values = self.cleaned_data
        tenant = self.tenants[values["tenant"]]
        begins, ends = (
            datetime.combine(values["day"], values[name], tzinfo=tenant.zone) for name in ("begins", "ends")
        )
        return Seminar(
            tenant=tenant,
            title=values["title"],
            course=values["course"],
            begins_at=begins,
            ends_at=ends,
            tokens=values["tokens"],
            is_company_wide=values.get("company", False),
        )
