"""Courses and seminars in the API."""

import re
from datetime import timedelta

import pytest
import time_machine
from django.core.cache import cache
from django.utils import timezone

from portal.keys import lifecycle
from portal.keys.models import ApiKey
from portal.lessons import code_throttle, invitations, progress, seminars
from portal.lessons.courses import all_courses
from portal.lessons.forms import PlanForm
from portal.lessons.models import Seminar
from portal.quotas.models import Quota
from tests.conftest import person
from tests.html import one_of
from tests.pages import key_of, management_key_of, use
from tests.portal.browsing import client_of, read
from tests.portal.recorded import notified
from tests.seminars import seminar_of

pytestmark = pytest.mark.django_db
JSON = "application/json"
SOON = timezone.now().date() + timedelta(days=2)


@pytest.fixture
def seminar(research, bob) -> Seminar:
    return seminar_of(research, bob, tokens=5000)


def plan(**more) -> dict:
    begins = timezone.now().replace(second=0, microsecond=0) + timedelta(days=2)
    hours = {"begins_at": begins.isoformat(), "ends_at": (begins + timedelta(hours=2)).isoformat()}
    return {"tenant": "research", "course": "everyone", **hours, **more}


def post(client, path: str, body: dict, status: int = 200) -> dict:
    response = client.post(f"/api/v1/{path}", body, JSON)
    assert response.status_code == status, response.content
    return response.json()


class TestCourses:
    def test_mine_are_as_on_the_page(self, as_alice, alice, research):
        use(key_of(alice, research), client_class="curl")
        found = {one["name"]: one for one in as_alice.get("/api/v1/courses/").json()}
        assert list(found) == list(all_courses())
        done = {step["code"] for step in found["developers"]["steps"] if step["done_at"]}
        assert done == {"key", "curl"}
        assert found["developers"]["next"] == "openai"
        assert not found["developers"]["is_finished"]

    def test_a_tenant_s_are_counts_of_five_or_more(self, as_bob, as_alice, research):
        people = [person(f"p{number}", research) for number in range(10)]
        with time_machine.travel(timezone.now() - timedelta(days=1)):
            for one in people[:5]:
                progress.note_step(one, "curl")
            for one in people[:4]:
                progress.note_step(one, "openai")
        found = {one["name"]: one for one in as_bob.get("/api/v1/tenants/research/courses/").json()}
        steps = {step["code"]: step["people"] for step in found["developers"]["steps"]}
        assert (steps["curl"], steps["openai"], steps["stream"]) == (5, None, None)
        assert found["developers"]["finished"] is None
        assert found["developers"]["members"] == research.users.filter(is_active=True).count()
        assert not {"p0", "p1"} & set(str(found).split("'"))
        assert as_alice.get("/api/v1/tenants/research/courses/").status_code == 404

    def test_who_has_not_is_counted_by_none_either(self, as_bob, research):
        people = list(research.users.all()) + [person(f"p{number}", research) for number in range(10)]
        with time_machine.travel(timezone.now() - timedelta(days=1)):
            for number, step in ((len(people), "key"), (len(people) - 4, "curl"), (len(people) - 5, "openai")):
                for one in people[:number]:
                    progress.note_step(one, step)
        [found] = [one for one in as_bob.get("/api/v1/tenants/research/courses/").json() if one["name"] == "developers"]
        steps = {step["code"]: step["people"] for step in found["steps"]}
        assert found["members"] == len(people)
        assert (steps["key"], steps["curl"]) == (None, None)
        assert abs(steps["openai"] - (len(people) - 5)) < 3

    def test_one_person_more_is_not_seen_the_next_night(self, research):
        people = [person(f"p{number}", research) for number in range(20)]
        now = timezone.now()
        seen = []
        for number in range(5, 13):
            with time_machine.travel(now - timedelta(days=2)):
                for one in people[:number]:
                    progress.note_step(one, "curl")
            counts = progress.count_members(research, now)
            seen.append(next(step["people"] for one in counts for step in one.steps if step["code"] == "curl"))
        assert seen == [5, 5, 5, 10, 10, 10, 10, 10]

    def test_what_is_done_today_is_counted_tomorrow(self, research):
        today = timezone.now().astimezone(research.zone).replace(hour=12)
        people = [person(f"p{number}", research) for number in range(12)]
        with time_machine.travel(today):
            for one in people[:6]:
                progress.note_step(one, "signed-in")

        def count(days: int) -> int | None:
            found = progress.count_members(research, today + timedelta(days=days))
            return next(step["people"] for one in found for step in one.steps if step["code"] == "signed-in")

        assert (count(0), count(1)) == (None, 5)  # 6, to the nearest five

    def test_all_who_finished_are_counted(self, as_bob, research):
        course = all_courses()["everyone"]
        for number in range(5):
            person(f"q{number}", research)
        with time_machine.travel(timezone.now() - timedelta(days=1)):
            for number in range(5):
                one = person(f"p{number}", research)
                for step in course.steps:
                    if not step.optional:
                        progress.note_step(one, step.code)
        [found] = [one for one in as_bob.get("/api/v1/tenants/research/courses/").json() if one["name"] == "everyone"]
        assert found["finished"] == 5


class TestSeminars:
    def test_one_is_opened_changed_and_ended(self, as_bob, research):
        made = post(as_bob, "seminars/", plan(places=12), 201)
        seminar = Seminar.objects.get()
        assert (made["id"], made["code"], made["places"]) == (seminar.pk, seminars.code_of(seminar), 12)
        assert (made["title"], made["name"]) == ("", str(seminar))
        changed = as_bob.patch(f"/api/v1/seminars/{seminar.pk}/", {"places": 20, "tokens": None}, JSON).json()
        assert (changed["places"], changed["tokens"], changed["ends_at"]) == (20, None, made["ends_at"])
        assert post(as_bob, f"seminars/{seminar.pk}/end/", {})["ended_at"]
        assert as_bob.patch(f"/api/v1/seminars/{seminar.pk}/", {"places": 21}, JSON).status_code == 409

    @pytest.mark.parametrize("title", ["two\nlines", "a bell\a", "turned \u202e round"])
    def test_a_title_is_one_line(self, as_bob, research, title):
        refused = post(as_bob, "seminars/", plan(title=title), 400)
        assert [one["pointer"] for one in refused["errors"]] == ["#/title"]

    def test_what_is_missing_is_named_and_said_once(self, as_bob, research):
        refused = post(as_bob, "seminars/", {}, 400)
        names, sentences = zip(*((one["pointer"][2:], one["detail"]) for one in refused["errors"]), strict=True)
        assert len(names) > 2
        assert len(set(sentences)) == 1
        assert refused["detail"].count(sentences[0]) == 1
        assert all(name in refused["detail"] for name in names)

    def test_what_is_left_out_is_as_the_page_suggests(self, as_bob, research):
        made = post(as_bob, "seminars/", plan(), 201)
        suggested = {name: field.initial for name, field in PlanForm.base_fields.items()}
        assert (made["places"], made["tokens"]) == (suggested["places"], suggested["tokens"])

    def test_many_places_without_a_limit_and_absurd_limits_are_refused_by_name(self, as_bob, research):
        Quota.objects.create(tenant=research, unit="tokens", window="month", amount=20_000_000)
        for wrong in ({"tokens": 20_000_001}, {"tokens": seminars.MOST_TOKENS + 1}):
            refused = post(as_bob, "seminars/", plan(**wrong), 400)
            assert [fault["pointer"] for fault in refused["errors"]] == ["#/tokens"]
        Quota.objects.all().delete()
        refused = post(as_bob, "seminars/", plan(places=300, tokens=None), 400)
        assert [fault["pointer"] for fault in refused["errors"]] == ["#/tokens"]
        assert not Seminar.objects.exists()

    def test_the_schema_announces_the_highest_limit_that_is_taken(self, as_bob, research):
        shapes = as_bob.get("/api/schema/?format=json").json()["components"]["schemas"]
        assert shapes["NewSeminarRequest"]["properties"]["tokens"]["maximum"] == seminars.MOST_TOKENS
        assert post(as_bob, "seminars/", plan(tokens=seminars.MOST_TOKENS), 201)["tokens"] == seminars.MOST_TOKENS

    def test_a_higher_limit_of_older_versions_is_sent_back_unchanged(self, as_bob, seminar):
        Seminar.objects.filter(pk=seminar.pk).update(tokens=seminars.MOST_TOKENS + 1)
        path, changes = f"/api/v1/seminars/{seminar.pk}/", {"tokens": seminars.MOST_TOKENS + 1, "title": "Later"}
        assert as_bob.patch(path, changes, JSON).json()["title"] == "Later"
        assert as_bob.patch(path, {"tokens": seminars.MOST_TOKENS + 2}, JSON).status_code == 400
        field = one_of(read(as_bob, f"/lessons/seminars/{seminar.pk}/edit/"), "[name=tokens]").attributes
        assert int(field["max"]) > int(field["value"]) == seminars.MOST_TOKENS + 1
        new = one_of(read(as_bob, "/lessons/seminars/new/"), "[name=tokens]")
        assert new.attributes["max"] == str(seminars.MOST_TOKENS)

    def test_the_list_has_those_that_one_organises_and_no_code(self, as_bob, as_alice, as_olivia, seminar):
        for client, number in ((as_bob, 1), (as_alice, 0), (as_olivia, 1)):
            found = client.get("/api/v1/seminars/").json()
            assert found["count"] == number
            assert all("code" not in row for row in found["results"])
        seminars.end_seminar(seminar, timezone.now())
        assert as_bob.get("/api/v1/seminars/?is_over=false").json()["count"] == 0
        assert as_bob.get("/api/v1/seminars/?is_over=true").json()["count"] == 1

    @pytest.mark.parametrize(
        "wrong",
        [
            {"course": "astrology"},
            {"tenant": "sales"},
            {"places": 0},
            {"places": 301},
            {"tokens": 0},
            {"begins_at": "9999-12-31T23:59:59Z"},
            {"begins_at": "never"},
            {"begins_at": f"{SOON}T10:00:00", "ends_at": f"{SOON}T12:00:00"},
            {"begins_at": f"{SOON}T10:00:01Z", "ends_at": f"{SOON}T12:00:00Z"},
            {"begins_at": f"{SOON}T10:00:00Z", "ends_at": f"{SOON}T12:00:00.5Z"},
            {"colour": "red"},
        ],
    )
    def test_what_cannot_be_is_refused(self, as_bob, sales, wrong):
        assert as_bob.post("/api/v1/seminars/", plan(**wrong), JSON).status_code == 400
        assert not Seminar.objects.exists()

    def test_only_operators_open_one_for_the_company(self, as_bob, as_olivia, research):
        assert as_bob.post("/api/v1/seminars/", plan(is_company_wide=True), JSON).status_code == 403
        post(as_olivia, "seminars/", plan(is_company_wide=True), 201)
        assert as_bob.get("/api/v1/seminars/").json()["count"] == 0

    def test_people_are_invited_by_name(self, as_bob, alice, charlie, seminar):
        found = post(as_bob, f"seminars/{seminar.pk}/people/", {"people": ["alice", "charlie"]})
        of_others = {"let_back": [], "unknown": ["charlie"], "ambiguous": []}
        assert found == {**of_others, "invited": ["alice"], "already": []}
        assert notified("seminar-invited") == ["alice"]
        again = post(as_bob, f"seminars/{seminar.pk}/people/", {"people": ["alice", "charlie"]})
        assert again == {**of_others, "invited": [], "already": ["alice"]}

    def test_each_name_is_one_however_long_they_are_together(self, as_bob, research, seminar):
        one = person("jones", research)
        one.first_name, one.last_name = "Mary", "Jones, Jr."
        one.save()
        unknown = [f"{number:03}{'x' * 200}" for number in range(298)]
        found = post(as_bob, f"seminars/{seminar.pk}/people/", {"people": [*unknown, "Mary Jones, Jr."]})
        assert (found["invited"], found["unknown"]) == (["jones"], unknown)

    def test_a_name_is_withdrawn_once(self, as_bob, alice, seminar):
        invitations.name_people(seminar.opened_by, seminar, [alice])
        for withdrawn in (True, False):
            found = post(as_bob, f"seminars/{seminar.pk}/withdraw/", {"person": "alice"})
            assert found == {"withdrawn": withdrawn}
        assert not seminar.invitations.exists()

    def test_a_key_is_taken_back_for_good(self, as_bob, alice, seminar):
        assert post(as_bob, f"seminars/{seminar.pk}/take-back/", {"person": "alice"}, 400)["errors"]
        participant, _text = seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
        for _again in range(2):
            body = {"person": "alice", "reason": "passed on"}
            row = post(as_bob, f"seminars/{seminar.pk}/take-back/", body)
            assert (row["username"], row["has_key"]) == ("alice", False)
        assert notified("key-revoked") == ["alice"]
        for body in ({"code": seminars.code_of(seminar)}, {"seminar": seminar.pk}):
            assert "key" not in post(client_of(alice), "seminars/join/", body, 409)
        with pytest.raises(seminars.KeyOfTheSeminar):
            lifecycle.rotate_key(participant.key, timedelta(0), by=alice)

    def test_who_is_invited_again_joins_again(self, as_bob, alice, seminar):
        seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
        post(as_bob, f"seminars/{seminar.pk}/take-back/", {"person": "alice"})
        found = post(as_bob, f"seminars/{seminar.pk}/people/", {"people": ["alice"]})
        assert (found["invited"], found["let_back"], found["already"]) == (["alice"], ["alice"], [])
        assert post(client_of(alice), "seminars/join/", {"seminar": seminar.pk}, 201)["has_key"]

    def test_a_person_joins_by_code_and_gets_the_key_once(self, as_alice, alice, seminar):
        joined = post(as_alice, "seminars/join/", {"code": seminars.code_of(seminar).lower()}, 201)
        assert joined["key"] == joined["text"][:12] == ApiKey.objects.get(user=alice).prefix
        assert joined["seminar"]["id"] == seminar.pk
        assert "code" not in joined["seminar"]
        again = post(as_alice, "seminars/join/", {"code": seminars.code_of(seminar)})
        assert (again["key"], again["has_key"], again["text"]) == (joined["key"], True, None)
        lifecycle.revoke_key(ApiKey.objects.get(user=alice), "lost", by=alice)
        assert post(as_alice, "seminars/join/", {"code": seminars.code_of(seminar)})["has_key"] is False
        by_number = post(as_alice, "seminars/join/", {"seminar": seminar.pk})
        assert (by_number["key"], by_number["text"]) == (joined["key"], None)

    def test_who_is_named_joins_by_number(self, as_alice, alice, charlie, seminar):
        post(as_alice, "seminars/join/", {"seminar": seminar.pk}, 400)
        invitations.name_people(seminar.opened_by, seminar, [alice])
        assert post(as_alice, "seminars/join/", {"seminar": seminar.pk}, 201)["text"]
        post(client_of(charlie), "seminars/join/", {"seminar": seminar.pk}, 400)

    @pytest.mark.parametrize("body", [{}, {"code": ""}, {"code": "A", "seminar": 1}, {"seminar": 0}, {"seminar": "x"}])
    def test_joining_needs_a_code_or_a_number(self, as_alice, body):
        post(as_alice, "seminars/join/", body, 400)

    def test_wrong_codes_are_throttled_with_those_of_the_page(self, as_alice, alice, seminar):
        cache.clear()
        for _ in range(code_throttle.MOST_OF_PERSON):
            post(as_alice, "seminars/join/", {"code": "AAAA-AAAA-AAAA-AAAA"}, 409)
        code = seminars.code_of(seminar)
        refused = as_alice.post("/api/v1/seminars/join/", {"code": code}, JSON)
        assert (refused.status_code, refused["Retry-After"]) == (429, str(code_throttle.PERIOD))
        assert re.findall(r"\d+", refused.json()["detail"]) == [str(code_throttle.PERIOD // 60)]
        assert as_alice.post("/lessons/join/", {"code": code}).status_code == 429
        cache.clear()
        assert post(as_alice, "seminars/join/", {"code": code}, 201)["text"]

    def test_a_management_key_joins_only_if_it_may_create_keys(self, alice, client, seminar):
        for scope, status in (("keys:read", 403), ("lessons:read", 403), ("keys:write", 201)):
            _, text = management_key_of(alice, scope)
            headers = {"authorization": f"Bearer {text}"}
            body = {"code": seminars.code_of(seminar)}
            assert client.post("/api/v1/seminars/join/", body, JSON, headers=headers).status_code == status

    def test_progress_is_what_participants_agreed_to_show(self, as_bob, as_alice, alice, seminar):
        seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
        [row] = as_bob.get(f"/api/v1/seminars/{seminar.pk}/progress/").json()
        assert (row["username"], row["has_key"], row["answered_at"]) == ("alice", True, None)
        assert set(row) == {"username", "name", "joined_at", "has_key", "answered_at", "done"}
        assert as_alice.get(f"/api/v1/seminars/{seminar.pk}/progress/").status_code == 404

    def test_a_management_key_needs_the_scope(self, bob, client, seminar):
        _, text = management_key_of(bob, "lessons:read")
        headers = {"authorization": f"Bearer {text}"}
        assert client.get("/api/v1/seminars/", headers=headers).status_code == 200
        assert client.post("/api/v1/seminars/", plan(), JSON, headers=headers).status_code == 403
        _, other = management_key_of(bob, "usage:read")
        assert client.get("/api/v1/seminars/", headers={"authorization": f"Bearer {other}"}).status_code == 403

    def test_a_key_that_only_reads_gets_no_code(self, bob, client, seminar):
        codes = []
        for scope in ("lessons:read", "lessons:write"):
            _, text = management_key_of(bob, scope)
            found = client.get(f"/api/v1/seminars/{seminar.pk}/", headers={"authorization": f"Bearer {text}"})
            codes.append(found.json()["code"])
        assert codes == [None, seminars.code_of(seminar)]
        assert client_of(bob).get(f"/api/v1/seminars/{seminar.pk}/").json()["code"] == codes[1]

    def test_more_participants_ask_no_more(self, bob, seminar, research, django_assert_max_num_queries):
        for number in range(8):
            seminars.join_seminar(person(f"p{number}", research), seminars.code_of(seminar), timezone.now())
        client = client_of(bob)
        with django_assert_max_num_queries(14):
            assert len(client.get(f"/api/v1/seminars/{seminar.pk}/progress/").json()) == 8
