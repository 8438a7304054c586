"""Seminars: people join with a code, have a key that ends with it, and the organiser sees who has begun."""

import re
import time
from datetime import timedelta

import pytest
import time_machine
from django.conf import settings
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.core.management import CommandError, call_command
from django.db import transaction
from django.utils import timezone

from portal.accounts.models import Membership
from portal.audit.models import AuditEvent
from portal.feedback.models import Feedback
from portal.keys import lifecycle
from portal.keys.models import ApiKey
from portal.keys.secret import digest_of
from portal.lessons import code_throttle, invitations, progress, seminars
from portal.lessons.courses import all_courses
from portal.lessons.models import Seminar, SeminarParticipant, StepDone
from portal.lessons.seminars import SeminarRefused
from portal.quotas import administration, policy
from portal.quotas.models import Quota, QuotaRequest
from portal.usage.client_classes import DIFY, OPEN_WEBUI
from portal.usage.models import UsageRecord
from portal.use_cases.models import HelpedMark
from tests.conftest import person
from tests.html import all_of, has, texts
from tests.pages import key_of, serve, use
from tests.portal.browsing import WHOLE_KEY, client_of, read
from tests.portal.recorded import notified
from tests.seminars import seminar_of
from tests.use_cases import use_case

# What `setquota` takes away a guest's limit with.
REMOVAL = ("--tenant=research", "--user=charlie", "--unit=tokens", "--per=day", "--amount=none")

FULL_WIDTH = 0xFEE0  # from a letter, digit or hyphen to that of Japanese input

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_wrong_codes_yet() -> None:
    cache.clear()


@pytest.fixture
def seminar(research, bob) -> Seminar:
    return seminar_of(research, bob, tokens=5000)


def join(client, code: str):
    return client.post("/lessons/join/", {"code": code})


def form(**more: str) -> dict[str, str]:
    day = str(timezone.localdate() + timedelta(days=3))
    hours = {"day": day, "begins": "10:00", "ends": "12:00", "tokens": "1000", "places": "30"}
    return {"tenant": "research", "title": "Begin", "course": "everyone", **hours, **more}


class TestCode:
    def test_it_has_eighty_bits_and_is_not_stored(self, seminar):
        code = seminars.code_of(seminar)
        assert re.fullmatch(r"(?:[A-Z2-7]{4}-){3}[A-Z2-7]{4}", code)
        stored = " ".join(str(value) for value in Seminar.objects.values().get().values())
        assert code not in stored
        assert code.replace("-", "") not in stored

    def test_two_seminars_have_two_codes(self, seminar, research, bob):
        assert seminars.code_of(seminar) != seminars.code_of(seminar_of(research, bob))

    @pytest.mark.parametrize(
        "typed",
        [
            str.lower,
            lambda code: code.replace("-", " "),
            lambda code: f" {code}\t",
            lambda code: "".join(chr(ord(letter) + FULL_WIDTH) for letter in code),
            lambda code: f"https://madoguchi.research-and-development.example.co.jp/lessons/join/#{code}",
        ],
    )
    def test_it_may_be_typed_comfortably(self, as_alice, seminar, typed):
        assert join(as_alice, typed(seminars.code_of(seminar))).status_code == 200

    def test_digits_that_are_no_code_s_are_the_letters_they_look_like(self):
        assert seminars.clean_code("o0i1-b8") == "OOIIBB"


class TestOpening:
    def test_an_admin_opens_one_and_sees_how_to_join(self, as_bob):
        response = as_bob.post("/lessons/seminars/new/", form(), follow=True)
        seminar = Seminar.objects.get()
        assert texts(response.content.decode(), "[data-code]") == [seminars.code_of(seminar)]
        sheet = read(as_bob, f"/lessons/seminars/{seminar.pk}/sheet/")
        assert has(sheet, "svg")
        assert has(sheet, "main a[data-house-rules][href='/start/#rules']")
        assert "style=" not in sheet.partition("<main")[2]
        assert seminars.code_of(seminar) not in sheet.partition("href=")[2].partition("data-code")[0]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"day": "2020-01-01"},
            {"begins": "12:00", "ends": "12:00"},
            {"begins": "05:00", "ends": "23:00"},
            {"tokens": "2001"},
            {"tokens": ""},
            {"tokens": "0"},
            {"tokens": "9" * 30},
            {"course": "astrology"},
            {"tenant": "sales"},
            {"places": "0"},
            {"places": "301"},
        ],
    )
    def test_what_cannot_be_is_refused(self, as_bob, research, sales, wrong):
        Quota.objects.create(tenant=research, unit="tokens", window="day", amount=2000)
        assert as_bob.post("/lessons/seminars/new/", form(**wrong)).status_code == 400
        assert not Seminar.objects.exists()

    def test_reasons_have_names(self, research, bob):
        Quota.objects.create(tenant=research, unit="tokens", window="day", amount=2000)
        Quota.objects.create(tenant=research, unit="tokens", window="month", amount=1500)
        now = timezone.now()
        for code, columns in {
            "past": {"begins_at": now - timedelta(hours=3), "ends_at": now - timedelta(hours=1)},
            "order": {"ends_at": now - timedelta(hours=1)},
            "too-long": {"ends_at": now + timedelta(hours=13)},
            "more-than-tenant": {"tokens": 1501},  # of the month
        }.items():
            with pytest.raises(SeminarRefused) as refused:
                seminar_of(research, bob, **columns)
            assert refused.value.code == code
        Quota.objects.filter(window="month").delete()
        with pytest.raises(SeminarRefused) as refused:
            seminar_of(research, bob, tokens=2001)
        assert refused.value.code == "more-than-tenant"
        assert seminar_of(research, bob, tokens=2000).tokens == 2000

    def test_where_the_tenant_has_no_limit_the_seminar_has(self, research, bob):
        for code, columns in {
            "no-limit": {"tokens": None, "places": seminars.USUAL_PLACES + 1},
            "too-many-tokens": {"tokens": seminars.MOST_TOKENS + 1},
        }.items():
            with pytest.raises(SeminarRefused) as refused:
                seminar_of(research, bob, **columns)
            assert refused.value.code == code
        open_ = seminar_of(research, bob, tokens=None)
        with pytest.raises(SeminarRefused) as refused:
            seminars.change_seminar(bob, open_, timezone.now(), places=seminars.USUAL_PLACES + 1)
        assert refused.value.code == "no-limit"
        Seminar.objects.filter(pk=open_.pk).update(places=300)  # as older versions opened them
        later = open_.ends_at + timedelta(minutes=5)
        assert seminars.change_seminar(bob, open_, timezone.now(), ends_at=later).ends_at == later

    def test_the_page_names_the_field_of_a_limit_that_cannot_be(self, as_bob, research):
        answer = as_bob.post("/lessons/seminars/new/", form(tokens="", places="300"))
        assert set(answer.context["form"].errors) == {"tokens"}
        assert not Seminar.objects.exists()

    def test_only_operators_open_one_for_the_company(self, research, bob, olivia):
        with pytest.raises(PermissionDenied):
            seminar_of(research, bob, is_company_wide=True)
        seminar = seminar_of(research, olivia, is_company_wide=True)
        assert client_of(bob).get(f"/lessons/seminars/{seminar.pk}/").status_code == 404

    def test_a_member_opens_none(self, as_alice):
        assert as_alice.get("/lessons/seminars/new/").status_code == 403
        assert as_alice.post("/lessons/seminars/new/", form()).status_code == 403


class TestJoining:
    def test_it_gives_a_key_that_ends_with_it(self, as_alice, alice, seminar):
        page = join(as_alice, seminars.code_of(seminar)).content.decode()
        key = ApiKey.objects.get(user=alice)
        text = WHOLE_KEY.search(page)
        assert text is not None
        assert key.prefix == text[0][:12]
        assert key.expires_at == seminar.ends_at + seminars.LATEST
        assert list(Quota.objects.filter(key=key).values_list("unit", "window", "amount")) == [("tokens", "day", 5000)]
        assert "5000" not in as_alice.get("/lessons/join/").content.decode()

    def test_twice_is_once(self, as_alice, alice, seminar):
        join(as_alice, seminars.code_of(seminar))
        page = join(as_alice, seminars.code_of(seminar)).content.decode()
        assert has(page, "[data-joined-before]")
        assert WHOLE_KEY.search(page) is None
        assert (ApiKey.objects.count(), SeminarParticipant.objects.count()) == (1, 1)

    def test_consent_is_stated_before(self, as_alice):
        assert has(read(as_alice, "/lessons/join/"), "[data-consent]")

    def test_who_may_not_join_reads_the_same_as_for_an_unknown_code(self, as_alice, alice, charlie, research, seminar):
        def said(client, code: str) -> list[str]:
            response = join(client, code)
            assert response.status_code == 400
            return texts(response.content.decode(), ".field.wrong .error")

        code = seminars.code_of(seminar)
        unknown = said(client_of(alice), "AAAA-BBBB-CCCC-DDDD")
        assert said(client_of(charlie), code) == unknown != []
        with time_machine.travel(seminar.ends_at + timedelta(seconds=1)):
            assert said(client_of(alice), code) == unknown
        seminars.end_seminar(seminar, timezone.now())
        assert said(client_of(alice), code) == unknown
        early = seminar_of(
            research, research.users.get(username="bob"), begins_at=timezone.now() + timedelta(hours=1, minutes=1)
        )
        assert said(client_of(alice), seminars.code_of(early)) == unknown
        assert not ApiKey.objects.exists()

    def test_too_many_wrong_codes_wait(self, as_alice, as_bob, seminar):
        for _ in range(code_throttle.MOST_OF_PERSON):
            assert join(as_alice, "AAAABBBBCCCCDDDD").status_code == 400
        assert join(as_alice, seminars.code_of(seminar)).status_code == 429
        assert join(as_bob, seminars.code_of(seminar)).status_code == 200  # of the same room

    def test_as_many_keys_as_allowed_is_said(self, as_alice, alice, research, seminar, settings):
        settings.KEYS_PER_PERSON = 1
        key_of(alice, research)
        assert join(as_alice, seminars.code_of(seminar)).status_code == 400
        assert not SeminarParticipant.objects.exists()

    def test_the_company_s_is_for_everyone_and_membership_ends_with_it(self, charlie, research, olivia):
        seminar = seminar_of(research, olivia, is_company_wide=True)
        join(client_of(charlie), seminars.code_of(seminar))
        assert ApiKey.objects.usable().filter(user=charlie, tenant=research).exists()
        seminars.end_seminar(seminar, timezone.now())
        assert not Membership.objects.filter(user=charlie, tenant=research).exists()
        assert charlie.memberships.count() == 1

    def test_who_is_in_two_of_the_company_s_is_a_member_until_the_last_ends(self, charlie, research, olivia):
        both = [seminar_of(research, olivia, is_company_wide=True) for _ in range(2)]
        for one in both:
            join(client_of(charlie), seminars.code_of(one))
        seminars.end_seminar(both[0], timezone.now())
        assert ApiKey.objects.usable().filter(user=charlie, tenant=research).count() == 1
        seminars.end_seminar(both[1], timezone.now())
        assert not Membership.objects.filter(user=charlie, tenant=research).exists()

    def test_a_guest_makes_no_key_without_the_seminar_s_limit(self, charlie, research, olivia):
        seminar = seminar_of(research, olivia, is_company_wide=True, tokens=5000)
        browser = client_of(charlie)
        join(browser, seminars.code_of(seminar))
        body = {"tenant": "research", "name": "mine"}
        api = browser.post("/api/v1/keys/", body, "application/json")
        token = browser.get("/keys/new/").context["form"]["token"].value()
        asked = {"tenant": research.pk, "name": "mine", "lifetime": "90", "token": token}
        page = browser.post("/keys/new/", asked, follow=True).content.decode()
        assert api.status_code == 409
        assert WHOLE_KEY.search(page) is None
        assert ApiKey.objects.filter(user=charlie, tenant=research).count() == 1
        assert browser.post("/api/v1/keys/", {**body, "tenant": "sales"}, "application/json").status_code == 201
        join(browser, seminars.code_of(seminar_of(research, olivia, is_company_wide=True)))
        assert ApiKey.objects.filter(user=charlie, tenant=research).count() == 2

    def test_one_limit_binds_the_key_of_a_guest_and_the_playground_together(self, charlie, research, olivia):
        def limits() -> list[tuple[str, int]]:
            """Return the limits of the tenant's calls with the playground's key, by what they count."""
            bound = policy.Policy(Quota.objects.all()).call(tenant=research.pk, user=charlie.pk, key=key.pk)
            return [(one.scope, one.quota.amount) for one in bound]

        both = [seminar_of(research, olivia, is_company_wide=True, tokens=tokens) for tokens in (5000, 2000)]
        browser = client_of(charlie)
        join(browser, seminars.code_of(both[0]))
        assert browser.post("/try/research/key/").status_code == 200
        key = ApiKey.objects.get(user=charlie, is_playground=True)
        assert limits() == [("member", 5000)]  # of the member: with all their keys
        seminars.change_seminar(olivia, both[0], timezone.now(), tokens=700)
        assert limits() == [("member", 700)]
        join(browser, seminars.code_of(both[1]))
        assert limits() == [("member", 2700)]
        seminars.end_seminar(both[1], timezone.now())
        seminars.close_due_seminars(timezone.now())
        assert limits() == [("member", 2700)]  # what was used in it counts until midnight
        with time_machine.travel(timezone.now() + timedelta(days=1)):
            Seminar.objects.filter(pk=both[0].pk).update(ends_at=timezone.now() + timedelta(hours=1))
            call_command("endseminars")  # without a visit of the guest
            assert limits() == [("member", 700)]
        seminars.end_seminar(both[0], timezone.now())
        assert limits() == []

    def test_a_guest_who_becomes_a_member_has_no_limit_by_a_seminar(self, charlie, research, olivia):
        seminar = seminar_of(research, olivia, is_company_wide=True, tokens=5000)
        browser = client_of(charlie)
        join(browser, seminars.code_of(seminar))
        Membership.objects.filter(user=charlie).update(role=Membership.Role.ADMIN)
        assert browser.post("/try/research/key/").status_code == 200
        assert not Quota.objects.filter(user=charlie, tenant=research).exists()

    def test_the_limit_of_a_guest_is_within_what_each_member_has(self, charlie, research, olivia):
        Quota.objects.create(tenant=research, default_for="member", unit="tokens", window="day", amount=300)
        join(client_of(charlie), seminars.code_of(seminar_of(research, olivia, is_company_wide=True, tokens=5000)))
        assert Quota.objects.get(user=charlie, tenant=research).amount == 300
        default = Quota.objects.get(default_for="member")
        default.amount = 200
        default.save()
        assert Quota.objects.get(user=charlie, tenant=research).amount == 200
        administration.delete_quota(default)
        assert Quota.objects.get(user=charlie, tenant=research).amount == 5000

    @pytest.mark.parametrize("change", [{"window": "month"}, {"unit": "requests"}, {"default_for": "service"}])
    def test_a_default_that_becomes_another_one_limits_no_guest(self, charlie, research, olivia, change):
        default = Quota.objects.create(tenant=research, default_for="member", unit="tokens", window="day", amount=300)
        join(client_of(charlie), seminars.code_of(seminar_of(research, olivia, is_company_wide=True, tokens=5000)))
        for name, value in change.items():
            setattr(default, name, value)
        default.save()
        assert Quota.objects.get(user=charlie, tenant=research).amount == 5000

    def test_a_limit_that_an_admin_gave_stays(self, charlie, research, olivia):
        own = Quota.objects.create(tenant=research, user=charlie, unit="tokens", window="day", amount=9)
        seminar = seminar_of(research, olivia, is_company_wide=True, tokens=5000)
        join(client_of(charlie), seminars.code_of(seminar))
        seminars.end_seminar(seminar, timezone.now())
        assert [(one.pk, one.amount) for one in Quota.objects.filter(user=charlie)] == [(own.pk, 9)]

    @pytest.mark.parametrize("by", ["page", "api", "command"])
    def test_a_limit_of_a_seminar_that_an_admin_changes_is_theirs(self, by, charlie, research, olivia, bob):
        seminar = seminar_of(research, olivia, is_company_wide=True, tokens=5000)
        browser, admin = client_of(charlie), client_of(bob)
        join(browser, seminars.code_of(seminar))
        limit = Quota.objects.get(user=charlie)
        if by == "page":
            address = f"/tenant/research/quotas/give/?of=person:{charlie.pk}&kind=tokens/day&model="
            assert admin.post(address, {"amount": "60"}).status_code == 302
        elif by == "api":
            answer = admin.patch(f"/api/v1/quotas/{limit.pk}/", {"amount": 60}, "application/json")
            assert answer.status_code == 200
        else:
            owner = {"tenant": "research", "user": "charlie", "unit": "tokens", "per": "day"}
            call_command("setquota", **owner, amount=60)
        assert browser.post("/try/research/key/").status_code == 200
        seminars.change_seminar(olivia, seminar, timezone.now(), tokens=700)
        assert [one.amount for one in Quota.objects.filter(user=charlie)] == [60]
        seminars.end_seminar(seminar, timezone.now())
        assert [one.amount for one in Quota.objects.filter(user=charlie)] == [60]

    def test_the_limit_of_a_seminar_is_not_removed_before_it_ends(self, charlie, research, olivia, bob):
        seminar = seminar_of(research, olivia, is_company_wide=True, tokens=5000)
        admin = client_of(bob)
        join(client_of(charlie), seminars.code_of(seminar))
        limit = Quota.objects.get(user=charlie)
        refused = admin.delete(f"/api/v1/quotas/{limit.pk}/")
        assert refused.status_code == 409
        page = admin.post(f"/tenant/research/quotas/{limit.pk}/remove/", follow=True)
        assert has(page, "p.notice.error")
        assert Quota.objects.get(user=charlie).amount == 5000
        changed = admin.patch(f"/api/v1/quotas/{limit.pk}/", {"amount": 60}, "application/json")
        assert changed.status_code == 200
        assert admin.delete(f"/api/v1/quotas/{limit.pk}/").status_code == 204
        assert Quota.objects.get(user=charlie).amount == 5000  # the seminar's again
        seminars.end_seminar(seminar, timezone.now())
        assert not Quota.objects.filter(user=charlie).exists()

    def test_neither_a_command_nor_the_admin_removes_it(self, as_olivia, charlie, research, olivia):
        seminar = seminar_of(research, olivia, is_company_wide=True, tokens=5000)
        join(client_of(charlie), seminars.code_of(seminar))
        limit = Quota.objects.get(user=charlie)
        with pytest.raises(CommandError) as refused:
            call_command("setquota", *REMOVAL)
        assert isinstance(refused.value.__cause__, administration.QuotaRefused)
        page = as_olivia.post(f"/admin/quotas/quota/{limit.pk}/delete/", {"post": "yes"})
        assert not has(page, "[name=post]"), "the admin offers to delete it"
        several = {"action": "delete_selected", "_selected_action": [limit.pk], "post": "yes"}
        as_olivia.post("/admin/quotas/quota/", several)
        assert Quota.objects.get(user=charlie) == limit

    @pytest.mark.parametrize("by", ["command", "admin", "admin, several"])
    def test_where_another_limit_is_removed_the_seminar_s_applies_at_once(
        self, by, as_olivia, charlie, research, olivia
    ):
        join(client_of(charlie), seminars.code_of(seminar_of(research, olivia, is_company_wide=True, tokens=5000)))
        limit = Quota.objects.get(user=charlie)
        limit.amount = 60
        limit.save()
        if by == "command":
            call_command("setquota", *REMOVAL)
        elif by == "admin":
            assert as_olivia.post(f"/admin/quotas/quota/{limit.pk}/delete/", {"post": "yes"}).status_code == 302
        else:
            several = {"action": "delete_selected", "_selected_action": [limit.pk], "post": "yes"}
            assert as_olivia.post("/admin/quotas/quota/", several).status_code == 302
        assert Quota.objects.get(user=charlie).amount == 5000

    def test_without_a_limit_of_the_seminar_a_guest_has_none(self, charlie, research, olivia):
        for tokens in (None, 500):
            join(
                client_of(charlie),
                seminars.code_of(seminar_of(research, olivia, is_company_wide=True, tokens=tokens)),
            )
        assert not Quota.objects.filter(user=charlie).exists()

    def test_a_guest_whose_key_is_taken_back_loses_the_playground_too(self, as_olivia, charlie, research, olivia):
        seminar = seminar_of(research, olivia, is_company_wide=True, tokens=5000)
        browser = client_of(charlie)
        join(browser, seminars.code_of(seminar))
        browser.post("/try/research/key/")
        assert ApiKey.objects.usable().filter(user=charlie, tenant=research).count() == 2
        participant = SeminarParticipant.objects.get()
        address = f"/lessons/seminars/{seminar.pk}/keys/{participant.pk}/"
        assert has(as_olivia.get(address), "[data-guest]")
        as_olivia.post(address, {"reason": "passed on"})
        assert not ApiKey.objects.usable().filter(user=charlie, tenant=research).exists()
        assert browser.post("/try/research/key/").status_code in (403, 404, 409)
        assert not Quota.objects.filter(user=charlie, tenant=research).exists()
        join(browser, seminars.code_of(seminar))  # a second time, with the same code
        assert not Membership.objects.filter(user=charlie, tenant=research).exists()

    def test_a_guest_of_two_seminars_stays_in_the_other_one_when_a_key_is_taken_back(self, charlie, research, olivia):
        both = [seminar_of(research, olivia, is_company_wide=True, tokens=tokens) for tokens in (5000, 2000)]
        for one in both:
            join(client_of(charlie), seminars.code_of(one))
        rows = [SeminarParticipant.objects.select_related("seminar__tenant").get(seminar=one) for one in both]
        seminars.take_back_key(olivia, rows[0])
        assert ApiKey.objects.usable().filter(user=charlie, tenant=research).count() == 1
        assert Quota.objects.get(user=charlie, tenant=research).amount == 2000
        seminars.take_back_key(olivia, rows[1])
        assert not Membership.objects.filter(user=charlie, tenant=research).exists()
        for one in both:
            seminars.end_seminar(one, timezone.now())
        assert not Quota.objects.filter(user=charlie).exists()

    def test_a_member_whose_key_is_taken_back_stays_a_member(self, as_alice, alice, research, olivia, seminar):
        join(as_alice, seminars.code_of(seminar))
        seminars.take_back_key(olivia, SeminarParticipant.objects.select_related("seminar__tenant").get())
        assert as_alice.post("/try/research/key/").status_code == 200

    def test_the_playground_of_a_member_has_no_limit_by_a_seminar(self, as_alice, alice, research, seminar):
        join(as_alice, seminars.code_of(seminar))
        as_alice.post("/try/research/key/")
        own = Quota.objects.create(user=alice, tenant=research, unit="tokens", window="day", amount=9)
        as_alice.post("/try/research/key/")
        seminars.end_seminar(seminar, timezone.now())
        assert list(Quota.objects.filter(user=alice)) == [own]

    def test_a_member_who_joins_makes_keys_as_before(self, as_alice, alice, research, seminar):
        join(as_alice, seminars.code_of(seminar))
        asked = {"tenant": "research", "name": "mine"}
        assert as_alice.post("/api/v1/keys/", asked, "application/json").status_code == 201

    def test_a_code_is_in_no_address(self, as_alice, seminar):
        assert as_alice.get(f"/lessons/join/?code={seminars.code_of(seminar)}").status_code == 200
        assert not SeminarParticipant.objects.exists()

    def test_a_replaced_key_ends_with_the_seminar_too(self, as_alice, alice, seminar):
        join(as_alice, seminars.code_of(seminar))
        with time_machine.travel(seminar.ends_at - timedelta(minutes=1)):
            new, _ = lifecycle.rotate_key(ApiKey.objects.get(), timedelta(), by=alice)
        new.refresh_from_db()
        assert new.expires_at == seminar.ends_at + seminars.LATEST
        assert SeminarParticipant.objects.get().key == new


class TestEnd:
    def test_it_stops_keys_and_notifies_once(self, as_alice, as_bob, alice, seminar):
        join(as_alice, seminars.code_of(seminar))
        assert as_bob.post(f"/lessons/seminars/{seminar.pk}/end/").status_code == 302
        as_bob.post(f"/lessons/seminars/{seminar.pk}/end/")
        assert not ApiKey.objects.usable().exists()
        assert notified("seminar-over") == ["alice"]
        assert notified("key-revoked") == []
        assert has(read(as_bob, f"/lessons/seminars/{seminar.pk}/"), "[data-ended]")

    def test_it_stops_what_was_replaced_and_no_key_follows(self, as_alice, alice, seminar):
        join(as_alice, seminars.code_of(seminar))
        lifecycle.rotate_key(ApiKey.objects.get(), timedelta(days=1), by=alice)
        assert ApiKey.objects.usable().count() == 2
        seminars.end_seminar(seminar, timezone.now())
        assert not ApiKey.objects.usable().exists()
        with pytest.raises(lifecycle.KeyRefused) as refused:
            lifecycle.rotate_key(ApiKey.objects.latest("pk"), timedelta(), by=alice)
        assert refused.value.code == "over"
        assert ApiKey.objects.count() == 2

    def test_it_ends_by_itself_also_where_a_person_made_the_key_last_longer(self, as_alice, alice, seminar):
        join(as_alice, seminars.code_of(seminar))
        lifecycle.change_key(ApiKey.objects.get(), by=alice, expires_at=None)
        with time_machine.travel(seminar.ends_at + timedelta(minutes=29)):
            call_command("endseminars")
            assert ApiKey.objects.usable().count() == 1
        with time_machine.travel(seminar.ends_at + timedelta(minutes=31)):
            call_command("endseminars")
            assert not ApiKey.objects.usable().exists()
        assert notified("seminar-over") == ["alice"]

    def test_its_organisers_find_it_among_the_past_ones(self, as_bob, as_alice, seminar):
        assert not has(read(as_bob, "/lessons/"), "[data-past]")
        seminars.end_seminar(seminar, timezone.now())
        assert len(all_of(read(as_bob, "/lessons/"), "[data-past] a")) == 1
        assert not has(read(as_alice, "/lessons/"), "[data-past]")

    def test_what_was_used_stays_counted(self, as_alice, seminar):
        join(as_alice, seminars.code_of(seminar))
        use(ApiKey.objects.get())
        seminars.end_seminar(seminar, timezone.now())
        assert UsageRecord.objects.count() == 1


class TestChanging:
    def changed(self, seminar: Seminar, by, **changes) -> Seminar:
        return seminars.change_seminar(by, seminar, timezone.now(), **changes)

    def test_the_page_shows_what_is_and_keeps_the_code(self, as_bob, seminar):
        page = f"/lessons/seminars/{seminar.pk}/edit/"
        shown = {
            field["name"]: field.attributes.get("value") for field in all_of(read(as_bob, page), "main input[name]")
        }
        hours = seminar.begins_at.astimezone(seminar.tenant.zone)
        assert (shown["title"], shown["tokens"], shown["begins"]) == ("Begin", "5000", f"{hours:%H:%M}")
        code = seminars.code_of(seminar)
        later = str(timezone.localdate() + timedelta(days=9))
        assert as_bob.post(page, form(title="", day=later, places="12")).status_code == 302
        seminar.refresh_from_db()
        assert (str(seminar.begins_at.astimezone(seminar.tenant.zone).date()), seminar.places) == (later, 12)
        assert seminars.code_of(seminar) == code

    def test_without_a_title_it_is_called_as_its_course_in_the_reader_s_language(self, as_bob, bob, research):
        seminar = seminar_of(research, bob, title="")
        for language in ("en", "ja"):
            page = read(as_bob, f"/lessons/seminars/{seminar.pk}/", **{"accept-language": language})
            assert texts(page, "h1") == [all_courses()["everyone"].titles[language]]

    def test_keys_follow(self, alice, bob, seminar):
        seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
        ends = seminar.ends_at + timedelta(hours=2)
        self.changed(seminar, bob, ends_at=ends, tokens=700)
        key = ApiKey.objects.get()
        assert key.expires_at == ends + seminars.LATEST
        assert list(Quota.objects.values_list("key", "amount")) == [(key.pk, 700)]
        self.changed(seminar, bob, tokens=None)
        assert not Quota.objects.exists()

    def test_new_hours_are_notified_and_other_changes_are_not(self, alice, bob, carol, seminar):
        seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
        invitations.name_people(bob, seminar, [carol])
        self.changed(seminar, bob, title="Other", places=9)
        assert notified("seminar-moved") == []
        self.changed(seminar, bob, ends_at=seminar.ends_at + timedelta(hours=1))
        assert sorted(notified("seminar-moved")) == ["alice", "carol"]

    @pytest.mark.parametrize("begins", [timedelta(minutes=-5), timedelta(minutes=30)])
    def test_its_beginning_stays_once_a_person_has_joined(self, alice, bob, research, begins):
        """Or its end could be moved for months, and its organiser would see what alice does until then."""
        now = timezone.now()
        seminar = seminar_of(research, bob, begins_at=now + begins, ends_at=now + timedelta(hours=2))
        moved = self.changed(seminar, bob, begins_at=seminar.begins_at + timedelta(minutes=10))
        seminars.join_seminar(alice, seminars.code_of(seminar), now)
        later = {"begins_at": now + timedelta(days=30), "ends_at": now + timedelta(days=30, hours=2)}
        for changes in (later, {"begins_at": moved.begins_at + timedelta(minutes=10)}):
            with pytest.raises(SeminarRefused) as refused:
                self.changed(seminar, bob, **changes)
            assert refused.value.code == "joined"
        last = moved.begins_at + seminars.LONGEST
        assert self.changed(seminar, bob, begins_at=moved.begins_at, ends_at=last).ends_at == last
        with pytest.raises(SeminarRefused) as refused:
            self.changed(seminar, bob, ends_at=last + timedelta(minutes=1))
        assert refused.value.code == "too-long"

    def test_the_page_says_why_the_beginning_stays(self, as_bob, alice, seminar):
        seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
        answer = as_bob.post(f"/lessons/seminars/{seminar.pk}/edit/", form())
        assert (answer.status_code, list(answer.context["form"].errors)) == (400, ["__all__"])

    def test_hours_that_come_back_are_notified_again(self, alice, bob, seminar):
        seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
        first, later = seminar.ends_at, seminar.ends_at + timedelta(hours=1)
        for ends in (later, first, later):
            self.changed(seminar, bob, ends_at=ends)
        assert notified("seminar-moved") == ["alice"] * 3

    def test_places_are_kept_for_people_who_are_invited(self, alice, bob, carol, seminar):
        seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
        invitations.name_people(bob, seminar, [alice, carol])
        with pytest.raises(SeminarRefused) as refused:
            self.changed(seminar, bob, places=1)
        assert refused.value.code == "places"
        assert self.changed(seminar, bob, places=2).places == 2

    def test_one_over_midnight_is_saved_as_it_is(self, as_bob, bob, research):
        day = (timezone.now() + timedelta(days=3)).astimezone(research.zone)
        begins = day.replace(hour=22, minute=0, second=0, microsecond=0)
        seminar = seminar_of(research, bob, begins_at=begins, ends_at=begins + timedelta(hours=3))
        hours = {"day": str(begins.date()), "begins": "22:00", "ends": "01:00"}
        page = f"/lessons/seminars/{seminar.pk}/edit/"
        assert as_bob.post(page, form(**hours, title="Late")).status_code == 302
        seminar.refresh_from_db()
        assert (seminar.title, seminar.begins_at, seminar.ends_at) == ("Late", begins, begins + timedelta(hours=3))
        assert as_bob.post(page, form(**{**hours, "day": "9999-12-31"})).status_code == 400
        assert as_bob.post(page, form(**{**hours, "ends": "23:00"})).status_code == 302
        seminar.refresh_from_db()
        assert seminar.ends_at == begins + timedelta(hours=1)
        assert as_bob.post(page, form(**hours)).status_code == 400  # as it was entered, it ends before it begins

    def test_what_cannot_be_is_refused(self, alice, bob, research, seminar):
        seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
        seminars.join_seminar(bob, seminars.code_of(seminar), timezone.now())
        for code, changes in {
            "places": {"places": 1},
            "order": {"ends_at": seminar.begins_at},
            "too-long": {"ends_at": seminar.begins_at + timedelta(hours=13)},
        }.items():
            with pytest.raises(SeminarRefused) as refused:
                self.changed(seminar, bob, **changes)
            assert refused.value.code == code
        with pytest.raises(PermissionDenied):
            self.changed(seminar, alice, title="mine")
        seminars.end_seminar(seminar, timezone.now())
        with pytest.raises(SeminarRefused) as refused:
            self.changed(seminar, bob, title="late")
        assert refused.value.code == "over"
        assert client_of(bob).get(f"/lessons/seminars/{seminar.pk}/edit/").status_code == 404


class TestTakingBack:
    def test_a_key_stops_and_its_person_gets_no_other(self, as_alice, as_bob, alice, seminar):
        join(as_alice, seminars.code_of(seminar))
        path = f"/lessons/seminars/{seminar.pk}/keys/{SeminarParticipant.objects.get().pk}/"
        assert has(read(as_bob, path), "button.danger")
        assert ApiKey.objects.usable().exists()
        assert as_bob.post(path, {"reason": "passed on"}).status_code == 302
        assert not ApiKey.objects.usable().exists()
        assert notified("key-revoked") == ["alice"]
        again = join(as_alice, seminars.code_of(seminar))
        assert (again.status_code, has(again, ".field.wrong .error")) == (400, True)
        named = as_alice.post(f"/lessons/seminars/{seminar.pk}/join/")
        assert (named.status_code, has(named, ".notice.error")) == (400, True)
        assert ApiKey.objects.count() == 1
        assert as_bob.get(path).status_code == 302

    def test_its_person_is_not_shown_the_seminar_as_theirs(self, as_alice, as_bob, alice, carol, seminar):
        as_bob.post(f"/lessons/seminars/{seminar.pk}/people/", {"names": "alice"})
        join(as_alice, seminars.code_of(seminar))
        assert has(read(as_alice, "/"), "[data-own-seminar=joined]")
        take_back(as_bob, seminar)
        for page in ("/", "/lessons/"):
            assert not has(read(as_alice, page), "[data-own-seminar]")
        page = read(as_alice, f"/lessons/seminars/{seminar.pk}/join/")
        assert has(page, "main .notice.error")
        assert not has(page, "main form")
        seminars.change_seminar(seminar.opened_by, seminar, timezone.now(), ends_at=timezone.now() + timedelta(hours=3))
        seminars.end_seminar(seminar, timezone.now())
        assert notified("seminar-moved") == notified("seminar-over") == []

    def test_who_revoked_their_key_is_taken_out_on_the_page(self, as_alice, as_bob, alice, bob, seminar):
        join(as_alice, seminars.code_of(seminar))
        key, participant = ApiKey.objects.get(), SeminarParticipant.objects.get()
        lifecycle.revoke_key(key, "lost", by=alice)
        path = f"/lessons/seminars/{seminar.pk}/keys/{participant.pk}/"
        assert has(read(as_bob, f"/lessons/seminars/{seminar.pk}/"), f"[data-participant=alice] a[href='{path}']")
        page = read(as_bob, path)
        assert has(page, "[data-revoked]")
        assert not has(page, "[name=reason]")
        assert as_bob.post(path).status_code == 302
        assert not has(read(as_bob, f"/lessons/seminars/{seminar.pk}/"), f"a[href='{path}']")
        assert seminars.count_places_taken(seminar) == 0
        with pytest.raises(lifecycle.KeyRefused):
            lifecycle.rotate_key(key, timedelta(), by=alice)

    def test_who_is_out_is_not_counted_and_is_named_so(self, as_alice, as_bob, alice, carol, seminar):
        join(as_alice, seminars.code_of(seminar))
        use(ApiKey.objects.get())
        join(client_of(carol), seminars.code_of(seminar))
        lifecycle.revoke_key(ApiKey.objects.get(user=carol), "lost", by=carol)
        take_back(as_bob, seminar)
        page = read(as_bob, f"/lessons/seminars/{seminar.pk}/")
        assert [texts(page, f"[{name}]") for name in ("data-joined", "data-with-key", "data-answered")] == [
            ["1"],
            ["0"],
            ["0"],
        ]
        assert has(page, "[data-participant=alice] [data-out]")
        assert not has(page, "[data-participant=carol] [data-out]")

    def test_it_cannot_be_replaced_by_its_person(self, as_alice, alice, bob, seminar):
        join(as_alice, seminars.code_of(seminar))
        key = ApiKey.objects.get()
        assert has(read(as_alice, f"/keys/{key.prefix}/"), f"[action='/keys/{key.prefix}/rotate/']")
        seminars.take_back_key(bob, SeminarParticipant.objects.get(), "passed on")
        assert not has(read(as_alice, f"/keys/{key.prefix}/"), f"[action='/keys/{key.prefix}/rotate/']")
        answer = as_alice.post(f"/keys/{key.prefix}/rotate/", {"overlap": "0"}, follow=True)
        assert has(answer.content.decode(), ".notice.error")
        api = as_alice.post(f"/api/v1/keys/{key.prefix}/rotate/", {"overlap_hours": 0}, "application/json")
        assert api.status_code == 409
        with pytest.raises(lifecycle.KeyRefused) as refused:
            lifecycle.rotate_key(key, timedelta(), by=alice)
        assert refused.value.code == "taken-back"
        assert ApiKey.objects.get() == key

    def test_those_that_it_replaced_stop_with_it(self, as_alice, alice, bob, seminar):
        join(as_alice, seminars.code_of(seminar))
        lifecycle.rotate_key(ApiKey.objects.get(), timedelta(days=1), by=alice)
        new, _ = lifecycle.rotate_key(ApiKey.objects.latest("pk"), timedelta(), by=alice)
        assert ApiKey.objects.usable().count() == 2
        seminars.take_back_key(bob, SeminarParticipant.objects.get())
        assert not ApiKey.objects.filter(revoked_at=None).exists()  # nor the one that expired, whose date may change
        assert SeminarParticipant.objects.get().key == new

    def test_a_key_that_its_person_revoked_may_be_replaced(self, as_alice, alice, seminar):
        join(as_alice, seminars.code_of(seminar))
        key = ApiKey.objects.get()
        lifecycle.revoke_key(key, "lost", by=alice)
        new, _ = lifecycle.rotate_key(key, timedelta(), by=alice)
        assert SeminarParticipant.objects.get().key == new

    def test_who_revoked_it_reads_where_to_replace_it(self, as_alice, alice, seminar):
        join(as_alice, seminars.code_of(seminar))
        key = ApiKey.objects.get()
        lifecycle.revoke_key(key, "lost", by=alice)
        page = join(as_alice, seminars.code_of(seminar))
        assert has(page, "[data-revoked]")
        assert has(page, f"[data-joined-before] [href='/keys/{key.prefix}/']")

    def test_it_frees_the_place(self, as_alice, as_bob, alice, bob, seminar):
        seminars.change_seminar(bob, seminar, timezone.now(), places=1)
        join(as_alice, seminars.code_of(seminar))
        assert join(as_bob, seminars.code_of(seminar)).status_code == 400
        seminars.take_back_key(bob, SeminarParticipant.objects.get())
        assert join(as_bob, seminars.code_of(seminar)).status_code == 200
        rows = seminars.read_participants(seminar)
        assert [(row.person.username, row.has_key) for row in rows] == [("bob", True), ("alice", False)]

    def test_after_the_end_nothing_is_taken_back(self, as_alice, as_bob, bob, seminar):
        join(as_alice, seminars.code_of(seminar))
        participant = SeminarParticipant.objects.get()
        seminars.end_seminar(seminar, timezone.now())
        body = {"person": "alice"}
        api = as_bob.post(f"/api/v1/seminars/{seminar.pk}/take-back/", body, "application/json")
        assert api.status_code == 409
        path = f"/lessons/seminars/{seminar.pk}/keys/{participant.pk}/"
        page = as_bob.post(path, {"reason": "late"}, follow=True)
        assert has(page.content.decode(), ".notice.error")
        with pytest.raises(SeminarRefused) as refused:
            seminars.take_back_key(bob, participant)
        assert refused.value.code == "over"
        assert SeminarParticipant.objects.get().taken_back_at is None

    def test_others_keys_are_not_within_reach(self, as_bob, as_alice, alice, bob, research, seminar):
        join(as_alice, seminars.code_of(seminar))
        other = seminar_of(research, bob)
        participant = SeminarParticipant.objects.get()
        assert as_bob.post(f"/lessons/seminars/{other.pk}/keys/{participant.pk}/").status_code == 404
        with pytest.raises(PermissionDenied):
            seminars.take_back_key(alice, participant)


class TestLettingBack:
    @pytest.fixture
    def company_wide(self, research, olivia) -> Seminar:
        return seminar_of(research, olivia, is_company_wide=True, tokens=5000, places=1)

    def test_who_is_invited_again_joins_with_a_new_key(self, as_olivia, charlie, research, company_wide):
        browser, people = client_of(charlie), f"/lessons/seminars/{company_wide.pk}/people/"
        join(browser, seminars.code_of(company_wide))
        old = ApiKey.objects.get()
        take_back(as_olivia, company_wide)
        answer = as_olivia.post(people, {"names": "charlie"}, follow=True)
        assert has(answer, "[data-notice=let-back]")
        assert has(answer, "[data-awaited=charlie]")
        assert seminars.count_places_taken(company_wide) == 1
        assert notified("seminar-invited") == ["charlie"]
        assert has(read(browser, "/"), "[data-own-seminar=named]")
        assert WHOLE_KEY.search(browser.post(f"/lessons/seminars/{company_wide.pk}/join/").content.decode())
        row = SeminarParticipant.objects.select_related("key").get()
        assert (row.key.replaces, row.key.state, row.added_to_tenant) == (old, "active", True)
        assert row.joined_at == row.key.created_at
        assert Quota.objects.get(user=charlie, tenant=research).amount == 5000
        with pytest.raises(lifecycle.KeyRefused):  # the old one stays without another successor
            lifecycle.rotate_key(old, timedelta(), by=charlie)
        assert has(as_olivia.post(people, {"names": "charlie"}, follow=True), "[data-notice=already]")

    def test_an_invitation_from_before_lets_no_one_back(self, as_olivia, olivia, charlie, company_wide):
        browser = client_of(charlie)
        for _again in range(2):  # also not the one that let them back
            invitations.name_people(olivia, company_wide, [charlie])
            assert join(browser, seminars.code_of(company_wide)).status_code == 200
            take_back(as_olivia, company_wide)
            assert join(browser, seminars.code_of(company_wide)).status_code == 400
            assert browser.post(f"/lessons/seminars/{company_wide.pk}/join/").status_code == 400
        assert not ApiKey.objects.usable().filter(user=charlie).exists()
        assert not Membership.objects.filter(user=charlie, tenant=company_wide.tenant).exists()

    def test_the_invitation_may_be_withdrawn(self, as_olivia, olivia, charlie, company_wide):
        join(client_of(charlie), seminars.code_of(company_wide))
        take_back(as_olivia, company_wide)
        invitations.name_people(olivia, company_wide, [charlie])
        invitations.withdraw_name(olivia, company_wide, charlie)
        assert join(client_of(charlie), seminars.code_of(company_wide)).status_code == 400
        assert seminars.count_places_taken(company_wide) == 0

    def test_their_place_may_be_another_s(self, as_olivia, olivia, alice, charlie, company_wide):
        join(client_of(charlie), seminars.code_of(company_wide))
        take_back(as_olivia, company_wide)
        join(client_of(alice), seminars.code_of(company_wide))
        with pytest.raises(SeminarRefused) as refused:
            invitations.name_people(olivia, company_wide, [charlie])
        assert refused.value.code == "places"


class TestAudit:
    def test_all_that_an_organiser_does_is_recorded_once(self, as_bob, as_alice, alice, bob):
        as_bob.post("/lessons/seminars/new/", form())
        seminar = Seminar.objects.get()
        page = f"/lessons/seminars/{seminar.pk}/"
        as_bob.post(page + "edit/", form(title="Later"))
        as_bob.post(page + "people/", {"names": "alice"})
        with time_machine.travel(seminar.begins_at):
            seminars.join_as_named(alice, seminar, timezone.now())
        as_bob.post(f"{page}keys/{SeminarParticipant.objects.get().pk}/", {"reason": "lost"})
        as_bob.post(page + "end/")
        as_bob.post(page + "end/")
        events = AuditEvent.objects.filter(actor=bob).exclude(action__startswith="session.").order_by("pk")
        assert [event.action for event in events] == [
            *("seminar.add", "seminar.change", "seminar.invite", "key.revoke", "seminar.over"),
        ]
        assert {event.tenant for event in events} == {seminar.tenant}
        change = events.get(action="seminar.change")
        assert (change.before, change.after) == ({"title": "Begin"}, {"title": "Later"})
        assert seminars.code_of(seminar).replace("-", "") not in str([[one.before, one.after] for one in events])

    @pytest.mark.parametrize("language", ["en", "ja"])
    def test_the_log_says_it_in_words(self, as_bob, language):
        as_bob.post("/lessons/seminars/new/", form())
        page = read(as_bob, "/audit/?what=seminar", **{"accept-language": language})
        assert "seminar.add" not in texts(page, "main")[0]


class TestProgress:
    def test_it_asks_no_more_for_more_people(self, seminar, research, django_assert_max_num_queries):
        for number in range(3):
            one = person(f"p{number}", research)
            seminars.join_seminar(one, seminars.code_of(seminar), timezone.now())
            use(ApiKey.objects.get(user=one))
        with django_assert_max_num_queries(9):
            assert len(seminars.read_participants(seminar)) == 3

    def test_thirty_people_have_a_key_and_a_first_answer(self, as_bob, research, seminar, capsys):
        """Join, read the course and be answered, by the portal's pages; the metering is the gateway's."""
        serve("qwen")
        code, began = seminars.code_of(seminar), time.monotonic()
        page = f"/lessons/seminars/{seminar.pk}/"
        for number in range(30):
            one = person(f"guest{number}", research)
            browser = client_of(one)
            read(browser, "/lessons/join/")
            text = WHOLE_KEY.search(join(browser, code).content.decode())
            assert text is not None
            use(called_with(text[0]), client_class="curl")
            read(browser, "/lessons/developers/")
        seen = read(as_bob, page)
        took = time.monotonic() - began
        assert [texts(seen, f"[{name}]") for name in ("data-joined", "data-with-key", "data-answered")] == [["30"]] * 3
        assert len(all_of(seen, "[data-participant]")) == 30
        with capsys.disabled():
            print(f"\n30 people joined, were answered and were seen within {took:.1f} s")

    def test_what_was_done_before_joining_or_after_the_end_is_not_on_it(self, alice, bob, carol, research, seminar):
        now = timezone.now()
        own = key_of(alice, research)
        use(own, at=now - timedelta(minutes=2), client_class="openai")
        StepDone.objects.create(user=alice, step="feedback", at=now - timedelta(days=3))
        for one in (alice, bob, carol):
            seminars.join_seminar(one, seminars.code_of(seminar), now)
        with time_machine.travel(seminar.ends_at + seminars.AFTERWARDS - timedelta(minutes=1)):
            use(ApiKey.objects.get(user=carol), client_class="curl")
        later = seminar.ends_at + seminars.AFTERWARDS + timedelta(minutes=1)
        for one in (alice, bob):
            with time_machine.travel(later):
                use(key_of(one, research), client_class="curl")
                progress.note_step(one, "use-case")
                signed_in = client_of(one)
                assert read(signed_in, "/lessons/")

        def shown() -> list[tuple[str, bool, set[str]]]:
            return [
                (
                    row.person.username,
                    row.answered_at is not None,
                    {one.step.code for one in row.progress.steps if one.done_at},
                )
                for row in seminars.read_participants(seminar)
            ]

        Seminar.objects.filter(pk=seminar.pk).update(course="developers")
        seminar.refresh_from_db()
        expected = [("alice", False, {"key"}), ("bob", False, {"key"}), ("carol", True, {"key", "curl"})]
        assert shown() == expected
        seminars.end_seminar(seminar, later + timedelta(hours=5))
        seminar.refresh_from_db()
        assert shown() == expected

    @pytest.mark.parametrize(
        ("course", "given", "joined"),
        [("everyone", {"feedback", "helped"}, {"signed-in"}), ("developers", {"quota"}, {"key"})],
    )
    def test_what_was_done_before_as_well_is_as_if_done_for_the_first_time(
        self, alice, bob, carol, research, seminar, course, given, joined
    ):
        Seminar.objects.filter(pk=seminar.pk).update(course=course)
        seminar.refresh_from_db()
        cases = [use_case(carol, research, publisher=bob) for _ in range(3)]
        over = seminar.ends_at + seminars.AFTERWARDS + timedelta(minutes=1)

        def act(one, time: int) -> None:
            at = (timezone.now() - timedelta(days=9), timezone.now(), over)[time]
            Feedback.objects.create(request_id=f"{one.pk} {time}", user=one, tenant=research, score=1, at=at)
            HelpedMark.objects.create(user=one, use_case=cases[time], at=at)
            asked = {"unit": "tokens", "window": "day", "amount": 2, "previous_amount": 1, "state": "withdrawn"}
            QuotaRequest.objects.create(tenant=research, user=one, asked_by=one, asked_at=at, **asked)

        old, idle = person("old", research), person("idle", research)
        for one in (old, idle):
            act(one, 0)
            key_of(one, research)
        for one in (alice, old, idle):
            seminars.join_seminar(one, seminars.code_of(seminar), timezone.now())
        for one in (alice, old):
            act(one, 1)
        for one in (old, idle):
            act(one, 2)
        rows = seminars.read_participants(seminar)
        assert [(row.person, {one.step.code for one in row.progress.steps if one.done_at}) for row in rows] == [
            (alice, joined | given),
            (old, joined | given),
            (idle, joined),
        ]

    def test_what_was_done_after_an_early_end_is_not_on_it(self, alice, bob, research, seminar):
        seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
        seminars.end_seminar(seminar, timezone.now())
        with time_machine.travel(timezone.now() + timedelta(minutes=1)):
            use(key_of(alice, research))
        seminar.refresh_from_db()
        assert [row.answered_at for row in seminars.read_participants(seminar)] == [None]

    @pytest.mark.parametrize("course", ["everyone", "developers"])
    def test_later_use_takes_no_step_away(self, alice, bob, research, seminar, course):
        Seminar.objects.filter(pk=seminar.pk).update(course=course)
        seminar.refresh_from_db()
        alice.last_login = timezone.now() - timedelta(days=1)
        alice.save()
        seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
        key = ApiKey.objects.get(user=alice)
        ApiKey.objects.filter(pk=key.pk).update(name="dify and webui", last_used_at=timezone.now())
        before = seminars.read_participants(seminar)
        alice.last_login = seminar.ends_at + timedelta(days=1)
        alice.save()
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=seminar.ends_at + timedelta(days=1))
        assert [row.progress for row in seminars.read_participants(seminar)] == [row.progress for row in before]

    def test_a_night_adds_no_step_that_the_name_of_a_key_hints_at(self, alice, bob, research, seminar):
        """It has the time of the last use: whether it appears would say if the key was used after the end."""
        Seminar.objects.filter(pk=seminar.pk).update(course="developers")
        seminar.refresh_from_db()
        for one in (alice, bob):
            seminars.join_seminar(one, seminars.code_of(seminar), timezone.now())
        ApiKey.objects.filter(user=alice).update(name="dify and webui", last_used_at=timezone.now())
        for client in (DIFY, OPEN_WEBUI):
            use(ApiKey.objects.get(user=bob), client_class=client)
        call_command("recordsteps")
        assert StepDone.objects.filter(user=alice, step__in=progress.HINTED).count() == 2
        hinted = [
            {one.step.code for one in row.progress.steps if one.done_at} & progress.HINTED
            for row in seminars.read_participants(seminar)
        ]
        assert hinted == [set(), set(progress.HINTED)]  # calls of these programs count

    def test_days_after_the_end_names_are_gone_and_counts_stay(self, as_bob, alice, seminar):
        seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
        use(ApiKey.objects.get())
        seminars.end_seminar(seminar, timezone.now())
        page, over = f"/lessons/seminars/{seminar.pk}/", timezone.now()
        for days, names in ((seminars.NAMES_KEPT - timedelta(hours=1), 1), (seminars.NAMES_KEPT, 0)):
            with time_machine.travel(over + days):
                browser = client_of(seminar.opened_by)
                seen = read(browser, page)
                assert len(all_of(seen, "[data-participant]")) == names
                assert len(browser.get(f"/api/v1{page.removeprefix('/lessons')}progress/").json()) == names
                assert texts(seen, "[data-joined]") == ["1"]
                body = {"person": "alice"}
                again = browser.post(f"/api/v1/seminars/{seminar.pk}/take-back/", body, "application/json")
                assert again.status_code == 409
                assert has(seen, "[data-only-counts]") is not bool(names)

    @pytest.mark.parametrize(
        ("joined", "answered", "shown"),
        [(3, 0, None), (3, 2, None), (3, 3, None), (12, 4, None), (12, 6, "5"), (12, 8, None), (12, 12, None)],
    )
    def test_counts_that_say_something_of_each_person_go_with_the_names(
        self, bob, research, seminar, joined, answered, shown
    ):
        for number in range(joined):
            one = person(f"p{number}", research)
            seminars.join_seminar(one, seminars.code_of(seminar), timezone.now())
            if number < answered:
                use(ApiKey.objects.get(user=one))
        seminars.end_seminar(seminar, timezone.now())
        page, over = f"/lessons/seminars/{seminar.pk}/", timezone.now()
        for days, numbers in (
            (seminars.NAMES_KEPT - timedelta(hours=1), ["0", str(answered)]),
            (seminars.NAMES_KEPT, ["–", shown or "–"]),
        ):
            with time_machine.travel(over + days):
                seen = read(client_of(bob), page)
            assert texts(seen, "[data-joined]") == [str(joined)]
            assert texts(seen, "[data-with-key]") + texts(seen, "[data-answered]") == numbers

    def test_contents_and_people_of_no_seminar_are_not_on_it(self, as_bob, alice, research, seminar):
        use(key_of(alice, research))
        assert not has(read(as_bob, f"/lessons/seminars/{seminar.pk}/"), "[data-participant]")

    def test_a_rolled_back_join_leaves_nothing(self, alice, seminar):
        with transaction.atomic():
            seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
            transaction.set_rollback(True)
        assert not ApiKey.objects.exists()


def called_with(text: str) -> ApiKey:
    """Return the key that a gateway would find for the text."""
    return ApiKey.objects.usable().get(digest=digest_of(text, settings.API_KEY_SECRET))


def take_back(browser, seminar: Seminar) -> None:
    """Take the key of the first participant back, on the page."""
    first = seminar.participants.earliest("pk")
    assert browser.post(f"/lessons/seminars/{seminar.pk}/keys/{first.pk}/", {"reason": "passed on"}).status_code == 302


def test_a_seminar_keeps_its_code_while_the_secret_is_replaced(settings, seminar, alice):
    settings.API_KEY_SECRET, settings.API_KEY_SECRET_FALLBACKS = "the new one", [settings.API_KEY_SECRET]
    code = seminars.code_of(seminar)
    participant, text = seminars.join_seminar(alice, code, timezone.now())
    assert (participant.user, bool(text)) == (alice, True)
    settings.API_KEY_SECRET_FALLBACKS = []
    with pytest.raises(SeminarRefused):
        seminars.join_seminar(alice, code, timezone.now())
