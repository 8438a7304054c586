"""manage.py syncdirectory, against a real slapd."""

from typing import Any

import ldap
import pytest
from django.core.management import CommandError, call_command

from apiproxy.bridge.models import CatalogueRevision
from portal.accounts import directory_sync, directory_users
from portal.accounts import ldap as company
from portal.accounts.ldap import entries
from portal.accounts.models import Membership, Tenant, User
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey
from tests.ports import unused_port
from tests.slapd import SUFFIX, colleague, group_dn

pytestmark = pytest.mark.django_db


def sync(capsys, *arguments: str) -> str:
    call_command("syncdirectory", *arguments)
    return capsys.readouterr().out.strip()


def outcome(people: int, *, left: int = 0, returned: int = 0, changed: int = 0, **more: Any) -> str:
    """Return what the command prints of this outcome."""
    return str(directory_sync.Outcome(people=people, left=left, returned=returned, changed=changed, **more))


def refusal(*arguments: str) -> CommandError:
    """Return the error with which the command refuses; asserts that nothing was changed."""
    before = facts()
    with pytest.raises(CommandError) as caught:
        call_command("syncdirectory", *arguments)
    assert facts() == before
    return caught.value


def cause_of(error: CommandError) -> str:
    """Return the cause that was found in the directory."""
    assert isinstance(error.__cause__, company.DirectoryError)
    return error.__cause__.cause


def losing_of(error: CommandError) -> tuple[int, int]:
    """Return how many would have lost their access, of how many."""
    assert isinstance(error.__cause__, directory_sync.SuspiciousChange)
    return error.__cause__.losing, error.__cause__.ours


def facts() -> list[object]:
    return [
        list(User.objects.order_by("pk").values()),
        list(Membership.objects.order_by("pk").values()),
        CatalogueRevision.objects.get().number,
    ]


def test_without_changes_nothing_is_written(everybody, capsys):
    before = facts()
    assert sync(capsys) == outcome(4)
    assert facts() == before


def test_a_leaver_is_disabled_and_their_keys_stop(everybody, door, directory, newcomer, capsys):
    leaver = door.enter(newcomer("goto", "sales"), "password of goto")
    issue_key(tenant=Tenant.objects.get(slug="sales"), user=leaver, name="laptop")
    directory.dismiss("goto")
    revision = CatalogueRevision.objects.get().number
    assert sync(capsys) == outcome(5, left=1)
    leaver.refresh_from_db()
    assert (leaver.is_active, leaver.left_directory_at is None) == (False, False)
    assert not ApiKey.objects.usable().exists()
    assert CatalogueRevision.objects.get().number > revision  # gateways are notified
    assert sync(capsys) == outcome(5)


def test_who_comes_back_is_let_in_again(everybody, capsys):
    alice = User.objects.get(username="alice")
    sync(capsys)
    directory_users.deactivate(alice)
    assert sync(capsys) == outcome(4, returned=1)
    alice.refresh_from_db()
    assert (alice.is_active, alice.left_directory_at) == (True, None)


def test_whom_an_operator_switched_off_stays_off(everybody, capsys):
    User.objects.filter(username="alice").update(is_active=False)
    assert sync(capsys) == outcome(4)
    assert not User.objects.get(username="alice").is_active


def test_names_and_memberships_are_refreshed(everybody, door, directory, newcomer, capsys):
    moved = door.enter(newcomer("wada", "sales"), "password of wada")
    directory.join("wada", "research-leads")
    directory.leave("wada", "sales")
    with directory.as_root() as root:
        root.modify_s(directory.people["wada"].dn, [(ldap.MOD_REPLACE, "sn", ["和田".encode()])])
    assert sync(capsys) == outcome(5, changed=1)
    moved.refresh_from_db()
    assert moved.last_name == "和田"
    assert [(place.tenant.slug, place.role) for place in moved.memberships.all()] == [("research", "admin")]


def test_memberships_set_by_hand_and_local_accounts_are_left_alone(everybody, olivia, capsys):
    Membership.objects.create(user=User.objects.get(username="alice"), tenant=Tenant.objects.get(slug="sales"))
    before = facts()
    sync(capsys)
    assert facts() == before


def test_who_lost_the_required_group_is_disabled(everybody, connect, door, directory, newcomer, capsys):
    leaver = door.enter(newcomer("honda", "sales"), "password of honda")
    connect(LDAP_REQUIRED_GROUP=group_dn("employees"))
    assert sync(capsys) == outcome(5)
    directory.leave("honda", "sales")
    assert sync(capsys) == outcome(5, left=1)
    leaver.refresh_from_db()
    assert not leaver.is_active


def test_a_new_name_is_no_leaver(everybody, door, directory, newcomer, capsys):
    person = door.enter(newcomer("sato-h", "sales"), "password of sato-h")
    with directory.as_root() as root:
        root.rename_s(directory.people.pop("sato-h").dn, "uid=ito-h")
    directory.people["ito-h"] = colleague("ito-h", "H", "Ito")
    try:
        assert sync(capsys) == outcome(5, changed=1)
    finally:
        directory.dismiss("ito-h")
    person.refresh_from_db()
    assert (person.username, person.is_active) == ("ito-h", True)


def test_a_new_name_that_a_local_account_has_is_reported_and_the_rest_goes_on(
    everybody, door, directory, newcomer, capsys
):
    person = door.enter(newcomer("abe", "sales"), "password of abe")
    User.objects.filter(pk=person.pk).update(username="an-older-name")
    User.objects.create_user("abe", password="local")
    User.objects.filter(username="bob").update(first_name="An older one")
    assert sync(capsys) == outcome(5, changed=1, name_taken=("abe",))


class TestImplausible:
    @pytest.mark.parametrize("uri", ["ldap://127.0.0.1:{}", "ldaps://127.0.0.1:{}"])
    def test_a_directory_that_is_away_changes_nothing(self, everybody, connect, uri):
        connect(LDAP_SERVER_URI=uri.format(unused_port()))
        assert cause_of(refusal()) == cause_of(refusal("--force")) == "connection-refused"

    def test_a_directory_that_hangs_changes_nothing(self, everybody, connect, directory):
        connect(LDAP_TIMEOUT="0.3")
        with directory.frozen():
            assert cause_of(refusal()) == "time-out"

    def test_a_wrong_password_of_ours_changes_nothing(self, everybody, connect):
        connect(LDAP_BIND_PASSWORD="changed last night")
        assert cause_of(refusal()) == "INVALID_CREDENTIALS"

    @pytest.mark.parametrize("base", [f"ou=posix,{SUFFIX}", f"ou=nowhere,{SUFFIX}"], ids=["empty", "not there"])
    def test_an_empty_directory_changes_nothing(self, everybody, connect, base):
        connect(LDAP_USER_BASE=base)
        refusal()

    def test_an_empty_directory_is_believed_when_forced(self, everybody, connect, capsys):
        connect(LDAP_USER_BASE=f"ou=posix,{SUFFIX}")
        assert losing_of(refusal()) == (4, 4)
        assert sync(capsys, "--force") == outcome(4, left=4)
        assert not User.objects.filter(is_active=True).exists()

    def test_half_of_the_people_may_go_and_more_may_not(self, everybody, connect, capsys):
        connect(LDAP_REQUIRED_GROUP=group_dn("sales"))  # charlie's
        assert losing_of(refusal()) == (3, 4)
        connect(LDAP_USER_FILTER="(&(|(uid=alice)(uid=bob))(uid=%(user)s))")
        assert sync(capsys) == outcome(4, left=2)

    def test_two_of_three_are_more_than_half(self, everybody, connect):
        User.objects.get(username="charlie").delete()
        connect(LDAP_USER_FILTER="(&(uid=alice)(uid=%(user)s))")
        assert losing_of(refusal()) == (2, 3)

    def test_groups_that_suddenly_hold_nobody_change_nothing(self, everybody, connect):
        connect(LDAP_GROUP_TYPE="uniqueMember")
        assert losing_of(refusal()) == (4, 4)

    def test_it_says_when_it_has_no_account_to_ask_with(self, everybody, connect):
        connect(LDAP_USER_DN_TEMPLATE=f"uid=%(user)s,ou=people,{SUFFIX}", LDAP_BIND_DN=None, LDAP_BIND_PASSWORD=None)
        assert cause_of(refusal()) == "no-account"


def test_without_a_directory_it_says_so():
    with pytest.raises(CommandError, match="LDAP_SERVER_URI"):
        call_command("syncdirectory")


class TestAdopt:
    def test_a_local_account_becomes_the_directory_s_when_an_operator_says_so(self, connect, door, directory, capsys):
        connect()
        local = User.objects.create_user("alice", password="a local password")
        issue_key(tenant=_member_of_sales(local), user=local, name="laptop")
        assert "alice" in sync(capsys, "--adopt", "Alice")
        assert door.enter("alice", "a local password") is None
        assert door.enter("alice", directory.people["alice"].password) == local
        assert local.keys.count() == 1

    @pytest.mark.parametrize(
        ("name", "named"),
        [("nobody", "nobody"), ("local-only", "checkdirectory local-only"), ("bob", "bob")],
    )
    def test_what_cannot_be_adopted_is_said(self, connect, door, directory, name, named):
        connect()
        door.enter("bob", directory.people["bob"].password)
        User.objects.create_user("local-only", password="x")
        assert named in str(refusal("--adopt", name))


def _member_of_sales(user: User) -> Tenant:
    tenant = Tenant.objects.create(slug="sales", name="営業部")
    Membership.objects.create(user=user, tenant=tenant)
    return tenant


def test_more_people_than_fit_one_question_are_all_found(connect, everybody):
    ids = list(User.objects.values_list("directory_id", flat=True))
    strangers = [f"00000000-0000-0000-0000-{number:012d}" for number in range(3 * entries.CHUNK)]
    assert set(company.look_up_people(connect(), ids + strangers).people) == set(ids)


def test_t6_places_given_by_hand_are_none_that_a_sync_takes(connect, door, newcomer):
    """Else a few such people would make every run look as if most lost their access."""
    server = connect()
    guest = door.enter(newcomer("goto"), "password of goto")
    Membership.objects.create(user=guest, tenant=Tenant.objects.create(slug="guests", name="Guests"))
    plan = directory_sync.plan_changes(server)
    assert (plan.ours, plan.staying, plan.losing) == (1, 1, 0)
    plan.check()
