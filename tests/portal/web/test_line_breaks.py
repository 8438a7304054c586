"""A line break is one character wherever lengths are bounded, as browsers count it, though they send two."""

import pytest

from portal.feedback.models import MAX_COMMENT as MAX_FEEDBACK
from portal.feedback.models import Feedback
from portal.guide.models import HouseRules
from portal.news.models import Announcement
from portal.use_cases.models import MAX_COMMENT, MAX_PROMPT, UseCase, UseCaseComment, UseCaseText
from portal.web.markdown import MAX_LENGTH
from tests.html import one_of
from tests.news import announce
from tests.pages import key_of, use
from tests.portal.browsing import send
from tests.use_cases import use_case

pytestmark = pytest.mark.django_db

ASKED = "Answer:\n{{mail}}\n"


def lines(most: int, beginning: str = "") -> str:
    """Return a text of so many characters, of which every second one is a line break."""
    text = beginning + "x\n" * most
    return text[: most - 1] + "x"  # fields are stripped


def as_sent(text: str) -> str:
    return text.replace("\n", "\r\n")


@pytest.fixture
def case(alice, bob, research) -> UseCase:
    return use_case(alice, research, publisher=bob)


def test_a_comment_of_the_greatest_length_is_taken(as_alice, case):
    text = lines(MAX_COMMENT)
    as_alice.post(f"/use-cases/{case.pk}/comments/", {"text": as_sent(text)})
    assert UseCaseComment.objects.get().text == text


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_a_prompt_of_the_greatest_length_is_taken_however_it_is_sent(as_alice, research, line_break):
    prompt = lines(MAX_PROMPT, ASKED)
    form = {
        **{"tenant": research.slug, "kind": "write", "departments": ["hr"], "model": "", "step": "propose"},
        **{"en-title": "T", "en-summary": "S", "en-prompt": prompt.replace("\n", line_break)},
        **{"ja-fields-TOTAL_FORMS": "0", "ja-fields-INITIAL_FORMS": "0"},
        **{"en-fields-TOTAL_FORMS": "1", "en-fields-INITIAL_FORMS": "0", "en-fields-0-name": "mail"},
        "en-fields-0-example": "a\nb".replace("\n", line_break),
    }
    answer = as_alice.post("/use-cases/new/", form)
    assert answer.status_code == 302
    text = UseCaseText.objects.get()
    assert (text.prompt, text.fields[0].example) == (prompt, "a\nb")


def test_what_is_filled_in_is_filled_in_with_single_line_breaks(as_bob, case):
    page = send(as_bob, f"/use-cases/{case.pk}/try/", **{"v-mail": "one\r\ntwo"})
    assert "".join(one_of(page, "#filled-prompt").words()).endswith("one\ntwo")


def test_news_and_house_rules_of_the_greatest_length_are_taken(as_olivia):
    row = announce()
    text = lines(MAX_LENGTH)
    page = as_olivia.get(f"/news/{row.pk}/").context["form"]
    form = {name: page[name].value() for name in page.fields if name != "tenants"}
    form |= {name: page[name].value().strftime("%Y-%m-%dT%H:%M") for name in ("begins_at", "ends_at")}
    assert as_olivia.post(f"/news/{row.pk}/", {**form, "text_ja": as_sent(text)}).status_code == 302
    assert Announcement.objects.get().text_ja == text
    send(as_olivia, "/start/rules/", **{"edition": 0, "rules_ja": as_sent(text), "contact_ja": "a\r\nb"})
    assert (HouseRules.objects.get().rules_ja, HouseRules.objects.get().contact_ja) == (text, "a\nb")


def test_feedback_of_the_greatest_length_is_taken(as_alice, alice, research):
    call, text = use(key_of(alice, research)), lines(MAX_FEEDBACK)
    form = {"request_id": call.request_id, "score": "1", "comment": as_sent(text)}
    assert as_alice.post("/feedback/give/", form).status_code == 200
    assert Feedback.objects.get().comment == text


def test_a_text_that_is_too_long_is_refused_still(as_alice, case):
    assert as_alice.post(f"/use-cases/{case.pk}/comments/", {"text": lines(MAX_COMMENT + 1)}).status_code == 400
    assert not UseCaseComment.objects.exists()


def test_the_api_counts_alike(as_alice, research):
    text = {"language": "en", "title": "T", "summary": "S", "prompt": as_sent(lines(MAX_PROMPT)), "variables": []}
    new = {"tenant": research.slug, "kind": "check", "departments": ["legal"], "texts": [text]}
    made = as_alice.post("/api/v1/use-cases/", new, content_type="application/json")
    assert made.status_code == 201, made.content
    assert made.json()["texts"][0]["prompt"] == lines(MAX_PROMPT)
