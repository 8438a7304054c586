"""The operators' page of weights in a browser, and the secret with which a service signs its end users."""

import re

import pytest
from playwright.sync_api import expect

from portal.accounts.models import Tenant
from portal.keys.models import ApiKey
from tests.browser.pages import LONG_KEY, LONG_TENANT, looks, sign_in
from tests.pages import service_key_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def service(olivia, bob, research) -> ApiKey:
    Tenant.objects.create(slug="lab", name=LONG_TENANT)
    service_key_of(research, LONG_KEY, key_class="batch")
    return service_key_of(research, "Open WebUI", takes_user_headers=True)


@pytest.mark.parametrize("language", ["ja", "en"])
def test_an_operator_sets_a_weight_and_sees_what_it_means(open_page, service, research, language):
    page = open_page(language)
    sign_in(page, "olivia")
    page.goto("/operations/weights/")
    row = page.locator("[data-weight-of='tenant:research']")
    expect(row.locator("td").first).to_contain_text("6")  # 1 of 6: two tenants and a service key that counts as four
    row.locator("[name=weight]").fill("2")
    row.locator("button").click()
    expect(page.locator(".notice.success")).to_be_visible()
    expect(page.locator("[data-weight-of='tenant:research'] td").first).to_contain_text("7")
    expect(page.locator("#example")).to_contain_text(re.compile("2.*7|7.*2"))
    own = page.locator(f"[data-weight-of='key:{service.prefix}']")
    own.locator("[name=people]").click()
    expect(own.locator("[name=people][value=together]")).to_be_visible()
    service.refresh_from_db()
    assert service.separates_users


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_long_names_fit(open_page, axe, service, width, scheme):
    page = open_page("ja", width=width, scheme=scheme)
    sign_in(page, "olivia")
    page.goto("/operations/weights/")
    expect(page.locator("[data-weight-of^=key]")).to_have_count(2)
    assert [looks(page, question) for question in ("tooWide", "tooSmall", "faint")] == [[], [], []]
    assert axe(page) == []


@pytest.mark.parametrize("language", ["ja", "en"])
def test_a_secret_for_end_users_is_shown_once_with_the_lines_to_paste(open_page, service, language):
    page = open_page(language)
    sign_in(page, "bob")
    page.goto(f"/keys/{service.prefix}/")
    page.locator("#user-secret summary").click()
    page.locator("#user-secret [value=new]").click()
    expect(page.locator("#webui")).to_contain_text("FORWARD_USER_INFO_HEADER_JWT_SECRET=")
    page.locator("[data-copy=webui]").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(
        "ENABLE_FORWARD_USER_INFO_HEADERS=true\nFORWARD_USER_INFO_HEADER_JWT_SECRET=[0-9a-f]{64}", copied
    )
