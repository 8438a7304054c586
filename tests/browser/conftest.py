"""A real browser on a real server. Every page that a test opens is watched; whatever was wrong fails the test."""

import os
import re
import shutil
from collections.abc import Callable, Iterator

import pytest
from django.conf import settings
from playwright.sync_api import Browser, Page, Request, sync_playwright

from portal import frontend
from portal.quotas.models import QuotaRequest
from tests.browser.server import Site
from tests.portal.access_rules import filled  # noqa: F401 - a fixture
from tests.ports import unused_port

# Playwright's synchronous API keeps an event loop running in this thread, in which Django would refuse the ORM. The
# server answers in threads of its own.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"

# Debian's; None (as on Ubuntu, see deploy/setup.py) lets Playwright take the one that it fetched.
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOCALES = {"ja": "ja-JP", "en": "en-GB"}
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
# Longest wait for anything on a page, in ms: a machine that runs other tests beside is slow, not broken.
PATIENCE = 15_000


@pytest.fixture(scope="session", autouse=True)
def _libraries() -> None:
    """Say what to run where the pages' libraries are missing: scripts would fail in ways that are hard to read."""
    frontend.package(settings.CACHE, "chart.js")


@pytest.fixture(scope="session")
def axe_core() -> str:
    return (frontend.package(settings.CACHE, "axe-core") / "axe.min.js").read_text()


@pytest.fixture
def axe(axe_core) -> Callable[..., list[str]]:
    """Provide `axe(page)`: how the page as it is breaks WCAG 2 (A, AA), one line for each rule and place.

    With names of rules only those are asked.
    """

    def violations(page: Page, *rules: str) -> list[str]:
        what = {"type": "rule", "values": rules} if rules else {"type": "tag", "values": WCAG}
        if not page.evaluate("() => 'axe' in window"):
            page.evaluate(f"() => {{ {axe_core} }}")
        found = page.evaluate("what => axe.run(document, {runOnly: what, resultTypes: ['violations']})", what)
        return [
            f"{rule['id']}: {node['html'][:150]} {node['failureSummary']}"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]

    return violations


# Not for the session: while it is there, this thread has a running event loop, and other modules want their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def portal(transactional_db) -> Iterator[Site]:
    portal = Site(unused_port())
    portal.start()
    yield portal
    portal.stop()


@pytest.fixture
def site(portal) -> str:
    """Return the address of the server that browsers are sent to."""
    return portal.url


@pytest.fixture
def provoked() -> list[str]:
    """Return a test puts here what it makes browsers complain about, as regular expressions."""
    return []


@pytest.fixture
def open_page(browser, site, provoked) -> Iterator[Callable[..., Page]]:
    """Provide `open_page(language, width=…, scheme=…, scripts=…)`: a page in a browser window of its own."""
    contexts, complaints = [], []

    def open_(language: str = "en", *, width: int = 1280, scheme: str = "light", scripts: bool = True) -> Page:
        context = browser.new_context(
            base_url=site,
            locale=LOCALES[language],
            color_scheme=scheme,
            viewport={"width": width, "height": 800},
            java_script_enabled=scripts,
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        # The browser reports what the content security policy stopped as an error on the console.
        page.on("console", lambda line: line.type in ("error", "warning") and tell(page, line.text))
        page.on("pageerror", lambda error: tell(page, str(error)))
        page.on("requestfailed", lambda request: aborted(request) or tell(page, f"failed: {request.url}"))
        page.on("request", lambda request: elsewhere(request.url) and tell(page, f"elsewhere: {request.url}"))
        return page

    def tell(page: Page, complaint: str) -> None:
        complaints.append(f"{page.url}: {complaint}")

    def aborted(request: Request) -> bool:
        """Return whether the browser aborted it because the page was left before all of it was loaded."""
        return request.failure == "net::ERR_ABORTED"

    def elsewhere(url: str) -> bool:
        return not url.startswith((site, "data:"))

    yield open_
    for context in contexts:
        context.close()
    assert [told for told in complaints if not any(re.search(known, told) for known in provoked)] == []


@pytest.fixture
def open_request(research, alice, bob) -> QuotaRequest:
    """Return a request that waits for Bob, who administers the tenant."""
    request = {
        "tenant": research,
        "user": alice,
        "unit": "tokens",
        "window": "day",
        "amount": 200,
        "previous_amount": 100,
    }
    return QuotaRequest.objects.create(**request, asked_by=alice)
