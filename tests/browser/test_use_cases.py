"""Use cases in a browser: the samples and the playground filled in."""

import pytest

from portal.use_cases.models import UseCase
from tests.browser.pages import enter, looks
from tests.pages import serve
from tests.use_cases import text_content, use_case
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def case(alice, bob, research) -> UseCase:
    serve("qwen")
    return use_case(alice, research, publisher=bob)


def test_u1_what_is_typed_fills_in_the_samples_and_the_playground_and_is_not_sent(open_page, site, case):
    page = open_page("en")
    enter(page, site, "alice")
    page.goto(f"/use-cases/{case.pk}/")
    page.locator("#code summary").click()
    page.locator("#v-mail").fill('It\'s "urgent": 明日')
    sample = page.locator("#sample-curl").inner_text()
    assert r"Answer politely:\nIt\u0027s \"urgent\": 明日" in sample
    sent = []
    page.on("request", lambda request: sent.append(f"{request.method} {request.url} {request.post_data}"))
    page.locator("#fill button.primary").click()
    page.wait_for_url("**/try/**")
    filled = "[...document.querySelectorAll('textarea')].some((box) => box.value.includes('urgent'))"
    until(lambda: page.evaluate(filled))  # the policy forbids what wait_for_function evaluates
    assert not [one for one in sent if "urgent" in one or "prefill=" in one.partition("#")[0]]
    assert UseCase.objects.get().tried == 0  # it is counted when the message is sent


@pytest.mark.parametrize("address", ["/", "/use-cases/"])
def test_links_to_use_cases_lie_over_nothing_else(open_page, site, case, alice, research, address):
    use_case(alice, research)
    page = open_page("ja")
    enter(page, site, "alice")
    page.goto(address)
    page.locator("main .row-link").first.wait_for()
    assert not looks(page, "covered")


def test_the_parts_of_cards_in_a_row_are_in_line(open_page, site, alice, bob, research):
    for title in ("Short", "A title that is so long that it needs two lines in a card of the usual width"):
        use_case(alice, research, text_content(title=title), publisher=bob)
    page = open_page("en")
    enter(page, site, "alice")
    page.goto("/use-cases/")
    cards = page.locator(".case").all()
    assert len(cards) == 2
    for part in ("h2", "p[lang]", "p.hint >> nth=0"):
        tops = {card.locator(part).bounding_box()["y"] for card in cards}
        assert len(tops) == 1, part
