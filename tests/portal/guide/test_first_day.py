"""The page for the first day: who is led there, what it shows, and the house rules that operators write."""

import pytest

from portal.audit.models import AuditEvent
from portal.guide.models import FirstDayDone, HouseRules
from portal.web.markdown import MAX_LENGTH
from tests.conftest import person
from tests.html import has, one_of, texts
from tests.pages import key_of, serve, use
from tests.portal.browsing import read, send

pytestmark = pytest.mark.django_db


class TestArriving:
    def test_a_person_without_an_answer_is_led_to_the_first_day(self, door, alice):
        door.enter("alice", "correct horse")
        assert door.response.url == "/start/arrive/"
        assert door.client.get("/start/arrive/").url == "/start/"

    def test_who_asked_for_the_home_page_is_led_there_as_well(self, door, alice):
        door.client.post("/sign-in/?next=/", {"username": "alice", "password": "correct horse"})
        response = door.client.post("/sign-in/", {"username": "alice", "password": "correct horse", "next": "/"})
        assert response.url == "/start/arrive/"

    def test_who_asked_for_another_page_gets_that(self, door, alice):
        response = door.client.post("/sign-in/", {"username": "alice", "password": "correct horse", "next": "/keys/"})
        assert response.url == "/keys/"

    def test_after_the_first_answer_sign_in_leads_home(self, as_alice, alice, research):
        use(key_of(alice, research))
        assert as_alice.get("/start/arrive/").url == "/"

    def test_who_went_on_is_not_led_there_again(self, as_alice, alice):
        page = as_alice.get("/start/")
        assert has(page, "form[action='/start/done/'] [data-way-on]")
        assert as_alice.post("/start/done/").url == "/"
        assert as_alice.post("/start/done/").url == "/"
        assert FirstDayDone.objects.get().user == alice
        assert as_alice.get("/start/arrive/").url == "/"

    def test_who_has_no_tenant_could_not_ask_and_is_led_home(self, client):
        client.force_login(person("dave"))
        assert client.get("/start/arrive/").url == "/"
        assert has(client.get("/start/"), "#first-question p")

    def test_the_home_page_itself_forces_no_one(self, as_alice):
        assert as_alice.get("/").status_code == 200


class TestPage:
    def test_it_has_a_field_for_a_question_that_sends_nothing_to_this_server(self, as_alice):
        serve()
        form = one_of(as_alice.get("/start/"), "form[data-ask]")
        assert form["action"] == "/try/"
        assert all("name" not in field.attributes for field in form.all("textarea"))

    def test_without_a_model_it_says_whom_to_ask(self, as_alice, olivia):
        page = as_alice.get("/start/")
        assert not has(page, "form[data-ask]")
        assert "Olivia" in one_of(page, "#first-question").text

    def test_its_rules_are_ours_until_the_company_has_its_own(self, as_alice):
        assert has(as_alice.get("/start/"), "#rules [data-default-rules]")
        HouseRules.objects.create(pk=1, rules_ja="# 規則", contact_ja="内線 1234")
        for language in ("ja", "en"):
            page = as_alice.get("/start/", headers={"accept-language": language})
            assert not has(page, "[data-default-rules]")
            assert texts(page, "#rules .prose h3") == ["規則"]
            assert "1234" in one_of(page, "#contact .prose").text

    def test_each_reader_gets_the_text_in_their_language(self, as_alice):
        HouseRules.objects.create(pk=1, rules_ja="規則", rules_en="rules")
        for language, text in (("ja", "規則"), ("en", "rules")):
            page = as_alice.get("/start/", headers={"accept-language": language})
            assert texts(page, "#rules .prose p") == [text]

    def test_only_operators_are_shown_the_way_to_edit(self, as_alice, as_olivia):
        assert not has(as_alice.get("/start/"), "a[href='/start/rules/']")
        assert has(as_olivia.get("/start/"), "a[href='/start/rules/']")


class TestRules:
    FORM = {"rules_ja": "**顧客名**は不可", "rules_en": "", "contact_ja": "", "contact_en": "", "edition": "0"}

    def test_an_operator_writes_them_and_the_audit_log_has_each_change(self, as_olivia, olivia):
        send(as_olivia, "/start/rules/", **self.FORM)
        send(as_olivia, "/start/rules/", **{**self.FORM, "rules_ja": "新しい", "edition": "1"})
        first, second = AuditEvent.objects.filter(action="house-rules.change").order_by("pk")
        assert (first.actor, first.after["rules_ja"]) == (olivia, "**顧客名**は不可")
        assert (second.before["rules_ja"], second.after["rules_ja"]) == ("**顧客名**は不可", "新しい")
        assert "新しい" in read(as_olivia, "/audit/")

    def test_a_preview_saves_nothing(self, as_olivia):
        response = as_olivia.post("/start/rules/", {**self.FORM, "preview": "yes"})
        assert texts(response, "#preview .prose strong") == ["顧客名"]
        assert "**顧客名**は不可" in one_of(response, "[name=rules_ja]").text
        assert not HouseRules.objects.exists()

    def test_what_another_operator_wrote_meanwhile_is_not_overwritten(self, as_olivia):
        send(as_olivia, "/start/rules/", **self.FORM)
        response = as_olivia.post("/start/rules/", {**self.FORM, "rules_ja": "私の"})
        [error] = response.context["form"].non_field_errors().as_data()
        assert error.code == "changed-meanwhile"
        assert one_of(response, "[name=rules_ja]").text == "私の"
        assert HouseRules.objects.get().rules_ja == "**顧客名**は不可"

    def test_what_is_sent_twice_is_saved_once(self, as_olivia):
        for _again in range(2):
            send(as_olivia, "/start/rules/", **self.FORM)
        assert HouseRules.objects.get().edition == 1

    def test_a_text_beyond_the_bound_is_refused_and_kept_in_the_form(self, as_olivia):
        text = "あ" * (MAX_LENGTH + 1)
        response = as_olivia.post("/start/rules/", {**self.FORM, "rules_ja": text})
        assert response.context["form"].has_error("rules_ja", "max_length")
        assert one_of(response, "[name=rules_ja]").text == text
        assert not HouseRules.objects.exists()

    def test_nothing_in_them_runs_in_a_reader_s_browser(self, as_alice):
        attack = "<script>alert(1)</script> [x](javascript:alert(1)) <img src=x onerror=alert(1)>"
        HouseRules.objects.create(pk=1, rules_ja=attack, contact_ja=attack)
        page = as_alice.get("/start/")
        assert not has(page, "main script")
        assert not has(page, "main img")
        assert not has(page, "[href^=javascript]")
