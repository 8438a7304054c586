"""What a version of a use case says, checked once, whether it comes from a form, the API or a file."""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from portal.use_cases import variables
from portal.use_cases.models import (
    MAX_ANSWER,
    MAX_EXPECTED,
    MAX_PROMPT,
    MAX_SUMMARY,
    MAX_SYSTEM,
    MAX_TITLE,
    Language,
    TargetGroup,
    TaskKind,
    UseCaseText,
    UseCaseVersion,
)
from portal.use_cases.variables import Variable, VariableKind, count_places, find_names
from portal.web.refusals import Refused


class UseCaseRefused(Refused):
    """The requested change of a use case cannot be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextContent:
    """The texts in one language."""

    language: str
    title: str
    summary: str
    prompt: str
    system: str = ""
    expected_input: str = ""
    example_answer: str = ""
    variables: tuple[Variable, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCaseContent:
    """All that a version says. `departments`: codes of TargetGroup; `model` "": any chat model."""

    kind: str
    departments: tuple[str, ...]
    texts: tuple[TextContent, ...]
    model: str = ""

    @property
    def name(self) -> str:
        return self.texts[0].title


LIMITS = {
    "title": MAX_TITLE,
    "summary": MAX_SUMMARY,
    "prompt": MAX_PROMPT,
    "system": MAX_SYSTEM,
    "expected_input": MAX_EXPECTED,
    "example_answer": MAX_ANSWER,
}
NEEDED = ("title", "summary", "prompt")


def check_content(content: UseCaseContent) -> None:
    """Raise UseCaseRefused for what cannot be a use case."""
    if content.kind not in TaskKind.values:
        raise UseCaseRefused(_("Choose what kind of task it is."), code="kind")
    if not content.departments or not set(content.departments) <= set(TargetGroup.values):
        raise UseCaseRefused(_("Choose who it is for."), code="departments")
    if not content.texts or len({text.language for text in content.texts}) < len(content.texts):
        raise UseCaseRefused(_("Fill in at least one language, each of them once."), code="languages")
    for text in content.texts:
        _check_text(text)


def _check_text(text: TextContent) -> None:
    if text.language not in Language.values:
        raise UseCaseRefused(_("The language is Japanese or English."), code="languages")
    labels = {field.name: str(field.verbose_name) for field in UseCaseText._meta.concrete_fields}
    for name, most in LIMITS.items():
        value = getattr(text, name)
        facts = {"field": labels[name], "language": Language(text.language).label, "most": most}
        if name in NEEDED and not value.strip():
            raise UseCaseRefused(_("“%(field)s” is missing (%(language)s).") % facts, code=name)
        if len(value) > most or "\0" in value:
            raise UseCaseRefused(
                _("“%(field)s” may have at most %(most)d characters (%(language)s).") % facts, code=name
            )
    if len(text.variables) > variables.MOST_VARIABLES:
        raise UseCaseRefused(_("At most %(most)d fields.") % {"most": variables.MOST_VARIABLES}, code="variables")
    for one in text.variables:
        _check_variable(one)
    _check_names(text)


def _check_variable(one: Variable) -> None:
    facts = {"name": one.name[: variables.MAX_NAME]}
    if not variables.NAME.fullmatch(one.name):
        sentence = _("“%(name)s” is no name of a field: use small letters a–z, digits and _, a letter first.")
        raise UseCaseRefused(sentence % facts, code="variables")
    if one.kind not in VariableKind.values or not one.label.strip() or len(one.label) > variables.MAX_LABEL:
        raise UseCaseRefused(_("The field “%(name)s” needs a short label and a kind.") % facts, code="variables")
    if len(one.example) > variables.MAX_VALUE or "\0" in one.example + one.label:
        raise UseCaseRefused(_("The example of the field “%(name)s” is too long.") % facts, code="variables")
    if one.kind == VariableKind.CHOICE:
        # Its form has them between commas.
        fits = all(
            choice.strip() == choice and 0 < len(choice) <= variables.MAX_CHOICE and not set(choice) & set(",、\n\0")
            for choice in one.choices
        )
        if not (2 <= len(one.choices) <= variables.MOST_CHOICES and fits and one.example in one.choices):
            sentence = _(
                "The field “%(name)s” needs 2 to 12 short choices without commas, of which the example is one."
            )
            raise UseCaseRefused(sentence % facts, code="variables")


def _check_names(text: TextContent) -> None:
    """Raise UseCaseRefused unless the prompts have exactly the places for which there is a field."""
    known = [one.name for one in text.variables]
    used = find_names(text.prompt, text.system)
    if count_places(text.prompt, text.system) > variables.MOST_PLACES:
        sentence = _("At most %(most)d places such as {{%(name)s}} in both prompts together.")
        raise UseCaseRefused(sentence % {"most": variables.MOST_PLACES, "name": used[0]}, code="variables")
    if len(set(known)) < len(known):
        raise UseCaseRefused(_("Two fields have the same name."), code="variables")
    if missing := [name for name in used if name not in known]:
        sentence = _("There is no field for {{%(name)s}}. Add one below the prompt.")
        raise UseCaseRefused(sentence % {"name": missing[0]}, code="variables")
    if unused := [name for name in known if name not in used]:
        sentence = _("The prompt does not contain {{%(name)s}}. Write it where the value belongs.")
        raise UseCaseRefused(sentence % {"name": unused[0]}, code="variables")


def content_of(version: UseCaseVersion) -> UseCaseContent:
    """Return what a version says, with its Japanese first."""
    texts = sorted(version.texts.all(), key=lambda text: text.language != Language.JA)
    return UseCaseContent(
        kind=version.kind,
        departments=tuple(version.department_codes),
        model=version.model,
        texts=tuple(
            TextContent(
                language=text.language,
                **{name: getattr(text, name) for name in LIMITS},
                variables=text.fields,
            )
            for text in texts
        ),
    )
