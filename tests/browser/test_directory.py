"""The operator's morning on which the directory went wrong, and the audit log of it, in a browser."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from portal.accounts import directory_sync
from portal.accounts.models import User
from portal.audit.models import AuditEvent
from tests.browser.pages import looks, sign_in
from tests.portal.conftest import connect, door, everybody  # noqa: F401 - fixtures
from tests.slapd import SUFFIX

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def company(olivia, everybody, settings):  # noqa: F811
    """Return the directory, of which four people are here, beside an operator with a local account."""
    User.objects.filter(pk=olivia.pk).update(username="watch")
    return settings.DIRECTORY


def well(page: Page, axe: Callable[..., list[str]], *, width: int) -> list[str]:
    page.emulate_media(reduced_motion="reduce")
    found = axe(page)
    for each in (width, 360):
        page.set_viewport_size({"width": each, "height": 800})
        found += looks(page, "tooWide")
    page.set_viewport_size({"width": width, "height": 800})
    return found


@pytest.mark.parametrize(
    ("language", "scheme"),
    [("ja", "light"), ("en", "dark")],
)
def test_an_operator_sees_what_is_wrong_decides_and_finds_it_in_the_log(
    open_page,
    company,
    connect,  # noqa: F811
    axe,
    language,
    scheme,
):
    directory_sync.sync_directory(company)
    connect(LDAP_USER_BASE=f"ou=posix,{SUFFIX}")  # where there are no people
    page = open_page(language, scheme=scheme)
    sign_in(page, "watch")

    page.goto("/operations/directory/")
    assert page.locator("h1 .state.fine").count() == 1
    page.locator("form[action$='sync/'] button.primary").click()
    page.wait_for_selector(".attention")
    assert page.locator("h1 .state.broken").count() == 1
    assert "4" in page.locator(".attention .log").inner_text()
    assert User.objects.filter(is_active=True).exclude(directory_id=None).count() == 4
    page.locator("details.danger > summary").click()
    assert well(page, axe, width=1280) == []

    page.goto("/operations/")
    assert page.locator("#attention a[href='/operations/directory/']").count() == 1
    page.goto("/operations/directory/")
    page.locator("details.danger > summary").click()
    page.locator("button[name=force]").click()
    page.wait_for_selector("h1 .state.fine")
    assert not User.objects.filter(is_active=True).exclude(directory_id=None).exists()

    page.goto("/audit/")
    page.locator("[name=what]").select_option("directory")
    page.locator(".inquiry button").click()
    page.wait_for_url("**what=directory**")
    assert page.locator(".events tbody tr").count() == 2
    page.locator(".events tbody tr").first.locator("summary").click()
    assert "4" in page.locator(".events tbody tr").first.locator(".changes").inner_text()
    page.locator(".inquiry summary").click()
    assert well(page, axe, width=1280) == []


def test_the_log_is_read_by_keyboard_and_taken_along(open_page, company):
    page = open_page("en")
    sign_in(page, "watch")
    page.goto("/audit/")
    page.locator("[name=text]").focus()
    page.keyboard.type("yamada")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=yamada**")
    rows = page.locator(".events tbody tr").count()
    assert rows == AuditEvent.objects.filter(object_name__startswith="yamada").count()
    with page.expect_download() as download:
        page.locator("a[href*='/audit/export/']").first.click()
    assert download.value.suggested_filename.endswith(".csv")
    assert len(download.value.path().read_text().splitlines()) == rows + 1
