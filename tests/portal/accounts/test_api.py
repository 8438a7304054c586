"""Tenants, members, notices and the directory in the API: for the right people, as the pages do it."""

from datetime import timedelta

import pytest
from django.utils import timezone

from portal.accounts.models import DirectoryState, Membership, Tenant, User
from portal.audit.models import AuditEvent
from portal.notifications.models import Notice
from portal.web.notify import notify
from tests.conftest import person

pytestmark = pytest.mark.django_db


# --- tenants


def test_everybody_sees_their_own_and_operators_all(call, alice, charlie, olivia, research, sales):
    def seen(user, query=""):
        return [tenant["slug"] for tenant in call(user).get(f"tenants/?{query}")["results"]]

    assert (seen(alice), seen(charlie), seen(olivia)) == (["research"], ["sales"], ["research", "sales"])
    assert call(alice)("GET", "tenants/sales/").status_code == 404
    assert call(alice).get("tenants/research/")["name"] == "研究部"
    sales.is_active = False
    sales.save()
    assert seen(olivia, "is_active=false") == ["sales"] == seen(olivia, "name=sal") == seen(olivia, "name=営業")
    assert (seen(alice, "administered=true"), seen(alice, "administered=false")) == ([], ["research"])


def test_operators_make_and_change_tenants(call, olivia):
    body = {"slug": "lab", "name": "ラボ", "time_zone": "Asia/Tokyo", "key_days": 30, "weight": 2.0}
    made = call(olivia)("POST", "tenants/", body)
    assert (made.status_code, made.json()["is_active"]) == (201, True)
    changed = call(olivia)("PATCH", "tenants/lab/", {"is_active": False}).json()
    assert call(olivia)("PATCH", "tenants/lab/", {"slug": "other"}).status_code == 400
    assert (changed["slug"], changed["is_active"], changed["key_days"]) == ("lab", False, 30)
    assert list(AuditEvent.objects.filter(object_kind="tenant").order_by("pk").values_list("action", flat=True)) == [
        "tenant.add",
        "tenant.off",
    ]
    for wrong in (
        {"slug": "lab"},
        {"slug": "ラボ"},
        {"slug": "x", "time_zone": "Mars"},
        {"slug": "x", "key_days": 0},
        {"slug": "x", "weight": "nan"},
    ):
        assert call(olivia)("POST", "tenants/", {"name": "x", **wrong}).status_code == 400
    assert Tenant.objects.count() == 1


def test_others_make_and_change_none(call, bob, research):
    assert call(bob)("POST", "tenants/", {"slug": "lab", "name": "x"}).status_code == 403
    assert call(bob)("PATCH", "tenants/research/", {"name": "x"}).status_code == 403
    research.refresh_from_db()
    assert research.name == "研究部"


# --- members


def test_members_are_for_who_administers(call, alice, bob, charlie, olivia):
    for user in (bob, olivia):
        seen = call(user).get("tenants/research/members/")["results"]
        assert [(one["user"], one["role"], one["source"]) for one in seen] == [
            ("alice", "member", "manual"),
            ("bob", "admin", "manual"),
        ]
    for user in (alice, charlie):
        for method, path in (("GET", ""), ("POST", ""), ("GET", "bob/"), ("PATCH", "bob/"), ("DELETE", "bob/")):
            assert call(user)(method, f"tenants/research/members/{path}", {"role": "admin"}).status_code == 404
    assert Membership.objects.count() == 3


def test_adding_changing_and_removing_a_member(call, alice, bob, charlie, research):
    made = call(bob)("POST", "tenants/research/members/", {"user": "charlie"})
    assert (made.status_code, made.json()["role"]) == (201, "member")
    assert call(bob)("POST", "tenants/research/members/", {"user": "charlie"}).status_code == 409
    assert call(bob)("PATCH", "tenants/research/members/charlie/", {"role": "admin"}).json()["role"] == "admin"
    assert call(bob)("PATCH", "tenants/research/members/charlie/", {"role": "king"}).status_code == 400
    assert call(bob)("DELETE", "tenants/research/members/Charlie/").status_code == 204
    assert call(bob)("GET", "tenants/research/members/charlie/").status_code == 404
    answer = call(bob)("POST", "tenants/research/members/", {"user": "nobody"})
    assert (answer.status_code, "nobody" in answer.json()["detail"]) == (409, True)


def test_one_s_own_and_the_directory_s_memberships_stay(call, bob, research):
    assert call(bob)("DELETE", "tenants/research/members/bob/").status_code == 409
    person("dora", research)
    Membership.objects.filter(user__username="dora").update(source="directory")
    for method, body in (("PATCH", {"role": "admin"}), ("DELETE", None)):
        assert call(bob)(method, "tenants/research/members/dora/", body).status_code == 409
    assert Membership.objects.filter(tenant=research).count() == 2


def test_members_can_be_narrowed_at_a_constant_number_of_queries(call, bob, research, django_assert_max_num_queries):
    users = User.objects.bulk_create(User(username=f"member-{n:04}", last_name=f"Family{n}") for n in range(300))
    Membership.objects.bulk_create(Membership(user=user, tenant=research, source="directory") for user in users)
    caller = call(bob)
    with django_assert_max_num_queries(6):
        page = caller.get("tenants/research/members/?source=directory&page_size=100&page=2")
    assert (page["count"], page["results"][0]["user"]) == (300, "member-0100")
    assert [one["user"] for one in caller.get("tenants/research/members/?name=family299")["results"]] == ["member-0299"]
    assert caller.get("tenants/research/members/?role=admin")["count"] == 1


# --- notices


def test_notices_are_one_s_own_in_the_reader_s_language_and_can_be_read(call, alice, bob):
    for ref in ("1", "2"):
        notify([alice], "membership-ended", ref, path="/keys/", tenant="営業部", keys=2)
    notify([bob], "membership-ended", "3", tenant="営業部", keys=0)
    seen = call(alice).get("notices/?unread=true")
    assert (seen["count"], "営業部" in seen["results"][0]["title"]) == (2, True)
    answer = call(alice)("GET", "notices/", **{"accept-language": "ja"}).json()
    assert "営業部" in answer["results"][0]["title"]
    assert answer["results"][0]["title"] != seen["results"][0]["title"]
    path = f"notices/{seen['results'][0]['id']}/"
    assert call(bob)("GET", path).status_code == call(bob)("POST", path + "read/").status_code == 404
    assert call(alice)("POST", path + "read/").json()["read_at"]
    assert call(alice).get("notices/?unread=true")["count"] == 1 == call(alice).get("notices/?unread=false")["count"]
    assert call(alice)("POST", "notices/read/").json() == {"read": 1}
    assert Notice.objects.get(user=bob).read_at is None
    assert call(alice).get("notices/?kind=key-expires")["count"] == 0


# --- the directory


def test_the_state_of_the_directory(call, olivia):
    seen = call(olivia).get("directory/")
    assert (seen["configured"], seen["overdue"], seen["tried_at"], seen["outcome"]) == (False, True, None, None)
    outcome = {"people": 3, "left": 1, "returned": 0, "changed": 0, "name_taken": []}
    at = timezone.now() - timedelta(minutes=5)
    DirectoryState.objects.create(pk=1, tried_at=at, succeeded_at=at, outcome=outcome)
    seen = call(olivia).get("directory/")
    assert (seen["overdue"], seen["outcome"]["left"], seen["problem"]) == (False, 1, "")
    assert call(olivia)("POST", "directory/sync/").status_code == 409
    assert DirectoryState.objects.get().tried_at == at


def test_the_directory_is_followed_at_once(call, olivia, connect):
    connect()
    User.objects.create(username="gone", directory_id="of nobody there")
    refused = call(olivia)("POST", "directory/sync/")  # all of our people would lose their access
    assert (refused.status_code, User.objects.get(username="gone").is_active) == (409, True)
    answer = call(olivia)("POST", "directory/sync/", {"force": True})
    assert (answer.status_code, answer.json()["outcome"]["left"]) == (200, 1), answer.content
    assert answer.json()["inactive"] == 1
    assert AuditEvent.objects.get(action="directory.force").via == "api"


def test_a_directory_that_is_away_changes_nothing_and_is_told(call, olivia, connect):
    connect(LDAP_SERVER_URI="ldap://127.0.0.1:1")
    User.objects.create(username="eve", directory_id="whoever")
    answer = call(olivia)("POST", "directory/sync/")
    assert (answer.status_code, str(DirectoryState.Problem.AWAY.label) in answer.json()["detail"]) == (409, True)
    assert call(olivia).get("directory/")["problem"] == "away"
