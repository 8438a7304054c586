"""Operators' pages in a browser, with the sockets that keep them up to date."""

import re

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from modelregistry import failure_advice
from modelregistry.models import LogSubscription, LogTail, Replica, ServedModel
from tests.browser.pages import LONG_MODEL, REFUSED_FORM, looks, sign_in
from tests.fleet import calls, fleet
from tests.modelregistry import paper_models
from tests.pages import key_of
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)

LARGE = "llama-3.1-70b-japanese"


@pytest.fixture
def hosts(olivia, alice, research) -> None:
    """Make three hosts with eight models, one of them with a long name."""
    fleet()
    calls(key_of(alice, research))
    ServedModel.objects.filter(name="gemma-3-27b-it").update(name=LONG_MODEL)


def watch(page: Page, path: str = "/operations/") -> Page:
    """Signed in as an operator, on this page, which is live."""
    sign_in(page, "olivia")
    page.goto(path)
    expect(page.locator("[data-live-state].fine")).to_be_visible()
    return page


def change(model: str, **values) -> Replica:
    replica = Replica.objects.filter(model__name=model).first()
    for name, value in values.items():
        setattr(replica, name, value)
    replica.save()
    return replica


def test_a_state_changes_in_the_page_and_is_read_out(open_page, hosts):
    page = watch(open_page())
    row = page.locator(f"[id='model-{LARGE}']")
    expect(row.locator(".state.fine").first).to_be_visible()
    page.locator(f"a[href='/operations/stop/{LARGE}/']").focus()
    change(LARGE, state="unhealthy")
    expect(row.locator(".state.broken").first).to_be_visible()
    state = row.locator(".state").first.inner_text()
    expect(page.locator("[data-announce]")).to_contain_text(f"{LARGE}: {state}")
    # The buttons are others now; the focus that was at one of them is still there.
    expect(row.locator(":focus")).to_have_count(1)


def test_the_focus_stays_at_its_model_when_others_come(open_page, hosts):
    page = watch(open_page())
    verb = page.locator(f"a[href='/operations/stop/{LARGE}/']")
    verb.focus()
    ServedModel.objects.create(name="a-new-one", engine="vllm", path="/srv/models/new-one")
    expect(page.locator("#model-a-new-one")).to_be_visible()
    expect(verb).to_be_focused()


def test_a_model_s_own_page_follows(open_page, hosts):
    page = watch(open_page(), f"/operations/models/{LARGE}/")
    change(LARGE, state="failed", cause="gpu-memory")
    expect(page.locator("h1 .state.broken")).to_be_visible()
    expect(page.locator(".attention")).to_contain_text(str(failure_advice.ADVICE["gpu-memory"]))
    expect(page.locator(f"button[formaction='/operations/start/{LARGE}/']")).to_be_visible()


def test_numbers_follow(open_page, hosts):
    page = watch(open_page())
    busy = {"at": timezone.now().isoformat(), "running": 77, "waiting": 0, "tokens_per_second": 8.5, "cache_used": 0.5}
    change(LARGE, live=busy)
    expect(page.locator(f"[data-live='running-{LARGE}']")).to_have_text("77")
    expect(page.locator(f"[data-live='rate-{LARGE}']")).to_have_text("8.5")


def test_a_model_that_is_new_appears(open_page, hosts):
    page = watch(open_page())
    page.locator("#host-gpu-01 details summary").first.click()
    ServedModel.objects.create(name="new-one", engine="vllm", path="/srv/models/new-one")
    expect(page.locator("#model-new-one")).to_be_visible()
    expect(page.locator("#host-gpu-01 details").first).to_have_attribute("open", "")


def test_a_socket_that_is_away_is_told_and_comes_back(open_page, hosts, portal, provoked):
    provoked += ["WebSocket connection", "ERR_CONNECTION_REFUSED", "failed: "]
    page = watch(open_page())
    portal.stop()
    note = page.locator("[data-live-state]")
    expect(note).to_have_class(re.compile(r"\bwatch\b"))
    change(LARGE, state="failed")
    portal.start()
    expect(note).to_have_class(re.compile(r"\bfine\b"), timeout=60_000)
    expect(page.locator(f"[id='model-{LARGE}'] .state.broken").first).to_be_visible()


def test_a_log_is_followed(open_page, hosts):
    replica = Replica.objects.get(model__name=LARGE)
    page = watch(open_page(), f"/operations/models/{LARGE}/")
    page.locator("a[href$='#log']").click()
    text = page.locator("[data-log-text]")
    until(lambda: LogSubscription.objects.filter(replica=replica, until__gt=timezone.now()).exists())
    LogTail.objects.create(replica=replica, text="INFO loading\n", at=timezone.now())
    expect(text).to_have_text("INFO loading\n")
    LogTail.objects.update(text="INFO loading\nINFO ready\n", at=timezone.now())
    expect(text).to_have_text("INFO loading\nINFO ready\n")


def test_a_log_that_its_host_does_not_send_is_not_waited_for_for_ever(open_page, hosts):
    replica = Replica.objects.get(model__name=LARGE)
    page = watch(open_page(), f"/operations/models/{LARGE}/")
    page.clock.install()
    page.locator("a[href$='#log']").click()
    text = page.locator("[data-log-text]")
    expect(text).to_have_class(re.compile(r"\bskeleton\b"))
    page.clock.fast_forward(10_000)
    expect(text).to_have_text(text.get_attribute("data-silent") or "")
    expect(text).not_to_have_class(re.compile(r"\bskeleton\b"))
    LogTail.objects.create(replica=replica, text="INFO ready\n", at=timezone.now())  # the host is back
    expect(text).to_have_text("INFO ready\n")


def test_without_scripts_a_log_is_read_again_by_hand(browser, site, hosts):
    context = browser.new_context(base_url=site, java_script_enabled=False)
    page = context.new_page()
    sign_in(page, "olivia")
    page.goto(f"/operations/models/{LARGE}/")
    page.locator("a[href$='#log']").click()
    LogTail.objects.create(replica=Replica.objects.get(model__name=LARGE), text="INFO ready\n", at=timezone.now())
    page.locator("[data-log-reload]").click()
    expect(page.locator("[data-log-text]")).to_have_text("INFO ready\n")
    context.close()


def test_a_stop_names_whom_it_hits_and_is_done_by_one_more_click(open_page, hosts):
    page = watch(open_page("ja"))
    page.locator(f"a[href='/operations/stop/{LARGE}/']").click()
    expect(page.locator("h1")).to_contain_text(LARGE)
    expect(page.locator("[data-callers]")).to_have_attribute("data-callers", "1")
    page.locator("button.danger").click()
    expect(page.locator(".notice.success")).to_be_visible()
    assert not ServedModel.objects.get(name=LARGE).enabled


def test_a_model_is_registered_after_a_look_at_what_it_will_take(open_page, hosts, tmp_path, provoked):
    provoked.append(REFUSED_FORM)
    page = watch(open_page())
    page.locator("a[href='/operations/models/new/']").first.click()
    page.locator("a[href='?preset=ezo-9b-fp8']").click()
    page.locator("[name=name]").fill("ezo")
    page.locator("[name=path]").fill(str(paper_models.ezo_9b(tmp_path / "ezo")))
    page.locator("[name=slots]").fill("500")
    page.locator("button[formaction='?preview']").click()
    expect(page.locator("#estimate")).to_be_visible()
    assert not ServedModel.objects.filter(name="ezo").exists()
    page.locator("main form button.primary").click()
    expect(page.locator("#estimate[role=alert]")).to_be_visible()
    page.locator("[name=overcommit]").check()
    page.locator("main form button.primary").click()
    expect(page.locator("h1")).to_contain_text("ezo")
    assert ServedModel.objects.get(name="ezo").slots == 500


def test_the_form_shows_the_sampling_of_the_engine_that_is_chosen(open_page, hosts):
    page = watch(open_page())
    page.goto("/operations/models/new/")
    dry = page.locator("[data-parameter=dry_multiplier]")
    dry.locator("xpath=ancestor::details").locator("summary").click()
    for engine, has_dry in (("vllm", False), ("llama.cpp", True), ("external", False)):
        page.locator(f"[name=engine][value='{engine}']").check()
        expect(dry).to_be_visible(visible=has_dry)
        expect(page.locator("[data-parameter=top_p]")).to_be_visible()
    page.locator("[name=engine][value='llama.cpp']").check()
    page.locator("[name=dry_multiplier_default]").fill("0.8")
    page.locator("[name=engine][value=vllm]").check()
    expect(dry).to_be_visible()  # a refusal must be seen


def pages() -> list[str]:
    replica = Replica.objects.get(model__name=LARGE)
    return [
        "/operations/",
        f"/operations/models/{LARGE}/?log={replica.pk}",
        f"/operations/models/{LONG_MODEL}/",
        f"/operations/edit/{LARGE}/",
        f"/operations/stop/{LONG_MODEL}/",
        f"/operations/restart/{LARGE}/",
        f"/operations/unregister/{LARGE}/",
        "/operations/models/new/",
        "/models/",
    ]


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window_or_too_small_to_hit(open_page, hosts, language, width):
    page = open_page(language, width=width)
    sign_in(page, "olivia")
    for path in pages():
        page.goto(path)
        page.evaluate("for (const e of document.querySelectorAll('details:not(.menu)')) e.open = true")
        assert looks(page, "tooWide") == [], path
        assert looks(page, "tooSmall") == [], path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_have_enough_contrast(open_page, hosts, scheme):
    page = open_page(width=1280, scheme=scheme)
    sign_in(page, "olivia")
    for path in pages():
        page.goto(path)
        assert looks(page, "faint") == [], path


def test_the_keyboard_reaches_every_verb(open_page, hosts):
    page = watch(open_page())
    page.evaluate("document.body.focus()")
    reached = []
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("(at => at.getAttribute('formaction') ?? at.getAttribute('href'))(document.activeElement)")
        )
        assert looks(page, "focused")[1] == "solid"
        if "/operations/restart/tinyswallow-1.5b/" in reached:
            break
    for verb in (f"restart/{LARGE}", f"stop/{LARGE}", f"start/{LONG_MODEL}", "start/old-elyza-7b"):
        assert f"/operations/{verb}/" in reached


@pytest.mark.parametrize("path", ["/operations/", f"/operations/models/{LARGE}/"])
def test_what_can_only_be_pressed_is_not_printed(open_page, hosts, path):
    Replica.objects.filter(model__name=LARGE).update(state="failed")
    page = watch(open_page(), path)
    pressed = page.locator("#content").locator("button, a.button")
    assert pressed.filter(visible=True).count() > 2
    page.emulate_media(media="print")
    expect(pressed.filter(visible=True)).to_have_count(0)
    expect(page.locator(".state.broken").filter(visible=True).first).to_be_visible()


def test_the_form_shows_what_the_chosen_engine_needs(open_page, hosts):
    page = watch(open_page())
    page.goto("/operations/models/new/")
    url, path = page.locator("[name=url]"), page.locator("[name=path]")
    for engine, needs_url in (("external", True), ("vllm", False), ("external", True)):
        page.locator(f"[name=engine][value='{engine}']").check()
        expect(url).to_be_visible(visible=needs_url)
        expect(path).to_be_visible(visible=not needs_url)
    url.fill("http://10.0.0.5:8000")
    page.locator("[name=engine][value=vllm]").check()
    expect(url).to_be_visible()  # it would be refused, so it must be seen
