"""Where operators choose what becomes of a model that sleeps, and see why one is stopped instead."""

import os

import pytest
from playwright.sync_api import expect

from modelregistry.models import Replica, ServedModel
from tests.browser.pages import JAPANESE, enter, looks
from tests.pages import serve

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(("language", "width", "scheme"), [("ja", 1280, "light"), ("en", 390, "dark")])
def test_operators_choose_how_a_vllm_sleeps_and_see_why_it_does_not(
    open_page, site, olivia, tmp_path, language, width, scheme
):
    model = serve()
    ServedModel.objects.update(engine="vllm", path=str(tmp_path), idle_after=600)
    tab = open_page(language, width=width, scheme=scheme)
    enter(tab, site, "olivia")
    tab.goto("/operations/edit/qwen/")
    choice = tab.locator("[name=sleep_mode][value=level1]")
    expect(tab.locator("[name=sleep_mode][value=stop]")).to_be_checked()
    choice.check()
    assert bool(JAPANESE.search(choice.locator("xpath=ancestor::label").inner_text())) == (language == "ja")
    if shots := os.environ.get("SHOTS"):
        tab.screenshot(path=f"{shots}/form-{language}.png", full_page=True)
    ServedModel.objects.update(sleep_mode="level1")
    Replica.objects.filter(model=model).update(cause="sleep-cpu", launcher="vllm", version="0.32.0+cpu", pid=4711)
    tab.goto("/operations/models/qwen/")
    expect(tab.locator("#sleep-mode [data-sleep=level1]")).to_be_visible()
    why = tab.locator("[data-cause=sleep-cpu]")
    assert bool(JAPANESE.search(why.inner_text())) == (language == "ja")
    assert not looks(tab, "tooWide")
    if shots:
        tab.screenshot(path=f"{shots}/model-{language}.png", full_page=True)
