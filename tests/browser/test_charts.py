"""Charts as they are drawn."""

import pytest
from django.template.loader import render_to_string
from playwright.sync_api import Page, expect

from portal.usage.chart import line_chart
from tests.browser.pages import sign_in
from tests.pages import key_of, serve, use
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)

DRAWN = (
    "Chart.getChart(document.querySelector('canvas')).getDatasetMeta(0).data.map(bar => bar.options.backgroundColor)"
)
# The shade follows the model's name.
WANTED = """
{
  const script = document.querySelector("[data-chart] script, script[type='application/json']");
  const [first] = JSON.parse(script.textContent).series;
  getComputedStyle(document.documentElement).getPropertyValue(`--series-${first.shade}`).trim();
}
"""


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
    until(lambda: page.evaluate(WANTED) != light)  # the policy forbids what wait_for_function evaluates
    until(lambda: in_the_colours_of_the_page(page))


@pytest.fixture
def drawn(open_page, alice, research) -> Page:
    """Provide the page of Alice's usage of two models."""
    key = key_of(alice, research)
    use(key, tokens=(1_000, 234), model="qwen")
    use(key, tokens=(1, 1), model="=1+1")
    page = open_page()
    sign_in(page)
    page.goto("/usage/?period=30")  # this month is shown by hours on its first day
    return page


def test_the_switch_of_colours_repaints_them_while_the_page_is_open(drawn):
    light = drawn.evaluate(WANTED)
    drawn.locator("[data-theme-switch]").click()
    drawn.locator("[data-theme-switch]").click()
    until(lambda: drawn.evaluate(WANTED) != light)
    until(lambda: in_the_colours_of_the_page(drawn))


def test_the_numbers_behind_a_chart_can_be_read_copied_and_saved(drawn):
    figure = drawn.locator("[data-chart=chart-tokens]")
    figure.locator("summary").click()
    assert figure.locator("tbody tr").first.locator("td").all_inner_texts() == ["1,234", "2", "1,236"]
    figure.locator("[data-copy]").click()
    expect(drawn.locator("[data-said]")).not_to_be_empty()
    copied = drawn.evaluate("navigator.clipboard.readText()").splitlines()
    assert copied[0] == "day,qwen,'=1+1"  # a spreadsheet gets no formula
    assert copied[-1].endswith(",1234,2")
    with drawn.expect_download() as download:
        figure.locator("[data-csv]").click()
    assert download.value.suggested_filename == "tokens.csv"
    assert download.value.path().read_text("utf-8-sig").splitlines() == copied


def test_without_scripts_the_table_stands_in_the_place_of_the_chart(browser, site, alice, research):
    use(key_of(alice, research), tokens=(1_000, 234))
    context = browser.new_context(base_url=site, java_script_enabled=False, locale="en-GB")
    page = context.new_page()
    sign_in(page)
    page.goto("/usage/")
    figure = page.locator("[data-chart=chart-tokens]")
    expect(figure.locator(".plot")).to_be_hidden()
    expect(figure.locator("td", has_text="1,234").first).to_be_visible()
    context.close()


def test_a_bar_leads_to_its_day(drawn):
    box = drawn.locator("[data-chart=chart-tokens] canvas").bounding_box()
    middle = drawn.evaluate(
        "(() => { const c = Chart.getChart(document.querySelector('[data-chart=chart-tokens] canvas'));"
        " const bar = c.getDatasetMeta(0).data.at(-1); return [bar.x, (bar.y + bar.base) / 2]; })()"
    )
    drawn.mouse.click(box["x"] + middle[0], box["y"] + middle[1])
    drawn.wait_for_url("**/usage/?period=20*")


def test_the_legend_has_each_line_as_it_is_drawn_whatever_its_colour(open_page):
    shares = {f"curve {n}": {1: 80.0, 2: 60.0} for n in range(6)}
    chart = line_chart(shares, [1, 2], "nth week", name="kept", measure="per cent", first_shade=3)
    page = open_page()
    page.goto("/sign-in/")
    page.evaluate(
        "html => document.querySelector('main').innerHTML = html",
        render_to_string("usage/_chart.html", {"chart": chart, "label": "Kept"}),
    )
    lines = page.locator(".legend .swatch").evaluate_all(
        "all => all.map(one => [one.offsetWidth > 6 * one.offsetHeight, getComputedStyle(one).maskImage,"
        " getComputedStyle(one).backgroundColor])"
    )
    assert len(lines) == len({colour for _, _, colour in lines}) == 6
    assert all(is_line for is_line, _, _ in lines)
    dashes = [dash for _, dash, _ in lines]
    assert len(set(dashes)) == 3
    assert dashes[:3] == dashes[3:]
