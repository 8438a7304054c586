"""How a synchronisation went: recorded, shown to operators, notified; and done at once when they ask."""

from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.conf import settings
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from portal.accounts import directory_sync, directory_users
from portal.accounts.models import DirectoryState, Membership, Tenant, User
from portal.audit.models import AuditEvent
from portal.keys.lifecycle import issue_key
from portal.notifications.models import Notice
from tests.html import has, one_of
from tests.portal.recorded import notice_facts
from tests.ports import unused_port
from tests.slapd import SUFFIX

pytestmark = pytest.mark.django_db

PAGE = "/operations/directory/"
NOWHERE = {"LDAP_USER_BASE": f"ou=posix,{SUFFIX}"}


@pytest.fixture
def desk(olivia) -> Client:
    client = Client(headers={"accept-language": "en"}, REMOTE_ADDR="10.3.3.3")
    client.force_login(olivia, backend="portal.accounts.backends.LocalBackend")
    return client


def page(desk: Client) -> str:
    return desk.get(PAGE).content.decode()


def fails() -> None:
    with pytest.raises(CommandError):
        call_command("syncdirectory")


def troubles() -> list[tuple[str, str]]:
    return [
        (notice.user.username, notice.facts["problem"]) for notice in Notice.objects.filter(kind="directory-trouble")
    ]


# --- what is written down


def test_it_writes_down_how_it_went(everybody):
    directory_users.deactivate(User.objects.get(username="alice"))
    call_command("syncdirectory")
    state = DirectoryState.objects.get()
    assert (state.tried_at, state.problem, state.detail) == (state.succeeded_at, "", "")
    nothing = {"name_taken": [], "unclear": [], "kept_operator": "", "missing_groups": [], "moved_groups": []}
    assert state.outcome == {"people": 4, "left": 0, "returned": 1, "changed": 0, **nothing}


def test_a_failure_keeps_what_was_last_seen(everybody, connect):
    call_command("syncdirectory")
    before = DirectoryState.objects.get()
    connect(LDAP_SERVER_URI=f"ldap://127.0.0.1:{unused_port()}")
    fails()
    state = DirectoryState.objects.get()
    assert (state.succeeded_at, state.outcome) == (before.succeeded_at, before.outcome)
    assert state.tried_at > before.tried_at
    assert (state.problem, settings.DIRECTORY.servers[0] in state.detail) == ("away", True)


@pytest.mark.parametrize(
    ("mistake", "problem"),
    [
        ({"LDAP_BIND_PASSWORD": "changed last night"}, "refused"),
        (NOWHERE, "implausible"),
    ],
)
def test_it_says_what_kind_of_trouble_it_is(everybody, connect, mistake, problem):
    connect(**mistake)
    fails()
    assert DirectoryState.objects.get().problem == problem


def test_a_fault_of_ours_is_written_down_as_one(everybody, connect, monkeypatch):
    def broken(plan):
        raise KeyError("tenant")

    monkeypatch.setattr(directory_sync, "apply_changes", broken)
    with pytest.raises(KeyError):
        directory_sync.sync_directory(connect())
    state = DirectoryState.objects.get()
    assert (state.problem, state.detail) == ("fault", "KeyError: 'tenant'")


# --- who is notified


def test_operators_are_told_once_of_a_trouble(everybody, connect, olivia):
    User.objects.create_user("retired", is_staff=True, is_active=False)
    connect(LDAP_SERVER_URI=f"ldap://127.0.0.1:{unused_port()}")
    fails()
    fails()
    assert troubles() == [("olivia", "away")]
    connect(**NOWHERE)
    fails()
    assert troubles() == [("olivia", "implausible"), ("olivia", "away")]


def test_the_same_trouble_after_a_success_is_told_again(everybody, connect, olivia):
    for hour in (9, 10):
        connect(LDAP_SERVER_URI=f"ldap://127.0.0.1:{unused_port()}")
        fails()
        with time_machine.travel(datetime(2026, 11, 2, hour, tzinfo=UTC), tick=False):
            directory_sync.sync_directory(connect())
    assert troubles() == [("olivia", "away"), ("olivia", "away")]


# --- whose keys stop


def test_who_lost_a_group_is_told_which_keys_stopped(everybody, directory, door, newcomer):
    moved = door.enter(newcomer("wada", "sales"), "password of wada")
    directory.join("wada", "research")
    directory.leave("wada", "sales")
    Tenant.objects.filter(slug="sales").update(name="営業部")
    sales = Tenant.objects.get(slug="sales")
    issue_key(tenant=sales, user=moved, name="laptop")
    issue_key(tenant=sales, user=moved, name="old", expires_at=timezone.now() - timedelta(days=1))
    call_command("syncdirectory")
    assert notice_facts("membership-ended", user__username="wada") == [{"tenant": "営業部", "keys": 1}]
    assert not moved.keys.usable().exists()


def test_a_leaver_is_told_of_each_tenant(everybody, connect):
    alice = User.objects.get(username="alice")
    Membership.objects.create(user=alice, tenant=Tenant.objects.get(slug="sales"))
    issue_key(tenant=Tenant.objects.get(slug="sales"), user=alice, name="laptop")
    directory_users.deactivate(alice)
    assert sorted(notice_facts("membership-ended", user__username="alice"), key=lambda facts: str(facts["tenant"])) == [
        {"tenant": "research", "keys": 0},
        {"tenant": "sales", "keys": 1},
    ]


def test_who_stays_is_told_nothing(everybody):
    call_command("syncdirectory")
    assert not Notice.objects.filter(kind="membership-ended").exists()


# --- the audit


def events(action: str) -> list[AuditEvent]:
    return list(AuditEvent.objects.filter(action=action).order_by("pk"))


def test_what_the_directory_decided_is_told_as_such(everybody, directory, door, newcomer):
    door.enter(newcomer("wada", "sales"), "password of wada")
    [joined] = [event for event in events("membership.add") if event.object_name == "wada · sales"]
    assert (joined.via, joined.actor, joined.actor_name, joined.address) == ("directory", None, "", None)
    assert joined.after["source"] == "directory"
    directory.leave("wada", "sales")
    call_command("syncdirectory")
    [ended] = events("membership.remove")
    assert (ended.via, ended.actor_name, ended.tenant.slug) == ("directory", "", "sales")
    directory.dismiss("wada")
    call_command("syncdirectory")
    [left] = events("user.leave")
    assert (left.via, left.before["is_active"], left.after["is_active"]) == ("directory", True, False)
    assert "wada" in left.object_name


# --- the page


def test_the_page_says_that_all_is_well(everybody, desk):
    call_command("syncdirectory")
    text = page(desk)
    assert has(text, "h1 .state.fine")
    assert not has(text, ".attention")
    assert "ldap://127.0.0.1" in text
    assert "the service's own password" not in text


def test_the_page_says_what_is_wrong_and_what_to_do(everybody, desk, connect):
    connect(LDAP_BIND_PASSWORD="changed last night")
    fails()
    text = page(desk)
    assert has(text, "h1 .state.broken")
    assert "LDAP_BIND_PASSWORD" in text
    assert "changed last night" not in text
    assert has(desk.get("/operations/"), "#attention a[href='/operations/directory/']")


def test_the_page_says_when_nobody_follows_any_more(everybody, desk):
    directory_sync.sync_directory(settings.DIRECTORY, now=timezone.now() - timedelta(hours=3))
    assert has(page(desk), "h1 .state.watch")
    directory_sync.sync_directory(settings.DIRECTORY, now=timezone.now() - timedelta(hours=2))
    assert not has(page(desk), "h1 .state.watch")


def test_without_a_directory_the_page_says_how_to_connect_one(desk):
    assert has(page(desk), ".empty")
    assert has(desk.post(f"{PAGE}sync/", follow=True), ".empty")
    assert not DirectoryState.objects.exists()


def test_the_page_asks_the_database_for_little(everybody, desk, django_assert_max_num_queries):
    call_command("syncdirectory")
    desk.get(PAGE)
    with django_assert_max_num_queries(9):
        desk.get(PAGE)


# --- following at once


def test_an_operator_has_it_followed_at_once(everybody, desk, directory, door, newcomer):
    leaver = door.enter(newcomer("goto", "sales"), "password of goto")
    directory.dismiss("goto")
    answer = desk.post(f"{PAGE}sync/", follow=True)
    assert has(answer, ".notice.success")
    leaver.refresh_from_db()
    assert not leaver.is_active
    [event] = events("directory.sync")
    assert (event.actor_name, event.address, event.after["left"]) == ("olivia", "10.3.3.3", 1)


def test_what_is_implausible_takes_a_second_decision(everybody, desk, connect):
    connect(**NOWHERE)
    answer = desk.post(f"{PAGE}sync/", follow=True)
    assert "4" in one_of(answer, ".attention .log").text
    assert User.objects.filter(is_active=True).exclude(directory_id=None).count() == 4
    desk.post(f"{PAGE}sync/", {"force": "yes"})
    assert not User.objects.filter(is_active=True).exclude(directory_id=None).exists()
    [event] = events("directory.force")
    assert event.after["left"] == 4


def test_what_a_failure_leaves_undone_the_next_run_does(everybody, connect, monkeypatch):
    """People are written in batches; none of those that are done is undone."""
    User.objects.exclude(directory_id=None).update(first_name="An older one")
    monkeypatch.setattr(directory_sync, "BATCH", 2)
    real, followed = directory_users.apply_entry, []

    def fails_at_the_third(person):
        followed.append(person)
        if len(followed) == 3:
            raise KeyError("tenant")
        return real(person)

    monkeypatch.setattr(directory_users, "apply_entry", fails_at_the_third)
    with pytest.raises(KeyError):
        directory_sync.sync_directory(connect())
    assert User.objects.filter(first_name="An older one").count() == 2
    assert DirectoryState.objects.get().problem == "fault"
    assert directory_sync.sync_directory(connect()).changed == 2
    assert not User.objects.filter(first_name="An older one").exists()
