"""What a browser fetches to show a page: few files, and little of them, also where the network is slow."""

import gzip
from collections.abc import Iterator

import pytest
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, Response

from portal.keys.models import ApiKey
from tests.browser.pages import enter
from tests.fleet import calls, fleet
from tests.portal.access_rules import CAST, RULES, address_of

pytestmark = pytest.mark.django_db(transaction=True)

MOST_REQUESTS = 10
MOST_BYTES = 250_000
# They contain an editor's worth of scripts: the playground's, and Swagger UI.
LARGER = {"/try/": 500_000, "/api/docs/": 550_000}
# Each takes about 15 s; all of them together see at least so many pages.
PARTS = 6
SEEN = 60
DOWNLOAD = "Download is starting"


@pytest.fixture
def furnished(filled, alice, bob, olivia, research) -> None:
    fleet()
    calls(ApiKey.objects.get(user=alice))


def size(response: Response) -> int:
    """Return the bytes on the wire: static files are compressed when they are collected, pages are sent as they are."""
    body = response.body()
    is_compressed = "/static/" in response.url or response.headers.get("content-encoding") == "gzip"
    return len(gzip.compress(body)) if is_compressed else len(body)


def fetched(page: Page, address: str) -> list[Response] | None:
    """Return all that the browser fetches for a page; None if the address is a file's."""
    responses: list[Response] = []
    page.on("response", lambda response: responses.append(response))
    try:
        # Those with much to do fetch some of it when all else is there.
        answer = page.goto(address, wait_until="networkidle" if address in LARGER else "load")
    except PlaywrightError as error:
        if DOWNLOAD not in error.message:
            raise
        return None
    assert answer
    return responses if "text/html" in answer.headers.get("content-type", "") else None


def first_looks(filled: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (who, address) of all that is asked for with GET. Alice, who may ask for most of it, has keys and usage."""
    for path, rule in RULES.items():
        if rule.method == "GET" and rule.who and not path.startswith("api/v1/"):
            yield next(name for name in ("alice", "bob", *CAST) if name in rule.who), address_of(path, filled)
    yield "bob", "/"
    yield "olivia", "/"
    yield "olivia", "/admin/"


@pytest.mark.parametrize("part", range(PARTS))
def test_a_page_needs_few_requests_and_weighs_little(open_page, site, furnished, filled, part):
    found, seen = {}, 0
    for who, address in list(first_looks(filled))[part::PARTS]:
        page = open_page()  # with an empty cache, as on the first visit
        enter(page, site, who)
        responses = fetched(page, address)
        if responses is not None:
            seen += 1
            weight = sum(size(response) for response in responses if response.status == 200)
            if len(responses) > MOST_REQUESTS or weight > LARGER.get(address, MOST_BYTES):
                found[f"{who} {address}"] = f"{len(responses)} requests, {weight} bytes"
        page.context.close()
    assert seen >= SEEN / PARTS
    assert found == {}
