"""The pages of use cases, as people read and fill them in."""

import json
from datetime import timedelta

import pytest
import time_machine
from django.core.management import call_command
from django.utils import timezone

from modelregistry.models import Alias, ServedModel
from modelregistry.supervisor import tasks
from portal.keys.models import ModelAccess
from portal.use_cases import gallery, publishing, reactions
from portal.use_cases.models import (
    LEAST_SAID,
    MAX_COMMENT,
    MAX_NOTE,
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
from tests.portal.browsing import read, send, send_wrong
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


def test_who_opened_a_case_is_forgotten_when_the_day_is_over_though_no_one_opens_another(bob, case):
    evening = timezone.now().astimezone(timezone.get_default_timezone()).replace(hour=23, minute=30)
    [work] = [work for work in tasks.registered_tasks() if work.name == "clearusecasecounts"]
    assert work.every <= timedelta(hours=1)
    with time_machine.travel(evening, tick=False):
        reactions.count_opened(bob, case)
        call_command(*work.argv)
        assert CountedToday.objects.count() == 1
    with time_machine.travel(evening + work.every, tick=False):
        call_command(*work.argv)
        assert not CountedToday.objects.exists()


@pytest.mark.parametrize(
    ("headers", "counted"),
    [
        ({}, 1),
        ({"sec-purpose": "prefetch;prerender"}, 0),
        ({"purpose": "prefetch"}, 0),
        ({"sec-fetch-mode": "navigate"}, 1),
    ],
)
def test_a_page_that_a_browser_asks_for_ahead_is_not_counted(as_bob, case, headers, counted):
    assert as_bob.get(f"/use-cases/{case.pk}/", headers=headers).status_code == 200
    as_bob.head(f"/use-cases/{case.pk}/")
    case.refresh_from_db()
    assert case.opened == counted


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
    form = {"verdict": verdict, "seen": seen, "note": "no", "confirmed": f"{verdict}/{seen}"}
    page = send_wrong(as_olivia, f"/use-cases/{case.pk}/decide/", **form)
    assert has(page, "[data-refused]")
    assert one_of(page, "#decide [name=seen]")["value"] == "2"  # which the page shows now
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


def test_a_draft_that_was_overtaken_can_be_discarded_by_its_author_alone(as_alice, as_bob, alice, bob, case):
    publishing.save_version(alice, case, case_content(text_content(title="Kept for later")))
    publishing.save_version(bob, case, case_content(text_content(title="By Bob")))
    publishing.publish(bob, case)
    address, drafts = f"/use-cases/{case.pk}/", case.versions.filter(state="draft")
    form = {
        "verdict": "discard",
        "seen": one_of(read(as_alice, f"{address}?version=mine"), "#discard [name=seen]")["value"],
    }
    assert not has(read(as_alice, address), "#discard")  # of the published version
    assert not has(read(as_bob, f"{address}?version=newest"), "#discard")
    assert has(send_wrong(as_bob, f"{address}decide/", **form), "[data-refused]")
    assert drafts.exists()
    page = send(as_alice, f"{address}decide/", **form)
    assert not has(page, ".notice.error")
    assert not drafts.exists()
    assert not has(read(as_alice, "/use-cases/"), "[data-overtaken]")
    assert has(send_wrong(as_alice, f"{address}decide/", **form), "[data-refused]")  # a second time


def test_the_newest_draft_can_be_discarded_and_the_only_version_cannot(as_alice, alice, bob, research):
    case = publishing.create_case(alice, research, case_content()).use_case
    address = f"/use-cases/{case.pk}/"
    assert not has(read(as_alice, address), "#discard")
    assert has(send_wrong(as_alice, f"{address}decide/", verdict="discard", seen="1"), "[data-refused]")
    publishing.propose(alice, case)
    publishing.send_back(bob, case, "Shorter, please")
    publishing.save_version(alice, case, case_content(text_content(title="Shorter")))
    assert has(read(as_alice, address), "#discard")
    for wrong in ("1", "3", "", "x"):
        assert has(send_wrong(as_alice, f"{address}decide/", verdict="discard", seen=wrong), "[data-refused]")
    assert texts(send(as_alice, f"{address}decide/", verdict="discard", seen="2"), "h1") == ["Reply to a mail"]
    case.refresh_from_db()
    assert (case.name, case.versions.get().state) == ("Reply to a mail", "returned")


def test_who_publishes_does_not_read_the_draft_of_an_author(as_bob, as_olivia, case, alice):
    publishing.save_version(alice, case, case_content(text_content(title="Secret draft")))
    for client in (as_bob, as_olivia):
        for path in ("?version=newest", "edit/", "history/"):
            page = read(client, f"/use-cases/{case.pk}/{path}")
            assert "Secret draft" not in page
            assert not has(page, "[name=verdict][value=propose]")
    send(as_bob, f"/use-cases/{case.pk}/edit/", **{**FORM, "ja-title": "ボブの版", "seen": "1", "step": "publish"})
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


def test_a_model_of_other_tenants_is_offered_to_no_one_else(as_alice, alice, olivia, sales):
    model = serve("sales-only")
    Alias.objects.create(name="sales-alias", model=model)
    ModelAccess.objects.create(model=model, tenant=sales)
    assert not gallery.names_for(alice) & {"sales-only", "sales-alias"}
    assert gallery.names_for(olivia) >= {"sales-only", "sales-alias"}
    new = {"tenant": "research", "kind": "write", "departments": ["sales"]}
    new["texts"] = [{"language": "en", "title": "A", "summary": "B", "prompt": "C"}]
    answers = [
        as_alice.post("/api/v1/use-cases/", {**new, "model": name}, content_type="application/json")
        for name in ("sales-only", "sales-alias", "unknown")
    ]
    assert {answer.status_code for answer in answers} == {400}
    assert len({answer.content for answer in answers}) == 1
    text = read(as_alice, "/use-cases/new/")
    assert "sales-only" not in text
    assert "sales-alias" not in text


def test_who_publishes_is_cautioned_about_a_model_that_readers_may_not_call(
    as_bob, olivia, alice, bob, research, sales
):
    ModelAccess.objects.create(model=serve("sales-only"), tenant=sales)
    case = use_case(alice, research, model="sales-only")
    path = f"/use-cases/{case.pk}/"
    assert one_of(read(as_bob, path), "[data-flag]")["data-flag"] == "closed"
    publishing.publish(bob, case)
    assert gallery.find_flags([UseCase.objects.get(pk=case.pk)]) == {case.pk: "closed"}
    ModelAccess.objects.create(model=ServedModel.objects.get(), tenant=research)
    assert not has(read(as_bob, path), "[data-flag]")


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
    for body, status in ((wrong, 400), ({**new, "tenant": "x"}, 400), ({**new, "other": 1}, 400)):
        assert as_alice.post("/api/v1/use-cases/", body, content_type="application/json").status_code == status


def test_a_case_outlives_its_author(as_bob, as_olivia, case, alice):
    alice.delete()
    for client in (as_bob, as_olivia):
        for part in ("", "history/", "edit/"):
            assert client.get(f"/use-cases/{case.pk}/{part}").status_code == 200
        assert client.get(f"/api/v1/use-cases/{case.pk}/").status_code == 200
        assert shown(client) == [str(case.pk)]


def test_who_began_a_draft_over_a_proposal_decides_about_the_proposal(as_bob, alice, bob, research):
    case = use_case(alice, research)
    publishing.save_version(bob, case, case_content(text_content(title="By Bob")))
    address = f"/use-cases/{case.pk}/"
    own = read(as_bob, address)
    assert texts(own, "h1") == ["By Bob"]
    waiting = one_of(read(as_bob, "/use-cases/"), "#waiting a")["href"]
    assert waiting == address + one_of(own, "#waits a")["href"]
    page = read(as_bob, waiting)
    assert texts(page, "h1") == ["Reply to a mail"]
    assert not has(page, "#waits")
    assert "?version=proposed&" in one_of(page, "#fill form")["action"]
    seen = one_of(page, "#decide [name=seen]")["value"]
    answer = send(as_bob, f"{address}decide/", verdict="publish", seen=seen)
    assert texts(answer, "h1") == ["Reply to a mail"]
    assert list(case.versions.order_by("number").values_list("state", flat=True)) == ["published", "draft"]
    assert one_of(answer, "#newer a")["href"] == "?version=newest"


def test_a_proposal_that_others_replaced_is_under_ones_own(as_alice, alice, bob, research):
    case = use_case(alice, research, text_content(title="By Alice"))
    publishing.save_version(bob, case, case_content(text_content(title="By Bob")))
    publishing.publish(bob, case)
    address = f"/use-cases/{case.pk}/"
    row = one_of(read(as_alice, "/use-cases/"), "#own [data-overtaken]")
    assert (row["data-overtaken"], row.one("a")["href"]) == ("replaced", f"{address}?version=mine")
    assert one_of(read(as_alice, address), "#overtaken a")["href"] == "?version=mine"
    mine = read(as_alice, f"{address}?version=mine")
    assert texts(mine, "h1") == ["By Alice"]
    assert one_of(mine, "#newer a")["href"] == "?version=newest"
    assert not has(mine, "#discard")


def test_what_others_hid_its_author_is_offered_to_show_in_vain_nowhere(as_alice, as_bob, alice, bob, research):
    case = use_case(alice, research)
    publishing.hide(bob, case)
    address = f"/use-cases/{case.pk}/"
    assert has(read(as_alice, address), "#is-hidden")
    assert not has(read(as_alice, address), "[value=show]")
    assert as_alice.post(f"{address}decide/", {"verdict": "show"}).status_code == 404
    assert one_of(read(as_bob, "/use-cases/"), "#hidden a")["href"] == address
    assert has(read(as_bob, address), "[value=show]")


def test_a_proposal_leads_to_ones_own_newer_draft(as_bob, alice, bob, research):
    case = use_case(alice, research)
    publishing.save_version(bob, case, case_content(text_content(title="By Bob")))
    page = read(as_bob, f"/use-cases/{case.pk}/?version=proposed")
    assert texts(read(as_bob, f"/use-cases/{case.pk}/" + one_of(page, "#newer a")["href"]), "h1") == ["By Bob"]


def test_who_may_publish_proposes_or_publishes_as_the_button_says(as_alice, as_bob, case):
    for client, steps in ((as_alice, ["propose", "draft"]), (as_bob, ["publish", "propose", "draft"])):
        for path in ("new/", f"{case.pk}/edit/"):
            page = read(client, f"/use-cases/{path}")
            assert [button["value"] for button in all_of(page, "[name=step]")] == steps
    for step, state in (("propose", "proposed"), ("publish", "published")):
        send(as_bob, "/use-cases/new/", **{**FORM, "step": step})
        assert UseCase.objects.latest("pk").versions.get().state == state
        seen = one_of(read(as_bob, f"/use-cases/{case.pk}/edit/"), "[name=seen]")["value"]
        send(as_bob, f"/use-cases/{case.pk}/edit/", **{**FORM, "step": step, "seen": seen})
        assert case.versions.latest("number").state == state


def test_who_may_not_publish_keeps_what_they_typed(as_alice, case):
    for path in ("new/", f"{case.pk}/edit/"):
        page = send_wrong(as_alice, f"/use-cases/{path}", **{**FORM, "step": "publish", "seen": "1"})
        assert has(page, "[data-refused]")
        assert "返信を書く" in page
    assert list(UseCase.objects.values_list("current__number", "versions__number")) == [(1, 1)]


def test_who_publishes_does_either_with_a_draft_of_their_own(as_bob, bob, case):
    publishing.save_version(bob, case, case_content(text_content(title="By Bob")))
    page = read(as_bob, f"/use-cases/{case.pk}/?version=newest")
    assert [one["value"] for one in all_of(page, "#decide [name=verdict]")] == ["publish", "propose", "hide"]
    send(as_bob, f"/use-cases/{case.pk}/decide/", verdict="publish", seen="2")
    assert case.versions.get(number=2).state == "published"


def test_a_comment_is_kept_when_its_proposal_was_replaced_meanwhile(as_bob, alice, case):
    for title in ("Second", "Third"):
        publishing.save_version(alice, case, case_content(text_content(title=title)))
        publishing.propose(alice, case)
    action = one_of(read(as_bob, f"/use-cases/{case.pk}/?version=proposed"), "#decide form")["action"]
    page = send_wrong(as_bob, action, verdict="return", seen="2", note="Say which tone.")
    assert has(page, "[data-refused]")
    assert texts(page, "h1") == ["Third"]  # not what is published
    assert one_of(page, "#decide [name=note]").text.strip() == "Say which tone."
    seen = one_of(page, "#decide [name=seen]")["value"]
    send(as_bob, action, verdict="return", seen=seen, note="Say which tone.")
    assert case.versions.get(number=3).note == "Say which tone."


def test_a_comment_that_is_missing_or_too_long_is_named_so(as_bob, alice, research):
    case = use_case(alice, research)
    wrong = {}
    for note in ("", " ", "x" * (MAX_NOTE + 1)):
        page = send_wrong(as_bob, f"/use-cases/{case.pk}/decide/", verdict="return", seen="1", note=note)
        wrong[note.strip()] = one_of(page, "#decide .error").text
        assert note.strip() in one_of(page, "#decide [name=note]").text
    assert len(set(wrong.values())) == 2
    assert str(MAX_NOTE) in wrong["x" * (MAX_NOTE + 1)]


def test_the_whole_company_sees_a_case_once_the_question_was_answered(as_olivia, as_bob, case):
    address = f"/use-cases/{case.pk}/decide/"
    page = send(as_olivia, address, verdict="publish-to-all", seen="1")
    assert one_of(page, "[data-caution]")["data-caution"] == "company-wide"
    for wrong in ("", "publish-to-all/2"):
        send(as_olivia, address, verdict="publish-to-all", seen="1", confirmed=wrong)
    case.refresh_from_db()
    assert not case.is_company_wide
    assert as_bob.post(address, {"verdict": "publish-to-all", "seen": "1"}).status_code == 404
    sent = {
        one["name"]: one["value"] for one in all_of(page, "#caution [name]") if one["name"] != "csrfmiddlewaretoken"
    }
    assert sent["verdict"] == "publish-to-all"
    send(as_olivia, address, **sent)
    case.refresh_from_db()
    assert case.is_company_wide


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"label": "The tone"}, "name"),
        ({"example": "warm"}, "name"),
        ({"choices": "warm, cold"}, "name"),
        ({"name": "mail", "kind": "line", "choices": "warm, cold"}, "choices"),
    ],
)
def test_what_is_typed_about_a_field_is_not_lost(as_alice, row, field):
    prompt = "返信して: {{mail}}" if "name" in row else "返信して"
    typed = {f"ja-fields-0-{name}": value for name, value in row.items()}
    page = as_alice.post("/use-cases/new/", {**FORM, "ja-prompt": prompt, "ja-fields-0-name": "", **typed})
    assert page.status_code == 400
    assert has(page, f"#id_ja-fields-0-{field}_error")
    assert not UseCase.objects.exists()


def test_rows_left_empty_are_no_fields(as_alice):
    rows = {"ja-fields-TOTAL_FORMS": "3", "ja-fields-1-kind": "line", "ja-fields-2-kind": "choice"}
    send(as_alice, "/use-cases/new/", **{**FORM, **rows})
    assert [one.name for one in UseCase.objects.get().versions.get().text.fields] == ["mail"]
