"""What is said in Japanese is said in Japanese throughout: forms, models, scripts, errors of the API and the gateway.

That each text of the catalogue has its Japanese is the matter of test_pages_translations; here it is looked for texts
that never got into the catalogue.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from django import forms
from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.utils import label_for_field
from django.http import HttpRequest
from django.urls import get_resolver
from django.utils import translation

from apiproxy.dataplane.catalogue import Scope
from apiproxy.dataplane.errors import MESSAGES, WORDS, UnknownModel
from apiproxy.dataplane.limits.units import UNITS
from modelregistry.models import ServedModel
from portal.quotas.models import Quota
from portal.usage.models import UsageRecord
from tests.html import all_of

ROOT = Path(settings.BASE_DIR)
OURS = ("accounts", "audit", "keys", "usage", "quotas", "notifications", "modelregistry")
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
SEEN_BY_PEOPLE = {
    "Tenant",
    "User",
    "Membership",
    "ApiKey",
    "ManagementKey",
    "ModelAccess",
    "Quota",
    "ServedModel",
    "Host",
}
# Three words of English in a row: fewer may be a name, an argument or a unit.
ENGLISH = re.compile(r"[A-Za-z’']{2,}(?:,? [A-Za-z’']{2,}){2,}")


def is_english(text: object) -> bool:
    return bool(ENGLISH.search(str(text))) and not JAPANESE.search(str(text))


def subclasses(of: type) -> Iterator[type]:
    for one in of.__subclasses__():
        yield one
        yield from subclasses(one)


class TestForms:
    def fields(self) -> Iterator[tuple[str, forms.Field]]:
        get_resolver().url_patterns  # noqa: B018 - every view, and so every form, is imported by then
        for form in subclasses(forms.BaseForm):
            if form.__module__.startswith(("portal.", "modelregistry.")):
                for name, field in form.base_fields.items():
                    yield f"{form.__module__}.{form.__name__}.{name}", field

    def test_labels_hints_choices_and_errors(self):
        found, seen = [], 0
        with translation.override("ja"):
            for name, field in self.fields():
                seen += 1
                rows = isinstance(field, forms.ModelChoiceField)  # names of data
                choices = [] if rows else [label for _, label in getattr(field, "choices", ())]
                told = [field.label or "", field.help_text, *field.error_messages.values(), *choices]
                found += [f"{name}: {text}" for text in told if is_english(text)]
        assert seen > 20
        assert found == []


def test_what_models_call_their_fields():
    """Operators read these in Django's admin, and everybody in errors."""
    found = []
    with translation.override("ja"):
        for label in OURS:
            for model in apps.get_app_config(label).get_models():
                if model.__name__ not in SEEN_BY_PEOPLE:
                    continue
                names = [model._meta.verbose_name, model._meta.verbose_name_plural]
                for field in model._meta.fields:
                    names += [field.help_text, *(text for _, text in field.choices or ())]
                    if field.editable and field.verbose_name != field.name.replace("_", " "):
                        names.append(field.verbose_name)
                for constraint in model._meta.constraints:
                    if constraint.violation_error_message != constraint.default_violation_error_message:
                        names.append(constraint.violation_error_message)
                found += [f"{model.__name__}: {text}" for text in names if is_english(text)]
    assert found == []


LATIN_WORD = re.compile(r"[A-Za-z]{2,} [a-z]{2,}|[a-z]{3,}")


def test_columns_of_the_admin_and_fields_of_usage_have_japanese_names():
    found = []
    with translation.override("ja"):
        for model in apps.get_models():
            if not admin.site.is_registered(model):
                continue
            model_admin = admin.site.get_model_admin(model)
            names = set(model_admin.get_list_display(HttpRequest()))
            names |= {field.name for field in model._meta.fields} if model is UsageRecord else set()
            for name in names - {"id"}:
                label = str(label_for_field(name, model, model_admin))
                found += [f"{model.__name__}.{name}: {label}"] if LATIN_WORD.search(label) else []
    assert found == []


@pytest.mark.django_db
def test_the_admin_puts_no_blank_between_a_name_and_its_particle(client, olivia):
    client.force_login(olivia)
    for page in ("accounts/user/", "accounts/user/add/", f"accounts/user/{olivia.pk}/change/", "accounts/tenant/"):
        answer = client.get(f"/admin/{page}", headers={"accept-language": "ja"})
        said = [one.text for selector in ("h1", "title", "a.addlink", "option") for one in all_of(answer, selector)]
        assert any(JAPANESE.search(part) for part in said)
        assert [part for part in said if re.search(r"[\u3040-\u30ff\u4e00-\u9fff] [\u3040-\u309f]", part)] == []


def literals(script: str) -> Iterator[str]:
    """Yield the texts in a script's quotes, without those of its comments."""
    code = re.sub(r"^\s*//.*$|\s//\s.*$", "", script, flags=re.MULTILINE)
    for match in re.finditer(r'"((?:[^"\\\n]|\\.)*)"|`((?:[^`\\]|\\.)*)`', code):
        yield next(group for group in match.groups() if group is not None)


@pytest.mark.parametrize("script", sorted((ROOT / "portal" / "static").glob("*.js")), ids=lambda path: path.name)
def test_scripts_say_nothing_of_their_own(script):
    """A page gives its script the texts, in its language: a script that holds a sentence says it in one language."""
    found = []
    for text in literals(script.read_text()):
        sentence = JAPANESE.search(text) or re.search(r"\b[A-Z][a-z]+ [a-z]+ [a-z]+\b|[a-z] [a-z]+[.!?…]$", text)
        if sentence and "import" not in text:  # the example in Python
            found.append(text)
    assert found == []


class TestGateway:
    def test_every_message_is_in_japanese_with_the_same_facts(self):
        for name, texts in MESSAGES.items():
            assert JAPANESE.search(texts["ja"]), name
            assert not JAPANESE.search(texts["en"]), name
            facts = [sorted(set(re.findall(r"\{(\w+)\}", texts[language]))) for language in ("en", "ja")]
            assert facts[0] == facts[1], name

    def test_every_word_that_fills_a_message_has_its_japanese(self):
        windows = [window for window in Quota.Window.values if window]
        words = {*get_args(Scope), *windows, *ServedModel.Task.values}
        assert {word for word in words if word not in WORDS["ja"]} == set()

    def test_a_model_whose_name_is_one_of_these_words_keeps_it(self):
        for name in ServedModel.Task.values:
            assert f"「{name}」" in UnknownModel("model_not_found", model=name).message("ja")

    def test_every_unit_has_its_words_in_both_languages(self):
        for unit in UNITS.values():
            assert JAPANESE.search(unit.words["ja"])
            assert not JAPANESE.search(unit.words["en"])

    def test_every_detail_of_ours_has_its_japanese(self):
        """Names of fields and headers are the same in every language, and have no space."""
        details = set()
        for path in (ROOT / "apiproxy").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "_refuse" and "feedback" in path.name:
                    details.add(ast.literal_eval(node.args[1]))
                if isinstance(node, ast.keyword) and node.arg == "detail":
                    assert not isinstance(node.value, ast.JoinedStr), f"{path.name}: {ast.unparse(node.value)}"
                    if isinstance(node.value, ast.Constant) and " " in str(node.value.value):
                        details.add(node.value.value)
        assert details
        assert details - WORDS["ja"].keys() == set()


@pytest.mark.django_db
class TestProblems:
    """What the API answers to who did something wrong, in the language of who asked."""

    @pytest.fixture
    def ask(self, client, olivia):
        client.force_login(olivia)

        def ask(method: str, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
            headers = {"accept-language": "ja", **more.pop("headers", {})}
            answer = client.generic(method, path, body or "", headers=headers, **more)
            assert 400 <= answer.status_code < 500
            return answer.json()

        return ask

    @pytest.mark.parametrize(
        ("method", "path", "body", "kind"),
        [
            ("GET", "/api/v1/models/999/", "", "application/json"),
            ("DELETE", "/api/v1/overview/", "", "application/json"),
            ("POST", "/api/v1/models/", "{", "application/json"),
            ("POST", "/api/v1/models/", "[]", "application/json"),
            ("POST", "/api/v1/models/", "{}", "application/json"),
            ("POST", "/api/v1/models/", '{"name": 7, "engine": "nothing", "context": "long"}', "application/json"),
            ("POST", "/api/v1/models/", "a=b", "text/plain"),
            ("GET", "/api/v1/hosts/?page=99", "", "application/json"),
            ("GET", "/api/v1/nowhere/", "", "application/json"),
        ],
    )
    def test_they_are_in_japanese(self, ask, method, path, body, kind):
        told = ask(method, path, body, content_type=kind)
        sentences = [told["title"], told.get("detail", ""), *(error["detail"] for error in told.get("errors", ()))]
        assert [text for text in sentences if text and not JAPANESE.search(text)] == []

    def test_who_is_not_signed_in_is_told_in_japanese(self, client):
        told = client.get("/api/v1/models/", headers={"accept-language": "ja"}).json()
        assert JAPANESE.search(told["title"])
        assert JAPANESE.search(told["detail"])


# Beginnings of messages whose number is never 1: a bound of ours, rounded to fives, of more than one GPU or host, the
# steps of a course; and of those that name who or what "answers" and "requests".
NEVER_ONE = (
    "Each needs %(needed)s hosts at a time",
    "%(wanted)s replicas have been wanted",
    "Operators are notified when the newest one is older than %(hours)s hours.",
    "It was made on %(minute)s, and should never be older than %(hours)s hours.",
    "There should always be one that is not older than %(hours)s hours.",
    "each replica on %(count)s hosts",
    "It is split over %(needed)s hosts",
    "Its GPUs (%(gpus)d) cannot be divided evenly among %(hosts)d hosts",
    "%(most)s models are shown side by side",
    "%(done)s of %(all)s steps",
    "about %(minutes)s minutes",
    "split over %(count)s GPUs",
    "Split over %(count)d GPUs",
    "To split it over %(count)d GPUs",
    "It does not fit: on each of %(devices)d GPUs",
    "vLLM splits by attention heads: %(heads)d heads cannot be divided evenly among %(gpus)d GPUs.",
    "No model failed for more than two minutes in the last %(days)s days",
    "This request is older than %(days)d days.",
    "Too many requests with wrong keys. Try again in %(seconds)d seconds.",
    "Too many wrong codes. Try again in %(minutes)d minutes.",
    "Choose a time within %(years)d years, or no expiry.",
    "Choose a time within the next %(years)d years.",
    "At most %(most)d people can be invited at a time.",
    "Without a limit of tokens a seminar has at most %(places)d places.",
    "At most %(most)d fields.",
    "At most %(most)d places such as",
    "You have written %(most)d comments here",
    "calls of %(callers)s callers or more",
    "A process reports every 2 seconds",
    "Example: if one person of each tenant",
    "Fewer than %(least)s people are shown as",
    "The rate is that of answers",
    "%(all)s people arrived",
    "%(people)s of %(all)s people who arrived",
    "%(people)s people were active last week",
    "About %(people)s of the %(all)s people",
    "%(asker)s requests a higher quota",
    "%(model)s answers again",
    "The host %(host)s answers again",
)
MESSAGE = re.compile(r'^msgid ((?:"[^\n]*"\n?)+)', re.M)
COUNTED = re.compile(
    r"%\(\w+\)[sd] (?:other |more )?(?:answers?|requests?|models?|minutes?|seconds?|hours?|days?|weeks?|years?|files?"
    r"|places?|keys?|people|persons?|replicas?|hosts?|GPUs?|comments?|steps?|callers?|fields?|limits?|notices?|problems?)\b"
)


def test_what_is_counted_has_a_singular_and_a_plural_in_english():
    """“1 of 1 requests got no complete answer”."""
    text = (ROOT / "portal/locale/ja/LC_MESSAGES/django.po").read_text(encoding="utf-8")
    alone = [entry for entry in text.split("\n\n") if "\nmsgid_plural" not in entry]
    messages = {"".join(re.findall(r'"(.*)"', part)) for entry in alone for part in MESSAGE.findall(entry)}
    counted = {message for message in messages if COUNTED.search(message)}
    assert [one for one in NEVER_ONE if not any(message.startswith(one) for message in counted)] == []
    assert [message for message in counted if not message.startswith(NEVER_ONE)] == []
