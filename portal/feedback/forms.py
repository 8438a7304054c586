"""What pages send as feedback."""

from django import forms
from django.utils.translation import gettext_lazy as _

from portal.feedback.models import MAX_COMMENT, Feedback
from portal.feedback.recording import GivenFeedback


class GivenForm(forms.Form):
    """The fields of a thumb. `use_case` and `version` as a page of a use case gave them."""

    request_id = forms.CharField(max_length=40)
    score = forms.TypedChoiceField(choices=[(str(value), value) for value in Feedback.Score.values], coerce=int)
    comment = forms.CharField(label=_("Comment"), max_length=MAX_COMMENT, required=False)
    model = forms.CharField(max_length=100, required=False)
    use_case = forms.IntegerField(min_value=1, max_value=10**15, required=False)
    version = forms.IntegerField(min_value=1, max_value=10**6, required=False)

    def given(self) -> GivenFeedback:
        values = self.cleaned_data
        return GivenFeedback(
            request_id=values["request_id"],
            score=values["score"],
            comment=values["comment"],
            model=values["model"],
            use_case=values["use_case"] or 0,
            use_case_version=values["version"] or 0,
        )
