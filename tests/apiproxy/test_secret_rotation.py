"""API_KEY_SECRET is replaced: keys that are used meanwhile outlive it, and a machine that has it is refused after."""

import re
import subprocess
import sys

import httpx2
import pytest

from tests.installation import ROOT, installed
from tests.waiting import until

OLD, NEW = "old-" * 10, "new-" * 10
LEFT = re.compile(r"another secret: (\d+) ")


@pytest.fixture
def place(tmp_path):
    with installed(tmp_path / "var", API_KEY_SECRET=OLD) as installation:
        yield installation


def statuses(place, *keys: str) -> list[int]:
    body = {"model": "plain", "messages": [{"role": "user", "content": "?"}]}
    url = f"{place.url}/v1/chat/completions"
    return [
        httpx2.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30).status_code for key in keys
    ]


def test_the_secret_of_a_site_is_replaced(place, fake_engine):
    used = place.furnish(fake_engine.url)
    unused = place.manage("createkey", "--tenant", "research", "--service", "other")
    place.serve()
    until(place.answers)
    assert statuses(place, used, unused) == [200, 200]
    place.stop()

    place.env |= {"API_KEY_SECRET": NEW, "API_KEY_SECRET_FALLBACKS": OLD}
    place.serve()
    until(place.answers)
    assert statuses(place, used, used) == [200, 200]
    until(lambda: LEFT.findall(place.manage("sitesecrets")) == ["1"])
    place.stop()

    del place.env["API_KEY_SECRET_FALLBACKS"]
    place.serve()
    until(place.answers)
    assert statuses(place, used, unused) == [200, 401]
    place.stop()

    place.env["API_KEY_SECRET"] = OLD
    place.serve()
    assert place.process.wait(60) != 0
    up = [sys.executable, ROOT / "manage.py", "up", "--port", str(place.port)]
    refused = subprocess.run(up, env=place.env, capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0
    for said in (place.log, refused.stderr):
        assert "API_KEY_SECRET" in said
        assert OLD not in said
