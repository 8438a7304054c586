"""Django's admin in our look: our bar, our colours, both languages, on a telephone and on a desk."""

from collections.abc import Iterator

import pytest
from django.apps import apps
from django.contrib import admin
from playwright.sync_api import Page, expect

from tests.browser.pages import LONG_KEY, LONG_TENANT, enter, sign_in
from tests.fleet import fleet
from tests.pages import key_of, use

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def rows(alice, research, olivia) -> None:
    """Make rows to list, with long names."""
    research.name = LONG_TENANT
    research.save()
    fleet()
    use(key_of(alice, research, LONG_KEY), tokens=(123_456_789, 98_765), estimated=True)


def addresses() -> Iterator[str]:
    """Yield the front page, every list and one form of each kind that has a row."""
    yield from ("/admin/", "/admin/password_change/")
    for model in apps.get_models():
        if admin.site.is_registered(model):
            listed = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
            yield listed
            row = model._default_manager.first()
            if row is not None:
                yield f"{listed}{row.pk}/change/"


def background(page: Page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize(("language", "width"), [("ja", 1280), ("en", 390)])
def test_every_page_of_the_admin_can_be_read_and_fits(open_page, site, rows, axe, language, width):
    page = open_page(language, width=width)
    enter(page, site, "olivia")
    page.emulate_media(reduced_motion="reduce")
    found, seen = {}, 0
    for address in addresses():
        page.goto(address)
        seen += 1
        wrong = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            wrong += [f"{scheme} {complaint}" for complaint in axe(page, "color-contrast")]
        too_wide = page.evaluate("document.documentElement.scrollWidth")
        if too_wide > width:
            wrong.append(f"{too_wide} px wide")
        if page.locator(".brand[href='/']").count() != 1:
            wrong.append("no way back")
        if wrong:
            found[address] = wrong
    assert seen >= 20
    assert found == {}


def test_the_admin_has_the_colours_and_the_language_of_the_portal(open_page, olivia):
    page = open_page("en", scheme="dark")
    sign_in(page, "olivia")
    page.goto("/admin/")
    dark = background(page)
    page.goto("/")
    assert background(page) == dark
    page.locator("[data-theme-switch]").click()
    light = background(page)
    page.goto("/admin/accounts/user/")
    assert background(page) == light != dark
    page.locator("[name=language][value=ja]").click()
    expect(page.locator("html")).to_have_attribute("lang", "ja")
    expect(page).to_have_url("/admin/accounts/user/")
    page.locator(".brand").click()
    expect(page).to_have_url("/")


def test_a_related_row_is_added_in_a_window_of_its_own(open_page, olivia, alice, research):
    page = open_page()
    sign_in(page, "olivia")
    page.goto("/admin/quotas/quota/add/")
    with page.expect_popup() as popup:
        page.locator("#add_id_user").click()
    window = popup.value
    expect(window.locator("#id_username")).to_be_visible()
    expect(window.locator(".top")).to_have_count(0)
    window.locator("#id_username").fill("dora")
    window.locator("[name=usable_password][value=false]").check()
    with window.expect_event("close"):
        window.locator("[name=_save]").click()
    expect(page.locator("#id_user option:checked")).to_have_text("dora")
