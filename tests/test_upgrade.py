"""The database of version 1.0.0 is migrated to today's with all that is in it, and serves."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests import engine
from tests.first_schema import DAYS
from tests.installation import ROOT, Installation, installed
from tests.postgres import postgres
from tests.waiting import until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(params=["sqlite", "postgresql"])
def old(request, tmp_path) -> Iterator[Installation]:
    """Provide an installation with an empty database."""
    with installed(tmp_path / "var", API_KEY_SECRET="secret-" * 7) as place:
        if request.param == "sqlite":
            for path in place.var.glob("madoguchi.sqlite3*"):
                path.unlink()
            yield place
        else:
            with postgres() as database:
                place.env["DATABASE_URL"] = database.url
                yield place
                place.stop()  # while there is a database


def run(place: Installation, what: str) -> Any:
    command = [sys.executable, "-m", "tests.first_schema", what]
    done = subprocess.run(command, env=place.env, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def usage(place: Installation) -> list[dict[str, Any]]:
    return json.loads(place.manage("usage", "--json", "--since", "2026-01-01"))


def test_all_that_the_first_version_stored_is_there_after_an_upgrade_and_works(old):
    before = run(old, "fill")
    old.manage("migrate", "--verbosity", "0")
    after = run(old, "count")
    assert {name: after["rows"][name] for name in before["rows"]} == before["rows"]
    assert {name: after["tokens"][name] for name in before["tokens"]} == before["tokens"]
    assert run(old, "pages") == []
    with engine.running() as fake:
        change = "from modelregistry.models import *; ServedModel.objects.filter(url='ENGINE').update(url='{0}'); "
        change += "Replica.objects.filter(url='ENGINE').update(url='{0}')"
        old.manage("shell", "--verbosity", "0", "--command", change.format(fake.url))
        old.start()
        call = {"model": "plain", "messages": [{"role": "user", "content": "?"}]}
        headers = {"Authorization": f"Bearer {before['key']}"}
        answer = httpx2.post(f"{old.url}/v1/chat/completions", json=call, headers=headers, timeout=30)
        assert answer.status_code == 200, answer.text
        until(lambda: sum(row["requests"] for row in usage(old)) == DAYS + 1)
