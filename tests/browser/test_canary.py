"""The canary where operators meet it: what needs attention, the model's page, a run with both answers."""

import pytest
from playwright.sync_api import Locator, expect

from portal.canary.models import CanaryRequest, CanaryRun
from tests.browser.pages import JAPANESE, enter, looks
from tests.canary_runs import canary_run, failed_run
from tests.pages import serve

pytestmark = pytest.mark.django_db(transaction=True)


def is_in(language: str, where: Locator) -> bool:
    return bool(JAPANESE.search(where.inner_text())) == (language == "ja")


@pytest.mark.parametrize(("language", "width", "scheme"), [("ja", 1280, "light"), ("en", 390, "dark")])
def test_operators_compare_the_answers_of_a_failing_model_and_accept_them(
    open_page, site, olivia, language, width, scheme
):
    model = serve()
    canary_run(model, days_ago=1, is_reference=True)
    run = failed_run(model)
    tab = open_page(language, width=width, scheme=scheme)
    enter(tab, site, "olivia")
    tab.goto("/operations/")
    failing = tab.locator("#attention [data-canary=qwen]")
    assert is_in(language, failing)
    failing.locator("a").click()
    expect(tab.locator("#verdict")).to_have_attribute("data-verdict", "failed")
    assert is_in(language, tab.locator("#findings"))
    first = tab.locator(".canary-answer").first
    expect(first.locator("[data-side=now]")).to_have_text("!" * 200)
    expect(first.locator("[data-side=before]")).to_have_text("東京は日本の首都です。")
    assert looks(tab, "tooWide") == []
    assert looks(tab, "faint") == []
    tab.locator(f"form[action='/operations/canary/{run.pk}/accept/'] button").click()
    expect(tab.locator("#verdict")).to_have_attribute("data-verdict", "passed")
    assert CanaryRun.objects.get(is_reference=True) == run


@pytest.mark.parametrize(("language", "width", "scheme"), [("ja", 390, "dark"), ("en", 1280, "light")])
def test_operators_see_a_model_s_runs_and_have_it_asked(open_page, site, olivia, language, width, scheme):
    model = serve()
    canary_run(model, days_ago=2, is_reference=True)
    canary_run(model, days_ago=1, verdict=CanaryRun.Verdict.NOT_DONE, obstacle=CanaryRun.Obstacle.BUSY)
    failed_run(model)
    tab = open_page(language, width=width, scheme=scheme)
    enter(tab, site, "olivia")
    tab.goto("/operations/models/qwen/")
    canary = tab.locator("#canary")
    expect(canary.locator("tbody tr")).to_have_count(3)
    assert is_in(language, canary.locator("h2"))
    canary.locator("form[action='/operations/ask/qwen/'] button").click()
    expect(canary.locator("[data-requested]")).to_be_visible()
    expect(canary.locator("form[action='/operations/ask/qwen/'] button")).to_be_disabled()
    assert CanaryRequest.objects.get().model == model
    assert looks(tab, "tooWide") == []
    assert looks(tab, "faint") == []
