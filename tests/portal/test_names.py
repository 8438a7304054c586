"""Names and titles are one line, wherever they come from: so none moves or hides what is beside it."""

import re
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import models

from modelregistry.one_line import check_one_line, make_one_line
from portal.accounts import directory_users, ldap
from portal.accounts.models import Tenant
from portal.keys import lifecycle
from portal.keys.models import ApiKey
from portal.news.models import Announcement
from portal.use_cases.content import UseCaseRefused, check_content
from portal.use_cases.models import UseCase
from portal.use_cases.variables import Variable
from tests.news import announce
from tests.pages import key_of
from tests.use_cases import case_content, text_content

pytestmark = pytest.mark.django_db

ODD = ["two\nlines", "two\rlines", "a\x1b[2Jb", "a\u202eb", "a\u2067b", "a\u2028b", "a\x85b"]
# Of which a page shows nothing.
UNSEEN = ["\u200b", "\xad", "\u2800", "\u3164", "\u115f\u2060 \ufe0f", "\U000e0041"]
ODD += UNSEEN
NAMED = re.compile(r"^(name|title(_\w+)?|summary|service|reference|purpose)$")
# Written by programs alone, or made of names that were checked.
WRITTEN = {"auth.Permission", "auth.Group", "contenttypes.ContentType", "sessions.Session"}
WRITTEN |= {"modelregistry.TaskRun", "apiproxy.GatewayMachine", "apiproxy.ControllerMachine"}
PACKAGES = ("portal.", "modelregistry", "apiproxy.")


def fields_with_names() -> Iterator[models.Field]:
    for model in apps.get_models():
        if not model.__module__.startswith(PACKAGES) or model._meta.label in WRITTEN:
            continue
        for field in model._meta.concrete_fields:
            if isinstance(field, models.CharField) and not field.choices and NAMED.match(field.name):
                yield field


def test_every_field_with_a_name_or_title_refuses_what_is_not_one_line():
    fields = list(fields_with_names())
    assert len(fields) >= 15
    for field in fields:
        for text in (*ODD, "ends with a break\n"):
            with pytest.raises(ValidationError):
                field.run_validators(text)
            assert not re.search("[\x00-\x1f]", make_one_line(text))


def test_usual_names_are_taken():
    for text in (
        "研究開発本部 第二研究部",
        "Vertrieb – Süd",
        "a\u3000b",
        "👩‍💻 team",
        "مبيعات",
        "",
        "…",
        "\ue000",
        "می\u200cخواهم",
    ):
        check_one_line(text)
        assert make_one_line(text) == text


@pytest.mark.parametrize("name", ODD)
def test_a_tenant_is_refused_on_the_page_of_operators_and_in_the_api(as_olivia, research, name):
    form = {"slug": "research", "name": name, "time_zone": "Asia/Tokyo", "key_days": "90", "weight": "1"}
    answer = as_olivia.post(f"/admin/accounts/tenant/{research.pk}/change/", form)
    assert "name" in answer.context["adminform"].errors
    answer = as_olivia.patch("/api/v1/tenants/research/", {"name": name}, content_type="application/json")
    assert (answer.status_code, [one["pointer"] for one in answer.json()["errors"]]) == (400, ["#/name"])
    with pytest.raises(ValidationError):
        directory_users.ensure_person("eve", password="x", tenant_slug="new", tenant_name=name)
    assert [one.name for one in Tenant.objects.filter(slug__in=("research", "new"))] == [research.name]


@pytest.mark.parametrize("name", ODD)
def test_a_title_of_news_is_refused(as_olivia, name):
    row = announce()
    page = as_olivia.get(f"/news/{row.pk}/").context["form"]
    form: dict[str, Any] = {one: page[one].value() for one in page.fields if one != "tenants"}
    form |= {one: page[one].value().strftime("%Y-%m-%dT%H:%M") for one in ("begins_at", "ends_at")}
    assert as_olivia.post(f"/news/{row.pk}/", {**form, "title_en": name}).status_code == 400
    answer = as_olivia.patch(f"/api/v1/news/{row.pk}/", {"title_en": name}, content_type="application/json")
    assert (answer.status_code, [one["pointer"] for one in answer.json()["errors"]]) == (400, ["#/title_en"])
    assert Announcement.objects.get().title_en == ""


@pytest.mark.parametrize("name", ODD)
def test_a_name_of_a_host_is_refused(as_olivia, name):
    answer = as_olivia.post("/admin/modelregistry/host/add/", {"name": name, "address": "127.0.0.1"})
    assert "name" in answer.context["adminform"].errors


@pytest.mark.parametrize("name", ODD)
def test_a_name_of_a_person_is_refused_and_one_from_the_directory_is_made_one_line(alice, name):
    entry = ldap.Person(
        **{
            "id": "objectGUID=1",
            "username": "eve",
            "first_name": name,
            "last_name": f" {name}",
            "mail": "",
            "roles": {},
        },
        **{"is_operator": None, "is_admitted": True},
    )
    eve, _changed = directory_users.apply_entry(entry)
    eve.full_clean(exclude=["password"])
    assert directory_users.agrees_with_entry(eve, entry)
    alice.last_name = name
    with pytest.raises(ValidationError) as refusal:
        alice.full_clean()
    assert set(refusal.value.error_dict) == {"last_name"}


@pytest.mark.parametrize("name", ODD)
def test_a_use_case_is_refused_on_its_page_in_the_api_and_by_itself(as_alice, research, name):
    form = {
        **{"tenant": "research", "kind": "write", "departments": ["hr"], "model": "", "step": "draft"},
        **{"en-title": name, "en-summary": "S", "en-prompt": "{{mail}}", "en-fields-0-name": "mail"},
        **{f"{language}-fields-{which}_FORMS": "0" for language in ("ja", "en") for which in ("TOTAL", "INITIAL")},
        "en-fields-TOTAL_FORMS": "1",
    }
    answer = as_alice.post("/use-cases/new/", form)
    assert (answer.status_code, list(answer.context["forms"].languages[1].texts.errors)) == (400, ["title"])
    for change in ({"en-summary": name}, {"en-fields-0-label": name}):
        assert as_alice.post("/use-cases/new/", {**form, "en-title": "T", **change}).status_code == 400
    text = {"language": "en", "title": "T", "summary": name, "prompt": "P"}
    new = {"tenant": "research", "kind": "check", "departments": ["legal"], "texts": [text]}
    answer = as_alice.post("/api/v1/use-cases/", new, content_type="application/json")
    assert (answer.status_code, [one["pointer"] for one in answer.json()["errors"]]) == (400, ["#/texts/0/summary"])
    choice = Variable(name="mail", label="L", kind="choice", example="a", choices=("a", name))
    for texts in (text_content(title=name), text_content(variables=(choice,))):
        with pytest.raises(UseCaseRefused):
            check_content(case_content(texts))
    assert not UseCase.objects.exists()


@pytest.mark.parametrize("name", ODD)
def test_a_key_is_refused_in_the_admin_and_by_command(as_olivia, alice, research, name):
    key = key_of(alice, research)
    answer = as_olivia.post(f"/admin/keys/apikey/{key.pk}/change/", {"name": name, "key_class": "interactive"})
    assert "name" in answer.context["adminform"].errors
    with pytest.raises(CommandError):
        call_command("createkey", tenant="research", user="alice", name=name, stdout=StringIO())
    for change in ({"name": name}, {"purpose": name}):
        with pytest.raises(ValidationError):
            lifecycle.change_key(key, by=None, **change)
    assert ApiKey.objects.get().name == key.name


@pytest.mark.parametrize("name", ODD)
def test_the_reason_of_a_revocation_is_refused(as_alice, alice, research, name):
    key = key_of(alice, research)
    as_alice.post(f"/keys/{key.prefix}/revoke/", {"because": name})
    answer = as_alice.post(f"/api/v1/keys/{key.prefix}/revoke/", {"because": name}, content_type="application/json")
    assert answer.status_code == 400
    assert ApiKey.objects.get().revoked_at is None
