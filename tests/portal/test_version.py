"""One version, the one of pyproject.toml, wherever it is asked for."""

import os
import subprocess
import sys
import tomllib

import pytest
from django.test import Client

from tests.html import has, one_of
from tests.installation import ROOT

DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.django_db
def test_the_foot_of_a_page_shows_it_to_people_who_are_signed_in(alice, client):
    client.force_login(alice)
    assert one_of(client.get("/"), "[data-version]").text.split()[-1] == DECLARED


@pytest.mark.django_db
def test_a_stranger_is_not_shown_it(client):
    assert not has(client.get("/sign-in/"), "[data-version]")


@pytest.mark.django_db
def test_the_description_of_the_api_holds_it(alice, client: Client):
    client.force_login(alice)
    answer = client.get("/api/schema/", headers={"accept": "application/vnd.oai.openapi+json"})
    assert answer.json()["info"]["version"] == DECLARED


@pytest.mark.parametrize("words", [["--version"], ["version"], ["up", "--version"]], ids=" ".join)
def test_the_command_line_prints_it_even_where_the_settings_are_wrong(words):
    env = {**os.environ, "GATEWAY_WORKERS": "several"}
    done = subprocess.run([sys.executable, ROOT / "manage.py", *words], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[1]) == (0, DECLARED)


def test_an_argument_of_an_engine_is_no_question_for_it():
    """`registermodel NAME … --arg --version` is for the engine."""
    command = [sys.executable, ROOT / "manage.py", "registermodel", "m", "--arg", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert DECLARED not in done.stdout.split()


def test_the_change_log_begins_with_it():
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## [")]
    released = [line for line in headings if not line.startswith("## [Unreleased]")]
    assert released[0].startswith(f"## [{DECLARED}]")
