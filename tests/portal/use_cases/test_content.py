"""What can be a use case, and what is filled into its prompts."""

from dataclasses import replace

import pytest

from portal.use_cases.content import UseCaseRefused, check_content
from portal.use_cases.models import MAX_PROMPT, MAX_TITLE
from portal.use_cases.variables import (
    MAX_VALUE,
    MOST_PLACES,
    MOST_VARIABLES,
    Variable,
    fill_in,
    find_names,
    read_values,
)
from tests.use_cases import MAIL, case_content, text_content

CHOICE = Variable(name="tone", label="Tone", kind="choice", example="plain", choices=("plain", "warm"))


def test_a_whole_case_is_taken():
    both = (text_content("ja"), text_content("en", system="Be {{tone}}.", variables=(MAIL, CHOICE)))
    check_content(case_content(*both))


@pytest.mark.parametrize(
    ("code", "content"),
    [
        ("kind", case_content(kind="other")),
        ("departments", case_content(departments=())),
        ("departments", case_content(departments=("nowhere",))),
        ("languages", case_content(text_content(), text_content())),
        ("languages", case_content(text_content("fr"))),
        ("title", case_content(text_content(title=" "))),
        ("title", case_content(text_content(title="x" * (MAX_TITLE + 1)))),
        ("summary", case_content(text_content(summary=""))),
        ("prompt", case_content(text_content(prompt="{{mail}}" + "x" * MAX_PROMPT))),
        ("prompt", case_content(text_content(prompt="{{mail}}\0"))),
        ("variables", case_content(text_content(prompt="nothing to fill in"))),
        ("variables", case_content(text_content(prompt="{{mail}} {{other}}"))),
        ("variables", case_content(text_content(prompt="{{mail}} " * MOST_PLACES, system="{{mail}}"))),
        ("variables", case_content(text_content(variables=(MAIL, MAIL)))),
        ("variables", case_content(text_content(variables=(MAIL,) * (MOST_VARIABLES + 1)))),
        ("variables", case_content(text_content(variables=(Variable(name="Mail", label="x"),)))),
        ("variables", case_content(text_content(variables=(Variable(name="mail", label=""),)))),
        ("variables", case_content(text_content(variables=(Variable(name="mail", label="x", kind="file"),)))),
        ("variables", case_content(text_content(variables=(Variable(name="mail", label="x", kind="choice"),)))),
        *(
            (
                "variables",
                case_content(text_content(variables=(replace(CHOICE, name="mail", choices=("plain", wrong)),))),
            )
            for wrong in ("warm, kind", "暖かい、優しい", " warm", "")
        ),
        (
            "variables",
            case_content(text_content(variables=(Variable(name="mail", label="x", example="x" * (MAX_VALUE + 1)),))),
        ),
    ],
)
def test_what_cannot_be_a_case_is_refused_with_its_field(code, content):
    with pytest.raises(UseCaseRefused) as refused:
        check_content(content)
    assert refused.value.code == code


def test_values_are_filled_in_once_and_are_text_themselves():
    assert fill_in("{{a}} and {{ b }}, {{c}}", {"a": "{{b}}", "b": "2"}) == "{{b}} and 2, {{c}}"
    assert find_names("{{a}} {{b}} {{a}} {{9}} {{B}}", "{{c}}") == ["a", "b", "c"]


def test_what_is_filled_in_many_times_stays_small():
    """Of a case that an older version took."""
    assert fill_in("{{a}}" * 2000, {"a": "x" * MAX_VALUE}) == "x" * MAX_VALUE * MOST_PLACES + "{{a}}" * (
        2000 - MOST_PLACES
    )


def test_what_people_fill_in_is_bounded():
    values = read_values(
        (MAIL, CHOICE, Variable(name="line", label="x")),
        {"v-mail": "x" * 9000 + "\0", "v-tone": "loud", "v-line": " a\nb ", "v-other": "y"},
    )
    assert values == {"mail": "x" * MAX_VALUE, "tone": "plain", "line": "a b"}
    assert read_values((MAIL,), {}) == {"mail": MAIL.example}
