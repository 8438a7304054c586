from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import Tenant
from portal.accounts.permissions import without_internal
from portal.news import announcements
from portal.news.announcements import check_year
from portal.news.models import Announcement
from portal.web.editions import EditionForm


class MinuteField(forms.DateTimeField):
    """A time to the minute, in the active time zone."""

    FORMAT = "%Y-%m-%dT%H:%M"  # of the browser's own field

    def __init__(self, **kwargs: Any) -> None:
        widget = forms.DateTimeInput(attrs={"type": "datetime-local"}, format=self.FORMAT)
        formats = [self.FORMAT, "%Y-%m-%d %H:%M"]
        super().__init__(widget=widget, input_formats=formats, validators=[check_year], **kwargs)


class AnnouncementForm(EditionForm, forms.ModelForm):  # type: ignore[type-arg]  # generic in its stubs only
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
        tenants.queryset = without_internal(Tenant.objects.order_by("name", "slug"))

    def clean(self) -> dict[str, Any]:
        found = super().clean() or self.cleaned_data
        # A title that is wrong in another way is a title.
        values: dict[str, Any] = {name: found.get(name, "?") for name in ("title_ja", "title_en")}
        values |= {name: found.get(name) for name in ("begins_at", "ends_at")}
        row = Announcement(pk=self.instance.pk, level=found.get("level", ""), **values)
        try:
            announcements.check_announcement(row, found.get("tenants") or ())
        except ValidationError as error:
            self.add_error(None, error)
        return found
