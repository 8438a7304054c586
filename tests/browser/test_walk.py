"""What a person does on the first day, in a browser: sign in, make a key, copy it, look at the usage, revoke."""

import re

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from portal.keys.models import ApiKey
from tests.browser.pages import REFUSED_FORM, looks, sign_in
from tests.pages import key_of, serve, use
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)


# What has the focus: where it leads, what it sends or copies, or which menu it opens.
PLACE = """(at => at.getAttribute("href") || at.dataset.copy || at.id || at.name || at.parentElement.className)
(document.activeElement)"""


def clipboard(page: Page) -> str:
    return page.evaluate("navigator.clipboard.readText()")


@pytest.mark.parametrize("language", ["ja", "en"])
def test_the_first_day(open_page, alice, language):
    page = open_page(language)
    serve("qwen")

    page.goto("/")
    expect(page.locator("html")).to_have_attribute("lang", language)
    sign_in(page)

    page.locator("main a[href='/keys/new/']").first.click()
    page.locator("[name=name]").fill("laptop")
    page.locator("main form button").click()
    key = page.locator("#key").inner_text()
    assert re.fullmatch(r"mdg_[0-9A-Za-z]{38}", key)
    page.locator("[data-copy=key]").click()
    expect(page.locator("[data-said]")).to_have_text(page.locator("[data-said]").get_attribute("data-copied"))
    assert clipboard(page) == key

    for way in ("curl", "python", "dify"):
        page.locator(f"label[for=tab-{way}]").click()
        expect(page.locator(f".tab.{way}")).to_contain_text(key)
    page.locator("label[for=tab-curl]").click()
    page.locator(".tab.curl .copy").click()
    until(lambda: f"Bearer {key}" in clipboard(page))
    assert clipboard(page).startswith("curl http://")

    use(ApiKey.objects.get(), tokens=(1_000, 234))
    page.locator("[data-places] a[href='/usage/']").click()
    expect(page.get_by_role("table").last).to_contain_text("1,234")

    page.goto(reverse("keys"))
    page.locator("main table a", has_text="laptop").click()
    revoke = page.locator("form[action$='/revoke/'] button")
    expect(revoke).to_be_hidden()
    page.locator("details.danger > summary").click()
    revoke.click()
    expect(page.locator(".notice.success")).to_be_visible()
    assert ApiKey.objects.get().state == "revoked"

    page.locator(".menu summary").last.click()
    page.locator("[action='/sign-out/'] button").click()
    page.wait_for_url("**/sign-in/**")


def test_a_reload_of_the_page_with_the_key_makes_no_second_one(open_page, alice):
    page = open_page()
    sign_in(page)
    page.goto(reverse("key-new"))
    page.locator("[name=name]").fill("laptop")
    page.locator("main form button").click()
    key = page.locator("#key").inner_text()
    page.reload()
    expect(page.locator("#key")).to_have_count(0)
    expect(page.locator(".notice").first).to_be_visible()
    assert ApiKey.objects.count() == 1
    assert key not in page.content()


def test_a_double_click_makes_one_key_and_shows_it(open_page, alice):
    page = open_page()
    sign_in(page)
    page.goto(reverse("key-new"))
    page.locator("[name=name]").fill("laptop")
    page.locator("main form button").dblclick(no_wait_after=True)
    expect(page.locator("#key")).to_be_visible()
    assert ApiKey.objects.count() == 1


def test_the_first_wrong_field_has_the_focus_and_what_was_typed_is_kept(open_page, alice, provoked):
    provoked.append(REFUSED_FORM)
    page = open_page()
    sign_in(page)
    page.goto(reverse("key-new"))
    page.locator("[name=lifetime][value='365']").check()
    page.locator("main form button").click()
    expect(page.locator(".error").first).to_be_visible()
    expect(page.locator("[name=name]")).to_be_focused()
    expect(page.locator("[name=lifetime][value='365']")).to_be_checked()


def test_colours_follow_the_system_until_switched_and_then_stay(open_page, alice):
    page = open_page(scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    page.goto("/sign-in/")
    dark = page.evaluate(background)
    switch = page.locator("[data-theme-switch]")
    switch.click()
    light = page.evaluate(background)
    assert light != dark
    page.reload()
    assert page.evaluate(background) == light
    switch.click()
    assert page.evaluate(background) == dark
    switch.click()
    expect(switch).to_have_attribute("aria-label", switch.get_attribute("data-system"))


def test_the_language_can_be_switched_before_signing_in(open_page, alice):
    page = open_page("ja")
    page.goto("/sign-in/")
    page.locator("[name=language][value=en]").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    sign_in(page)
    expect(page.locator("html")).to_have_attribute("lang", "en")


@pytest.mark.parametrize(
    ("address", "places"),
    [("/start/", ("#rules", "ask-here")), ("/", ("ask-here", "tab-curl", "curl"))],
    ids=["first day", "home"],
)
def test_the_keyboard_reaches_everything_and_shows_where_it_is(open_page, alice, research, address, places):
    serve("qwen")
    key_of(alice, research)
    page = open_page()
    sign_in(page)
    page.goto(address)
    page.evaluate("document.body.focus()")
    reached, outlines = [], set()
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):  # behind the last one
            break
        reached.append(page.evaluate(PLACE))
        outlines.add(looks(page, "focused")[1])
    assert reached[0] == "#content"
    for place in ("/keys/", "/usage/", "/models/", "language", "menu", "/keys/new/", *places):
        assert place in reached
    assert outlines == {"solid"}


def test_without_scripts_everything_but_copying_works(browser, site, alice):
    context = browser.new_context(base_url=site, java_script_enabled=False)
    page = context.new_page()
    sign_in(page)
    page.goto(reverse("key-new"))
    page.locator("[name=name]").fill("laptop")
    page.locator("main form button").click()
    expect(page.locator("#key")).to_have_text(re.compile(r"mdg_\w{38}"))
    expect(page.locator(".copy").first).to_be_hidden()
    page.goto(reverse("key", args=[ApiKey.objects.get().prefix]))
    page.locator("details.danger summary").click()
    page.locator("button.danger").click()
    assert ApiKey.objects.get().state == "revoked"
    context.close()
