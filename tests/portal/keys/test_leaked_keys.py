"""A leaked key is revoked by any person who is signed in, also if another owns it."""

import pytest

from portal.audit.models import AuditEvent
from portal.keys import secret
from portal.keys.lifecycle import issue_key, revoke_key
from portal.keys.models import ApiKey
from tests.html import all_of, has

pytestmark = pytest.mark.django_db


@pytest.fixture
def key(alice, research) -> str:
    return issue_key(tenant=research, user=alice, name="laptop")[1]


def paste(client, who, text: str, *, status: int = 200) -> str:
    client.force_login(who)
    response = client.post("/keys/found/", {"text": text})
    assert response.status_code == status
    return response.content.decode()


def test_a_stranger_ends_it_and_its_owner_sees_why(client, charlie, alice, key):
    page = paste(client, charlie, f"curl -H 'Authorization: Bearer {key}' http://…")
    row = ApiKey.objects.get()
    assert row.revoked_at is not None
    assert has(page, f"[data-revoked='{row.prefix}']")
    assert row.revoked_because == "leaked"
    client.force_login(alice)
    assert has(client.get(f"/keys/{row.prefix}/"), "[data-leaked]")


def test_it_is_never_sent_back_nor_kept(client, charlie, key):
    assert key not in paste(client, charlie, key)
    assert key not in paste(client, charlie, key + "x" * 100_000, status=400)
    event = AuditEvent.objects.filter(action="key.revoke").get()
    assert (event.actor, event.after["revoked_because"]) == (charlie, "leaked")
    assert key not in str(AuditEvent.objects.values_list("before", "after"))


def test_all_keys_of_a_text_are_ended_once(client, charlie, alice, research, key):
    _, other = issue_key(tenant=research, service="Dify", name="Dify")
    page = paste(client, charlie, f"{key},{other}\n{key}")
    assert len(all_of(page, "[data-revoked]")) == 2
    assert has(paste(client, charlie, other), f"[data-revoked-before='{other[:12]}']")


def test_a_key_that_was_revoked_before_keeps_its_reason(client, charlie, key):
    revoke_key(ApiKey.objects.get(), because="rotated")
    paste(client, charlie, key)
    assert ApiKey.objects.get().revoked_because == "rotated"


@pytest.mark.parametrize(
    ("text", "shown", "status"),
    [("nothing here", "[data-none]", 200), ("mdg_abcdefgh", "[data-none]", 200), ("", "#id_text_error", 400)],
)
def test_what_is_no_key_is_said_to_be_none(client, charlie, key, text, shown, status):
    assert has(paste(client, charlie, text, status=status), shown)
    assert ApiKey.objects.get().revoked_at is None


def test_a_key_of_nobody_is_told_from_a_part_of_one(client, charlie):
    assert has(paste(client, charlie, secret.make_secret()), "[data-strange]")


def test_a_prefix_is_not_enough(client, charlie, key):
    paste(client, charlie, ApiKey.objects.get().prefix)
    assert ApiKey.objects.get().revoked_at is None
