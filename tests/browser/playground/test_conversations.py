"""The playground in a browser: the page, the gateway and an engine that follows a script, all for real."""

import os
import re
import subprocess
import sys

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from modelregistry.models import Replica
from portal.accounts.models import Membership
from portal.keys import lifecycle, secret
from portal.keys.models import ApiKey, ModelAccess
from portal.keys.playground_links import playground_link
from portal.quotas.models import Quota
from portal.usage.models import UsageRecord
from tests.browser.pages import JAPANESE, LONG_MODEL, looks
from tests.browser.playground.steps import answer_of, answered, calls, delta, open_settings, play, say
from tests.engine import DONE, FINISH, SSE, chunk, usage_event
from tests.news import announce
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)


def test_an_answer_appears_with_how_fast_it_was_and_is_the_person_s_usage(page, serve, engine_, alice):
    serve()
    tab = page()
    say(tab, "Who are you?")
    expect(tab.locator(".turn.model .words")).to_have_text("t0 t1 t2 ")
    figures = tab.locator(".turn.model .figures")
    expect(figures).to_have_attribute("data-tokens-in", "7")
    expect(figures).to_have_attribute("data-tokens-out", "3")
    for name in ("data-first", "data-speed"):
        assert float(figures.get_attribute(name)) > 0
    expect(tab.locator("[data-status]")).to_contain_text(figures.inner_text())
    expect(tab.locator("[data-prompt]")).to_have_value("")
    record = until(lambda: UsageRecord.objects.first())
    assert (record.user, record.key.is_playground, record.completion_tokens) == (alice, True, 3)
    sent = calls(engine_)[-1]
    assert sent["messages"] == [{"role": "user", "content": "Who are you?"}]
    assert (sent["max_tokens"], sent["stream"], "temperature" in sent) == (800, True, False)
    tab.locator(".turn.model [data-word=times]").click()
    expect(tab).to_have_url(re.compile(f"/requests/{record.request_id}/$"))
    expect(tab.locator("[data-stage]").first).to_be_attached()


def test_a_conversation_goes_on_until_a_new_one_begins(page, serve, engine_):
    serve()
    tab = page()
    open_settings(tab)
    tab.locator("textarea[data-system]").fill("Be brief.")
    tab.locator("[data-temperature]").fill("0.3")
    say(tab, "One")
    answered(tab)
    say(tab, "Two")
    answered(tab, 2)
    sent = calls(engine_)[-1]
    assert [(said["role"], said["content"]) for said in sent["messages"]] == [
        ("system", "Be brief."),
        ("user", "One"),
        ("assistant", "t0 t1 t2 "),
        ("user", "Two"),
    ]
    assert sent["temperature"] == 0.3
    tab.locator("[data-new]").click()
    expect(tab.locator(".turn")).to_have_count(0)
    say(tab, "Three")
    answered(tab)
    assert len(calls(engine_)[-1]["messages"]) == 2
    assert ApiKey.objects.count() == 1


def test_what_is_being_written_outlives_a_change_of_the_language(page, serve):
    serve()
    tab = page()
    open_settings(tab)
    tab.locator("textarea[data-system]").fill("Be brief.")
    tab.locator("[data-prompt]").fill("A long question")
    tab.locator("[name=language]").click()
    expect(tab.locator("html")).to_have_attribute("lang", "ja")
    expect(tab.locator("[data-prompt]")).to_have_value("A long question")
    expect(tab.locator("textarea[data-system]")).to_have_value("Be brief.")
    tab.reload()
    expect(tab.locator("[data-prompt]")).to_have_value("")


def test_the_page_is_light(page, serve):
    """It is asked for in ten pieces; what only some visits need comes when it is used, half a megabyte in all."""
    serve()
    tab = page(path="/")
    sizes = []
    tab.on("response", lambda answer: sizes.append(len(answer.body())) if "/v1/" not in answer.url else None)
    tab.goto("/try/")
    tab.wait_for_load_state("networkidle")
    assert len(sizes) <= 10
    play(tab, answer_of("```python\npass\n```\n"))
    say(tab, "Hello")
    answered(tab)
    expect(tab.locator(".hljs-keyword")).to_be_visible()
    assert sum(sizes) < 500_000


def test_nothing_that_was_said_stays_anywhere(page, serve):
    serve()
    tab = page()
    say(tab, "My secret is 4711")
    answered(tab)
    stored = tab.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, history.state, document.cookie])")
    assert "4711" not in stored
    assert "mdg_" not in stored + tab.content()
    tab.reload()
    expect(tab.locator(".turn")).to_have_count(0)
    expect(tab.locator("[data-prompt]")).to_have_value("")
    tab.go_back()
    tab.go_forward()
    assert "4711" not in tab.content()


def test_stopping_keeps_what_came_and_frees_the_engine(page, serve, engine_):
    serve()
    tab = page()
    play(tab, [{"send": SSE}, {"events": 5, "every": 0.01}, {"hang": True}])
    left = engine_.seen()["left"]
    say(tab, "Count")
    expect(tab.locator(".turn.model .words")).to_contain_text("t4")
    tab.locator("[data-stop]").click()
    expect(tab.locator(".turn.model .figures")).to_have_attribute("data-ending", "stopped")
    expect(tab.locator(".turn.model .words")).to_have_text("t0 t1 t2 t3 t4 ")
    until(lambda: engine_.seen()["left"] == left + 1)
    until(lambda: UsageRecord.objects.filter(status="aborted").exists())


def test_what_a_model_thinks_is_folded_away(page, serve):
    serve()
    tab = page()
    end = chunk(FINISH + usage_event(7, 9) + DONE) + "0\r\n\r\n"
    play(tab, [{"send": SSE + delta(reasoning_content="Hm. ") + delta(content="42") + end}])
    say(tab, "What is it?")
    expect(tab.locator(".turn.model .answer > .words")).to_have_text("42")
    expect(tab.get_by_text("Hm.")).to_be_hidden()
    tab.locator(".turn.model summary").click()
    expect(tab.get_by_text("Hm.")).to_be_visible()


def test_a_used_up_quota_leads_to_more_and_keeps_the_message(page, serve, alice, provoked):
    provoked.append("429")
    serve()
    Quota.objects.create(user=alice, unit="requests", window="day", amount=0)
    tab = page()
    say(tab, "Hello")
    expect(tab.locator("[data-trouble=quota]")).to_be_visible()
    expect(tab.locator("[data-trouble] a[href='/#left']")).to_be_visible()
    expect(tab.locator("[data-prompt]")).to_have_value("Hello")
    expect(tab.locator(".turn")).to_have_count(0)


def test_how_much_the_quota_was_is_told_where_the_gateway_speaks_the_page_s_language(page, serve, alice, provoked):
    provoked.append("429")
    serve()
    Quota.objects.create(user=alice, unit="requests", window="day", amount=0)
    tab = page("ja")
    with tab.expect_response(lambda answer: answer.status == 429) as refusal:
        say(tab, "こんにちは")
    words = refusal.value.json()["error"]["message"]
    assert "0" in words
    assert JAPANESE.search(words)
    expect(tab.get_by_role("alert")).to_contain_text(words)


def test_a_sleeping_model_is_waited_for(page, serve):
    model = serve(state="asleep", engine="llama.cpp", url="", path="/q.gguf")
    tab = page()
    tab.clock.install()
    expect(tab.locator("[data-about=qwen] .hint")).to_be_visible()
    say(tab, "Good morning")
    expect(tab.locator("[data-waiting=loading]")).to_be_visible(timeout=20_000)  # after five seconds
    tab.clock.fast_forward(4000)
    expect(tab.locator("[data-waiting-text]")).to_contain_text("0:04")
    replica = Replica.objects.get(model=model)
    replica.state = "ready"
    replica.save()
    expect(tab.locator(".turn.model .words")).to_have_text("t0 t1 t2 ")
    expect(tab.locator("[data-waiting]")).to_be_hidden()


def test_a_model_that_is_loaded_for_longer_than_a_call_waits_is_asked_again(page, serve, monkeypatch):
    monkeypatch.setattr("apiproxy.dataplane.scheduler.MAX_WAIT", 7.0)
    model = serve(state="asleep", engine="llama.cpp", url="", path="/q.gguf")
    tab = page()
    calls = []
    tab.on("request", lambda request: request.url.endswith("/completions") and calls.append(request))
    say(tab, "Good morning")
    until(lambda: tab.wait_for_timeout(100) or len(calls) > 1)
    expect(tab.locator("[data-waiting=loading]")).to_be_visible()
    replica = Replica.objects.get(model=model)
    replica.state = "ready"
    replica.save()
    answered(tab)
    expect(tab.locator(".turn.model .words")).to_have_text("t0 t1 t2 ")


def test_a_link_fills_the_page_in_and_sends_nothing(page, serve, engine_):
    serve("other")
    serve()
    tab = page(path=playground_link(model="qwen", system="簡潔に。", prompt="要約してください: …"))
    expect(tab.locator("[data-prompt]")).to_have_value("要約してください: …")
    expect(tab.locator("textarea[data-system]")).to_have_value("簡潔に。")
    assert "prefill" not in tab.url
    before = len(calls(engine_))
    tab.locator("[data-send]").click()
    answered(tab)
    sent = calls(engine_)[before:]
    assert [[said["content"] for said in call["messages"]] for call in sent] == [["簡潔に。", "要約してください: …"]]


@pytest.mark.parametrize("width", [390, 1280])
def test_what_sends_is_in_sight_of_a_page_that_a_link_filled_in_below_announcements(page, serve, width):
    serve()
    for n in range(3):
        announce(title_en=f"A model with quite a long name, number {n}, is offered to everyone from today on")
    text = "One line of a long text.\n" * 60
    tab = page(width=width, path=playground_link(model="qwen", system="Be brief.", prompt=text))
    expect(tab.locator("[data-prompt]")).to_have_value(text)
    expect(tab.locator("[data-settings]")).to_have_attribute("open", "")
    for part in ("[data-send]", "[data-prompt]"):
        expect(tab.locator(part)).to_be_in_viewport(ratio=1)
    assert tab.locator("[data-prompt]").bounding_box()["height"] <= 800 / 4
    expect(tab.locator("[data-ideas]")).to_be_hidden()


def test_on_a_telephone_one_announcement_leaves_room_to_write_and_send(page, serve):
    serve()
    for n in range(2):
        announce(title_en=f"A model with quite a long name, number {n}, is offered to everyone from today on")
    announce(level="maintenance", title_en="The computers of the data centre in Tokyo are repaired")
    tab = page(width=390)
    for path, part in (("/try/", "[data-send]"), ("/start/", "[data-ask-button]")):
        tab.goto(path)
        expect(tab.locator("[data-banner]").locator("visible=true")).to_have_count(1)
        expect(tab.locator(part)).to_be_in_viewport(ratio=1)
    tab.locator(".banner > a[href='/news/']").locator("visible=true").click()
    expect(tab.locator("article")).to_have_count(3)


def test_waiting_can_be_given_up(page, serve):
    serve(state="asleep", engine="llama.cpp", url="", path="/q.gguf")
    tab = page()
    say(tab, "Good morning")
    expect(tab.locator("[data-waiting=loading]")).to_be_visible(timeout=20_000)
    tab.locator("[data-stop]").click()
    expect(tab.locator("[data-prompt]")).to_have_value("Good morning")
    expect(tab.locator("[data-prompt]")).to_be_focused()


def test_an_engine_that_fails_in_the_middle_leaves_what_it_said(page, serve, provoked):
    provoked.append("ERR_")
    serve()
    tab = page()
    play(tab, [{"send": SSE}, {"events": 2}, {"wait": 0.1}, {"reset": True}])
    say(tab, "Hello")
    expect(tab.locator("[data-trouble]")).to_have_attribute("data-trouble", "engine")
    expect(tab.locator(".turn.model .words")).to_have_text("t0 t1 ")


def test_who_was_signed_out_meanwhile_is_told(page, serve, alice, provoked):
    provoked.append("403")
    serve()
    tab = page()
    tab.context.clear_cookies()
    say(tab, "Hello")
    expect(tab.locator("[data-trouble=session]")).to_be_visible()
    expect(tab.locator("[data-prompt]")).to_have_value("Hello")


def test_a_key_that_ended_is_replaced_without_a_word(page, serve, provoked):
    provoked.append("401")
    serve()
    tab = page()
    say(tab, "One")
    answered(tab)
    lifecycle.revoke_key(ApiKey.objects.get())
    asked_with_another_key(tab)
    say(tab, "Two")
    answered(tab, 2)
    assert ApiKey.objects.filter(revoked_at=None).count() == 1


def asked_with_another_key(tab: Page) -> None:
    """Call with a key that is not known: it makes the gateway look for changes, and then it knows all of them."""
    answer = tab.request.get("/v1/models", headers={"authorization": f"Bearer {secret.make_secret()}"})
    assert answer.status == 401


def test_usage_counts_for_the_tenant_that_was_chosen(page, serve, alice, research, sales):
    Membership.objects.create(user=alice, tenant=sales)
    ModelAccess.objects.create(model=serve("sales-only"), tenant=sales)
    serve("open")
    tab = page()
    expect(tab.locator("option[value=sales-only]")).to_be_disabled()
    tab.locator("select[data-tenant]").select_option(reverse("try-key", args=[sales.slug]))
    tab.locator("select[data-model]").select_option("sales-only")
    say(tab, "Hello")
    answered(tab)
    assert until(lambda: UsageRecord.objects.first()).tenant == sales


@pytest.mark.parametrize("way", ["curl", "python"])
def test_the_code_is_the_very_same_call_and_runs_as_it_stands(page, serve, engine_, alice, research, way):
    serve()
    tab = page()
    open_settings(tab)
    tab.locator("[data-temperature]").fill("0.5")
    text = 'It\'s "quoted" \\ and 日本語 $HOME `x`\nsecond line'
    say(tab, text)
    answered(tab)
    sent = calls(engine_)[-1]
    assert sent["messages"][0]["content"] == text
    tab.locator("[data-code] > summary").click()
    tab.locator(f"label[for=tab-{way}]").click()
    code = tab.locator(f"#{way}").inner_text()
    _, key = lifecycle.issue_key(tenant=research, user=alice, name="mine")
    command = ["sh", "-c", code] if way == "curl" else [sys.executable, "-c", code]
    environment = {**os.environ, "OPENAI_API_KEY": key}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "t2" in done.stdout
    assert calls(engine_)[-1] == sent


@pytest.mark.parametrize("language", ["ja", "en"])
def test_who_waits_in_the_queue_sees_their_place(page, serve, language):
    serve()
    Replica.objects.update(slots=1)
    first, second = page(language), page(language, width=390, scheme="dark")
    play(first, [{"send": SSE}, {"events": 1}, {"hang": True}])
    say(first, "Hello")
    expect(first.locator(".turn.model .words")).to_have_text("t0 ")
    say(second, "Me, too")
    waiting = second.locator("[data-waiting=placed], [data-waiting=queued]")
    expect(waiting).to_be_visible(timeout=20_000)  # after five seconds
    words = waiting.locator("[data-waiting-text]").inner_text()
    assert "1" in words
    assert bool(JAPANESE.search(words)) == (language == "ja")
    assert looks(second, "tooWide") == []
    first.locator("[data-stop]").click()
    answered(second)


def test_a_wait_that_grows_is_called_longer_and_counted_from_its_beginning(page, serve):
    """The comments are those of a gateway; only their times are made up."""
    serve()
    found = page().evaluate(
        """async () => {
            const { QueueWait } = await import("/static/try/queue.js");
            const wait = new QueueWait();
            const said = [[3, 12, 0], [3, null, 5], [2, 7, 5], [2, 16, 5], [1, 20, 10], [1, 5, 12]];
            return said.map(([place, seconds, waited]) => wait.describe({ place, seconds }, waited));
        }"""
    )
    assert found == ["queued", "placed", "queued", "queued", "slower", "queued"]


def test_a_queue_that_is_full_is_no_failure_of_the_model(page, serve, provoked):
    serve()
    tab = page()
    error = {"error": {"code": "model_busy", "message": "busy", "type": "server_error"}}
    refusal = {"status": 503, "headers": {"retry-after": "20"}, "json": error}
    tab.route("**/v1/**", lambda route: route.fulfill(**refusal))
    provoked.append("503")
    say(tab, "Hello")
    expect(tab.locator("[data-trouble=crowded]")).to_contain_text("20")


@pytest.mark.parametrize("language", ["ja", "en"])
def test_an_answer_that_is_ended_because_it_repeats_itself_says_so(page, serve, language):
    serve(loops="stop")
    tab = page(language, width=390)
    loop = [delta(content=word) for _ in range(60) for word in ("申し訳", "ございませんが、", "お答え", "できません。")]
    play(tab, [{"send": SSE}, *({"send": part} for part in loop), {"hang": True}])
    say(tab, "Hello")
    notice = tab.locator(".turn.model [data-ended=repetition]")
    expect(notice).to_be_visible()
    expect(tab.locator(".turn.model .figures")).to_have_attribute("data-ending", "repetition")
    expect(tab.locator("[data-status]")).to_contain_text(notice.inner_text())
    expect(tab.locator("[data-stop]")).to_be_hidden()
    assert bool(JAPANESE.search(notice.inner_text())) == (language == "ja")
    assert looks(tab, "tooWide") == []
    assert looks(tab, "faint") == []


def test_it_is_used_with_the_keyboard_alone(page, serve):
    serve()
    tab = page()
    expect(tab.locator("[data-prompt]")).to_be_focused()
    tab.keyboard.type("Hello")
    tab.keyboard.press("Enter")
    tab.keyboard.type("there")
    tab.keyboard.press("Control+Enter")
    expect(tab.locator(".turn.me .words")).to_have_text("Hello\nthere")
    answered(tab)
    expect(tab.locator("[data-prompt]")).to_be_focused()
    play(tab, [{"send": SSE}, {"events": 1}, {"hang": True}])
    tab.keyboard.type("Go on")
    tab.keyboard.press("Tab")
    expect(tab.locator("[data-send]")).to_be_focused()
    assert looks(tab, "focused")[1] == "solid"
    tab.keyboard.press("Enter")
    expect(tab.locator("[data-stop]")).to_be_focused()
    expect(tab.locator(".turn.model .words").nth(1)).to_have_text("t0 ")
    tab.keyboard.press("Enter")
    expect(tab.locator("[data-prompt]")).to_be_focused()


def test_a_setting_that_cannot_be_is_shown_where_it_is(page, serve):
    serve(context=2048)
    tab = page()
    open_settings(tab)
    tab.locator("[data-tokens]").fill("4096")
    tab.locator("[data-settings] > summary").click()
    say(tab, "Hello")
    expect(tab.locator("[data-tokens]")).to_be_focused()
    expect(tab.locator(".turn")).to_have_count(0)


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_every_window_in_both_languages(page, serve, axe, language, width):
    serve(LONG_MODEL, context=131_072)
    for task in ("embedding", "rerank", "transcription"):
        serve(f"for-{task}", task=task)
    serve("qwen", state="asleep", engine="llama.cpp", url="", path="/q.gguf")
    for scheme in ("light", "dark"):
        tab = page(language, width=width, scheme=scheme)
        say(tab, "長い" * 300)
        expect(tab.locator(".turn.model .figures")).to_contain_text("7")
        tab.evaluate("for (const e of document.querySelectorAll('main details')) e.open = true")
        expect(tab.locator("#curl")).to_contain_text("curl")
        for task in ("chat", "embedding", "rerank", "transcription"):
            tab.locator(f"[data-shows={task}]").click()
            assert looks(tab, "tooWide") == []
            assert looks(tab, "tooSmall") == []
            assert looks(tab, "faint") == []
            if (language, width, scheme) == ("ja", 1280, "light"):
                assert looks(tab, "foreign") == []
                assert axe(tab) == []
