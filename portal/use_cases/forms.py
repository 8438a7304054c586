"""Forms of use cases: what to look for, the texts in each language, and the fields of a prompt."""

from collections.abc import Iterable
from typing import Any

from django import forms
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from modelregistry.one_line import check_one_line
from portal.accounts.models import User
from portal.use_cases import gallery
from portal.use_cases.content import LIMITS, NEEDED, ONE_LINE, TextContent, UseCaseContent, UseCaseRefused
from portal.use_cases.models import (
    MAX_COMMENT,
    MAX_NOTE,
    MOST_MINUTES,
    Language,
    TargetGroup,
    TaskKind,
    UseCaseText,
)
from portal.use_cases.variables import MAX_LABEL, MAX_NAME, MAX_VALUE, MOST_VARIABLES, Variable, VariableKind

SPARE_ROWS = 2  # empty ones below the fields that there are
LONG = frozenset({"system", "prompt", "expected_input", "example_answer"})
NO_COMMENT = _("Write a comment, so that the author knows what to change.")
ROWS = {"system": 4, "prompt": 10, "expected_input": 2, "example_answer": 8}
HINTS = {
    "title": _("A few words: what it does."),
    "summary": _("One sentence: what it saves you."),
    "system": _("How the model is to behave, the same for every input."),
    "prompt": _("Write {{name}} where something is to be filled in, and describe each below."),
    "expected_input": _("What one should have at hand."),
    "example_answer": _("Of the examples below, in Markdown. Without real names and numbers."),
}


class GalleryForm(forms.Form):
    q = forms.CharField(label=_("Search"), required=False, max_length=100)
    department = forms.ChoiceField(
        label=_("For"), required=False, choices=[("", _("all departments")), *TargetGroup.choices]
    )
    kind = forms.ChoiceField(
        label=pgettext_lazy("of a use case", "Task"), required=False, choices=[("", _("all tasks")), *TaskKind.choices]
    )
    language = forms.ChoiceField(
        label=pgettext_lazy("of a use case", "Language"),
        required=False,
        choices=[("", _("all languages")), *Language.choices],
    )
    sort = forms.ChoiceField(
        label=_("Order"),
        required=False,
        choices=[("helpful", _("most helpful")), ("used", _("most used")), ("new", _("newest"))],
    )

    def query(self) -> gallery.GalleryQuery:
        """Return what is looked for; a value that is none of the choices counts as not given."""
        self.is_valid()
        values = self.cleaned_data
        return gallery.GalleryQuery(
            text=values.get("q", "").replace("\0", ""),
            department=values.get("department", ""),
            kind=values.get("kind", ""),
            language=values.get("language", ""),
            sort=values.get("sort") or gallery.SORTS[0],
        )


class UseCaseForm(forms.Form):
    """What both languages share. `tenant` is chosen once, for a new case."""

    tenant = forms.ChoiceField(label=_("Tenant"), required=False, help_text=_("Its champions and admins decide."))
    kind = forms.ChoiceField(label=_("What kind of task it is"), choices=TaskKind)
    departments = forms.MultipleChoiceField(
        label=_("Who it is for"), choices=TargetGroup, widget=forms.CheckboxSelectMultiple
    )
    model = forms.ChoiceField(label=_("Model"), required=False)
    # The number of the version that is edited, so that no two people overwrite another's.
    seen = forms.IntegerField(widget=forms.HiddenInput, min_value=0, max_value=10**6)

    def __init__(self, *args: Any, user: User, is_new: bool, current_model: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = sorted(gallery.names_for(user) | ({current_model} if current_model else set()))
        self.fields["model"].choices = [  # type: ignore[attr-defined]
            ("", _("any chat model")),
            *((name, name) for name in names),
        ]
        if not is_new:
            del self.fields["tenant"]
            return
        del self.fields["seen"]
        tenants = [(tenant.slug, tenant.name) for tenant in gallery.tenants_to_propose_for(user)]
        if user.is_staff:
            tenants.append(("", str(_("the whole company"))))
        self.fields["tenant"].choices = tenants  # type: ignore[attr-defined]


class TextForm(forms.Form):
    """The texts in one language; nothing is required of one that was left empty, as the other may be the only one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        labels = {field.name: field.verbose_name for field in UseCaseText._meta.concrete_fields}
        used = not self.is_bound or any(self.data.get(self.add_prefix(name), "").strip() for name in LIMITS)
        for name, most in LIMITS.items():
            widget = forms.Textarea(attrs={"rows": ROWS[name]}) if name in LONG else forms.TextInput()
            field = forms.CharField(
                label=capfirst(labels[name]),
                required=used and name in NEEDED,
                max_length=most,
                widget=widget,
                validators=[check_one_line] if name in ONE_LINE else (),
                help_text=HINTS[name],
            )
            self.fields[name] = field


class VariableForm(forms.Form):
    name = forms.CharField(
        label=_("Name in the prompt"),
        required=False,
        max_length=MAX_NAME,
        widget=forms.TextInput(attrs={"autocapitalize": "none", "spellcheck": "false"}),
    )
    label = forms.CharField(label=_("Label"), required=False, max_length=MAX_LABEL, validators=[check_one_line])
    kind = forms.ChoiceField(label=_("Kind"), required=False, choices=VariableKind, initial=VariableKind.LINE)
    example = forms.CharField(
        label=_("Example"), required=False, max_length=MAX_VALUE, widget=forms.Textarea(attrs={"rows": 2})
    )
    choices = forms.CharField(
        label=_("Choices"), required=False, max_length=800, help_text=_("Of a choice, separated by commas.")
    )

    def clean(self) -> dict[str, Any]:
        """Refuse what would be lost: a row without a name is none, and only a choice has choices."""
        values: dict[str, Any] = super().clean() or {}
        if not self.errors and not values["name"] and any(values[one] for one in ("label", "example", "choices")):
            self.add_error("name", _("Name this field, or empty its row."))
        if values.get("choices") and values.get("kind") != VariableKind.CHOICE:
            self.add_error("choices", _("Only a choice has choices. Change the kind, or remove them."))
        return values

    def variable(self) -> Variable | None:
        """Return the field that it describes; None: an empty row."""
        values = self.cleaned_data
        if not values.get("name"):
            return None
        kind = values.get("kind") or VariableKind.LINE
        parts = values.get("choices", "").replace("、", ",").split(",") if kind == VariableKind.CHOICE else []
        return Variable(
            name=values["name"],
            label=values.get("label") or values["name"],
            kind=kind,
            example=values.get("example", ""),
            choices=tuple(part.strip() for part in parts if part.strip()),
        )


def make_variable_set(prefix: str, initial: Iterable[Variable] = (), data: Any = None) -> Any:
    """Return the rows for the fields of a prompt, some of them empty."""
    rows = [{**one.to_json(), "choices": ", ".join(one.choices)} for one in initial]
    spare = max(0, min(SPARE_ROWS if rows else 3, MOST_VARIABLES - len(rows)))
    kind = forms.formset_factory(
        VariableForm, extra=spare, max_num=MOST_VARIABLES, absolute_max=MOST_VARIABLES, validate_max=True
    )
    return kind(data, prefix=prefix, initial=None if data is not None else rows)


class LanguageForms:
    """The form of one language with its rows. `text`: what is there already."""

    def __init__(self, language: str, text: TextContent | None = None, data: Any = None) -> None:
        self.language = language
        self.label = Language(language).label
        self.has_text = text is not None
        initial = {name: getattr(text, name) for name in LIMITS} if text else {}
        self.texts = TextForm(data, prefix=language, initial=initial)
        self.rows = make_variable_set(f"{language}-fields", text.variables if text else (), data)

    def is_valid(self) -> bool:
        return self.texts.is_valid() and self.rows.is_valid()

    def content(self) -> TextContent | None:
        """Return the texts; None: the language was left empty."""
        values = {name: self.texts.cleaned_data[name].strip() for name in LIMITS}
        variables = tuple(one for row in self.rows if (one := row.variable()) is not None)
        if not any(values.values()) and not variables:
            return None
        return TextContent(language=self.language, **values, variables=variables)


class UseCaseForms:
    """All forms of a case together."""

    def __init__(
        self, user: User, content: UseCaseContent | None = None, *, is_new: bool, seen: int = 0, data: Any = None
    ) -> None:
        initial: dict[str, Any] = {"seen": seen}
        if content:
            initial |= {"kind": content.kind, "departments": content.departments, "model": content.model}
        model = content.model if content else ""
        self.general = UseCaseForm(data, user=user, is_new=is_new, current_model=model, initial=initial)
        texts = {text.language: text for text in content.texts} if content else {}
        self.languages = [LanguageForms(language, texts.get(language), data) for language in Language.values]

    def content(self) -> UseCaseContent | None:
        """Return what was sent; None: a form says what is wrong. Raises UseCaseRefused."""
        # All of them, so that each shows what is wrong.
        valid = [self.general.is_valid(), *(part.is_valid() for part in self.languages)]
        if not all(valid):
            return None
        values = self.general.cleaned_data
        texts = [one for part in self.languages if (one := part.content()) is not None]
        return UseCaseContent(
            kind=values["kind"], departments=tuple(values["departments"]), model=values["model"], texts=tuple(texts)
        )

    def show_newest(self, number: int) -> None:
        """Let the person, who is shown that there is a newer version, save what they wrote after all."""
        sent: Any = self.general.data
        data = sent.copy()
        data["seen"] = str(number)
        self.general.data = data

    def refuse(self, refusal: UseCaseRefused) -> None:
        self.general.add_error(None, refusal.sentence)


class HelpedForm(forms.Form):
    minutes = forms.IntegerField(
        label=_("Minutes it saved you each time"), required=False, min_value=1, max_value=MOST_MINUTES
    )


class CommentForm(forms.Form):
    text = forms.CharField(
        label=_("Comment"), max_length=MAX_COMMENT, widget=forms.Textarea(attrs={"rows": 3}), help_text=_("Markdown.")
    )


class DecisionForm(forms.Form):
    """What is decided about a version. `verdict`: the button; one that returns it needs a comment."""

    # The number of the version that was shown: of no other one it is decided.
    seen = forms.IntegerField(widget=forms.HiddenInput, required=False, min_value=0, max_value=10**6)
    note = forms.CharField(
        label=_("Comment"),
        required=False,
        max_length=MAX_NOTE,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text=_("Needed to return it: what should change."),
    )

    def __init__(self, *args: Any, verdict: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.verdict = verdict
        self.fields["note"].required = verdict == "return"
        self.fields["note"].error_messages["required"] = NO_COMMENT

    def confirmation(self) -> str:
        """Return what the page sends back when the cautions about exactly this decision were read."""
        return f"{self.verdict}/{self.data.get('seen', '')}"

    def refuse(self, refusal: UseCaseRefused) -> None:
        self.add_error("note" if refusal.code == "note" else None, refusal.sentence)

    def refusals(self) -> list[str]:
        """Return what is wrong but with the comment."""
        return [str(error) for field in (None, "seen") for error in self.errors.get(field or "__all__", ())]

    def show_decided(self, number: int) -> None:
        """Let the person, who is shown that there is a newer version, decide about that with what they wrote."""
        sent: Any = self.data
        data = sent.copy()
        data["seen"] = str(number)
        self.data = data
