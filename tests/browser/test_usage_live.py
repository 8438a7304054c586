"""The live view of usage in a browser, with its socket."""

import json
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import expect

from tests.browser.pages import LONG_KEY, looks, sign_in
from tests.pages import key_of, serve, use
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)


def test_what_is_answered_appears_in_charts_and_tables(open_page, bob, alice, research):
    serve("qwen")
    key = key_of(alice, research, "夜間バッチ")
    page = open_page("ja")
    sign_in(page, "bob")
    page.goto("/usage/live/?of=tenant:research")
    live = page.locator("[data-live-note]").get_attribute("data-live-words")
    expect(page.locator("[data-live-state].fine")).to_have_text(live)
    expect(page.locator("[data-none=last]")).to_be_visible()
    use(key, tokens=(7, 1_234), at=timezone.now() - timedelta(seconds=20), first_token_ms=100, duration_ms=12_000)
    expect(page.locator("[data-rows=last] tr")).to_have_count(1)
    row = page.locator("[data-rows=last] tr").first
    expect(row).to_contain_text("夜間バッチ")
    expect(row).to_contain_text("1,234")
    statuses = json.loads(page.locator("#statuses").text_content())
    expect(row.locator("[data-field=status]")).to_have_text(statuses["finished"])
    expect(page.locator("[data-none=last]")).to_be_hidden()
    expect(page.locator("[data-rows=models] tr")).to_have_count(1)
    expect(page.locator("[data-now=requests]")).to_have_text("1")
    height = "Chart.getChart(document.querySelector('[data-chart=chart-live-tokens] canvas')).data.datasets[0].data"
    until(lambda: page.evaluate(f"Math.max(...{height})") > 50)
    page.locator("[data-chart=chart-live-tokens] summary").click()
    expect(page.locator("[data-chart=chart-live-tokens] tbody")).to_contain_text("103.7")


def test_the_focus_stays_at_a_request_when_others_come(open_page, alice, research):
    serve("qwen")
    key = key_of(alice, research)
    first = use(key, at=timezone.now() - timedelta(seconds=30))
    page = open_page()
    sign_in(page)
    page.goto("/usage/live/")
    link = page.locator(f"[data-rows=last] a[href*='{first.request_id}']")
    link.focus()
    use(key, at=timezone.now() - timedelta(seconds=20))
    expect(page.locator("[data-rows=last] tr")).to_have_count(2)
    expect(link).to_be_focused()


def test_it_says_when_it_is_not_live(open_page, provoked, portal, alice):
    provoked.append("WebSocket connection to .* failed|ERR_CONNECTION_REFUSED")
    page = open_page()
    sign_in(page, "alice")
    page.goto("/usage/live/")
    expect(page.locator("[data-live-state].fine")).to_be_visible()
    portal.stop()
    expect(page.locator("[data-live-state].watch")).to_be_visible()
    portal.start()
    expect(page.locator("[data-live-state].fine")).to_be_visible(timeout=60_000)


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_can_be_read(open_page, axe, alice, research, width):
    key = key_of(alice, research, LONG_KEY)
    for seconds in range(5, 60, 5):
        use(key, tokens=(70_000, 1_234), at=timezone.now() - timedelta(seconds=seconds), first_token_ms=10)
    for scheme in ("light", "dark"):
        page = open_page(width=width, scheme=scheme)
        sign_in(page)
        page.goto("/usage/live/")
        expect(page.locator("[data-live-state].fine")).to_be_visible()
        for question in ("tooWide", "tooSmall", "faint"):
            assert looks(page, question) == [], (scheme, question)
        assert axe(page) == []
