"""Use cases as the API shows and takes them."""

from typing import Any

from rest_framework import serializers

from modelregistry.one_line import check_one_line
from portal.use_cases import gallery
from portal.use_cases import models as rows
from portal.use_cases.content import TextContent, UseCaseContent
from portal.use_cases.variables import (
    MAX_CHOICE,
    MAX_LABEL,
    MAX_NAME,
    MAX_VALUE,
    MOST_CHOICES,
    MOST_VARIABLES,
    NAME,
    Variable,
    VariableKind,
)
from portal.web.rest.strict_fields import CharField, ChoiceField, KnownFields


class UseCaseField(KnownFields):
    """Something to fill in: `{{name}}` in the prompts."""

    name = serializers.RegexField(rf"^{NAME.pattern}\Z", max_length=MAX_NAME)
    label = CharField(max_length=MAX_LABEL, validators=[check_one_line])  # type: ignore[assignment]  # an attribute of each field
    kind = ChoiceField(VariableKind.choices, required=False, default=VariableKind.LINE)
    example = CharField(max_length=MAX_VALUE, required=False, default="", allow_blank=True, trim_whitespace=False)
    choices = serializers.ListField(
        child=CharField(max_length=MAX_CHOICE, validators=[check_one_line]),
        max_length=MOST_CHOICES,
        required=False,
        default=list,
    )


class UseCaseTexts(KnownFields):
    """What a use case says in one language."""

    language = ChoiceField(rows.Language.choices)
    title = CharField(max_length=rows.MAX_TITLE, validators=[check_one_line])
    summary = CharField(max_length=rows.MAX_SUMMARY, validators=[check_one_line])
    system = CharField(max_length=rows.MAX_SYSTEM, required=False, default="", allow_blank=True)
    prompt = CharField(max_length=rows.MAX_PROMPT)
    expected_input = CharField(max_length=rows.MAX_EXPECTED, required=False, default="", allow_blank=True)
    example_answer = CharField(
        max_length=rows.MAX_ANSWER, required=False, default="", allow_blank=True, help_text="Markdown."
    )
    variables = UseCaseField(many=True, required=False, default=list, max_length=MOST_VARIABLES)  # type: ignore[call-arg]


class UseCase(serializers.Serializer[rows.UseCase]):
    """A published use case, or one's own. `texts` in the languages that it has."""

    id = serializers.IntegerField()
    tenant = serializers.CharField(source="tenant.slug", allow_null=True, default=None)
    company_wide = serializers.BooleanField(source="is_company_wide")
    version = serializers.IntegerField(source="shown.number")
    state = serializers.ChoiceField(rows.UseCaseVersion.State.choices, source="shown.state")
    kind = serializers.ChoiceField(rows.TaskKind.choices, source="shown.kind")
    departments = serializers.ListField(
        child=serializers.ChoiceField(rows.TargetGroup.choices), source="shown.department_codes"
    )
    model = serializers.CharField(source="shown.model", help_text="A name or an alias. Empty: any chat model.")
    helped = serializers.IntegerField(help_text="How many people it helped.")
    minutes_saved = serializers.IntegerField(
        source="shown_minutes", allow_null=True, help_text="The median of what people said; null: fewer than 3 did."
    )
    published_at = serializers.DateTimeField(allow_null=True)
    texts = UseCaseTexts(many=True, source="shown_texts")


TEXTS = ("title", "summary", "system", "prompt", "expected_input", "example_answer")


class UseCaseFilter(serializers.Serializer[Any]):
    text = CharField(required=False, max_length=100, help_text="Words in the title or the summary.")
    department = serializers.ChoiceField(rows.TargetGroup.choices, required=False)
    kind = serializers.ChoiceField(rows.TaskKind.choices, required=False)
    language = serializers.ChoiceField(rows.Language.choices, required=False)
    sort = serializers.ChoiceField(gallery.SORTS, required=False, default=gallery.SORTS[0])


class NewUseCase(KnownFields):
    tenant = CharField(max_length=50, help_text="One of your tenants, whose champions and admins decide.")
    kind = ChoiceField(rows.TaskKind.choices)
    departments = serializers.ListField(child=ChoiceField(rows.TargetGroup.choices), min_length=1, max_length=20)
    model = CharField(max_length=100, required=False, default="", allow_blank=True)
    texts = UseCaseTexts(many=True, min_length=1, max_length=2)  # type: ignore[call-arg]
    propose = serializers.BooleanField(required=False, default=True, help_text="False: only saved as a draft.")


def content_from(values: dict[str, Any]) -> UseCaseContent:
    """Return what a validated NewUseCase describes."""
    return UseCaseContent(
        kind=values["kind"],
        departments=tuple(dict.fromkeys(values["departments"])),
        model=values["model"],
        texts=tuple(
            TextContent(
                language=text["language"],
                **{name: text[name] for name in TEXTS},
                variables=tuple(Variable(**{**one, "choices": tuple(one["choices"])}) for one in text["variables"]),
            )
            for text in values["texts"]
        ),
    )
