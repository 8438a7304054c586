"""What a person does on the first day, in a browser: sign in, make a key, copy it, look at the usage, revoke."""

import re
from dataclasses import dataclass

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from portal.keys.models import ApiKey
from tests.browser.pages import looks, sign_in
from tests.pages import key_of, serve, use

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass(frozen=True)
class Words:
    sign_in: str
    create: str
    name: str
    make: str
    copy_key: str
    copied: str
    usage: str
    tokens: str
    revoke: str
    confirm: str
    revoked: str
    sign_out: str


WORDS = {
    "en": Words(
        sign_in="Sign in",
        create="Create an API key",
        name="Name",
        make="Create the key",
        copy_key="Copy the key",
        copied="Copied",
        usage="Usage",
        tokens="1,234",
        revoke="Revoke this key…",
        confirm="Revoke “laptop”",
        revoked="is revoked",
        sign_out="Sign out",
    ),
    "ja": Words(
        sign_in="サインイン",
        create="API キーを作る",
        name="名前",
        make="キーを作る",
        copy_key="キーをコピー",
        copied="コピーしました",
        usage="利用量",
        tokens="1,234",
        revoke="このキーを失効させる…",
        confirm="「laptop」を失効させる",
        revoked="失効させました",
        sign_out="サインアウト",
    ),
}


def clipboard(page: Page) -> str:
    return page.evaluate("navigator.clipboard.readText()")


@pytest.mark.parametrize("language", ["ja", "en"])
def test_the_first_day(open_page, alice, language):
    words, page = WORDS[language], open_page(language)
    serve("qwen")

    page.goto("/")
    expect(page.get_by_role("heading", name=words.sign_in)).to_be_visible()
    sign_in(page)

    page.get_by_role("link", name=words.create).click()
    page.get_by_label(words.name).fill("laptop")
    page.get_by_role("button", name=words.make).click()
    key = page.locator("#key").inner_text()
    assert re.fullmatch(r"mdg_[0-9A-Za-z]{38}", key)
    page.get_by_role("button", name=words.copy_key).click()
    expect(page.locator("[data-said]")).to_have_text(words.copied)
    assert clipboard(page) == key

    for way in ("curl", "Python", "Dify"):
        page.get_by_text(way, exact=True).click()
        expect(page.locator(f".tab.{way.lower()}")).to_contain_text(key)
    page.get_by_text("curl", exact=True).click()
    page.locator(".tab.curl .copy").click()
    page.wait_for_function(
        "key => navigator.clipboard.readText().then(text => text.includes(key))", arg=f"Bearer {key}"
    )
    assert clipboard(page).startswith("curl http://")

    use(ApiKey.objects.get(), tokens=(1_000, 234))
    page.get_by_role("navigation").get_by_role("link", name=words.usage).click()
    expect(page.get_by_role("table").last).to_contain_text(words.tokens)

    page.goto(reverse("keys"))
    page.get_by_role("link", name="laptop").click()
    expect(page.get_by_role("button", name=words.confirm)).to_be_hidden()
    page.get_by_text(words.revoke).click()
    page.get_by_role("button", name=words.confirm).click()
    expect(page.get_by_role("status").first).to_contain_text(words.revoked)
    assert ApiKey.objects.get().state == "revoked"

    page.locator(".menu summary").click()
    page.get_by_role("button", name=words.sign_out).click()
    page.wait_for_url("**/sign-in/**")


def test_a_reload_of_the_page_with_the_key_makes_no_second_one(open_page, alice):
    page = open_page()
    sign_in(page)
    page.goto(reverse("key-new"))
    page.locator("[name=name]").fill("laptop")
    page.locator("main form button").click()
    key = page.locator("#key").inner_text()
    page.reload()
    expect(page.get_by_role("status").first).to_contain_text("No further key was made")
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


def test_the_first_wrong_field_has_the_focus_and_what_was_typed_is_kept(open_page, alice):
    page = open_page()
    sign_in(page)
    page.goto(reverse("key-new"))
    page.get_by_label("1 year").check()
    page.locator("main form button").click()
    expect(page.locator(".error").first).to_be_visible()
    expect(page.locator("[name=name]")).to_be_focused()
    expect(page.get_by_label("1 year")).to_be_checked()


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
    expect(switch).to_have_attribute("aria-label", "Colours: as the system")


def test_the_language_can_be_switched_before_signing_in(open_page, alice):
    page = open_page("ja")
    page.goto("/sign-in/")
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    sign_in(page)
    expect(page.get_by_role("heading", name="Hello")).to_be_visible()


def test_the_keyboard_reaches_everything_and_shows_where_it_is(open_page, alice, research):
    serve("qwen")
    key_of(alice, research)
    page = open_page()
    sign_in(page)
    page.evaluate("document.body.focus()")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(looks(page, "focused"))
        if reached[-1][0] == "Create an API key":
            break
    names = [name for name, _ in reached]
    assert names[0] == "To the content"
    for name in ("API keys", "Usage", "Models", "日本語", "Account of Alice", "tab-curl", "Copy", "Create an API key"):
        assert name in names
    assert {outline for _, outline in reached} == {"solid"}


def test_without_scripts_everything_but_copying_works(browser, live_server, alice):
    context = browser.new_context(base_url=live_server.url, java_script_enabled=False)
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
