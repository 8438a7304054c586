"""Every button that carries a value is pressed, with scripts and without, and does in the database what it says."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone
from playwright.sync_api import Page

from portal.accounts import directory_sync
from portal.accounts.models import Tenant, User
from portal.audit.models import AuditEvent
from portal.quotas.models import Quota, QuotaRequest
from tests.browser.pages import enter
from tests.portal.conftest import connect, door, everybody  # noqa: F401 - fixtures
from tests.slapd import SUFFIX

pytestmark = pytest.mark.django_db(transaction=True)

Button = tuple[str, str, str]  # template, name, value
TAG = re.compile(r"<(?:button|input)\b[^>]*>", re.DOTALL)
SENDING = re.compile(r"<button|type=\"?(?:submit|image)")


def attribute(tag: str, name: str) -> str:
    found = re.search(rf"\s{name}=\"([^\"]*)\"", tag)
    return found.group(1) if found else ""


def buttons() -> set[Button]:
    """Return those in our templates whose value a view is sent."""
    root = settings.BASE_DIR / "templates"
    return {
        (str(path.relative_to(root)), attribute(tag, "name"), attribute(tag, "value"))
        for path in [*root.rglob("*.html"), *Path(settings.BASE_DIR / "portal").rglob("*.html")]
        for tag in TAG.findall(path.read_text())
        if SENDING.search(tag) and attribute(tag, "name")
    }


def press(page: Page, address: str, name: str, value: str) -> None:
    """Return when the page that follows is there."""
    page.goto(address)
    for summary in page.locator("details:not(.menu) > summary").all():
        summary.click()
    with page.expect_navigation():
        page.locator(f"button[name={name}][value={value}]").first.click()


def granted(page: Page, site: str, open_request: QuotaRequest) -> None:
    enter(page, site, "bob")
    press(page, "/tenant/research/requests/", "verdict", "grant")
    open_request.refresh_from_db()
    assert open_request.state == QuotaRequest.State.GRANTED
    assert Quota.objects.get(user=open_request.user).amount == 200


def refused(page: Page, site: str, open_request: QuotaRequest) -> None:
    enter(page, site, "bob")
    page.goto("/tenant/research/requests/")
    page.locator("[name=note]").fill("not this month")
    with page.expect_navigation():
        page.locator("button[name=verdict][value=refuse]").click()
    open_request.refresh_from_db()
    assert (open_request.state, open_request.note) == (QuotaRequest.State.REFUSED, "not this month")
    assert not Quota.objects.filter(user=open_request.user).exists()


def switched(page: Page, site: str, olivia: User, address: str, value: str) -> None:
    enter(page, site, "olivia")
    Tenant.objects.update(is_active=value == "off")
    press(page, address, "to", value)
    assert Tenant.objects.get(slug="research").is_active == (value == "on")


def chose(page: Page, site: str, alice: User, first: str, value: str) -> None:
    enter(page, site, "alice")
    User.objects.update(language=first)
    page.context.add_cookies([{"name": "language", "value": first, "url": site}])
    press(page, "/usage/?period=today", "language", value)
    alice.refresh_from_db()
    assert alice.language == value
    assert page.locator("html").get_attribute("lang") == value
    assert page.url.endswith("/usage/?period=today")


@pytest.fixture
def directory_lost(olivia, connect, everybody):  # noqa: F811
    """Connect to a directory that no longer has any person who came from it."""
    User.objects.filter(pk=olivia.pk).update(username="watch")
    connect(LDAP_USER_BASE=f"ou=posix,{SUFFIX}")
    with pytest.raises(directory_sync.SuspiciousChange):
        directory_sync.sync_directory(settings.DIRECTORY)


def forced(page: Page, site: str, directory_lost) -> None:
    enter(page, site, "watch")
    press(page, "/operations/directory/", "force", "yes")
    assert not User.objects.filter(is_active=True).exclude(directory_id=None).exists()
    assert AuditEvent.objects.filter(action="directory.force").exists()


# How each is pressed: the function, the fixture that it is given after the page, and what follows.
PRESSED: dict[Button, tuple[Callable[..., None], str, list[str]]] = {
    ("tenants/requests.html", "verdict", "grant"): (granted, "open_request", []),
    ("tenants/requests.html", "verdict", "refuse"): (refused, "open_request", []),
    ("tenants/switch.html", "to", "off"): (switched, "olivia", ["/tenant/research/switch/", "off"]),
    ("tenants/_nav.html", "to", "on"): (switched, "olivia", ["/tenant/research/", "on"]),
    ("base.html", "language", "en"): (chose, "alice", ["ja", "en"]),
    ("base.html", "language", "ja"): (chose, "alice", ["en", "ja"]),
    ("operations/directory.html", "force", "yes"): (forced, "directory_lost", []),
}


def test_p1_every_button_that_carries_a_value_is_pressed_below():
    assert buttons() == set(PRESSED)


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without"])
@pytest.mark.parametrize("button", PRESSED, ids="|".join)
def test_p1_it_does_what_it_says(request, open_page, site, research, button, scripts):
    check, needed, words = PRESSED[button]
    furnished = request.getfixturevalue(needed)
    check(open_page("en", scripts=scripts), site, furnished, *words)


def test_p1_a_form_is_sent_once_however_often_it_is_pressed(open_page, site, open_request, alice):
    page = open_page("en")
    enter(page, site, "bob")
    page.goto("/tenant/research/requests/")
    sent = []
    page.on("request", lambda request: sent.append(request.post_data) if request.method == "POST" else None)
    page.locator("button[value=grant]").dblclick(no_wait_after=True)
    page.wait_for_selector("main .notice")
    assert ["verdict=grant" in body for body in sent] == [True]


def test_p1_buttons_are_back_when_the_page_is(open_page, site, open_request):
    page = open_page("en")
    enter(page, site, "bob")
    press(page, "/tenant/research/requests/", "verdict", "refuse")  # without the note that it needs
    page.go_back()
    assert page.locator("button[value=refuse]").is_enabled()
    page.locator("[name=note]").fill("no")
    with page.expect_navigation():
        page.locator("button[value=refuse]").click()
    open_request.refresh_from_db()
    assert open_request.state == QuotaRequest.State.REFUSED
    assert timezone.now() >= open_request.decided_at
