from datetime import datetime
from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.timezone import localtime
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext

from portal.accounts.models import Tenant
from portal.news import announcements
from portal.news.models import Announcement

# A time near the end of the calendar (year 9999) has no day in zones to the east, where no page could show it.
FIRST_YEAR, YEARS_AHEAD = 2000, 20


def check_year(value: datetime) -> None:
    """Raise ValidationError for a year that no announcement is about."""
    if not FIRST_YEAR <= value.year <= timezone.now().year + YEARS_AHEAD:
        raise ValidationError(
            _("Choose a time within the next %(years)d years."), code="year", params={"years": YEARS_AHEAD}
        )


class MinuteField(forms.DateTimeField):
    """A time to the minute, in the active time zone."""

    FORMAT = "%Y-%m-%dT%H:%M"  # of the browser's own field

    def __init__(self, **kwargs: Any) -> None:
        widget = forms.DateTimeInput(attrs={"type": "datetime-local"}, format=self.FORMAT)
        formats = [self.FORMAT, "%Y-%m-%d %H:%M"]
        super().__init__(widget=widget, input_formats=formats, validators=[check_year], **kwargs)


class AnnouncementForm(forms.ModelForm):  # type: ignore[type-arg]  # generic in its stubs only
    """An announcement; times are in the active time zone."""

    begins_at = MinuteField(label=_("Begins"))
    ends_at = MinuteField(label=_("Ends"), help_text=_("For news: until when it is shown."))

    class Meta:
        model = Announcement
        fields = (
            *("level", "title_ja", "title_en", "text_ja", "text_en"),
            *("begins_at", "ends_at", "days_ahead", "tenants"),
        )
        widgets: ClassVar = {"level": forms.RadioSelect, "tenants": forms.SelectMultiple(attrs={"size": 6})}
        help_texts: ClassVar = {
            "title_en": _("One of the two titles is enough: readers of the other language see it as well."),
            "text_ja": _("Markdown: # heading, - list, **bold**, [words](https://address)."),
            "days_ahead": _("How long before it begins the banner is shown, 0 to 30. Useful for maintenance."),
            "tenants": _("None chosen: everyone."),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("text_ja", "text_en"):
            self.fields[name].widget.attrs["rows"] = 6
        tenants = self.fields["tenants"]
        assert isinstance(tenants, forms.ModelMultipleChoiceField)
        tenants.queryset = Tenant.objects.order_by("name", "slug")

    def clean(self) -> dict[str, Any]:
        found = super().clean() or self.cleaned_data
        if not self.errors.keys() & {"title_ja", "title_en"} and not (found["title_ja"] or found["title_en"]):
            self.add_error("title_ja", ValidationError(_("Give a title in one of the languages."), code="no-title"))
        begins_at, ends_at = found.get("begins_at"), found.get("ends_at")
        if begins_at and ends_at and ends_at <= begins_at:
            sentence = _("It would end before it begins. Choose a later end.")
            self.add_error("ends_at", ValidationError(sentence, code="ends-before-it-begins"))
        elif begins_at and ends_at:
            self._check_overlap(found)
        return found

    def _check_overlap(self, found: dict[str, Any]) -> None:
        row = Announcement(
            pk=self.instance.pk, level=found.get("level", ""), begins_at=found["begins_at"], ends_at=found["ends_at"]
        )
        other = announcements.find_overlap(row, found.get("tenants") or ())
        if other:
            times = [
                date_format(time, pgettext("time of this year", "j M, H:i"))
                for time in (localtime(other.begins_at), localtime(other.ends_at))
            ]
            sentence = _(
                "“%(title)s” announces maintenance from %(begin)s to %(end)s. Change that one, or these times."
            )
            named = {"title": str(other), "begin": times[0], "end": times[1]}
            self.add_error("begins_at", ValidationError(sentence, code="overlaps", params=named))
