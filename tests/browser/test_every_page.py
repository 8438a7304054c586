"""Every page of the site, in both languages, light and dark, on a telephone and on a desk.

Nothing that WCAG 2 (A, AA) forbids, nothing wider than the window, no complaint of the browser, nothing from another
origin (see `open_page`).
"""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page

from portal.keys.models import ApiKey
from portal.quotas.models import Quota, QuotaRequest
from portal.web.notify import notify
from tests.browser.pages import LONG_KEY, LONG_TENANT, enter, looks
from tests.fleet import calls, fleet
from tests.pages import key_of, serve, use
from tests.portal.access_rules import RULES
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)

WIDTHS = (360, 1280)
# From who may do least to who may do most. What one of them alone sees differs, so each page is read as two of them.
RANKS = ("nobody", "alice", "bob", "olivia")
# Each takes about 20 s. All of them together see at least so many pages, each its share of them.
PARTS = 5
SEEN = 60
# What Chromium answers where it saves a file instead of showing a page.
DOWNLOAD = "Download is starting"


@pytest.fixture
def furnished(filled, alice, bob, olivia, research) -> None:
    """Make what pages show: keys in each state, usage, quotas, requests, notices, machines, long names."""
    research.name = LONG_TENANT
    research.save()
    now = timezone.now()
    fleet()
    mine = ApiKey.objects.get(user=alice)
    calls(mine)
    long = key_of(alice, research, LONG_KEY, expires_at=now + timedelta(days=3))
    key_of(alice, research, "old", expires_at=now - timedelta(days=1))
    key_of(alice, research, "gone", expires_at=None, created_by=alice)
    for days in range(0, 40, 3):
        use(long, tokens=(123_456_789, 98_765), at=now - timedelta(days=days), estimated=True)
    serve("e5", task="embedding", state="asleep")
    Quota.objects.create(user=alice, unit="tokens", window="day", amount=130_000_000)
    Quota.objects.create(tenant=research, unit="tokens", window="month", amount=5_000_000_000)
    Quota.objects.create(tenant=research, default_for="member", unit="requests", window="minute", amount=60)
    Quota.objects.create(key=long, unit="concurrent", window="", amount=4)
    quota_request = {
        "tenant": research,
        "user": alice,
        "unit": "tokens",
        "amount": 200_000_000,
        "previous_amount": 130_000_000,
    }
    QuotaRequest.objects.create(**quota_request, window="month", asked_by=alice, reason="決算期のため " * 10)
    told = {"key": LONG_KEY, "prefix": long.prefix, "tenant": research.name, "days": 3, "at": now.isoformat()}
    notify([alice, bob, olivia], "key-expires", f"{long.prefix} 7", path=f"/keys/{long.prefix}/", **told)


def pages(readers: Callable[[list[str]], str], filled: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (who reads it, address) of everything that is asked for with GET."""
    for path, rule in RULES.items():
        ranked = [who for who in RANKS if who in rule.who]
        if rule.method != "GET" or not ranked or path.startswith("api/v1/"):
            continue
        address = "/" + path
        for part, value in filled.items():
            address = address.replace(part, value)
        yield readers(ranked), address
    yield from ((readers(list(RANKS[1:])), "/nothing/here/"), ("alice", "/operations/"))


def complaints(page: Page, axe: Callable[..., list[str]]) -> list[str]:
    """Return all of WCAG 2 in the light; in the dark only the colours differ, in another width only what fits."""
    page.evaluate("for (const e of document.querySelectorAll('main details')) e.open = true")
    # Colours that are on their way to others are none of the design.
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    found = axe(page)
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    found += [f"dark {complaint}" for complaint in axe(page, "color-contrast")]
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        found += [f"{width} px {complaint}" for complaint in too_wide(page)]
    return found


def too_wide(page: Page) -> list[str]:
    """Return what is wider than the window once charts have had the time to follow it."""
    with contextlib.suppress(AssertionError):
        until(lambda: not looks(page, "tooWide"), 2)
    return looks(page, "tooWide")


def opened(page: Page, address: str) -> bool:
    """Return whether there is a page at the address: the browser shows it then. Files, and data, are none."""
    try:
        answer = page.goto(address)
    except PlaywrightError as error:
        if DOWNLOAD not in error.message:
            raise
        return False
    assert answer
    return "text/html" in answer.headers.get("content-type", "")


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(
    ("language", "width", "readers"),
    [("ja", 1280, lambda ranked: ranked[0]), ("en", 360, lambda ranked: ranked[-1])],
    ids=["ja, who may do least", "en, who may do most"],
)
def test_every_page_is_fit_for_everybody(
    open_page, site, furnished, filled, axe, language, width, readers, provoked, part
):
    provoked += ["nothing/here/.* 404 ", "operations/.* 403 "]
    tabs, found, seen = {}, {}, 0
    for who, address in list(pages(readers, filled))[part::PARTS]:
        if who not in tabs:
            tabs[who] = open_page(language, width=width)
            if who != "nobody":
                enter(tabs[who], site, who)
        page = tabs[who]
        page.set_viewport_size({"width": width, "height": 800})
        if not opened(page, address):
            continue
        seen += 1
        wrong = complaints(page, axe)
        if language == "ja":
            wrong += [f"English: {text}" for text in looks(page, "foreign")]
        if wrong:
            found[f"{who} {address}"] = wrong
    assert seen >= SEEN / PARTS
    assert found == {}


def test_what_is_wrong_is_found(open_page, axe):
    """The test above would be green with eyes that see nothing."""
    page = open_page()
    page.goto("/sign-in/")
    assert complaints(page, axe) == []
    page.evaluate("document.documentElement.lang = 'ja'")
    assert page.locator(".skip").inner_text() in looks(page, "foreign")
    page.evaluate("document.querySelector('[name=username]').labels[0].remove()")
    page.evaluate("document.querySelector('footer p').style.cssText = 'color: #999; background: #aaa'")
    page.evaluate("document.querySelector('h1').style.width = '400px'")
    found = " ".join(complaints(page, axe))
    for complaint in ("label: ", "color-contrast: ", "dark color-contrast: ", "360 px <h1"):
        assert complaint in found
