"""The pages of management keys, and what happens to one that was found."""

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from portal.accounts.models import User
from portal.audit.models import AuditEvent
from portal.keys import expiry_notifications, management_keys
from portal.keys.lifecycle import issue_key
from portal.keys.models import ManagementKey
from portal.notifications.models import Notice
from tests.html import all_of, has, texts
from tests.pages import management_key_of

pytestmark = pytest.mark.django_db

NEW = "/keys/management/new/"


def make(client, **more) -> object:
    form = client.get(NEW).context["form"]
    given = {"name": "monthly report", "scopes": ["usage:read"], "lifetime": "90", "token": form["token"].value()}
    return client.post(NEW, given | more)


def key_of(user: User, name: str = "script", **more: Any) -> tuple[ManagementKey, str]:
    return management_key_of(user, "usage:read", name=name, **more)


def test_a_new_key_is_shown_once_and_works(client, alice):
    client.force_login(alice)
    page = make(client).content.decode()
    key = ManagementKey.objects.get()
    start = page.index(key.prefix)
    text = page[start : start + 42]
    assert management_keys.find_management_key(text) == key
    assert (key.scopes, key.name, key.user) == (["usage:read"], "monthly report", alice)
    assert timedelta(days=89) < key.expires_at - timezone.now() <= timedelta(days=90)
    assert text not in client.get("/keys/management/").content.decode()


def test_a_form_that_is_sent_twice_makes_one_key(client, alice):
    client.force_login(alice)
    token = client.get(NEW).context["form"]["token"].value()
    make(client, token=token)
    assert make(client, token=token).status_code == 302
    assert ManagementKey.objects.count() == 1


@pytest.mark.parametrize("wrong", [{"name": ""}, {"scopes": []}, {"lifetime": "3650"}, {"scopes": ["operations:read"]}])
def test_what_is_wrong_with_a_form_is_said_and_nothing_is_made(client, alice, wrong):
    client.force_login(alice)
    page = make(client, **wrong)
    assert 'class="error"' in page.content.decode()
    assert not ManagementKey.objects.exists()


def test_only_what_the_person_may_do_is_offered_in_plain_words(client, alice, olivia):
    client.force_login(alice)
    page = client.get(NEW)
    assert has(page, "[name=scopes][value='usage:read']")
    assert not has(page, "[name=scopes][value='operations:read']")
    assert "usage:read" not in " ".join(texts(page, "fieldset"))
    client.force_login(olivia)
    assert has(client.get(NEW), "[name=scopes][value='operations:read']")


def test_the_list_shows_one_s_own_and_how_they_stand(client, alice, bob, time_machine):
    management_keys.revoke_management_key(alice, key_of(alice, "old one")[0])
    key_of(alice, "present one")
    key_of(bob, "not hers")
    client.force_login(alice)
    page = client.get("/keys/management/").content.decode()
    assert "present one" in page
    assert "old one" in page
    assert "not hers" not in page
    assert [row.key.state for row in client.get("/keys/management/").context["rows"]] == ["active", "revoked"]
    time_machine.move_to(timezone.now() + timedelta(days=31), tick=False)
    client.force_login(alice)
    assert [row.key.state for row in client.get("/keys/management/").context["rows"]] == ["expired", "revoked"]


def test_many_keys_come_in_pages_at_a_constant_number_of_queries(client, alice, django_assert_max_num_queries):
    for number in range(60):
        key_of(alice, f"script {number}")
    client.force_login(alice)
    client.get("/keys/management/")
    with django_assert_max_num_queries(10):
        page = client.get("/keys/management/")
    assert len(page.context["rows"]) == 50
    assert len(client.get("/keys/management/?page=2").context["rows"]) == 10


def test_revoking(client, alice, bob):
    key, text = key_of(alice)
    client.force_login(bob)
    assert client.post(f"/keys/management/{key.prefix}/revoke/").status_code == 404
    assert management_keys.find_management_key(text) == key
    client.force_login(alice)
    assert client.post(f"/keys/management/{key.prefix}/revoke/").status_code == 302
    assert management_keys.find_management_key(text) is None
    event = AuditEvent.objects.get(action="management-key.revoke")
    assert (event.actor, event.object_name) == (alice, f"{key.prefix}… script")


# --- found


def test_who_finds_one_ends_it_and_its_owner_is_told(client, charlie, alice, research):
    key, text = key_of(alice)
    _, other = issue_key(tenant=research, user=alice, name="laptop")
    client.force_login(charlie)
    page = client.post("/keys/found/", {"text": f"token={text} and {other}"})
    assert {notice["data-revoked"] for notice in all_of(page, "[data-revoked]")} == {key.prefix, other[:12]}
    assert text not in page.content.decode()
    assert management_keys.find_management_key(text) is None
    assert AuditEvent.objects.get(action="management-key.revoke").actor == charlie
    assert Notice.objects.get(kind="management-key-found").user == alice
    assert has(client.post("/keys/found/", {"text": text}), f"[data-revoked-before='{key.prefix}']")
    assert Notice.objects.filter(kind="management-key-found").count() == 1


# --- its end


def test_its_owner_is_told_before_it_ends_once_a_week_and_once_a_day_before(alice, bob, time_machine):
    begun = timezone.now()
    key_of(alice, "report")
    key_of(alice, "short", life=timedelta(days=1, hours=12))
    revoked, _ = key_of(bob)
    management_keys.revoke_management_key(bob, revoked)
    for days in (1, 22, 24.5, 29.5, 29.6):
        time_machine.move_to(begun + timedelta(days=days), tick=False)
        expiry_notifications.notify_expiring_management_keys(timezone.now())
    told = Notice.objects.filter(kind="management-key-expires").order_by("pk")
    assert [(notice.user, notice.facts["key"], notice.facts["days"]) for notice in told] == [
        (alice, "report", 6),
        (alice, "report", 1),
    ]


def test_the_chore_that_tells_tells_it(alice, time_machine):
    begun = timezone.now()
    key_of(alice)
    time_machine.move_to(begun + timedelta(days=25), tick=False)
    call_command("sendnotices", stdout=StringIO())
    assert Notice.objects.filter(kind="management-key-expires").exists()


# --- operators


def test_an_operator_revokes_anybody_s_in_the_admin(client, alice, olivia):
    key, text = key_of(alice)
    client.force_login(olivia)
    chosen = {"action": "revoke_management_keys", "_selected_action": [key.pk]}
    assert client.post("/admin/keys/managementkey/", chosen).status_code == 302
    assert management_keys.find_management_key(text) is None
    page = client.get(f"/admin/keys/managementkey/{key.pk}/change/").content.decode()
    assert key.prefix in page
    assert key.digest not in page
