"""The first visit, with everything real: the company directory, the site, its gateway, llama.cpp and a browser.

From sign-in to the first words of a model within a minute, with the playground and with a key of one's own; what was
used is on the usage page right after.
"""

import os
import subprocess
import time

from playwright.sync_api import Page, expect

from tests.browser.company import company, site  # noqa: F401 - two fixtures
from tests.browser.pages import sign_in
from tests.waiting import until

MINUTE = 60.0  # seconds; it takes 3 on an idle machine with two cores


def used(page: Page, *columns: str) -> bool:
    """Return whether a row of the usage page's tables holds all of these."""
    page.goto("/usage/?by=key")
    rows = page.locator("main tr").all_text_contents()
    return any(all(column in row for column in columns) for row in rows)


def test_from_sign_in_to_a_streamed_answer_in_the_page(open_page, madoguchi, directory):
    page = open_page("ja")
    begun = time.monotonic()
    sign_in(page, "alice", directory.people["alice"].password)
    page.locator("[data-places] a[href='/try/']").click()
    page.locator("[data-settings] > summary").click()
    page.locator("[data-tokens]").fill("40")
    page.locator("[data-prompt]").fill("Tell me a story about a counter.")
    page.locator("[data-send]").click()
    words = page.locator(".turn.model .words")
    expect(words).not_to_be_empty(timeout=1000 * MINUTE)
    assert time.monotonic() - begun < MINUTE
    early = words.inner_text()
    figures = page.locator(".turn.model .figures")
    figures.and_(page.locator("[data-tokens-out]")).wait_for(timeout=1000 * MINUTE)
    assert len(words.inner_text()) > len(early)  # it came bit by bit
    for name in ("data-first", "data-speed"):
        assert float(figures.get_attribute(name)) > 0
    made = figures.get_attribute("data-tokens-out")
    assert 10 < int(made) <= 40
    until(lambda: used(page, made), 30)


def test_from_sign_in_to_an_answer_with_a_key_of_one_s_own(open_page, madoguchi, directory):
    page = open_page("en")
    begun = time.monotonic()
    sign_in(page, "bob", directory.people["bob"].password)
    page.locator("main a[href='/keys/new/']").first.click()
    page.locator("[name=name]").fill("laptop")
    page.locator("main form button").click()
    command = page.locator(".tab.curl pre").inner_text()
    done = subprocess.run(
        ["sh", "-c", command], env=dict(os.environ), capture_output=True, text=True, timeout=MINUTE, check=True
    )
    assert time.monotonic() - begun < MINUTE
    assert '"content"' in done.stdout, done.stdout
    until(lambda: used(page, "laptop"), 30)


COUNT_CLICKS = """
addEventListener("click", (event) => {
  if (event.isTrusted) sessionStorage.setItem("clicks", Number(sessionStorage.getItem("clicks") ?? 0) + 1);
}, true);
"""


def test_the_first_answer_is_three_clicks_from_the_sign_in_page(open_page, madoguchi, directory):
    """By nothing but what the pages offer, without a word typed beside name and password."""
    page = open_page("ja")
    page.add_init_script(COUNT_CLICKS)
    begun = time.monotonic()
    page.goto("/")
    page.locator("[name=username]").fill("yamada")
    page.locator("[name=password]").fill(directory.people["yamada"].password)
    page.locator("main form button").click()
    page.wait_for_url("**/start/")
    page.locator("[data-ask-button]").click()
    page.wait_for_url("**/try/")
    page.locator("[data-send]").click()
    expect(page.locator(".turn.model .words")).not_to_be_empty(timeout=1000 * MINUTE)
    assert time.monotonic() - begun < MINUTE
    assert int(page.evaluate("sessionStorage.getItem('clicks')")) == 3
    # Once there was an answer, the next sign-in leads home.
    page.locator("[data-tokens-out]").wait_for(timeout=1000 * MINUTE)
    until(lambda: not page.goto("/start/arrive/").url.endswith("/start/"), 30)
