from datetime import date, datetime, timedelta
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from modelregistry.one_line import check_one_line
from portal.accounts.models import Tenant, User
from portal.lessons import invitations, seminars
from portal.lessons.courses import all_courses
from portal.lessons.models import MOST_PEOPLE, Seminar
from portal.lessons.seminars import SeminarChanges
from portal.quotas.administration import MAX_AMOUNT
from portal.web.editions import EditionForm


class JoinForm(forms.Form):
    code = forms.CharField(
        label=_("Code"),
        max_length=seminars.MOST_TYPED,
        help_text=_("Sixteen letters and digits, or the link to join. Capitals and hyphens do not matter."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "characters", "spellcheck": "false"}),
    )


class NamesForm(forms.Form):
    names = forms.CharField(
        label=_("People to invite"),
        max_length=invitations.MOST_TEXT,
        help_text=_("User names, mail addresses or whole names, one per line or with commas between them."),
        widget=forms.Textarea(attrs={"rows": 4, "autocomplete": "off", "spellcheck": "false"}),
    )


class TakeBackForm(forms.Form):
    reason = forms.CharField(
        label=_("Reason"),
        required=False,
        max_length=200,
        validators=[check_one_line],
        help_text=_("The participant is notified of it."),
    )


def _tokens_field(most: int) -> forms.IntegerField:
    return forms.IntegerField(
        label=_("Tokens per day for each participant"),
        required=False,
        min_value=1,
        max_value=most,
        initial=seminars.USUAL_TOKENS,
        help_text=_("Empty: no limit, for up to 40 places."),
    )


class PlanForm(EditionForm, forms.Form):
    """What an organiser decides about a seminar. Day and hours are of the tenant's zone."""

    title = forms.CharField(
        label=_("Title"),
        required=False,
        max_length=80,
        validators=[check_one_line],
        help_text=_("Empty: the title of the course."),
    )
    course = forms.ChoiceField(label=_("Course"))
    day = forms.DateField(label=_("Day of the seminar"), widget=forms.DateInput(attrs={"type": "date"}))
    begins = forms.TimeField(label=_("Begins"), widget=forms.TimeInput(attrs={"type": "time"}, format="%H:%M"))
    ends = forms.TimeField(label=_("Ends"), widget=forms.TimeInput(attrs={"type": "time"}, format="%H:%M"))
    places = forms.IntegerField(
        label=_("Places"),
        min_value=1,
        max_value=MOST_PEOPLE,
        initial=seminars.USUAL_PLACES,
        help_text=_("So many people may join. People that you invite keep theirs."),
    )
    tokens = _tokens_field(MAX_AMOUNT)  # as older versions took it: what the form shows of such a seminar can be saved

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        courses = [(name, course.title) for name, course in all_courses().items()]
        self.fields["course"].choices = courses  # type: ignore[attr-defined]

    def plan(self, tenant: Tenant) -> SeminarChanges:
        """Return what the valid form says, for a seminar of this tenant."""
        values = self.cleaned_data
        begins, ends = (
            datetime.combine(values["day"], values[name], tzinfo=tenant.zone) for name in ("begins", "ends")
        )
        if ends <= begins and self.initial.get("crosses_midnight") and values["day"] < date.max:  # opened by the API
            ends += timedelta(days=1)
        return SeminarChanges(
            title=values["title"],
            course=values["course"],
            begins_at=begins,
            ends_at=ends,
            places=values["places"],
            tokens=values["tokens"],
        )


def initial_plan(seminar: Seminar) -> dict[str, Any]:
    """Return the values of a seminar for PlanForm."""
    begins, ends = (at.astimezone(seminar.tenant.zone) for at in (seminar.begins_at, seminar.ends_at))
    plain = {name: getattr(seminar, name) for name in ("title", "course", "places", "tokens")}
    crosses = ends.date() > begins.date()
    return {**plain, "day": begins.date(), "begins": begins.time(), "ends": ends.time(), "crosses_midnight": crosses}


class SeminarForm(PlanForm):
    """A new seminar."""

    tenant = forms.ChoiceField(label=_("Tenant"))
    tokens = _tokens_field(seminars.MOST_TOKENS)
    field_order = ("tenant",)

    def __init__(self, *args: Any, user: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tenants = {one.slug: one for one in seminars.tenants_to_open_for(user)}
        self.fields["tenant"].choices = [(slug, one.name) for slug, one in self.tenants.items()]  # type: ignore[attr-defined]
        if user.is_staff:
            self.fields["company"] = forms.BooleanField(
                label=_("For the whole company"),
                required=False,
                help_text=_("Any signed-in person may join, and is a member of the tenant until the seminar is over."),
            )

    def seminar(self) -> Seminar:
        """Return what the valid form describes, not stored."""
        tenant = self.tenants[self.cleaned_data["tenant"]]
        return Seminar(tenant=tenant, is_company_wide=self.cleaned_data.get("company", False), **self.plan(tenant))
