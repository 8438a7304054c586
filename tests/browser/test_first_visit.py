"""The first visit, with everything real: the company directory, the site, its gateway, llama.cpp and a browser.

From sign-in to the first words of a model within a minute, with the playground and with a key of one's own; what was
used is on the usage page right after.
"""

import os
import subprocess
import time

from playwright.sync_api import Page, expect

from tests.browser.company import company, sign_in, site  # noqa: F401 - two fixtures
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
    sign_in(page, directory, "alice")
    page.get_by_role("navigation").get_by_role("link", name="試す").click()
    page.locator("main summary", has_text="設定").click()
    page.get_by_label("回答の最大の長さ").fill("40")
    page.get_by_label("メッセージ", exact=True).fill("Tell me a story about a counter.")
    page.get_by_role("button", name="送信").click()
    words = page.locator(".turn.model .words")
    expect(words).not_to_be_empty(timeout=1000 * MINUTE)
    assert time.monotonic() - begun < MINUTE
    early = words.inner_text()
    figures = page.locator(".turn.model .figures")
    expect(figures).to_contain_text("出力", timeout=1000 * MINUTE)
    assert len(words.inner_text()) > len(early)  # it came bit by bit
    for what in ("初回応答時間", "トークン/秒"):
        expect(figures).to_contain_text(what)
    made = figures.inner_text().rpartition("出力 ")[2].split(" ")[0]
    assert 10 < int(made) <= 40
    until(lambda: used(page, "「試す」ページ", made), 30)


def test_from_sign_in_to_an_answer_with_a_key_of_one_s_own(open_page, madoguchi, directory):
    page = open_page("en")
    begun = time.monotonic()
    sign_in(page, directory, "bob")
    page.get_by_role("main").get_by_role("link", name="Create an API key").first.click()
    page.get_by_label("Name", exact=True).fill("laptop")
    page.get_by_role("button", name="Create the key").click()
    command = page.locator(".tab.curl pre").inner_text()
    done = subprocess.run(
        ["sh", "-c", command], env=dict(os.environ), capture_output=True, text=True, timeout=MINUTE, check=True
    )
    assert time.monotonic() - begun < MINUTE
    assert '"content"' in done.stdout, done.stdout
    until(lambda: used(page, "laptop"), 30)
