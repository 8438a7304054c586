"""What `make run` prepares: the command as it is called, with the models that the cache really holds."""

import re

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command

from modelregistry.install.build_cache import CannotFetch
from modelregistry.models import ServedModel
from portal.accounts.models import Tenant, User
from portal.keys import secret
from portal.keys.models import ApiKey

pytestmark = pytest.mark.django_db


def firstrun(capsys) -> str:
    call_command("firstrun", "--port", "8123")
    return capsys.readouterr().out


def test_an_empty_installation_gets_a_person_who_can_sign_in_and_operate(capsys):
    said = firstrun(capsys)
    [password] = re.findall(r"password +(\S+)", said)
    person = User.objects.get()
    assert person.check_password(password)
    assert (person.username, person.is_superuser) == ("demo", True)
    assert [(place.tenant.slug, place.role) for place in person.memberships.all()] == [("demo", "admin")]


def test_the_key_that_is_shown_is_a_usable_key_of_that_person(capsys):
    [key, in_call] = re.findall(r"mdg_\w+", firstrun(capsys))
    assert key == in_call
    found = ApiKey.objects.usable().get(digest=secret.digest_of(key, django_settings.API_KEY_SECRET))
    assert (found.user.username, found.tenant.slug) == ("demo", "demo")


def test_it_shows_a_call_at_the_port_that_was_asked_for(capsys):
    said = firstrun(capsys)
    assert "curl http://127.0.0.1:8123/v1/chat/completions" in said
    assert '"model": "smollm2"' in said


def test_the_models_are_registered_with_files_that_exist(capsys):
    firstrun(capsys)
    models = {model.name: model for model in ServedModel.objects.all()}
    assert {name: model.task for name, model in models.items()} == {"smollm2": "chat", "minilm": "embedding"}
    for model in models.values():
        model.full_clean()


def test_a_second_start_changes_nothing_and_shows_no_secret(capsys):
    firstrun(capsys)
    password = User.objects.get().password
    said = firstrun(capsys)
    assert (User.objects.get().password, ApiKey.objects.count(), ServedModel.objects.count()) == (password, 1, 2)
    assert "mdg_" not in said
    assert "changepassword demo" in said


def test_people_of_the_made_up_company_are_named_at_the_next_start(capsys):
    User.objects.create_user("demo.operator")
    User.objects.create_user("demo.gone", is_active=False)
    said = firstrun(capsys)
    assert "changepassword demo.operator" in said
    assert "demo.gone" not in said


def test_a_command_that_it_shows_is_for_this_installation(capsys, monkeypatch):
    firstrun(capsys)
    monkeypatch.setenv("MADOGUCHI_VAR", "/srv/a demonstration")
    said = firstrun(capsys)
    assert said.count("MADOGUCHI_VAR='/srv/a demonstration' .venv/bin/python manage.py ") == 2
    monkeypatch.delenv("MADOGUCHI_VAR")
    assert "MADOGUCHI_VAR" not in firstrun(capsys)


def test_an_installation_that_has_people_gets_nothing(capsys, alice):
    said = firstrun(capsys)
    assert not Tenant.objects.filter(slug="demo").exists()
    assert not ServedModel.objects.exists()
    assert "changepassword" not in said


def test_with_a_directory_there_is_no_local_person_but_a_key_of_a_service(capsys, settings):
    settings.DIRECTORY = object()
    said = firstrun(capsys)
    assert not User.objects.exists()
    assert ApiKey.objects.get().service == "demo"
    assert re.findall(r"mdg_\w+", said)
    assert not re.findall(r"password +(\S+)", said)


def test_without_the_models_nothing_is_made_so_that_the_next_start_is_the_first(
    capsys, settings, tmp_path, monkeypatch
):
    settings.CACHE = tmp_path
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(CommandError) as refusal:
        firstrun(capsys)
    assert isinstance(refusal.value.__cause__, CannotFetch)
    assert not Tenant.objects.exists()
