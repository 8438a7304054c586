from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from portal.guide.models import HouseRules


class HouseRulesForm(forms.ModelForm):  # type: ignore[type-arg]  # generic in its stubs only
    """The texts, and the edition that they are a change of."""

    edition = forms.IntegerField(widget=forms.HiddenInput, min_value=0, max_value=2**31 - 1)

    class Meta:
        model = HouseRules
        fields = ("rules_ja", "rules_en", "contact_ja", "contact_en")
        help_texts = {
            "rules_ja": _("Markdown: # heading, - list, **bold**, [words](https://address)."),
            "rules_en": _("Empty: the Japanese text is shown to readers of English as well."),
            "contact_ja": _("A name, a mail address, an extension, a chat channel. Empty: the operators are named."),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, field in self.fields.items():
            field.widget.attrs["rows"] = 14 if name.startswith("rules") else 3

    def texts(self) -> dict[str, str]:
        """Return the texts by the names of the row's fields."""
        return {name: self.cleaned_data[name] for name in self.Meta.fields}
