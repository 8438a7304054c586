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
from portal.adoption import tips
from portal.audit.models import AuditEvent
from portal.guide.models import HouseRules
from portal.keys import end_user_secret
from portal.keys.models import ApiKey
from portal.lessons import progress
from portal.lessons.models import CoursesDeclined
from portal.prices import price_list
from portal.quotas.models import Quota, QuotaRequest
from portal.use_cases import publishing
from portal.use_cases.models import UseCase
from portal.use_cases.reactions import mark_helped
from portal.web.notify import notify
from tests.browser.pages import enter
from tests.pages import service_key_of
from tests.portal.conftest import connect, door, everybody  # noqa: F401 - fixtures
from tests.slapd import SUFFIX
from tests.use_cases import case_content, text_content, use_case

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


@pytest.fixture
def service(research, bob, olivia) -> ApiKey:
    """Provide a service key, beside an admin and an operator who may change it."""
    return service_key_of(research, takes_user_headers=True)


def signed(page: Page, site: str, service: ApiKey, value: str) -> None:
    enter(page, site, "bob")
    if value == "none":
        end_user_secret.make_user_secret(service)
    press(page, f"/keys/{service.prefix}/", "secret", value)
    service.refresh_from_db()
    assert (service.end_user_nonce != "") == (value == "new")


def separated(page: Page, site: str, service: ApiKey, value: str) -> None:
    enter(page, site, "olivia")
    ApiKey.objects.update(separates_users=value == "together")
    press(page, "/operations/weights/", "people", value)
    service.refresh_from_db()
    assert service.separates_users == (value == "apart")


def silenced(page: Page, site: str, alice: User, address: str, value: str) -> None:
    User.objects.update(wants_tips=value == "off")
    if address == "/notices/":
        enter(page, site, "alice")
        notify([alice], tips.NO_CALL, "2026-11-30", path="/")
    else:  # the mailed link, opened by a person who is not signed in
        address = site + tips.link_of(alice)
    press(page, address, "tips", value)
    alice.refresh_from_db()
    assert alice.wants_tips == (value == "on")


def displayed(page: Page, site: str, olivia: User, value: str) -> None:
    enter(page, site, "olivia")
    price_list.set_shown_to_people(value == "hide", by=None)
    press(page, "/prices/", "people", value)
    assert price_list.is_shown_to_people() == (value == "show")


# How each is pressed: the function, the fixture that it is given after the page, and what follows.
def previewed(page: Page, site: str, olivia: User) -> None:
    enter(page, site, "olivia")
    page.goto("/start/rules/")
    page.locator("[name=rules_ja]").fill("**太字**")
    with page.expect_navigation():
        page.locator("button[name=preview]").click()
    assert page.locator("#preview strong").inner_text() == "太字"
    assert not HouseRules.objects.exists()


@pytest.fixture
def proposed(alice: User, bob: User, olivia: User, research: Tenant) -> UseCase:
    """Return a case of which version 1 is published and version 2 proposed."""
    case = use_case(alice, research, publisher=bob)
    publishing.save_version(alice, case, case_content(text_content(title="Newer")))
    publishing.propose(alice, case)
    return case


def decided(page: Page, site: str, case: UseCase, value: str, state: str) -> None:
    enter(page, site, "olivia")
    page.goto(f"/use-cases/{case.pk}/")
    page.locator("[name=note]").fill("an example, please")
    with page.expect_navigation():
        page.locator(f"button[name=verdict][value={value}]").click()
    if value == "publish-to-all":
        with page.expect_navigation():
            page.locator("#caution button").click()
    case.refresh_from_db()
    assert case.versions.get(number=2).state == state
    assert case.is_company_wide == (value == "publish-to-all")


def drafted(page: Page, site: str, case: UseCase, value: str, states: list[str]) -> None:
    publishing.save_version(case.author, case, case_content(text_content(title="Draft")))
    enter(page, site, "alice")
    press(page, f"/use-cases/{case.pk}/?version=newest", "verdict", value)
    assert [one.state for one in case.versions.order_by("number")] == ["published", *states]


def hidden(page: Page, site: str, case: UseCase, value: str) -> None:
    UseCase.objects.update(retired_at=timezone.now() if value == "show" else None)
    enter(page, site, "olivia")
    press(page, f"/use-cases/{case.pk}/", "verdict", value)
    assert (UseCase.objects.get().retired_at is None) == (value == "show")


def marked(page: Page, site: str, case: UseCase, value: str) -> None:
    if value == "no":
        mark_helped(User.objects.get(username="bob"), case, None)
    enter(page, site, "bob")
    press(page, f"/use-cases/{case.pk}/", "helped", value)
    case.refresh_from_db()
    assert case.helped == (value == "yes")


def edited(page: Page, site: str, case: UseCase, value: str, state: str) -> None:
    enter(page, site, "bob" if value == "publish" else "alice")
    page.goto(f"/use-cases/{case.pk}/edit/")
    page.locator("[name=en-title]").fill("Newest")
    with page.expect_navigation():
        page.locator(f"button[name=step][value={value}]").click()
    newest = case.versions.last()
    assert (newest.number, newest.state, newest.texts.get().title) == (3, state, "Newest")


def appointed(page: Page, site: str, case: UseCase, value: str) -> None:
    membership = case.author.memberships.get()
    membership.is_champion = value == "no"
    membership.save()
    enter(page, site, "bob")
    press(page, f"/tenant/research/people/{case.author.pk}/", "champion", value)
    membership.refresh_from_db()
    assert membership.is_champion == (value == "yes")


def declined(page: Page, site: str, alice: User, value: str) -> None:
    if value == "on":
        progress.decline(alice, declined=True)
    enter(page, site, "alice")
    press(page, "/" if value == "off" else "/lessons/", "interest", value)
    assert CoursesDeclined.objects.filter(user=alice).exists() == (value == "off")


PRESSED: dict[Button, tuple[Callable[..., None], str, list[str]]] = {
    ("tenants/requests.html", "verdict", "grant"): (granted, "open_request", []),
    ("tenants/requests.html", "verdict", "refuse"): (refused, "open_request", []),
    ("tenants/switch.html", "to", "off"): (switched, "olivia", ["/tenant/research/switch/", "off"]),
    ("tenants/_nav.html", "to", "on"): (switched, "olivia", ["/tenant/research/", "on"]),
    ("use_cases/detail.html", "verdict", "publish"): (decided, "proposed", ["publish", "published"]),
    ("use_cases/detail.html", "verdict", "publish-to-all"): (decided, "proposed", ["publish-to-all", "published"]),
    ("use_cases/detail.html", "verdict", "return"): (decided, "proposed", ["return", "returned"]),
    ("use_cases/detail.html", "verdict", "propose"): (drafted, "proposed", ["propose", ["replaced", "proposed"]]),
    ("use_cases/detail.html", "verdict", "discard"): (drafted, "proposed", ["discard", ["proposed"]]),
    ("use_cases/detail.html", "verdict", "hide"): (hidden, "proposed", ["hide"]),
    ("use_cases/detail.html", "verdict", "show"): (hidden, "proposed", ["show"]),
    ("use_cases/detail.html", "helped", "yes"): (marked, "proposed", ["yes"]),
    ("use_cases/detail.html", "helped", "no"): (marked, "proposed", ["no"]),
    ("use_cases/edit.html", "step", "draft"): (edited, "proposed", ["draft", "draft"]),
    ("use_cases/edit.html", "step", "propose"): (edited, "proposed", ["propose", "proposed"]),
    ("use_cases/edit.html", "step", "publish"): (edited, "proposed", ["publish", "published"]),
    ("tenants/person.html", "champion", "yes"): (appointed, "proposed", ["yes"]),
    ("tenants/person.html", "champion", "no"): (appointed, "proposed", ["no"]),
    ("base.html", "language", "en"): (chose, "alice", ["ja", "en"]),
    ("base.html", "language", "ja"): (chose, "alice", ["en", "ja"]),
    ("operations/directory.html", "force", "yes"): (forced, "directory_lost", []),
    ("keys/detail.html", "secret", "new"): (signed, "service", ["new"]),
    ("keys/detail.html", "secret", "none"): (signed, "service", ["none"]),
    ("guide/edit_rules.html", "preview", "yes"): (previewed, "olivia", []),
    ("operations/weights.html", "people", "apart"): (separated, "service", ["apart"]),
    ("operations/weights.html", "people", "together"): (separated, "service", ["together"]),
    ("prices/prices.html", "people", "show"): (displayed, "olivia", ["show"]),
    ("prices/prices.html", "people", "hide"): (displayed, "olivia", ["hide"]),
    ("notifications/list.html", "tips", "off"): (silenced, "alice", ["/notices/", "off"]),
    ("lessons/_line.html", "interest", "off"): (declined, "alice", ["off"]),
    ("lessons/list.html", "interest", "on"): (declined, "alice", ["on"]),
    ("adoption/tips.html", "tips", "off"): (silenced, "alice", ["link", "off"]),
    ("adoption/tips.html", "tips", "on"): (silenced, "alice", ["link", "on"]),
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
