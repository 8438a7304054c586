"""People that an organiser names: found by their names, notified, and joining without the code."""

from datetime import timedelta

import pytest
import time_machine
from django.core.exceptions import PermissionDenied
from django.utils import timezone

from portal.accounts.models import Membership
from portal.audit.models import AuditEvent
from portal.keys.models import ApiKey
from portal.lessons import invitations, seminars
from portal.lessons.models import Seminar, SeminarParticipant
from portal.lessons.seminars import SeminarRefused
from tests.conftest import person
from tests.html import all_of, has
from tests.portal.browsing import WHOLE_KEY, client_of, read
from tests.portal.recorded import notified
from tests.seminars import seminar_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def seminar(research, bob) -> Seminar:
    return seminar_of(research, bob)


def named(name: str, tenant, first: str = "", last: str = "", email: str = ""):
    one = person(name, tenant)
    one.first_name, one.last_name, one.email = first, last, email
    one.save()
    return one


class TestNames:
    def test_user_names_addresses_and_whole_names_are_found_however_they_are_separated(self, seminar, research):
        hanako = named("hanako", research, "花子", "佐藤", "Hanako@Example.com")
        taro = named("taro", research, "太郎", "鈴木")
        mary = named("mary", research, "Mary", "Jones")
        for typed in ("HANAKO", "hanako@example.com", "佐藤 花子", "佐藤花子", "佐藤\u3000花子"):
            assert invitations.find_people(seminar, invitations.split_names(typed)).people == [hanako]
        assert invitations.find_people(seminar, invitations.split_names("mary jones")).people == [mary]
        several = invitations.find_people(seminar, invitations.split_names(" hanako、鈴木 太郎\n\nmary; mary,"))
        assert several.people == [hanako, taro, mary]
        assert not several.unknown

    def test_a_name_of_two_people_is_no_one_s(self, seminar, research):
        for name in ("sato1", "sato2"):
            named(name, research, "花子", "佐藤")
        found = invitations.find_people(seminar, invitations.split_names("佐藤 花子, sato2"))
        assert found.ambiguous == ["佐藤 花子"]
        assert [one.username for one in found.people] == ["sato2"]

    def test_people_of_elsewhere_read_as_unknown_ones(self, seminar, charlie):
        found = invitations.find_people(seminar, invitations.split_names("charlie, no-such-person"))
        assert found.unknown == ["charlie", "no-such-person"]
        assert not found.people

    def test_for_the_company_it_is_all_who_can_sign_in(self, research, olivia, charlie):
        seminar = seminar_of(research, olivia, is_company_wide=True)
        gone = named("gone", research)
        gone.is_active = False
        gone.save()
        found = invitations.find_people(seminar, invitations.split_names("charlie, gone"))
        assert found.people == [charlie]
        assert found.unknown == ["gone"]

    def test_a_long_list_is_one_query(self, seminar, research, django_assert_num_queries):
        for number in range(30):
            named(f"p{number}", research)
        with django_assert_num_queries(1):
            found = invitations.find_people(seminar, [f"p{number}" for number in range(30)])
        assert len(found.people) == 30
        with pytest.raises(SeminarRefused):
            invitations.find_people(seminar, list(map(str, range(301))))


class TestNaming:
    def test_they_are_notified_once_and_the_audit_has_their_names(self, as_bob, bob, alice, carol, seminar):
        page = f"/lessons/seminars/{seminar.pk}/"
        assert as_bob.post(page + "people/", {"names": "alice, carol"}).status_code == 302
        assert as_bob.post(page + "people/", {"names": "alice"}).status_code == 302
        assert sorted(notified("seminar-invited")) == ["alice", "carol"]
        event = AuditEvent.objects.get(action="seminar.invite")
        assert (event.actor, event.tenant, event.after) == (bob, seminar.tenant, {"people": ["alice", "carol"]})
        assert [row["data-awaited"] for row in all_of(read(as_bob, page), "[data-awaited]")] == ["alice", "carol"]

    def test_names_that_were_not_found_stay_in_the_field(self, as_bob, alice, seminar):
        response = as_bob.post(f"/lessons/seminars/{seminar.pk}/people/", {"names": "alice\nzelda"})
        assert response.status_code == 400
        [field] = all_of(response.content.decode(), "#id_names")
        assert field.text.strip() == "zelda"
        assert notified("seminar-invited") == ["alice"]

    def test_only_its_organiser_names_people(self, seminar, alice, charlie):
        for one in (alice, charlie):
            with pytest.raises(PermissionDenied):
                invitations.name_people(one, seminar, [alice])

    def test_an_admin_names_no_one_of_elsewhere_by_any_way(self, seminar, bob, charlie):
        assert not invitations.name_people(bob, seminar, [charlie]).invited
        assert not seminar.invitations.exists()

    def test_who_is_taken_off_the_list_joins_with_the_code_only(self, as_bob, as_alice, alice, bob, seminar):
        invitations.name_people(bob, seminar, [alice])
        path = f"/lessons/seminars/{seminar.pk}/"
        assert as_bob.post(f"{path}people/{alice.pk}/remove/").status_code == 302
        assert as_alice.get(path + "join/").status_code == 404
        assert as_alice.post(path + "join/").status_code == 404
        assert AuditEvent.objects.get(action="seminar.uninvite").after == {"people": ["alice"]}
        assert as_alice.post("/lessons/join/", {"code": seminars.code_of(seminar)}).status_code == 200


class TestJoining:
    def test_they_see_it_at_home_and_join_without_the_code(self, as_alice, alice, bob, carol, seminar):
        invitations.name_people(bob, seminar, [alice])
        assert has(read(as_alice, "/"), "[data-own-seminar=named]")
        assert not has(read(client_of(carol), "/"), "[data-own-seminar]")
        page = read(as_alice, f"/lessons/seminars/{seminar.pk}/join/")
        assert has(page, "[data-consent]")
        assert not ApiKey.objects.exists()
        joined = as_alice.post(f"/lessons/seminars/{seminar.pk}/join/").content.decode()
        assert WHOLE_KEY.search(joined)
        again = as_alice.post(f"/lessons/seminars/{seminar.pk}/join/").content.decode()
        assert WHOLE_KEY.search(again) is None
        assert ApiKey.objects.count() == 1
        assert has(read(as_alice, "/"), "[data-own-seminar=joined]")

    def test_before_the_hour_the_page_says_from_when(self, as_alice, alice, bob, research):
        later = timezone.now() + timedelta(days=1)
        seminar = seminar_of(research, bob, begins_at=later, ends_at=later + timedelta(hours=1))
        invitations.name_people(bob, seminar, [alice])
        path = f"/lessons/seminars/{seminar.pk}/join/"
        assert has(read(as_alice, path), "[data-early]")
        assert as_alice.post(path).status_code == 400
        with time_machine.travel(later):
            assert client_of(alice).post(path).status_code == 200

    def test_a_stranger_to_all_tenants_sees_the_company_s_at_home(self, olivia, research, charlie):
        Membership.objects.filter(user=charlie).delete()
        seminar = seminar_of(research, olivia, is_company_wide=True)
        invitations.name_people(olivia, seminar, [charlie])
        assert has(read(client_of(charlie), "/"), "[data-own-seminar=named]")
        assert client_of(charlie).post(f"/lessons/seminars/{seminar.pk}/join/").status_code == 200

    def test_who_left_the_tenant_does_not_join(self, alice, bob, seminar):
        invitations.name_people(bob, seminar, [alice])
        Membership.objects.filter(user=alice).delete()
        with pytest.raises(SeminarRefused):
            seminars.join_as_named(alice, seminar, timezone.now())

    def test_who_is_named_again_is_notified_again(self, alice, bob, carol, seminar):
        for _ in range(2):
            invitations.name_people(bob, seminar, [alice])
            invitations.withdraw_name(bob, seminar, alice)
        assert notified("seminar-invited") == ["alice", "alice"]

    def test_a_place_is_kept_for_each(self, alice, bob, carol, research):
        seminar = seminar_of(research, bob, places=1)
        invitations.name_people(bob, seminar, [alice])
        with pytest.raises(SeminarRefused) as refused:
            seminars.join_seminar(carol, seminars.code_of(seminar), timezone.now())
        assert refused.value.code == "full"
        with pytest.raises(SeminarRefused) as refused:
            invitations.name_people(bob, seminar, [carol])
        assert refused.value.code == "places"
        seminars.join_as_named(alice, seminar, timezone.now())
        assert SeminarParticipant.objects.get().user == alice
