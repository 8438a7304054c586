"""What a version of a use case says, checked once, whether it comes from a form, the API or a file."""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from modelregistry.one_line import is_odd, is_visible
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
ONE_LINE = ("title", "summary")


def check_content(content: UseCaseContent) -> None:
    """Raise UseCaseRefused, about its field, for what cannot be a use case."""
    if content.kind not in TaskKind.values:
        raise _refuse(_("Choose what kind of task it is."), "kind")
    if not content.departments or not set(content.departments) <= set(TargetGroup.values):
        raise _refuse(_("Choose who it is for."), "departments")
    if not content.texts or len({text.language for text in content.texts}) < len(content.texts):
        raise _refuse(_("Fill in at least one language, each of them once."), "languages")
    for text in content.texts:
        _check_text(text)


def _refuse(sentence: str, code: str) -> UseCaseRefused:
    """Return the refusal of a part of the content: what was sent is wrong, whatever is stored."""
    field = code if code in ("kind", "departments") else "texts"
    return UseCaseRefused(sentence, {field: [sentence]}, code=code)


def _check_text(text: TextContent) -> None:
    if text.language not in Language.values:
        raise _refuse(_("The language is Japanese or English."), "languages")
    labels = {field.name: str(field.verbose_name) for field in UseCaseText._meta.concrete_fields}
    for name, most in LIMITS.items():
        value = getattr(text, name)
        facts = {"field": labels[name], "language": Language(text.language).label, "most": most}
        if name in NEEDED and not is_visible(value):
            raise _refuse(_("“%(field)s” is missing (%(language)s).") % facts, name)
        if len(value) > most or "\0" in value:
            raise _refuse(_("“%(field)s” may have at most %(most)d characters (%(language)s).") % facts, name)
        if name in ONE_LINE and any(map(is_odd, value)):
            sentence = _("“%(field)s” is one line without control characters (%(language)s).")
            raise _refuse(sentence % facts, name)
    if len(text.variables) > variables.MOST_VARIABLES:
        raise _refuse(_("At most %(most)d fields.") % {"most": variables.MOST_VARIABLES}, "variables")
    for one in text.variables:
        _check_variable(one)
    _check_names(text)


def _check_variable(one: Variable) -> None:
    facts = {"name": one.name[: variables.MAX_NAME]}
    if not variables.NAME.fullmatch(one.name):
        sentence = _("“%(name)s” is no name of a field: use small letters a–z, digits and _, a letter first.")
        raise _refuse(sentence % facts, "variables")
    if one.kind not in VariableKind.values or not is_visible(one.label) or len(one.label) > variables.MAX_LABEL:
        raise _refuse(_("The field “%(name)s” needs a short label and a kind.") % facts, "variables")
    if any(is_odd(character) for text in (one.label, *one.choices) for character in text):
        sentence = _("The label and the choices of the field “%(name)s” are one line each.")
        raise _refuse(sentence % facts, "variables")
    if len(one.example) > variables.MAX_VALUE or "\0" in one.example + one.label:
        raise _refuse(_("The example of the field “%(name)s” is too long.") % facts, "variables")
    if one.kind == VariableKind.CHOICE:
        # Its form has them between commas.
        fits = all(
            choice.strip() == choice
            and is_visible(choice)
            and len(choice) <= variables.MAX_CHOICE
            and not set(choice) & set(",、\n\0")
            for choice in one.choices
        )
        if not (2 <= len(one.choices) <= variables.MOST_CHOICES and fits and one.example in one.choices):
            sentence = _(
                "The field “%(name)s” needs 2 to 12 short choices without commas, of which the example is one."
            )
            raise _refuse(sentence % facts, "variables")


def _check_names(text: TextContent) -> None:
    """Raise UseCaseRefused unless the prompts have exactly the places for which there is a field."""
    known = [one.name for one in text.variables]
    used = find_names(text.prompt, text.system)
    if count_places(text.prompt, text.system) > variables.MOST_PLACES:
        sentence = _("At most %(most)d places such as {{%(name)s}} in both prompts together.")
        raise _refuse(sentence % {"most": variables.MOST_PLACES, "name": used[0]}, "variables")
    if len(set(known)) < len(known):
        raise _refuse(_("Two fields have the same name."), "variables")
    if missing := [name for name in used if name not in known]:
        sentence = _("There is no field for {{%(name)s}}. Add one below the prompt.")
        raise _refuse(sentence % {"name": missing[0]}, "variables")
    if unused := [name for name in known if name not in used]:
        sentence = _("The prompt does not contain {{%(name)s}}. Write it where the value belongs.")
        raise _refuse(sentence % {"name": unused[0]}, "variables")


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
