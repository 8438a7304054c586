"""The examples of deploy/API.md run as they are there, against a real server."""

import os
import re
import subprocess
import sys
from datetime import timedelta

import pytest
from django.utils import timezone

from portal import settings
from portal.accounts.models import Membership, Tenant
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey
from portal.quotas.models import Quota
from portal.web.rest import scopes
from tests.conftest import person
from tests.pages import management_key_of, serve, use

pytestmark = pytest.mark.django_db(transaction=True)

TEXT = (settings.BASE_DIR / "deploy" / "API.md").read_text()
ADDRESS = "https://madoguchi.example.com"


@pytest.fixture
def run(live_server):
    """Run a command with a management key of an admin of "sales", with this server in place of the example's."""
    sales = Tenant.objects.create(slug="sales", name="営業部")
    admin = person("admin", sales, role=Membership.Role.ADMIN)
    person("yamada", sales)
    _, text = management_key_of(admin)
    env = {**os.environ, "MADOGUCHI_KEY": text, "MADOGUCHI": f"{live_server.url}/api/v1"}

    def run(*command: str) -> str:
        told = [part.replace(ADDRESS, live_server.url) for part in command]
        return subprocess.run(told, capture_output=True, text=True, timeout=60, check=True, env=env).stdout

    return run


def test_the_commands(run):
    serve("qwen3-32b")
    examples = TEXT[TEXT.index("With `MADOGUCHI` as") :]
    commands = [part for part in re.split(r"\n\n", examples) if part.startswith("    #")]
    assert len(commands) == 4
    made = run("sh", "-c", commands[0])
    key = ApiKey.objects.get()
    assert (key.responsible.username, key.networks, f'"prefix":"{key.prefix}"' in made) == (
        *("yamada", ["10.1.0.0/16"]),
        True,
    )
    assert f'"replaces":"{key.prefix}"' in run("sh", "-c", commands[1].replace("mdg_AbCdEfGh", key.prefix))
    assert run("sh", "-c", commands[2]) == "[]"
    assert '"amount":2000000' in run("sh", "-c", commands[3])
    assert Quota.objects.get().default_for == "member"
    assert '"username":"admin"' in run("sh", "-c", TEXT[TEXT.index("    curl") :].partition("\n")[0])


def test_the_program(run):
    sales = Tenant.objects.get()
    key, _ = issue_key(tenant=sales, user=sales.users.get(username="yamada"), name="laptop")
    last_month = timezone.now().astimezone(sales.zone).replace(day=1) - timedelta(days=10)
    use(key, tokens=(1000, 234), at=last_month)
    program = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert program
    assert run(sys.executable, "-c", program[1]) == "yamada 1234\n"


def test_every_scope_is_told(run):
    told = set(re.findall(r"`([a-z-]+:(?:read|write))`", TEXT))
    assert told == set(scopes.SCOPES)
