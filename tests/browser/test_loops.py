"""Where people meet word loops, besides the playground: their usage, the overview of operations, a model's page."""

from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Locator, expect

from modelregistry.models import Replica, ServedModel
from portal.usage import records
from tests.browser.pages import JAPANESE, enter, looks
from tests.pages import key_of, serve
from tests.portal.usage.record_rows import row

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/operations/models/qwen/"


def answers(looped: int, finished: int, days: float, **facts: object) -> None:
    """Record so many answers of the model, made so many days ago."""
    facts = {"model": "qwen", "started_at": timezone.now() - timedelta(days=days), "temperature": 0, **facts}
    states = ["looped"] * looped + ["finished"] * finished
    rows = [row(f"{days} {number}", status=state, **facts) for number, state in enumerate(states)]
    records.record_usage([{**one, "looped_tokens": 900} if one["status"] == "looped" else one for one in rows])


@pytest.fixture
def model() -> ServedModel:
    """Return a model that loops more often since yesterday, and whose sampling was set 20 days ago."""
    model = serve()
    Replica.objects.update(launcher="llama-server", version="b11549")
    replica = model.replica_set.get().pk
    for days in range(2, 29):
        answers(1, 59, days, replica_id=replica, temperature=70 if days % 3 else 0)
    answers(9, 51, 0.2, replica_id=replica)
    return model


def is_in(language: str, where: Locator) -> bool:
    return bool(JAPANESE.search(where.inner_text())) == (language == "ja")


@pytest.mark.parametrize(("language", "width", "scheme"), [("ja", 1280, "light"), ("en", 390, "dark")])
def test_operators_see_a_model_that_loops_more_than_usual_and_calm_it(
    open_page, site, olivia, model, language, width, scheme
):
    tab = open_page(language, width=width, scheme=scheme)
    enter(tab, site, "olivia")
    tab.goto("/operations/")
    raised = tab.locator("#attention [data-loops=qwen]")
    assert is_in(language, raised)
    raised.locator("a").click()
    rates = tab.locator("#loop-rates")
    expect(rates).to_be_in_viewport()
    expect(rates).to_have_attribute("data-raised", "yes")
    expect(rates.locator("canvas")).to_be_visible()
    assert is_in(language, rates.locator("h2"))
    rates.locator("a[href='#sampling']").click()
    tab.locator("form[action='/operations/calm/qwen/'] button").click()
    expect(tab.locator("#sampling [data-parameter=temperature]")).to_be_visible()
    expect(tab.locator("form[action='/operations/calm/qwen/']")).to_have_count(0)
    change = tab.locator("#sampling-change")
    expect(change).to_have_attribute("data-verdict", "unknown")  # the day is not over
    assert is_in(language, change.locator("p"))
    assert looks(tab, "tooWide") == []
    assert looks(tab, "faint") == []


@pytest.mark.parametrize(("language", "width", "scheme"), [("ja", 390, "dark"), ("en", 1280, "light")])
def test_people_see_the_loops_among_their_own_answers(open_page, site, alice, research, language, width, scheme):
    serve()
    key = key_of(alice, research)
    answers(2, 8, 1, key_id=key.pk, user_id=alice.pk, tenant_id=research.pk)
    tab = open_page(language, width=width, scheme=scheme)
    enter(tab, site, "alice")
    tab.goto("/usage/?period=30")  # yesterday may be of another month
    loops = tab.locator("#loops")
    expect(loops.locator("tbody tr")).to_have_count(1)
    expect(loops.locator("tbody")).to_contain_text("qwen")
    assert is_in(language, loops.locator("h2"))
    assert looks(tab, "tooWide") == []
    assert looks(tab, "faint") == []
