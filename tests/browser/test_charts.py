"""Charts as they are drawn."""

import pytest
from playwright.sync_api import Page

from tests.browser.pages import sign_in
from tests.pages import key_of, serve, use

pytestmark = pytest.mark.django_db(transaction=True)

DRAWN = (
    "Chart.getChart(document.querySelector('canvas')).getDatasetMeta(0).data.map(bar => bar.options.backgroundColor)"
)
WANTED = "getComputedStyle(document.documentElement).getPropertyValue('--series-1').trim()"


def in_the_colours_of_the_page(page: Page) -> bool:
    return set(page.evaluate(DRAWN)) == {page.evaluate(WANTED)}


@pytest.mark.parametrize("path", ["/", "/usage/"])
def test_bars_have_the_colours_of_the_page_from_the_first_look_on_and_when_it_turns_dark(
    open_page, alice, research, path
):
    serve("qwen")
    use(key_of(alice, research), tokens=(1_000, 234))
    page = open_page(scheme="light")
    sign_in(page)
    page.goto(path)
    assert in_the_colours_of_the_page(page)
    light = page.evaluate(WANTED)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{WANTED} !== {light!r}")
    assert in_the_colours_of_the_page(page)
