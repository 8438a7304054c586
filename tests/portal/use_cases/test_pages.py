"""The pages of use cases, as people read and fill them in."""

import json
from datetime import timedelta

import pytest
import time_machine
from django.utils import timezone

from portal.use_cases import publishing, reactions
from portal.use_cases.models import (
    LEAST_SAID,
    MAX_COMMENT,
    CountedToday,
    HelpedMark,
    UseCase,
    UseCaseCheck,
    UseCaseComment,
)
from portal.use_cases.reactions import add_comment, mark_helped
from portal.use_cases.variables import Variable
from tests.conftest import person
from tests.html import all_of, has, one_of, texts
from tests.pages import serve
from tests.portal.browsing import read, send
from tests.use_cases import case_content, text_content, use_case

pytestmark = pytest.mark.django_db

FORM = {
    **{"tenant": "research", "kind": "write", "departments": ["hr"], "model": "", "step": "propose"},
    **{"ja-title": "返信", "ja-summary": "返信を書く", "ja-prompt": "返信して: {{mail}}"},
    **{"ja-fields-TOTAL_FORMS": "1", "ja-fields-INITIAL_FORMS": "0", "ja-fields-0-name": "mail"},
    **{"en-fields-TOTAL_FORMS": "0", "en-fields-INITIAL_FORMS": "0"},
}


@pytest.fixture
def case(alice, bob, research) -> UseCase:
    return use_case(alice, research, publisher=bob)


def shown(client, **query: str) -> list[str]:
    page = client.get("/use-cases/", query)
    assert page.status_code == 200
    return [one["data-case"] for one in all_of(page, "[data-case]")]


def test_the_gallery_is_searched_and_filtered(as_alice, alice, bob, research):
    both = use_case(alice, research, text_content("ja", title="議事録"), text_content("en"), publisher=bob)
    sql = text_content(title="SQL", summary="Queries from questions.")
    code = use_case(alice, research, sql, publisher=bob, kind="code", departments=("development",))
    assert shown(as_alice) == [str(code.pk), str(both.pk)]
    assert shown(as_alice, q="議事") == [str(both.pk)]
    assert shown(as_alice, q="queries QUESTIONS") == [str(code.pk)]
    assert shown(as_alice, department="sales") == [str(both.pk)]
    assert shown(as_alice, kind="code") == [str(code.pk)]
    assert shown(as_alice, language="ja") == [str(both.pk)]
    assert shown(as_alice, q="nothing like it") == []


@pytest.mark.parametrize(
    "query", [{"sort": "x"}, {"kind": "'"}, {"page": "99999"}, {"q": "%_" * 90}, {"department": ","}]
)
def test_odd_searches_show_a_page(as_alice, case, query):
    assert as_alice.get("/use-cases/", query).status_code == 200


def test_most_helpful_and_most_used_come_first(as_alice, alice, bob, research):
    first, second = (use_case(alice, research, publisher=bob) for _ in range(2))
    mark_helped(bob, first, None)
    reactions.count_tried(bob, second)
    assert shown(as_alice) == [str(first.pk), str(second.pk)]
    assert shown(as_alice, sort="used") == [str(second.pk), str(first.pk)]
    assert shown(as_alice, sort="new") == [str(second.pk), str(first.pk)]


def test_a_case_has_a_form_with_its_examples(as_alice, alice, bob, research):
    tone = Variable(name="tone", label="Tone", kind="choice", example="warm", choices=("plain", "warm"))
    mail = Variable(name="mail", label="Mail", kind="text", example="<b>When?</b>")
    text = text_content(prompt="{{tone}}: {{mail}}", variables=(tone, mail))
    page = read(as_alice, f"/use-cases/{use_case(alice, research, text, publisher=bob).pk}/")
    assert texts(page, "#fill select option[selected]") == ["warm"]
    assert one_of(page, "#fill textarea").text == "<b>When?</b>"


def test_it_is_read_in_the_readers_language_or_the_other(as_alice, alice, bob, research):
    case = use_case(alice, research, text_content("ja", title="返信"), text_content("en", title="Reply"), publisher=bob)
    one = use_case(alice, research, text_content("ja", title="日本語だけ"), publisher=bob)
    address = f"/use-cases/{case.pk}/"
    assert texts(read(as_alice, address, accept_language="en"), "h1") == ["Reply"]
    assert texts(read(as_alice, address, accept_language="ja"), "h1") == ["返信"]
    assert texts(read(as_alice, f"{address}?language=ja", accept_language="en"), "h1") == ["返信"]
    assert texts(read(as_alice, f"/use-cases/{one.pk}/", accept_language="en"), "h1") == ["日本語だけ"]


def test_without_scripts_the_prompt_comes_filled_in_and_nothing_is_kept(as_bob, case):
    page = send(as_bob, f"/use-cases/{case.pk}/try/", **{"v-mail": "Where is the 'canteen'?"})
    assert one_of(page, "#filled-prompt").text == "Answer politely: Where is the 'canteen'?"
    assert "\\u0027canteen\\u0027" in one_of(page, "#sample-curl").text
    case.refresh_from_db()
    assert case.tried == 1


def test_with_scripts_a_try_is_only_counted(as_bob, case):
    answer = as_bob.post(f"/use-cases/{case.pk}/try/", headers={"x-requested-with": "fetch"})
    assert (answer.status_code, answer.content) == (204, b"")
    case.refresh_from_db()
    assert case.tried == 1


def test_a_person_counts_once_a_day_and_the_author_never(as_alice, as_bob, as_olivia, bob, case):
    today = timezone.now().astimezone(timezone.get_default_timezone()).replace(hour=9)
    with time_machine.travel(today, tick=False):
        for client in (as_alice, as_bob, as_olivia, as_bob):
            read(client, f"/use-cases/{case.pk}/")
            client.post(f"/use-cases/{case.pk}/try/", headers={"x-requested-with": "fetch"})
        case.refresh_from_db()
        assert (case.opened, case.tried) == (2, 2)
        assert CountedToday.objects.count() == 4
    with time_machine.travel(today + timedelta(days=1), tick=False):
        reactions.count_opened(bob, case)
        case.refresh_from_db()
        assert (case.opened, case.tried) == (3, 2)
        assert CountedToday.objects.count() == 1  # what only yesterday needed is gone


def test_samples_are_programs_with_a_placeholder_for_the_key(as_alice, case):
    serve("qwen")
    page = read(as_alice, f"/use-cases/{case.pk}/")
    command = one_of(page, "#sample-curl").text
    body = json.loads(command.partition("-d '")[2].rstrip("'"))
    assert body["model"] == "qwen"
    assert body["messages"] == [{"role": "user", "content": "Answer politely:\nWhen do you open?"}]
    assert "$OPENAI_API_KEY" in command
    assert "{{mail}}" in one_of(page, "[data-sample=curl]")["data-template"]


def test_opening_is_counted_but_not_the_authors_own(as_alice, as_bob, case):
    for client in (as_alice, as_bob, as_bob):
        read(client, f"/use-cases/{case.pk}/")
    case.refresh_from_db()
    assert case.opened == 1


def test_a_proposal_goes_the_whole_way(as_alice, as_bob, alice, bob):
    send(as_alice, "/use-cases/new/", **FORM)
    case = UseCase.objects.get()
    assert has(read(as_bob, "/use-cases/"), "#waiting")
    send(as_bob, f"/use-cases/{case.pk}/decide/", verdict="return", note="Shorter, please", seen="1")
    assert "Shorter, please" in one_of(read(as_alice, "/use-cases/"), "#own").text
    send(as_alice, f"/use-cases/{case.pk}/edit/", **{**FORM, "ja-title": "短い返信", "seen": "1"})
    send(as_bob, f"/use-cases/{case.pk}/decide/", verdict="publish", seen="2")
    assert shown(as_alice) == [str(case.pk)]
    rows = all_of(read(as_alice, f"/use-cases/{case.pk}/history/"), "[data-case-version]")
    assert [(row["data-case-version"], row["data-state"]) for row in rows] == [("2", "published"), ("1", "returned")]
    assert "短い返信" in [line.text for line in rows[0].all("ins")]


@pytest.mark.parametrize("verdict", ["publish", "publish-to-all", "return"])
@pytest.mark.parametrize("seen", ["1", "", "x", "3"])
def test_nothing_is_decided_about_a_version_that_was_not_seen(as_olivia, alice, research, verdict, seen):
    """An author could propose harmless words, and others while the page is open."""
    case = use_case(alice, research)
    assert one_of(read(as_olivia, f"/use-cases/{case.pk}/"), "#decide [name=seen]")["value"] == "1"
    publishing.save_version(alice, case, case_content(text_content(title="Other words")))
    publishing.propose(alice, case)
    page = send(as_olivia, f"/use-cases/{case.pk}/decide/", verdict=verdict, seen=seen, note="no")
    assert has(page, ".notice.error")
    case.refresh_from_db()
    assert (case.current, case.versions.get(number=2).state) == (None, "proposed")


def test_of_two_who_edit_the_second_reads_first_what_the_first_wrote(as_alice, as_bob, alice, bob, research):
    case = use_case(alice, research)
    assert one_of(read(as_bob, f"/use-cases/{case.pk}/edit/"), "[name=seen]")["value"] == "1"
    send(as_alice, f"/use-cases/{case.pk}/edit/", **{**FORM, "ja-title": "アリスの版", "seen": "1"})
    answer = as_bob.post(f"/use-cases/{case.pk}/edit/", {**FORM, "ja-title": "ボブの版", "seen": "1"})
    assert (answer.status_code, has(answer, "[data-refused]")) == (400, True)
    assert "ボブの版" in answer.content.decode()  # it is not lost
    assert case.versions.count() == 2
    # Once they have been shown that, they may save.
    page = answer.content.decode()
    assert has(page, f"[data-newer] [href='/use-cases/{case.pk}/?version=newest']")
    shown_now = one_of(page, "[name=seen]")["value"]
    answer = as_bob.post(f"/use-cases/{case.pk}/edit/", {**FORM, "ja-title": "ボブの版", "seen": shown_now})
    assert answer.status_code == 302
    assert [text.title for one in case.versions.order_by("number") for text in one.texts.all()][-1] == "ボブの版"


def test_others_see_no_versions_that_were_not_published(as_alice, case, alice, olivia, charlie, as_olivia):
    publishing.publish(olivia, case, company_wide=True)
    publishing.save_version(alice, case, case_content(text_content(title="Secret draft")))
    as_alice.force_login(charlie)
    page = read(as_alice, f"/use-cases/{case.pk}/history/")
    assert [row["data-case-version"] for row in all_of(page, "[data-case-version]")] == ["1"]
    assert "Secret draft" not in read(as_alice, f"/use-cases/{case.pk}/?version=newest")


def test_a_draft_that_others_published_over_is_shown_to_its_author(as_alice, as_bob, alice, bob, case):
    publishing.save_version(alice, case, case_content(text_content(title="Kept for later")))
    assert not has(read(as_alice, "/use-cases/"), "[data-overtaken]")
    publishing.save_version(bob, case, case_content(text_content(title="By Bob")))
    publishing.publish(bob, case)
    address = f"/use-cases/{case.pk}/"
    [link] = all_of(read(as_alice, "/use-cases/"), "#own [data-overtaken] a")
    assert link["href"] == f"{address}?version=mine"
    page = read(as_alice, address)
    assert texts(page, "h1") == ["By Bob"]
    mine = read(as_alice, address + one_of(page, "#overtaken a")["href"])
    assert texts(mine, "h1") == ["Kept for later"]
    assert one_of(mine, "#not-published")["data-state"] == "draft"
    for path in ("", "?version=mine"):
        other = read(as_bob, address + path)
        assert "Kept for later" not in other
        assert not has(other, "#overtaken")


def test_who_publishes_does_not_read_the_draft_of_an_author(as_bob, as_olivia, case, alice):
    publishing.save_version(alice, case, case_content(text_content(title="Secret draft")))
    for client in (as_bob, as_olivia):
        for path in ("?version=newest", "edit/", "history/"):
            page = read(client, f"/use-cases/{case.pk}/{path}")
            assert "Secret draft" not in page
            assert not has(page, "[name=verdict][value=propose]")
    send(as_bob, f"/use-cases/{case.pk}/edit/", **{**FORM, "ja-title": "ボブの版", "seen": "1"})
    assert list(case.versions.order_by("number").values_list("state", flat=True)) == ["replaced", "draft", "published"]


@pytest.mark.parametrize(
    "change",
    [
        {"ja-title": ""},
        {"ja-prompt": "no place"},
        {"kind": "other"},
        {"departments": []},
        {"tenant": "sales"},
        {"ja-fields-TOTAL_FORMS": "x"},
        {"ja-fields-TOTAL_FORMS": "1000"},
        {"ja-prompt": "{{mail}}" + "x" * 9000},
        {"model": "unknown"},
    ],
)
def test_a_form_that_is_wrong_comes_back_with_what_was_typed(as_alice, change):
    answer = as_alice.post("/use-cases/new/", {**FORM, **change})
    assert answer.status_code == 400
    assert has(answer, ".error") or has(answer, "[data-refused]")
    assert "返信を書く" in answer.content.decode()
    assert not UseCase.objects.exists()


def test_an_unknown_button_is_refused(as_bob, case):
    assert as_bob.post(f"/use-cases/{case.pk}/decide/", {"verdict": "x"}).status_code == 400
    assert as_bob.post(f"/use-cases/{case.pk}/helped/", {"helped": "x"}).status_code == 400
    assert as_bob.post("/use-cases/new/", {**FORM, "step": "x"}).status_code == 400


def test_minutes_are_shown_once_enough_people_said_so(as_alice, case, research):
    for number, minutes in enumerate((10, 30, 15, None)):
        assert not has(read(as_alice, f"/use-cases/{case.pk}/"), "[data-minutes]"), number
        mark_helped(person(f"p{number}", research), case, minutes)
        if number == LEAST_SAID - 1:
            break
    case.refresh_from_db()
    assert (case.helped, case.minutes, case.minutes_said) == (3, 15, 3)
    assert has(read(as_alice, f"/use-cases/{case.pk}/"), "[data-minutes]")


def test_the_author_marks_nothing(as_alice, as_bob, case, alice):
    address = f"/use-cases/{case.pk}/"
    assert has(read(as_bob, address), "#helped [value=yes]")
    assert not has(read(as_alice, address), "#helped [value=yes]")
    assert has(send(as_alice, f"{address}helped/", helped="yes", minutes="5"), ".notice.error")
    assert not HelpedMark.objects.exists()


def test_a_mark_that_an_author_set_before_counts_no_more_and_can_be_taken_back(as_alice, case, alice, bob):
    HelpedMark.objects.create(use_case=case, user=alice, minutes=60)
    mark_helped(bob, case, None)
    case.refresh_from_db()
    assert (case.helped, case.minutes) == (1, None)
    send(as_alice, f"/use-cases/{case.pk}/helped/", helped="no")
    assert list(HelpedMark.objects.values_list("user", flat=True)) == [bob.pk]


def test_a_mark_is_one_for_each_person_and_can_be_taken_back(as_bob, case):
    for minutes in ("5", "20"):
        send(as_bob, f"/use-cases/{case.pk}/helped/", helped="yes", minutes=minutes)
    assert HelpedMark.objects.get().minutes == 20
    for wrong in ("-1", "9999", "x"):
        assert has(as_bob.post(f"/use-cases/{case.pk}/helped/", {"helped": "yes", "minutes": wrong}), ".error")
    send(as_bob, f"/use-cases/{case.pk}/helped/", helped="no")
    case.refresh_from_db()
    assert (case.helped, HelpedMark.objects.count()) == (0, 0)


def test_comments_are_bounded_and_cannot_harm(as_alice, as_bob, case):
    send(
        as_alice, f"/use-cases/{case.pk}/comments/", text="**good** <script>alert(1)</script> [x](javascript:alert(1))"
    )
    page = read(as_bob, f"/use-cases/{case.pk}/")
    comment = one_of(page, "[data-comment]")
    assert [word.text for word in comment.all("strong")] == ["good"]
    assert not comment.all("script")
    assert not [link for link in comment.all("a") if "javascript" in link.attributes.get("href", "")]
    for wrong in ("", " ", "x" * (MAX_COMMENT + 1)):
        assert has(as_alice.post(f"/use-cases/{case.pk}/comments/", {"text": wrong}), ".error")
    assert UseCaseComment.objects.count() == 1


def test_a_comment_is_deleted_by_its_author_or_a_publisher_alone(as_alice, as_bob, alice, bob, case, research):
    other = person("dora", research)
    for author, deleter, gone in ((other, as_alice, False), (alice, as_alice, True), (other, as_bob, True)):
        row = add_comment(author, case, "text")
        deleter.post(f"/use-cases/{case.pk}/comments/{row.pk}/delete/")
        assert UseCaseComment.objects.filter(pk=row.pk).exists() is not gone


@pytest.mark.parametrize("outcome", ["gone", *(one for one in UseCaseCheck.Outcome.values if one != "fine")])
def test_publishers_see_what_is_wrong_with_a_model(as_alice, as_bob, alice, bob, research, outcome):
    serve("qwen")
    case = use_case(alice, research, publisher=bob, model="lost" if outcome == "gone" else "qwen")
    if outcome != "gone":
        now = timezone.now()
        UseCaseCheck.objects.create(
            use_case=case, version=case.current, tried_at=now, checked_at=now, outcome=outcome, model="qwen"
        )
    for path in ("/use-cases/", f"/use-cases/{case.pk}/"):
        assert one_of(read(as_bob, path), "[data-flag]")["data-flag"] == outcome
        assert not has(read(as_alice, path), "[data-flag]")


def test_a_check_of_an_older_version_says_nothing_of_the_new_one(as_bob, alice, bob, case):
    now = timezone.now()
    UseCaseCheck.objects.create(use_case=case, version=case.current, tried_at=now, outcome="empty", checked_at=now)
    publishing.save_version(bob, case, case_content(text_content(title="Newer")))
    publishing.publish(bob, case)
    assert not has(read(as_bob, "/use-cases/"), "[data-flag]")


def test_the_api_lists_and_takes_proposals(as_alice, as_bob, case):
    [row] = as_alice.get("/api/v1/use-cases/").json()["results"]
    assert (row["id"], row["version"], row["texts"][0]["variables"][0]["name"]) == (case.pk, 1, "mail")
    new = {
        **{"tenant": "research", "kind": "check", "departments": ["legal"]},
        "texts": [{"language": "en", "title": "T", "summary": "S", "prompt": "P"}],
    }
    made = as_alice.post("/api/v1/use-cases/", new, content_type="application/json")
    assert (made.status_code, made.json()["state"]) == (201, "proposed")
    assert as_bob.post("/api/v1/use-cases/", new, content_type="application/json").json()["state"] == "published"
    wrong = {**new, "texts": [{**new["texts"][0], "prompt": "{{a}}"}]}
    for body, status in ((wrong, 409), ({**new, "tenant": "x"}, 400), ({**new, "other": 1}, 400)):
        assert as_alice.post("/api/v1/use-cases/", body, content_type="application/json").status_code == status


def test_a_case_outlives_its_author(as_bob, as_olivia, case, alice):
    alice.delete()
    for client in (as_bob, as_olivia):
        for part in ("", "history/", "edit/"):
            assert client.get(f"/use-cases/{case.pk}/{part}").status_code == 200
        assert client.get(f"/api/v1/use-cases/{case.pk}/").status_code == 200
        assert shown(client) == [str(case.pk)]
