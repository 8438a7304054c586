"""Quotas, requests for more and what is left, in the API: by the rules of giving, for the right people."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from portal.accounts.models import Membership
from portal.quotas.models import Quota, QuotaRequest
from tests.conftest import person
from tests.pages import key_of, serve, service_key_of, use
from tests.portal.calling import Caller

pytestmark = pytest.mark.django_db

DAILY = {"unit": "tokens", "window": "day"}


def amounts(caller: Caller, query: str = "") -> list[int]:
    return sorted(quota["amount"] for quota in caller.get(f"quotas/?{query}")["results"])


# --- quotas


def test_operators_give_change_and_take_away(call, olivia, research):
    made = call(olivia)("POST", "quotas/", {"tenant": "research", **DAILY, "amount": 100})
    assert (made.status_code, made.json()["tenant"], made.json()["user"]) == (201, "research", None)
    path = f"quotas/{made.json()['id']}/"
    assert call(olivia)("PATCH", path, {"amount": 200}).json()["amount"] == Quota.objects.get().amount == 200
    assert call(olivia).get(path)["amount"] == 200
    assert call(olivia)("DELETE", path).status_code == 204
    assert not Quota.objects.exists()


def test_a_quota_of_a_unit_that_only_a_newer_version_has_is_left_out(call, client, bob, research):
    Quota.objects.create(tenant=research, unit="frames", window="day", amount=1)
    Quota.objects.create(tenant=research, unit="tokens", window="day", amount=2)
    assert amounts(call(bob)) == [2]
    client.force_login(bob)
    assert client.get("/").status_code == client.get("/tenant/research/quotas/").status_code == 200


def test_an_admin_gives_members_keys_and_defaults_up_to_what_the_tenant_has(call, bob, alice, olivia, research):
    call(olivia)("POST", "quotas/", {"tenant": "research", **DAILY, "amount": 100})
    serve("qwen")
    key = key_of(alice, research)
    for to in (
        {"tenant": "research", "user": "alice"},
        {"key": key.prefix},
        {"tenant": "research", "default_for": "member"},
        {"tenant": "research", "default_for": "service", "model": "qwen"},
    ):
        made = call(bob)("POST", "quotas/", {**to, **DAILY, "amount": 50})
        assert made.status_code == 201, made.content
    refused = call(bob)("POST", "quotas/", {"tenant": "research", "user": "alice", **DAILY, "amount": 101})
    assert (refused.status_code, "100" in refused.json()["detail"]) == (409, True)


def test_others_give_nothing(call, alice, bob, charlie, research):
    own = {"tenant": "research", "user": "alice"}
    for who, to, status in (
        (alice, own, 403),
        (bob, {"tenant": "research"}, 403),
        (bob, {"default_for": "tenant"}, 403),
        (bob, {"user": "alice"}, 403),
        (charlie, {"tenant": "research"}, 400),  # for him there is no such tenant
        (charlie, {"tenant": "sales", "user": "alice"}, 400),  # nor such a person
        (charlie, {"key": key_of(alice, research).prefix}, 400),  # nor such a key
    ):
        assert call(who)("POST", "quotas/", {**to, **DAILY, "amount": 5}).status_code == status, (who, to)
    assert not Quota.objects.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"tenant": "research", "key": "x"},
        {"tenant": "research", "default_for": "tenant"},
        {"default_for": "member"},
        {"tenant": "research", "unit": "hugs"},
        {"tenant": "research", "amount": -1},
        {"tenant": "research", "amount": 2**63},
        {"tenant": "research", "model": "nothing"},
    ],
)
def test_nonsense_is_refused_with_its_place(call, olivia, research, wrong):
    answer = call(olivia)("POST", "quotas/", {**DAILY, "amount": 5, **wrong})
    assert (answer.status_code, answer.json()["errors"][0]["detail"] != "") == (400, True)


def test_a_window_must_go_with_its_unit(call, olivia, research):
    answer = call(olivia)("POST", "quotas/", {"tenant": "research", "unit": "tokens", "amount": 5})
    assert (answer.status_code, Quota.objects.count()) == (409, 0)


def test_everybody_sees_what_binds_them_and_admins_all_of_the_tenant(
    call, alice, bob, charlie, olivia, research, sales
):
    Quota.objects.create(tenant=research, **DAILY, amount=1)
    Quota.objects.create(tenant=research, user=alice, **DAILY, amount=2)
    Quota.objects.create(tenant=research, user=bob, **DAILY, amount=3)
    Quota.objects.create(key=key_of(alice, research), **DAILY, amount=4)
    Quota.objects.create(tenant=research, default_for="member", **DAILY, amount=5)
    Quota.objects.create(default_for="tenant", **DAILY, amount=6)
    Quota.objects.create(tenant=sales, **DAILY, amount=7)
    hidden = Quota.objects.create(user=olivia, **DAILY, amount=8)
    assert amounts(call(alice)) == [1, 2, 4, 5, 6]
    assert amounts(call(bob)) == [1, 2, 3, 4, 5, 6]
    assert amounts(call(charlie)) == [6, 7]
    assert amounts(call(olivia)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert amounts(call(bob), "tenant=research") == [1, 2, 3, 4, 5]
    assert amounts(call(bob), "user=alice") == [2]
    assert amounts(call(bob), "default_for=member&unit=tokens") == [5]
    for method in ("GET", "PATCH", "DELETE"):
        assert call(bob)(method, f"quotas/{hidden.pk}/", {"amount": 1}).status_code == 404
    assert call(alice)("DELETE", f"quotas/{Quota.objects.get(amount=2).pk}/").status_code == 403


def test_lists_come_at_a_constant_number_of_queries(call, bob, research, django_assert_max_num_queries):
    for number in range(40):
        member = person(f"member-{number}", research)
        Quota.objects.create(tenant=research, user=member, **DAILY, amount=number)
        quota_request = {
            "tenant": research,
            "user": member,
            **DAILY,
            "amount": 1,
            "previous_amount": 0,
            "asked_by": member,
        }
        QuotaRequest.objects.create(**quota_request)
    for path in ("quotas/", "quota-requests/?waiting=true"):
        caller = call(bob)
        with django_assert_max_num_queries(8):
            assert caller.get(path)["count"] == 40


# --- requests for more


@pytest.fixture
def quota_request(call, alice, bob, carol, research):
    """Alice wants 200 instead of 100 of her tenant's tokens a day."""
    Quota.objects.create(tenant=research, **DAILY, amount=1000)
    Quota.objects.create(tenant=research, user=alice, **DAILY, amount=100)
    body = {"tenant": "research", "user": "alice", **DAILY, "amount": 200, "reason": "a report"}
    made = call(alice)("POST", "quota-requests/", body)
    assert made.status_code == 201, made.content
    return made.json()


def test_a_wish_is_granted_by_an_admin(call, alice, bob, quota_request):
    assert (quota_request["state"], quota_request["previous_amount"], quota_request["asked_by"]) == (
        "open",
        100,
        "alice",
    )
    path = f"quota-requests/{quota_request['id']}/"
    assert call(alice)("POST", path + "grant/").status_code == 403
    granted = call(bob)("POST", path + "grant/", {"amount": 150, "note": "for now"}).json()
    assert (granted["state"], granted["granted"], granted["decided_by"], granted["note"]) == (
        *("granted", 150, "bob"),
        "for now",
    )
    assert Quota.objects.get(user=alice).amount == 150
    assert call(bob)("POST", path + "refuse/", {"note": "no"}).status_code == 409


def test_a_wish_has_the_amount_that_applies_now(call, alice, bob, quota_request):
    path = f"quota-requests/{quota_request['id']}/"
    assert (quota_request["previous_amount"], quota_request["current_amount"]) == (100, 100)
    Quota.objects.filter(user=alice).update(amount=150)
    [listed] = call(bob).get("quota-requests/")["results"]
    assert [listed[name] for name in ("previous_amount", "current_amount")] == [100, 150]
    Quota.objects.filter(user=alice).delete()
    assert call(alice).get(path)["current_amount"] is None
    granted = call(bob)("POST", path + "grant/", {"amount": 170}).json()
    assert (granted["current_amount"], granted["cautions"]) == (170, [])


def test_who_has_left_the_tenant_no_longer_reads_what_applies_in_it(call, alice, bob, research, quota_request):
    path = f"quota-requests/{quota_request['id']}/"
    call(bob)("POST", path + "refuse/", {"note": "no"})
    assert call(alice).get(path)["current_amount"] == 100
    alice.memberships.filter(tenant=research).delete()
    left = call(alice).get(path)
    assert (left["previous_amount"], left["current_amount"]) == (100, None)
    assert [one["current_amount"] for one in call(alice).get("quota-requests/")["results"]] == [None]
    assert call(bob).get(path)["current_amount"] == 100


def test_an_amount_that_may_be_a_slip_is_granted_and_named(call, bob, alice, quota_request, research):
    Quota.objects.filter(user=alice).update(amount=1)
    granted = call(bob)("POST", f"quota-requests/{quota_request['id']}/grant/").json()
    assert (granted["granted"], granted["cautions"]) == (200, ["leap"])


def test_wishes_are_listed_by_the_same_queries(call, bob, quota_request, research, django_assert_max_num_queries):
    with CaptureQueriesContext(connection) as one:
        assert len(call(bob).get("quota-requests/")["results"]) == 1
    for n in range(5):
        other = person(f"person-{n}", research)
        QuotaRequest.objects.create(
            tenant=research, user=other, asked_by=other, **DAILY, amount=200, previous_amount=100
        )
    with django_assert_max_num_queries(len(one)):
        assert len(call(bob).get("quota-requests/")["results"]) == 6


def test_a_wish_is_refused_with_a_note(call, bob, quota_request):
    path = f"quota-requests/{quota_request['id']}/refuse/"
    assert call(bob)("POST", path, {}).status_code == 400
    assert call(bob)("POST", path, {"note": "budget"}).json()["state"] == "refused"


def test_a_wish_is_withdrawn_by_who_asked(call, alice, bob, quota_request):
    path = f"quota-requests/{quota_request['id']}/withdraw/"
    assert call(bob)("POST", path).status_code == 403
    assert call(alice)("POST", path).json()["state"] == "withdrawn"


def test_who_sees_a_wish(call, alice, bob, carol, charlie, olivia, quota_request, research):
    def seen(user, query=""):
        return [one["id"] for one in call(user).get(f"quota-requests/?{query}")["results"]]

    assert seen(alice) == seen(bob) == seen(olivia) == [quota_request["id"]]
    assert seen(charlie) == []
    assert call(charlie)("POST", f"quota-requests/{quota_request['id']}/grant/").status_code == 404
    assert seen(bob, "waiting=true") == [quota_request["id"]] == seen(bob, "state=open&tenant=research")
    assert seen(alice, "waiting=true") == [] == seen(bob, "waiting=false") == seen(bob, "state=granted")
    other = person("dave", research)
    assert seen(other) == []


def test_what_cannot_be_asked_for(call, alice, bob, olivia, research):
    body = {"tenant": "research", **DAILY, "amount": 200}
    assert call(alice)("POST", "quota-requests/", body).status_code == 403  # of the tenant only its admin
    assert call(bob)("POST", "quota-requests/", body).status_code == 409  # nothing limits it
    assert call(bob)("POST", "quota-requests/", {**body, "user": "alice"}).status_code == 403
    Quota.objects.create(tenant=research, **DAILY, amount=300)
    less = call(bob)("POST", "quota-requests/", body)
    assert (less.status_code, "300" in less.json()["detail"]) == (409, True)
    assert call(bob)("POST", "quota-requests/", {**body, "amount": 400}).status_code == 201
    assert call(bob)("POST", "quota-requests/", {**body, "amount": 500}).status_code == 409


# --- what is left


def test_what_is_left_for_me(call, alice, research):
    Quota.objects.create(tenant=research, user=alice, **DAILY, amount=100)
    use(key_of(alice, research), tokens=(60, 25))
    (seen,) = call(alice).get("allowances/")
    assert {name: seen[name] for name in ("of", "owner", "tenant", "spent", "left", "percent", "near")} == {
        **{"of": "member", "owner": "Alice", "tenant": "研究部"},
        **{"spent": 85, "left": 15, "percent": 85, "near": True},
    }


def test_what_is_left_of_a_tenant_a_member_and_a_key(call, alice, bob, charlie, olivia, research):
    Quota.objects.create(tenant=research, **DAILY, amount=1000)
    Quota.objects.create(tenant=research, user=alice, **DAILY, amount=100)
    key, service = key_of(alice, research), service_key_of(research)
    Quota.objects.create(key=key, **DAILY, amount=10)
    for user in (bob, olivia):
        assert [one["amount"] for one in call(user).get("allowances/?tenant=research")] == [1000]
        assert [one["amount"] for one in call(user).get("allowances/?tenant=research&user=alice")] == [100]
        assert call(user).get(f"allowances/?key={key.prefix}")[0]["amount"] == 10
    assert [one["amount"] for one in call(alice).get("allowances/?tenant=research&user=alice")] == [100]
    for query, status in (
        ("tenant=research", 404),
        ("tenant=research&user=bob", 404),
        (f"key={service.prefix}", 400),
        ("user=alice", 400),
    ):
        assert call(alice)("GET", f"allowances/?{query}").status_code == status
    assert call(charlie)("GET", "allowances/?tenant=research").status_code == 400
    assert call(olivia)("GET", "allowances/?tenant=research&user=charlie").status_code == 404


def test_who_left_a_tenant_sees_no_more_of_it(call, alice, research):
    Quota.objects.create(tenant=research, **DAILY, amount=1)
    Membership.objects.filter(user=alice).delete()
    assert amounts(call(alice)) == []
