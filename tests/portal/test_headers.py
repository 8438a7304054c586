"""Which headers browsers get, what they may keep, and which pages may open a socket."""

import json

import pytest
from axes.models import AccessAttempt
from django.test import Client

from portal.operations import routing
from tests.portal.access_rules import RULES, address_of

pytestmark = pytest.mark.django_db

PASSWORD = "Hunter2-私の秘密"


def test_p3_no_browser_keeps_a_page(clients, filled):
    """Back, on a PC that others use too."""
    kept = []
    for path in (path for path, rule in RULES.items() if rule.method == "GET"):
        for who in ("nobody", "alice", "olivia"):
            answer = clients[who].get(address_of(path, filled))
            kept += [(who, path)] if "no-store" not in answer.headers.get("Cache-Control", "") else []
    assert kept == []


def test_p3_cookies_stay_with_this_site(client, alice):
    client.post("/language/", {"language": "ja"})
    assert client.cookies["language"]["samesite"] == "Lax"
    client.force_login(alice)
    client.post("/settings/", {"language": "en", "theme": "dark"})
    assert {client.cookies[name]["samesite"] for name in ("language", "theme")} == {"Lax"}


def test_p3_browsers_that_came_by_https_stay_with_it(client, settings):
    settings.SECURE_HSTS_SECONDS = 3600  # as HTTPS does
    fresh = Client()
    assert fresh.get("/sign-in/", secure=True)["Strict-Transport-Security"] == "max-age=3600"
    assert "Strict-Transport-Security" not in Client().get("/sign-in/")


@pytest.mark.parametrize(
    ("https", "origin", "host", "ours"),
    [
        (False, "http://localhost:8000", "localhost:8000", True),
        (False, "http://localhost", "localhost", True),
        (False, "http://localhost:9999", "localhost:8000", False),
        (False, "http://localhost", "localhost:8000", False),
        (False, "http://evil.example:8000", "localhost:8000", False),
        (False, "http://evil.example", "evil.example", False),  # a name that was made to lead here
        (False, "null", "localhost:8000", False),
        (False, "", "localhost:8000", False),
        (False, "", "", False),
        (True, "https://localhost", "localhost", True),
        (True, "http://localhost", "localhost", False),
        (True, "https://llm.example", "127.0.0.1:8000", True),  # trusted by PUBLIC_URL
    ],
)
def test_p3_a_socket_is_for_pages_of_this_site_alone(settings, https, origin, host, ours):
    settings.HTTPS, settings.ALLOWED_HOSTS = https, ["localhost"]
    settings.CSRF_TRUSTED_ORIGINS = ["https://llm.example"]
    assert routing.is_same_origin({b"origin": origin.encode(), b"host": host.encode()}) == ours


@pytest.mark.parametrize("size", [3_000_000, 30_000_000])
def test_p3_a_body_of_the_api_that_is_too_long_is_told_in_json(alice, size):
    client = Client(raise_request_exception=False)
    client.force_login(alice)
    for content in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
        answer = client.post("/api/v1/keys/", b'"' + size * b"a" + b'"', content_type=content)
        assert 400 <= answer.status_code < 500
        assert answer["Content-Type"] == "application/problem+json"
        assert json.loads(answer.content)["status"] == answer.status_code


def test_p3_a_password_typed_as_a_name_is_kept_nowhere(door, alice):
    assert door.enter(PASSWORD, "whatever") is None
    (attempt,) = AccessAttempt.objects.values()
    assert PASSWORD.lower() not in repr(attempt).lower()
    assert "hunter2" not in repr(attempt).lower()


def test_p3_nobodys_name_is_locked_as_anybodys(door, settings):
    for _ in range(settings.AXES_FAILURE_LIMIT):
        assert door.enter("nobody-of-ours", "wrong") is None
    assert door.response.status_code == 429
    assert door.response.context["form"].retry_after > 0
