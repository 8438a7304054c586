"""API keys, models and management keys in the API: for the right people, as the pages do it."""

from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from modelregistry.models import ServedModel
from portal.accounts.models import Membership
from portal.audit.models import AuditEvent
from portal.keys import canary_key, secret
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey, ManagementKey, ModelAccess
from portal.notifications.models import Notice
from tests.pages import key_of, management_key_of, serve, service_key_of
from tests.portal.calling import Caller

pytestmark = pytest.mark.django_db


def names(caller: Caller, query: str = "") -> list[str]:
    return [key["name"] for key in caller.get(f"keys/?{query}")["results"]]


# --- who sees what


def test_everybody_sees_their_own_and_an_admin_the_services_of_the_tenant(call, alice, bob, charlie, olivia, research):
    key_of(alice, research, "laptop")
    key_of(bob, research, "bob's")
    service_key_of(research)
    assert names(call(alice)) == ["laptop"]
    assert names(call(bob)) == ["Dify", "bob's"]
    assert names(call(charlie)) == []
    assert names(call(olivia)) == ["Dify"]


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("PATCH", ""), ("POST", "revoke/"), ("POST", "rotate/")])
def test_a_key_of_another_is_not_there(call, alice, bob, charlie, olivia, research, method, path):
    key = key_of(alice, research)
    for other in (bob, charlie, olivia):
        assert call(other)(method, f"keys/{key.prefix}/{path}", {}).status_code == 404
    key.refresh_from_db()
    assert key.revoked_at is None


def test_who_answers_for_a_service_key_sees_it_and_cannot_change_it(call, alice, research):
    key = service_key_of(research, responsible=alice)
    assert call(alice).get(f"keys/{key.prefix}/")["responsible"] == "alice"
    for method, path in (("PATCH", ""), ("POST", "revoke/"), ("POST", "rotate/")):
        assert call(alice)(method, f"keys/{key.prefix}/{path}", {}).status_code == 403


def test_what_the_playground_makes_for_itself_is_not_listed(call, alice, research):
    ApiKey.objects.filter(pk=key_of(alice, research).pk).update(is_playground=True)
    assert names(call(alice)) == []


# --- looking


def test_a_key_in_full(call, alice, research):
    model = serve("qwen")
    at = timezone.now() + timedelta(days=7)
    key = key_of(
        alice,
        research,
        purpose="nightly",
        key_class="batch",
        networks=["10.1.0.0/16"],
        allowed_models=[model],
        expires_at=at,
    )
    ApiKey.objects.filter(pk=key.pk).update(last_used_at=at, last_used_from="10.1.2.3", last_used_with="curl")
    seen = call(alice).get(f"keys/{key.prefix}/")
    assert {name: seen[name] for name in ("name", "purpose", "tenant", "user", "service", "key_class", "networks")} == {
        **{"name": "laptop", "purpose": "nightly", "tenant": "research", "user": "alice", "service": ""},
        **{"key_class": "batch", "networks": ["10.1.0.0/16"]},
    }
    assert (seen["models"], seen["state"], seen["last_used_from"]) == (["qwen"], "works", "10.1.2.3")
    assert datetime.fromisoformat(seen["expires_at"]) == at
    assert "digest" not in seen
    assert "text" not in seen


def test_lists_can_be_narrowed_and_ordered(call, bob, research, sales, time_machine):
    Membership.objects.create(user=bob, tenant=sales)
    now = timezone.now()
    time_machine.move_to(now, tick=False)
    key_of(bob, research, "a")
    key_of(bob, sales, "b", expires_at=now + timedelta(hours=1))
    ended = service_key_of(research)
    caller = call(bob)
    caller("POST", f"keys/{ended.prefix}/revoke/", {})
    assert names(caller, "tenant=sales") == ["b"]
    assert names(caller, "kind=service") == ["Dify"] == names(caller, "state=revoked") == names(caller, "name=dif")
    assert names(caller, "state=works&ordering=name") == ["a", "b"]
    assert names(caller, "ordering=-name") == ["b", "a", "Dify"]
    time_machine.move_to(now + timedelta(hours=2), tick=False)
    caller = call(bob)
    assert names(caller, "state=expired") == ["b"]
    research.is_active = False
    research.save()
    assert names(caller, "state=stopped") == ["a"]
    for query in ("tenant=nowhere", "state=odd", "ordering=digest"):
        assert caller("GET", f"keys/?{query}").status_code == 400


def test_lists_come_in_pages_at_a_constant_number_of_queries(call, alice, research, django_assert_max_num_queries):
    for number in range(60):
        key_of(alice, research, f"key {number}")
    caller = call(alice)
    with django_assert_max_num_queries(8):
        page = caller.get("keys/?page_size=50")
    assert (page["count"], len(page["results"])) == (60, 50)
    assert len(caller.get("keys/?page_size=50&page=2")["results"]) == 10
    assert caller("GET", "keys/?page=3").status_code == 404


# --- making


def test_a_personal_key_is_made_and_its_text_told_once(call, alice, research):
    serve("qwen")
    body = {"tenant": "research", "name": "laptop", "purpose": "try", "networks": ["192.168.7.5"], "models": ["qwen"]}
    made = call(alice)("POST", "keys/", body)
    assert made.status_code == 201, made.content
    key = ApiKey.objects.get()
    text = made.json()["text"]
    assert secret.is_well_formed(text)
    assert (key.user, key.created_by, key.networks, key.every_model) == (alice, alice, ["192.168.7.5/32"], False)
    assert abs(key.expires_at - timezone.now() - timedelta(days=90)) < timedelta(minutes=1)  # as the tenant proposes
    assert text not in str(AuditEvent.objects.values()) + str(call(alice).get(f"keys/{key.prefix}/"))
    assert AuditEvent.objects.get(action="key.add").via == "api"


@pytest.mark.parametrize("who", ["bob", "olivia"])
def test_a_service_key_is_made_by_an_admin_of_the_tenant(call, request, alice, research, who):
    body = {"tenant": "research", "name": "Dify", "service": "Dify", "responsible": "alice", "expires_at": None}
    made = call(request.getfixturevalue(who))("POST", "keys/", body)
    assert made.status_code == 201, made.content
    key = ApiKey.objects.get()
    assert (key.user, key.service, key.responsible, key.expires_at) == (None, "Dify", alice, None)


def test_others_do_not_make_keys_of_a_tenant(call, alice, charlie, olivia, research):
    body = {"tenant": "research", "name": "x"}
    assert call(alice)("POST", "keys/", {**body, "service": "Dify"}).status_code == 403
    assert call(charlie)("POST", "keys/", body).status_code == 400  # there is no such tenant for him
    assert call(olivia)("POST", "keys/", body).status_code == 403  # she does not belong to it
    research.is_active = False
    research.save()
    assert call(alice)("POST", "keys/", body).status_code == 403
    assert not ApiKey.objects.exists()


def test_what_is_wrong_is_told_with_its_place(call, bob, charlie, research, sales):
    secret_ = serve("secret")
    ModelAccess.objects.create(model=secret_, tenant=sales)
    past = (timezone.now() - timedelta(days=1)).isoformat()
    wrong = {"name": "", "networks": ["10.1.2.3/16"], "expires_at": past, "key_class": "fast", "models": ["nothing"]}
    answer = call(bob)("POST", "keys/", {"tenant": "research", **wrong})
    assert {one["pointer"].split("/")[1] for one in answer.json()["errors"]} == set(wrong)
    for more, pointer in (
        ({"models": ["secret"]}, "#/models"),
        ({"responsible": "bob"}, "#/responsible"),
        ({"service": "Dify", "responsible": "charlie"}, "#/responsible"),
        ({"models": []}, "#/models"),
        ({"name": "two\nlines"}, "#/name"),
        ({"name": "a bell\a"}, "#/name"),
        ({"name": "turned \u202e round"}, "#/name"),
        ({"purpose": "two\u2028lines"}, "#/purpose"),
        ({"key_class": "canary"}, "#/key_class"),
        ({"expires_at": f"{timezone.now().year + 1}-01-01T09:00:00"}, "#/expires_at"),  # of which zone
    ):
        answer = call(bob)("POST", "keys/", {"tenant": "research", "name": "x", **more})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, pointer)
    assert not ApiKey.objects.exists()


# --- changing


def test_p6_a_key_takes_end_users_from_open_webui_as_it_is_told(call, bob, research):
    body = {"tenant": "research", "name": "chat", "service": "Open WebUI", "takes_user_headers": True}
    prefix = call(bob)("POST", "keys/", body).json()["prefix"]
    assert call(bob).get(f"keys/{prefix}/")["takes_user_headers"] is True
    assert call(bob)("PATCH", f"keys/{prefix}/", {"takes_user_headers": False}).json()["takes_user_headers"] is False


def test_a_key_s_answers_are_watched_for_loops_until_that_is_switched_off(call, bob, research):
    body = {"tenant": "research", "name": "chat", "service": "Dify"}
    watched = call(bob)("POST", "keys/", body).json()
    assert watched["loop_guard"] is True
    off = call(bob)("PATCH", f"keys/{watched['prefix']}/", {"loop_guard": False}).json()
    assert (off["loop_guard"], call(bob).get(f"keys/{watched['prefix']}/")["loop_guard"]) == (False, False)
    assert call(bob)("POST", "keys/", {**body, "loop_guard": False}).json()["loop_guard"] is False
    refused = call(bob)("PATCH", f"keys/{watched['prefix']}/", {"loop_guard": "stop"})
    assert (refused.status_code, [one["pointer"] for one in refused.json()["errors"]]) == (400, ["#/loop_guard"])


def test_changing_only_what_is_sent(call, alice, research):
    serve("qwen")
    key = key_of(alice, research, purpose="try")
    answer = call(alice)("PATCH", f"keys/{key.prefix}/", {"name": "desktop", "models": ["qwen"], "expires_at": None})
    assert answer.status_code == 200, answer.content
    assert (answer.json()["name"], answer.json()["purpose"], answer.json()["models"]) == ("desktop", "try", ["qwen"])
    assert call(alice)("PATCH", f"keys/{key.prefix}/", {"models": None}).json()["models"] is None
    for field in ("prefix", "user", "tenant", "digest", "service", "text"):
        call(alice)("PATCH", f"keys/{key.prefix}/", {field: "x"})
    key.refresh_from_db()
    assert (key.user, key.tenant, key.service) == (alice, research, "")


def test_a_revoked_key_does_not_change(call, alice, research):
    key = key_of(alice, research)
    assert call(alice)("POST", f"keys/{key.prefix}/revoke/", {"because": "lost"}).json()["state"] == "revoked"
    assert call(alice)("POST", f"keys/{key.prefix}/revoke/").json()["revoked_because"] == "lost"
    answer = call(alice)("PATCH", f"keys/{key.prefix}/", {"name": "x"})
    key.refresh_from_db()
    assert (answer.status_code, key.name) == (409, "laptop")


def test_rotating(call, bob, research, time_machine):
    time_machine.move_to(timezone.now(), tick=False)
    old = service_key_of(research)
    answer = call(bob)("POST", f"keys/{old.prefix}/rotate/", {"overlap_hours": 2})
    assert answer.status_code == 201, answer.content
    assert (answer.json()["replaces"], secret.is_well_formed(answer.json()["text"])) == (old.prefix, True)
    seen = call(bob).get(f"keys/{old.prefix}/")
    assert seen["replaced_by"] == answer.json()["prefix"]
    assert datetime.fromisoformat(seen["expires_at"]) == timezone.now() + timedelta(hours=2)
    assert call(bob)("POST", f"keys/{old.prefix}/rotate/").status_code == 409
    for hours in (-1, 100_000, "x"):
        assert call(bob)("POST", f"keys/{old.prefix}/rotate/", {"overlap_hours": hours}).status_code == 400


def test_a_found_key_is_ended_by_anybody(call, alice, charlie, research):
    key, text = issue_key(tenant=research, user=alice, name="laptop")
    managing, other = management_key_of(alice, "usage:read")
    body = {"text": f"see {text} and {other} and {secret.make_secret()}"}
    answer = call(charlie)("POST", "keys/found/", body)
    assert answer.json() == {"revoked": [key.prefix, managing.prefix], "known": [], "strange": 1}
    assert call(charlie)("POST", "keys/found/", body).json()["known"] == [key.prefix, managing.prefix]
    assert {notice.kind for notice in Notice.objects.filter(user=alice)} == {"key-revoked", "management-key-found"}


# --- models


def test_the_catalogue_says_what_is_set_for_callers_and_done_about_loops(call, alice):
    serve("qwen")
    ServedModel.objects.update(loops="stop", sampling={"repetition_penalty": {"default": 1.05}})
    (found,) = call(alice).get("catalogue/")["results"]
    assert (found["loops"], list(found["sampling"])) == ("stop", ["repeat_penalty"])  # as llama.cpp calls it


def test_the_catalogue_is_what_one_may_call(call, alice, charlie, olivia, research, sales):
    serve("for-all")
    ModelAccess.objects.create(model=serve("for-sales", state="failed"), tenant=sales)
    serve("stopped").delete()

    def seen(user):
        return [(one["name"], one["state"]) for one in call(user).get("catalogue/")["results"]]

    assert seen(alice) == [("for-all", "up")]
    assert seen(charlie) == seen(olivia) == [("for-all", "up"), ("for-sales", "down")]


# --- management keys


def test_management_keys_are_made_and_ended_in_a_session(call, alice, bob, described):
    body = {"name": "report", "scopes": ["usage:read"], "expires_at": (timezone.now() + timedelta(days=9)).isoformat()}
    made = call(alice)("POST", "management-keys/", body)
    assert made.status_code == 201, made.content
    naive = {**body, "expires_at": body["expires_at"].partition("+")[0]}
    assert call(alice)("POST", "management-keys/", naive).status_code == 400
    text, prefix = made.json()["text"], made.json()["prefix"]
    (listed,) = call(alice).get("management-keys/")["results"]
    assert (listed["prefix"], "text" in listed) == (prefix, False)
    assert call(bob)("POST", f"management-keys/{prefix}/revoke/").status_code == 404
    by_key = Caller(alice, described, key=text)
    assert by_key.get("me/")["key"]["scopes"] == ["usage:read"]
    assert call(alice)("POST", f"management-keys/{prefix}/revoke/").json()["revoked_at"]
    assert by_key("GET", "me/").status_code == 401


def test_a_management_key_makes_no_others(alice, described):
    until = timezone.now() + timedelta(days=9)
    _, text = management_key_of(alice)
    caller = Caller(alice, described, key=text)
    body = {"name": "other", "scopes": ["usage:read"], "expires_at": until.isoformat()}
    answer = caller("POST", "management-keys/", body)
    assert (answer.status_code, ManagementKey.objects.count()) == (403, 1)
    assert caller("GET", "management-keys/").status_code == 403


def test_what_may_not_be_in_a_management_key_is_refused(call, alice):
    for scopes, days in ((["operations:read"], 9), (["usage:read"], 400), ([], 9), (["magic"], 9)):
        at = (timezone.now() + timedelta(days=days)).isoformat()
        answer = call(alice)("POST", "management-keys/", {"name": "x", "scopes": scopes, "expires_at": at})
        assert (answer.status_code, ManagementKey.objects.count()) == (400, 0)


# --- who calls


def test_me(call, alice, bob, olivia, research):
    assert call(bob).get("me/")["tenants"] == [
        {"tenant": "research", "name": "研究部", "role": "admin", "is_active": True}
    ]
    assert (call(olivia).get("me/")["is_operator"], call(alice).get("me/")["is_operator"]) == (True, False)
    assert call(alice).get("me/")["key"] is None


def test_settings(call, alice):
    assert call(alice).get("me/settings/") == {"language": "", "wants_mail": True, "wants_tips": True}
    answer = call(alice)("PATCH", "me/settings/", {"language": "ja", "wants_mail": False})
    assert answer.json() == {"language": "ja", "wants_mail": False, "wants_tips": True}
    alice.refresh_from_db()
    assert (alice.language, alice.wants_mail) == ("ja", False)
    assert call(alice)("PATCH", "me/settings/", {"language": "en", "is_staff": True}).status_code == 400
    alice.refresh_from_db()
    assert (alice.language, alice.is_staff) == ("ja", False)
    assert call(alice)("PATCH", "me/settings/", {"language": "fr"}).status_code == 400


def test_the_key_of_the_canary_is_only_seen_and_revoked(call, olivia):
    canary_key.renew_key()
    key = ApiKey.objects.get()

    for method, path, body in (
        ("PATCH", "", {"name": "mine"}),
        ("PATCH", "", {"key_class": "interactive"}),
        ("POST", "rotate/", {"overlap_hours": 0}),
    ):
        assert call(olivia)(method, f"keys/{key.prefix}/{path}", body).status_code == 409

    key.refresh_from_db()
    assert (ApiKey.objects.count(), key.name, key.key_class) == (1, "canary", ApiKey.Class.CANARY)
    assert call(olivia)("POST", f"keys/{key.prefix}/revoke/", {}).status_code == 200
