"""Branches, models side by side, files, tools, and what a browser keeps when it is asked to."""

import base64
import json
import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.utils import translation
from playwright.sync_api import Page, expect

from portal.feedback.models import Feedback
from portal.web.templatetags.formatting import moment
from tests.browser.pages import looks
from tests.browser.playground.steps import answer_of, answered, calls, play, say
from tests.use_cases import use_case
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)

LLAMA = {"engine": "llama.cpp", "url": "", "path": "/q.gguf"}
# One red pixel.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC")


def answers(tab: Page, text: str) -> None:
    play(tab, answer_of(text))


def words(tab: Page):
    return tab.locator(".turn .words")


def said(call: dict) -> list[str]:
    return [message["content"] for message in call["messages"]]


def test_answers_and_messages_have_versions_to_page_through(page, serve, engine_):
    serve()
    tab = page()
    answers(tab, "first")
    say(tab, "One")
    answered(tab)
    answers(tab, "second")
    tab.locator("[data-again]").click()
    expect(words(tab)).to_have_text(["One", "second"])
    expect(tab.locator(".turn.model [data-page]")).to_have_attribute("data-page", "2/2")
    tab.locator(".turn.model [data-earlier]").click()
    expect(words(tab)).to_have_text(["One", "first"])
    answers(tab, "third")
    say(tab, "Two")
    answered(tab, 2)
    assert said(calls(engine_)[-1]) == ["One", "first", "Two"]  # of the branch that is shown
    tab.locator("[data-edit]").first.click()
    tab.locator("[data-edited]").fill("Uno")
    answers(tab, "fourth")
    tab.keyboard.press("Control+Enter")
    expect(words(tab)).to_have_text(["Uno", "fourth"])
    assert said(calls(engine_)[-1]) == ["Uno"]
    tab.locator(".turn.me [data-earlier]").click()
    expect(words(tab)).to_have_text(["One", "first", "Two", "third"])
    tab.locator(".turn.model [data-later]").first.click()
    expect(words(tab)).to_have_text(["One", "second"])


def test_an_edit_that_gets_no_answer_leaves_what_was(page, serve, provoked):
    serve()
    tab = page()
    say(tab, "One")
    answered(tab)
    provoked.append("503")
    error = {"error": {"code": "model_busy", "message": "busy", "type": "server_error"}}
    tab.route("**/v1/**", lambda route: route.fulfill(status=503, json=error))
    tab.locator("[data-edit]").click()
    tab.locator("[data-edited]").fill("Uno")
    tab.locator("[data-resend]").click()
    expect(tab.locator("[data-trouble=crowded]")).to_be_visible()
    expect(words(tab)).to_have_text(["One", "t0 t1 t2"])
    expect(tab.locator(".turn.me .pager")).to_be_hidden()


@pytest.mark.parametrize(("language", "width"), [("ja", 1280), ("en", 390)])
def test_models_answer_side_by_side_each_with_its_own_figures(page, serve, engine_, provoked, language, width):
    provoked.append("503")
    serve("a")
    serve("b")
    serve("c", state="failed")
    tab = page(language, width=width)
    tab.locator("[data-add-model]").click()
    expect(tab.locator("select[data-other]")).to_have_value("b")
    before = len(calls(engine_))
    say(tab, "Hello")
    answered(tab, 2)
    assert sorted(call["model"] for call in calls(engine_)[before:]) == ["a", "b"]
    places = tab.locator("[data-answer]")
    for at, name in enumerate("ab"):
        expect(places.nth(at)).to_have_attribute("data-model", name)
        expect(places.nth(at)).to_have_attribute("data-request-id", re.compile("^req_"))
        expect(places.nth(at).locator(".figures")).to_have_attribute("data-ending", "finished")
    tops = [place.bounding_box()["y"] for place in places.all()]
    assert (tops[0] == tops[1]) == (width > 1000)
    assert looks(tab, "tooWide") == []
    # Each goes on from its own answers; one that cannot answer says so in its own place.
    tab.locator("[data-add-model]").click()
    expect(tab.locator("select[data-other]").last).to_have_value("c")
    say(tab, "Go on")
    expect(tab.locator("[data-broke=down]")).to_be_visible()
    expect(tab.locator("[data-stop]")).to_be_hidden()
    assert said(calls(engine_)[-1]) == ["Hello", "t0 t1 t2 ", "Go on"]


def test_a_thumb_and_a_sentence_are_left_for_an_answer(page, serve, alice):
    serve()
    tab = page()
    say(tab, "Hello")
    answered(tab)
    tab.locator("[data-thumb='-1']").click()
    expect(tab.locator("[data-verdict='-1']")).to_be_visible()
    tab.locator("[data-comment]").fill("too short")
    tab.keyboard.press("Enter")
    expect(tab.locator("[data-comment]")).to_have_count(0)
    given = until(lambda: Feedback.objects.exclude(comment="").first())
    request_id = tab.locator("[data-answer]").get_attribute("data-request-id")
    assert (given.user, given.request_id, given.score, given.comment) == (alice, request_id, -1, "too short")
    expect(tab.locator(".turn.model")).to_have_count(1)  # Enter sent no message


def test_only_the_first_question_is_a_use_of_the_use_case(page, serve, bob, research):
    serve()
    case = use_case(bob, research, publisher=bob)  # authors are not counted
    tab = page(path=f"/use-cases/{case.pk}/")
    tab.locator("#fill button.primary").click()
    tab.wait_for_url("**/try/**")
    expect(tab.locator("[data-prompt]")).not_to_be_empty()
    tab.locator("[data-send]").click()
    answered(tab)
    tab.locator("[data-again]").click()
    expect(tab.locator(".turn.model [data-page]")).to_have_attribute("data-page", "2/2")
    answered(tab)
    say(tab, "Shorter, please")
    answered(tab, 2)
    for number in (0, 1):
        tab.locator(".turn.model").nth(number).locator("[data-thumb='1']").click()
        until(lambda number=number: Feedback.objects.count() == number + 1)
    first, second = Feedback.objects.order_by("at")
    assert (first.use_case, first.use_case_version) == (case, 1)
    assert (second.use_case, second.use_case_version) == (None, None)
    case.refresh_from_db()
    assert case.tried == 1


def test_a_text_file_goes_with_the_message_and_is_shown_by_its_name(page, serve, engine_):
    serve()
    tab = page()
    files = [
        {"name": "売上.csv", "mimeType": "text/csv", "buffer": "支店,円\n東京,120\n".encode("cp932")},
        {"name": "note.md", "mimeType": "", "buffer": b"a ``` fence"},
    ]
    tab.locator("[data-files]").set_input_files(files)
    expect(tab.locator(".chip")).to_have_count(2)
    say(tab, "Sum it up")
    answered(tab)
    [content] = said(calls(engine_)[-1])
    assert content == ("売上.csv:\n```\n支店,円\n東京,120\n\n```\n\nnote.md:\n````\na ``` fence\n````\n\nSum it up")
    expect(tab.locator(".turn.me")).to_contain_text("売上.csv")
    expect(tab.locator(".chip")).to_have_count(0)


@pytest.mark.parametrize(
    ("name", "kind", "content", "trouble"),
    [
        ("book.xlsx", "application/vnd.ms-excel", b"PK\x03\x04\x00\x00", "file-unread"),
        ("long.txt", "text/plain", b"x" * 300_000, "file-large"),
        ("photo.png", "image/png", PNG, "no-images"),
    ],
)
def test_a_file_that_cannot_be_sent_is_refused_in_words(page, serve, name, kind, content, trouble):
    serve()
    tab = page()
    tab.locator("[data-files]").set_input_files([{"name": name, "mimeType": kind, "buffer": content}])
    expect(tab.locator(f"[data-trouble={trouble}]")).to_be_visible()
    expect(tab.locator(".chip")).to_have_count(0)


def test_an_image_goes_to_a_model_that_sees(page, serve, engine_):
    serve(**LLAMA, args=["--mmproj=/m.gguf"])
    tab = page("ja")
    tab.locator("[data-files]").set_input_files([{"name": "photo.png", "mimeType": "image/png", "buffer": PNG}])
    expect(tab.locator(".chip")).to_have_count(1)
    say(tab, "What is it?")
    answered(tab)
    [[text, image]] = said(calls(engine_)[-1])
    assert text == {"type": "text", "text": "What is it?"}
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def test_a_tool_is_asked_for_and_given_its_result_by_hand(page, serve, engine_):
    serve(**LLAMA, args=["--jinja"])
    tab = page("ja")
    tab.locator("[data-developer] > summary").click()
    tab.locator("[data-tool-list]").fill("[1,")
    say(tab, "Weather?")
    expect(tab.locator("[data-tool-list]")).to_be_focused()  # it is no JSON
    tab.locator("[data-tool-list]").fill(json.dumps(TOOLS))
    tab.locator("[data-answer-schema]").fill('{"type": "object"}')
    tab.locator("[data-send]").click()
    answered(tab)
    expect(tab.locator(".figures")).to_have_attribute("data-ending", "tool")
    expect(tab.locator(".tool-calls code")).to_have_text('{"city":"Osaka"}')
    sent = calls(engine_)[-1]
    assert sent["tools"] == TOOLS
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    tab.locator("[data-tool-result]").fill("sunny")
    tab.locator("[data-send-results]").click()
    answered(tab, 2)
    _, asked, result = calls(engine_)[-1]["messages"]
    assert asked["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Osaka"}'}
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}


def test_what_a_model_cannot_do_is_not_offered(page, serve):
    serve()
    tab = page()
    tab.locator("[data-developer] > summary").click()
    expect(tab.locator("[data-tool-list]")).to_be_hidden()
    expect(tab.locator("[data-answer-schema]")).to_be_visible()
    expect(tab.locator("[data-image-hint]")).to_be_hidden()
    expect(tab.locator("[role=tab]")).to_have_count(0)
    assert "image" not in tab.locator("[data-files]").get_attribute("accept")


def stored(tab: Page) -> str:
    return tab.evaluate("JSON.stringify({...localStorage})")


def test_conversations_are_kept_only_when_asked_and_deleted_with_one_press(page, serve):
    serve()
    tab = page()
    tab.locator("[data-history] > summary").click()
    tab.locator("[data-keep]").check()
    answers(tab, "**kept**")
    say(tab, "Remember 4711")
    answered(tab)
    expect(tab.locator("[data-open]")).to_have_text("Remember 4711")
    assert "4711" in stored(tab)
    assert "mdg_" not in stored(tab)
    assert stored(tab).count("**kept**") == 1
    tab.reload()
    tab.locator("[data-history] > summary").click()
    tab.locator("[data-open]").click()
    expect(tab.locator(".turn.model strong")).to_have_text("kept")
    tab.locator("[data-forget-all]").click()
    expect(tab.locator("[data-open]")).to_have_count(0)
    assert "4711" not in stored(tab)
    tab.locator("[data-keep]").uncheck()
    assert stored(tab) == "{}"


MODULE = "performance.getEntriesByType('resource').map(one => one.name).find(name => name.includes('/try/words'))"
MOMENT = f"async ([at, now]) => (await import({MODULE})).moment(at, new Date(now))"


@pytest.mark.parametrize("language", ["ja", "en"])
def test_times_are_written_as_on_other_pages(page, serve, language):
    """Those of today, of this year, and of another one, as the template tag `moment` writes them."""
    serve()
    tab = page(language)
    now = tab.evaluate("new Date(2026, 10, 30, 20, 15).getTime()")
    for parts in ((2026, 10, 30, 9, 5), (2026, 1, 3, 9, 5), (2025, 11, 31, 9, 5)):
        at = tab.evaluate(f"new Date{parts}.getTime()")
        shown = tab.evaluate(MOMENT, [at, now])
        year, month, *rest = parts
        with translation.override(language), time_machine.travel(datetime(2026, 11, 30, 20, 15, tzinfo=UTC)):
            tag = moment({"zone": ZoneInfo("UTC")}, datetime(year, month + 1, *rest, tzinfo=UTC))
        assert shown == re.search(r">(.*)<", tag)[1]


def test_a_conversation_is_saved_as_markdown_and_as_json(page, serve):
    serve()
    tab = page()
    answers(tab, "# Yes")
    say(tab, "Is it?")
    answered(tab)
    with tab.expect_download() as markdown:
        tab.locator("[data-as-markdown]").click()
    text = markdown.value.path().read_text()
    assert "Is it?" in text
    assert "# Yes" in text
    with tab.expect_download() as data:
        tab.locator("[data-as-json]").click()
    question, answer = json.loads(data.value.path().read_text())["turns"]
    assert question["content"] == "Is it?"
    assert answer["answers"][0]["content"] == "# Yes"


@pytest.fixture
def all_tasks(serve) -> None:
    for name, task in (("e5", "embedding"), ("bge", "rerank"), ("whisper", "transcription")):
        serve(name, task=task)


def one_answer(body: dict) -> list[dict]:
    text = json.dumps(body)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    return [{"send": head + text}]


@pytest.mark.parametrize("language", ["ja", "en"])
def test_other_tasks_are_tried_without_a_conversation(page, all_tasks, engine_, language):
    tab = page(language)
    panel = tab.locator("[data-panel=embedding]")
    vectors = [[1, 0], [0, 1], [1, 0.1]]
    data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    play(tab, one_answer({"object": "list", "data": data, "usage": usage}))
    panel.locator("[data-run]").click()
    expect(panel.locator("[data-nearest]")).to_have_attribute("data-nearest", "0 2")
    assert len(calls(engine_)[-1]["input"]) == 3
    tab.locator("[data-shows=rerank]").click()
    panel = tab.locator("[data-panel=rerank]")
    results = [{"index": at, "relevance_score": score} for at, score in enumerate((0.2, 0.9, 0.1))]
    play(tab, one_answer({"results": results, "usage": usage}))
    panel.locator("[data-run]").click()
    lines = panel.locator("[data-texts]").input_value().split("\n")
    expect(panel.locator("tbody th")).to_have_text([lines[1], lines[0], lines[2]])
    tab.locator("[data-shows=transcription]").click()
    panel = tab.locator("[data-panel=transcription]")
    tab.unroute("**/v1/**")
    recording = {"name": "meeting.wav", "mimeType": "audio/wav", "buffer": b"RIFF" + b"\0" * 4000}
    panel.locator("[data-recording]").set_input_files([recording])
    panel.locator("[data-run]").click()
    expect(panel.locator("[data-transcript]")).to_have_text("hello there")
    assert calls(engine_)[-1]["language"] == "ja"
    assert looks(tab, "tooWide") == []
