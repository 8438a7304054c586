"""Every page of the site, with numbers, names and query strings that make no sense: a plain error, never a 5xx."""

import re
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.sessions.models import Session
from django.test import Client

from portal.quotas.models import QuotaRequest
from tests.fleet import calls, fleet
from tests.pages import key_of
from tests.portal.access_rules import RULES, address_of

pytestmark = pytest.mark.django_db

NUMBERS = (str(2**63 - 1), str(2**63), 30 * "9", 4500 * "9", "٣")
NAMES = ("a\0b", "%", "..", "\n", 900 * "🦊")
PERIODS = ("0001-01", "0001-01-01", "0000-00", "9999-12", "9999-12-31", "FY0001", "FY9999", "-14")
MARKS = (
    "2026-11-22T00:00:00+09:00_" + 30 * "9",
    "0001-01-01T00:00:00+14:00_1",
    "tenant:\0",
    "key:" + 30 * "9",
    "person:²",
)
PARAMETER = re.compile(r"""GET(?:\.get\(|\[)"(\w+)\"""")
OF_FORMS = ("since", "until", "who", "what", "text", "action", "tenant", "to", "unit", "window")
NUMBERED = (30 * "9", 4500 * "9", "٣")
# What is asked for each parameter alone, where one odd value would hide another.
READ_BY = {
    "usage/": {"period": PERIODS, "user": NUMBERED, "key": NUMBERED, "of": MARKS, "page": NUMBERED},
    "audit/": {"before": MARKS, "since": PERIODS},
    "api/v1/usage/": {"period": PERIODS, "user": NUMBERED},
    "api/v1/audit/": {"before": MARKS},
    "operations/models/<path:name>/": {"log": NUMBERED},
    "tenant/<slug:slug>/quotas/give/": {"of": MARKS},
    "more/": {"to": MARKS, "model": NUMBERED},
}


def parameters() -> list[str]:
    """Return the names that our pages read from a query string."""
    sources = Path(settings.BASE_DIR / "portal").rglob("*.py")
    return sorted({name for source in sources for name in PARAMETER.findall(source.read_text())} | set(OF_FORMS))


@pytest.fixture
def operator(filled, alice, olivia, research) -> Client:
    """See every page, with something on it."""
    fleet()
    calls(key_of(alice, research))
    client = Client(raise_request_exception=False)
    client.force_login(olivia)
    return client


def encoded(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))


def failures(client: Client, addresses: list[str]) -> list[str]:
    def status(address: str) -> int:
        response = client.get(address)
        if response.streaming:
            b"".join(response)
        return response.status_code

    return [f"{address[:100]} …{address[-40:]}" for address in addresses if status(address) >= 500]


def test_p3_no_number_or_name_in_a_path_is_a_5xx(operator, filled):
    addresses = []
    for path in RULES:
        for part in re.findall(r"<\w+:\w+>", path):
            values = NUMBERS if "pk" in part else NAMES
            usual = address_of(path.replace(part, "ODD"), filled)
            addresses += [usual.replace("ODD", encoded(value)) for value in values]
    assert failures(operator, addresses) == []


def test_p3_no_query_string_is_a_5xx(operator, filled):
    addresses = []
    for path in (path for path, rule in RULES.items() if rule.method == "GET"):
        address = address_of(path, filled)
        together = ["&".join(f"{name}={encoded(value)}" for name in parameters()) for value in (30 * "9", "'")]
        alone = [f"{name}={encoded(value)}" for name, values in READ_BY.get(path, {}).items() for value in values]
        addresses += [f"{address}?{query}" for query in (*together, *alone, "a=%ff%fe")]
    assert failures(operator, addresses) == []


def test_p3_no_form_with_odd_words_is_a_5xx(operator, filled):
    names = [*parameters(), "amount", "note", "reason", "verdict", "generation", "username", "role", "name", "slug"]
    failed = []
    for path in (path for path in RULES if not path.startswith("api/")):
        for value in ("\0", 30 * "9\ud800"):
            body = "&".join(f"{name}={encoded(value)}" for name in names)
            status = operator.generic("POST", address_of(path, filled), body, "application/x-www-form-urlencoded")
            failed += [(path, value[:5])] if status.status_code >= 500 else []
    assert failed == []


COOKIES = (
    *("sessionid=" + 20000 * "a", "sessionid=\0", "sessionid=" + 100 * "é", "sessionid=;;;===", ";" * 5000, "=" * 5000),
    *("csrftoken=" + 20000 * "x", "language=" + 5000 * "j", "language=../../etc", 'theme="><script>'),
    *("messages=W1siX19qc29uX21lc3NhZ2Ui", 'messages=[["__json_message",0,25,"x"]]'),
)


def test_p3_no_cookie_is_a_5xx():
    client = Client(raise_request_exception=False)
    for cookie in COOKIES:
        for address in ("/sign-in/", "/", "/api/v1/me/"):
            assert client.get(address, HTTP_COOKIE=cookie).status_code < 500, cookie[:40]


def test_p3_a_broken_session_is_nobodys(alice):
    """What is in the database may be of another version, or half of a restore."""
    client = Client(raise_request_exception=False)
    client.force_login(alice)
    whole = Session.objects.get()
    for data in ("", "x", whole.session_data[:-3], whole.session_data[::-1], 3000 * "é"):
        Session.objects.filter(pk=whole.pk).update(session_data=data)
        assert client.get("/").status_code == 302


def test_p3_a_note_keeps_no_nul(filled, bob):
    """PostgreSQL cannot hold one."""
    client = Client()
    client.force_login(bob)
    asked = QuotaRequest.objects.exclude(user=None).get()
    form = {"verdict": "refuse", "note": "no\0t now"}
    client.post(f"/tenant/research/requests/{asked.pk}/", form)
    asked.refresh_from_db()
    assert "\0" not in asked.note


def test_p3_forms_of_the_administration_are_not_filled_in_from_their_addresses(operator):
    assert operator.get("/admin/accounts/membership/add/", {"tenant": "\x81Q¿", "user": "x"}).status_code == 200


def test_x_a_page_is_told_of_as_well_as_shown(operator, filled):
    """RFC 9110, 9.1: who may GET may HEAD. Half of the pages said 405 to it, to checkers of links and to proxies."""

    def status(method: str, path: str) -> int:
        response = operator.generic(method, address_of(path, filled))
        if response.streaming:
            b"".join(response)
        return response.status_code

    pages = [path for path in RULES if status("GET", path) == 200]
    assert len(pages) > 50
    assert {path: code for path in pages if (code := status("HEAD", path)) != 200} == {}
