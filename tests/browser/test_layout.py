"""Pages fit the smallest phone, and what is to be pressed can be hit."""

import re
from datetime import date, timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from modelregistry.models import Host
from portal.prices.models import TokenPrice
from portal.quotas.models import Quota
from tests.browser.pages import LONG_KEY, LONG_MODEL, LONG_TENANT, looks, sign_in
from tests.fleet import fleet
from tests.news import announce
from tests.pages import key_of, serve, use
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)


LINES = """
one => {
  const text = document.createRange();
  text.selectNodeContents(one);
  return text.getBoundingClientRect().height / parseFloat(getComputedStyle(one).fontSize) / 1.5;
}
"""


@pytest.fixture
def everything(alice, research):
    """Return a person with plenty of everything, with long names."""
    research.name = LONG_TENANT
    research.save()
    model = serve(LONG_MODEL, context=131_072)
    serve("e5", task="embedding", state="asleep")
    serve("reranker", task="rerank", state="failed", context=None)
    key = key_of(alice, research, LONG_KEY, allowed_models=[model])
    key_of(alice, research, "old", expires_at=timezone.now() - timedelta(days=1))
    for days in range(40):
        use(
            key,
            tokens=(123_456_789, 98_765),
            model=LONG_MODEL,
            at=timezone.now() - timedelta(days=days),
            estimated=True,
        )
        use(key, model="e5", at=timezone.now() - timedelta(days=days))
    Quota.objects.create(user=alice, unit="tokens", window="day", amount=100_000_000)
    Quota.objects.create(key=key, model=model, unit="requests", window="month", amount=1_000_000)
    Quota.objects.create(user=alice, unit="concurrent", window="", amount=4)
    return key


def pages(key) -> list[str]:
    names = ["home", "keys", "key-new", "usage", "models"]
    return [reverse(name) for name in names] + [reverse("key", args=[key.prefix]), "/usage/?period=90"]


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window_or_too_small_to_hit(open_page, everything, language, width):
    page = open_page(language, width=width)
    page.goto("/sign-in/")
    assert looks(page, "tooWide") == []
    sign_in(page)
    for path in pages(everything):
        page.goto(path)
        for folded in page.locator("details:not(.menu) > summary").all():
            folded.click()
        assert looks(page, "tooWide") == [], path
        assert looks(page, "tooSmall") == [], path
    page.goto(reverse("key-new"))
    page.locator("[name=name]").fill(LONG_KEY)
    page.locator("main form button").click()
    for way in ("curl", "python", "dify", "webui"):
        page.locator(f"label[for=tab-{way}]").click()
        assert looks(page, "tooWide") == [], way
        assert looks(page, "tooSmall") == [], way


STATE_BESIDE_NAME = """
name => {
  const [model, state] = ["a", ".state"].map((one) => name.querySelector(one).getBoundingClientRect());
  return state.top < model.bottom && state.left >= model.right;
}
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_state_of_a_model_stays_beside_its_name_however_long_that_is(open_page, everything, width):
    page = open_page("ja", width=width)
    sign_in(page)
    page.goto("/status/")
    names = page.locator(".statuses .name").all()
    assert [name.evaluate(STATE_BESIDE_NAME) for name in names] == [True] * 3


def test_words_have_enough_contrast_in_light_and_dark(open_page, everything):
    for scheme in ("light", "dark"):
        page = open_page(width=1280, scheme=scheme)
        sign_in(page)
        for path in pages(everything):
            page.goto(path)
            assert looks(page, "faint") == [], f"{scheme} {path}"


PAPER = 718  # CSS pixels across A4 between the browser's margins
INK = "Chart.getChart(document.querySelector('[data-chart] canvas')).options.scales.x.ticks.color"


def test_paper_is_white_and_everything_fits_on_it(open_page, everything):
    bright = open_page(width=PAPER)
    page = open_page(width=PAPER, scheme="dark")
    for tab in (bright, page):
        sign_in(tab)
        tab.goto("/usage/?period=90")
    page.emulate_media(media="print", color_scheme="dark")
    until(lambda: page.evaluate(INK) == bright.evaluate(INK))
    for path in pages(everything):
        page.goto(path)
        page.evaluate("for (const e of document.querySelectorAll('main details')) e.open = true")
        page.evaluate("document.documentElement.dataset.theme = 'dark'")
        assert looks(page, "faint") == [], path
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", path
        assert page.evaluate("document.documentElement.scrollWidth") <= PAPER, path


def test_paper_says_where_it_is_from_and_has_nothing_to_press(open_page, everything):
    page = open_page(width=PAPER)
    sign_in(page)
    for path in [*pages(everything), "/status/", "/news/", "/start/"]:
        page.goto(path)
        page.emulate_media(media="screen")
        assert not page.locator(".printed").is_visible(), path
        page.emulate_media(media="print")
        assert path in page.locator(".printed").inner_text(), path
        pressed = page.locator(".top, footer, button, a.button, .back, details.more:not([open]) > summary")
        assert [one for one in pressed.all() if one.is_visible()] == [], path


def test_paper_has_prices_with_whole_dates_and_neither_forms_nor_banners(open_page, olivia):
    announce()
    for number in range(1, 4):
        TokenPrice.objects.create(
            model=f"{number}-{LONG_MODEL}",
            reference="A service, and the name of its model which is long",
            first_day=date(2026, number, 1),
            last_day=date(2026, number, 28),
            input_price=1,
            output_price=2,
        )
    page = open_page(width=PAPER)
    sign_in(page, "olivia")
    page.goto("/prices/")
    page.emulate_media(media="print")
    assert page.locator("tbody tr").count() == 3
    assert [one for one in page.locator("main form, .banner").all() if one.is_visible()] == []
    dates = page.locator("tbody").get_by_text(re.compile(r"^2026-"))
    assert dates.count() == 6
    assert {round(one.evaluate(LINES)) for one in dates.all()} == {1}
    assert page.locator("h1").bounding_box()["y"] >= 16
    page.goto("/feedback/")
    assert page.locator("h1").bounding_box()["y"] >= 16
    page.emulate_media(media="screen")
    form, lead = page.locator("#days").bounding_box(), page.locator(".lead").bounding_box()
    assert lead["y"] - form["y"] - form["height"] >= 8


IN_THE_MIDDLE = """
row => {
  const middle = (one) => { const box = one.getBoundingClientRect(); return box.top + box.height / 2; };
  return [row.querySelector(".amounts"), row.lastElementChild].every((one) => Math.abs(middle(one) - middle(row)) < 2);
}
"""


def test_badges_of_a_host_break_no_row_and_move_no_bar(open_page, olivia):
    fleet()
    page = open_page(width=1280)
    sign_in(page, "olivia")
    for maintenance in (False, True):
        Host.objects.update(maintenance=maintenance)
        page.goto("/operations/")
        rows = page.locator(".hosts > .card > .more > summary").all()
        bars = {round(row.locator(".meter").bounding_box()["x"]) for row in rows}
        assert (len(rows), len(bars)) == (3, 1), maintenance
        assert [row.evaluate(IN_THE_MIDDLE) for row in rows] == [True] * 3, maintenance


def test_paper_shows_the_hosts_of_the_operations_page(open_page, olivia):
    fleet()
    page = open_page(width=PAPER)
    sign_in(page, "olivia")
    page.goto("/operations/")
    page.emulate_media(media="print")
    for host in page.locator(".hosts > .card").all():
        assert host.locator("h3").is_visible()
    assert page.locator(".hosts > .card").count() > 1
