"""Courses: their steps are seen done from what is recorded anyway, once and for good."""

from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone, translation

from portal.feedback.models import Feedback
from portal.keys.models import ApiKey
from portal.lessons import progress
from portal.lessons.courses import CODES, all_courses, read_course
from portal.lessons.models import CoursesDeclined, StepDone
from portal.quotas.models import QuotaRequest
from portal.usage.models import UsageRecord
from portal.use_cases.reactions import mark_helped
from portal.web.markdown import render_markdown
from tests.html import all_of, has, one_of, texts
from tests.pages import key_of, serve, service_key_of, use
from tests.portal.browsing import client_of, read, send
from tests.use_cases import use_case

pytestmark = pytest.mark.django_db


def playground_key(person, tenant) -> ApiKey:
    key = key_of(person, tenant, name="playground")
    ApiKey.objects.filter(pk=key.pk).update(is_playground=True)
    return key


def done(person) -> set[str]:
    return set(progress.find_steps([person])[person.pk])


class TestFiles:
    def test_each_step_is_in_a_course_and_complete_in_both_languages(self):
        courses = all_courses().values()
        assert {step.code for course in courses for step in course.steps} == set(CODES)
        for course in courses:
            for step in course.steps:
                for text in (step.ja, step.en):
                    assert text.title
                    assert text.learn
                    assert text.text.strip()
                    assert text.seen
                    assert bool(text.link) == bool(step.page)
                    assert "<script" not in render_markdown(text.text)
                assert bool(step.ja.prompt) == bool(step.en.prompt)
                assert not step.page or reverse(step.page)

    def test_what_is_no_step_is_refused(self):
        text = {"title": "t", "learn": "l", "text": "x", "seen": "s"}
        head = {"minutes": 1, "ja": {"title": "t", "lead": "l"}, "en": {"title": "t", "lead": "l"}}
        step = {"code": "key", "minutes": 1, "ja": text, "en": text}
        assert read_course("x", {**head, "steps": [step]}).steps[0].code == "key"
        for wrong in ([{**step, "code": "gossip"}], [step, step], [], [{**step, "sample": "telex"}], [{"ja": text}]):
            with pytest.raises(ValueError, match="x"):
                read_course("x", {**head, "steps": wrong})


class TestSteps:
    def test_a_newcomer_has_signed_in(self, alice):
        assert done(alice) == {"signed-in"}

    def test_the_playground_is_told_from_programs(self, alice, research):
        key = playground_key(alice, research)
        use(key, client_class="browser", prefill_ms=5)
        assert done(alice) == {"signed-in", "playground"}
        use(key)
        use(key)
        assert "practised" in done(alice)

    @pytest.mark.parametrize(
        ("columns", "step"),
        [
            ({"client_class": "curl"}, "curl"),
            ({"client_class": "openai"}, "openai"),
            ({"prefill_ms": 12}, "stream"),
            ({"endpoint": "embeddings"}, "embedding"),
            ({"client_class": "openwebui"}, "openwebui"),
        ],
    )
    def test_calls_show_how_they_were_made(self, alice, research, columns, step):
        key = key_of(alice, research)
        use(key, **columns, status="failed")
        assert done(alice) == {"signed-in", "key"}
        at = timezone.now() - timedelta(days=2)
        use(key, **columns, at=at)
        assert done(alice) == {"signed-in", "key", step}
        assert progress.find_steps([alice])[alice.pk][step] == at

    def test_three_models_are_three_different_ones(self, alice, research):
        key = key_of(alice, research)
        for model in ("a", "b", "a"):
            use(key, model=model)
        assert "three-models" not in done(alice)
        use(key, model="c")
        assert "three-models" in done(alice)

    def test_a_service_key_counts_for_the_person_responsible(self, alice, bob, research):
        key = service_key_of(research, "Dify", responsible=alice)
        assert "dify" not in done(alice)
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=timezone.now())
        assert "dify" in done(alice)
        assert "key" not in done(alice)
        assert "dify" not in done(bob)

    def test_feedback_helped_and_a_request_count(self, alice, bob, research):
        record = use(key_of(bob, research))
        Feedback.objects.create(user=alice, request_id=record.request_id, tenant=research, model="qwen", score=1)
        mark_helped(alice, use_case(bob, research, publisher=bob), None)
        QuotaRequest.objects.create(
            tenant=research, user=alice, asked_by=alice, unit="tokens", window="day", amount=2, previous_amount=1
        )
        assert done(alice) == {"signed-in", "feedback", "helped", "quota"}

    def test_trying_a_case_counts_and_not_which(self, as_alice, alice, bob, research):
        case = use_case(bob, research, publisher=bob)
        read(as_alice, f"/use-cases/{case.pk}/")
        assert "use-case" not in done(alice)
        as_alice.post(f"/use-cases/{case.pk}/try/")
        assert "use-case" in done(alice)
        assert {field.name for field in StepDone._meta.fields} == {"id", "user", "step", "at"}

    def test_what_was_done_stays_done_when_records_are_pruned(self, alice, bob, research):
        use(key_of(alice, research), client_class="curl")
        before = done(alice)
        assert before >= {"curl"}
        assert call_command("recordsteps") == f"{len(before)} recorded"
        assert call_command("recordsteps") == "0 recorded"
        UsageRecord.objects.all().delete()
        ApiKey.objects.all().delete()
        assert done(alice) == before
        assert not StepDone.objects.filter(user=bob).exists()

    def test_each_kind_of_step_is_stored_in_the_night_after(self, alice, bob, carol, research):
        record = use(key_of(bob, research), at=timezone.now() - timedelta(days=5))
        mark_helped(alice, use_case(bob, research, publisher=bob), None)
        Feedback.objects.create(user=carol, request_id=record.request_id, tenant=research, model="qwen", score=1)
        UsageRecord.objects.all().delete()
        ApiKey.objects.filter(user=bob).update(created_at=timezone.now() - timedelta(hours=20))
        call_command("recordsteps")
        stored = set(StepDone.objects.exclude(step="signed-in").values_list("user", "step"))
        assert stored == {(alice.pk, "helped"), (bob.pk, "key"), (carol.pk, "feedback")}

    def test_signing_in_is_stored_when_it_happens(self, alice):
        client_of(alice)
        assert StepDone.objects.get(user=alice).step == "signed-in"

    @pytest.mark.parametrize("path", ["/", "/start/", "/lessons/", "/lessons/everyone/", "/lessons/developers/"])
    def test_a_first_visit_writes_nothing(self, as_alice, alice, research, path):
        for _ in range(4):
            use(playground_key(alice, research), client_class="browser")
        StepDone.objects.all().delete()
        with CaptureQueriesContext(connection) as queries:
            assert as_alice.get(path).status_code == 200
        words = {query["sql"].split()[0] for query in queries}
        assert words <= {"SELECT"}
        assert not StepDone.objects.exists()

    def test_others_steps_are_not_mine(self, alice, bob, research):
        use(key_of(bob, research), client_class="curl")
        assert done(alice) == {"signed-in"}
        several = progress.find_steps([alice, bob], since=timezone.now() - timedelta(hours=1))
        assert (set(several[alice.pk]), set(several[bob.pk])) == ({"signed-in"}, {"signed-in", "key", "curl"})

    def test_more_calls_and_people_ask_no_more(self, alice, bob, carol, research, django_assert_max_num_queries):
        for person in (alice, bob, carol):
            key = key_of(person, research)
            for _ in range(5):
                use(key, client_class="curl")
        with django_assert_max_num_queries(7):
            progress.find_steps([alice])
        with django_assert_max_num_queries(7):
            progress.find_steps([alice, bob, carol], since=timezone.now() - timedelta(hours=1))


class TestPages:
    @pytest.mark.parametrize("language", ["en", "ja"])
    def test_a_course_shows_each_step_and_what_is_next(self, as_alice, alice, research, language):
        serve("qwen")
        page = read(as_alice, "/lessons/developers/", **{"accept-language": language})
        steps = all_of(page, "[data-step]")
        assert [step["data-step"] for step in steps] == [step.code for step in all_courses()["developers"].steps]
        assert {step["data-done"] for step in steps} == {"no"}
        assert "qwen" in " ".join(texts(page, "#sample-curl"))
        assert len(all_of(page, "details[open]")) == 1
        with translation.override(language):
            assert all_courses()["developers"].title in texts(page, "h1")
        use(key_of(alice, research), client_class="curl")
        page = read(as_alice, "/lessons/developers/")
        assert one_of(page, "#step-curl")["data-done"] == "yes"

    def test_without_a_model_a_step_says_so(self, as_alice):
        assert has(read(as_alice, "/lessons/developers/"), "[data-no-model]")

    def test_an_unknown_course_is_not_found(self, as_alice):
        assert as_alice.get("/lessons/astrology/").status_code == 404

    def test_home_shows_one_line_until_it_is_not_wanted(self, as_alice, alice):
        assert one_of(read(as_alice, "/"), "[data-course-line]")["data-course-line"] == "everyone"
        assert has(read(as_alice, "/start/"), "[data-course-line]")
        page = send(as_alice, "/lessons/interest/", interest="off")
        assert not has(page, "[data-course-line]")
        assert CoursesDeclined.objects.filter(user=alice).exists()
        send(as_alice, "/lessons/interest/", interest="on")
        assert has(read(as_alice, "/"), "[data-course-line]")

    def test_home_goes_on_with_the_course_that_was_begun_and_stops_after_the_last(self, as_alice, alice, research):
        key_of(alice, research)
        assert one_of(read(as_alice, "/"), "[data-course-line]")["data-course-line"] == "developers"
        for code in CODES:
            progress.note_step(alice, code)
        assert not has(read(as_alice, "/"), "[data-course-line]")

    def test_a_button_that_sent_nothing_changes_nothing(self, as_alice):
        assert as_alice.post("/lessons/interest/").status_code == 400
        assert not CoursesDeclined.objects.exists()
