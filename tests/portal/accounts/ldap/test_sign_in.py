"""Sign-in with the company directory, against a real slapd."""

import contextlib
import json
import socket
import threading
import time

import ldap
import pytest
from axes.models import AccessAttempt
from django.db import connection
from django.test import RequestFactory

from apiproxy.bridge.models import CatalogueRevision
from portal.accounts import directory_users
from portal.accounts import ldap as company
from portal.accounts.ldap import backend
from portal.accounts.ldap import connection as servers
from portal.accounts.models import Membership, Tenant, User
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey
from tests.html import has
from tests.portal.recorded import roles_of
from tests.ports import unused_port
from tests.slapd import (
    PEOPLE,
    SUFFIX,
    SUZUKI_GUID,
    USER_BASE,
    WINDOWS_BASE,
    colleague,
    group_dn,
)

pytestmark = pytest.mark.django_db

TEMPLATE = f"uid=%(user)s,{USER_BASE}"
DIRECT = {"LDAP_USER_DN_TEMPLATE": TEMPLATE, "LDAP_USER_BASE": None, "LDAP_BIND_DN": None, "LDAP_BIND_PASSWORD": None}


def password_of(name: str) -> str:
    return PEOPLE[name].password


@pytest.fixture
def silent_port():
    """Provide a port that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class TestConnections:
    def test_search_and_bind_over_starttls(self, connect, door):
        connect()
        user = door.enter("alice", password_of("alice"))
        assert (user.username, user.first_name, user.last_name) == ("alice", "Alice", "Liddell")
        assert user.email == "person0@example.com"

    def test_search_and_bind_over_ldaps(self, connect, door, directory):
        connect(LDAP_SERVER_URI=directory.tls_uri)
        assert door.enter("alice", password_of("alice"))

    @pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
    def test_a_certificate_of_a_stranger_is_refused(self, connect, door, directory, scheme):
        uri = directory.uri if scheme == "ldap" else directory.tls_uri
        connect(LDAP_SERVER_URI=uri, LDAP_CA_FILE=str(directory.other_ca_file))
        assert door.enter("alice", password_of("alice")) is None
        assert door.error == company.DirectoryUnavailable.code

    def test_a_certificate_for_another_name_is_refused(self, connect, door, directory, caplog):
        uri = directory.uri.replace("127.0.0.1", "localhost")  # the same server; its certificate is for 127.0.0.1
        connect(LDAP_SERVER_URI=uri, LDAP_START_TLS="false", LDAP_CA_FILE=None)
        assert door.enter("alice", password_of("alice"))
        connect(LDAP_SERVER_URI=uri)
        assert door.enter("alice", password_of("alice")) is None
        assert door.error == company.DirectoryUnavailable.code
        assert "127.0.0.1" in caplog.text  # operators read whose certificate it is

    def test_without_encryption_only_when_told_so(self, connect, door):
        connect(LDAP_START_TLS="false", LDAP_CA_FILE=None)
        assert door.enter("alice", password_of("alice"))

    def test_direct_bind_needs_no_account_of_ours(self, connect, door):
        connect(**DIRECT)
        assert roles_of(door.enter("bob", password_of("bob"))) == {"research": "admin"}
        assert door.enter("bob", password_of("alice")) is None

    def test_direct_bind_of_a_name_with_a_comma(self, connect, door):
        connect(**DIRECT)
        assert roles_of(door.enter("smith, john", password_of("smith, john"))) == {"research": "member"}

    def test_direct_bind_by_a_name_that_is_no_dn_is_understood_by_servers_that_know_such(self, connect, door):
        # slapd does not (Active Directory does): it refuses the bind, as it would a wrong password
        connect(**DIRECT | {"LDAP_USER_DN_TEMPLATE": "%(user)s@corp.example", "LDAP_USER_BASE": USER_BASE})
        assert door.enter("alice", password_of("alice")) is None
        assert door.error == "invalid_login"

    def test_the_next_server_is_asked_when_the_first_is_away_or_silent(self, connect, door, directory, silent_port):
        for scheme, uri in (("ldap", directory.uri), ("ldaps", directory.tls_uri)):
            others = f"{scheme}://127.0.0.1:{unused_port()} {scheme}://127.0.0.1:{silent_port}"
            connect(LDAP_SERVER_URI=f"{others}, {uri}", LDAP_TIMEOUT="0.3")
            assert door.enter("alice", password_of("alice"))


class TestPasswords:
    def test_a_wrong_password_is_refused_and_counts(self, connect, door):
        connect()
        assert door.enter("alice", "not her password") is None
        assert door.error == "invalid_login"
        assert AccessAttempt.objects.get().failures_since_start == 1

    def test_an_unknown_name_is_told_the_same(self, connect, door):
        connect()
        door.enter("alice", "not her password")
        about_alice = door.error
        door.enter("nobody-at-all", "some password")
        assert door.error == about_alice

    @pytest.mark.parametrize("mode", [{}, DIRECT])
    def test_an_empty_password_is_refused_although_this_directory_would_take_it(
        self, connect, door, directory, mode, db
    ):
        anonymous = ldap.initialize(directory.uri)
        anonymous.simple_bind_s(PEOPLE["alice"].dn, "")  # no error: RFC 4513's "unauthenticated" bind
        anonymous.unbind_s()
        connect(**mode)
        assert door.enter("alice", "") is None
        request = RequestFactory().post("/")
        assert backend.Backend().authenticate(request, "alice", "") is None
        assert backend.Backend().authenticate(request, "alice", None) is None
        assert not User.objects.exists()

    def test_a_password_of_the_directory_is_not_kept(self, connect, door):
        connect()
        assert not door.enter("alice", password_of("alice")).has_usable_password()

    def test_a_local_password_opens_nothing_for_people_of_the_directory(self, connect, door, settings):
        connect()
        user = door.enter("alice", password_of("alice"))
        user.set_password("set in the admin")
        user.save()
        assert door.enter("alice", "set in the admin") is None
        settings.AUTHENTICATION_BACKENDS = [
            name for name in settings.AUTHENTICATION_BACKENDS if "directory" not in name
        ]
        assert door.enter("alice", "set in the admin") is None


class TestNames:
    @pytest.mark.parametrize("name", ["star*", "a)(uid=b", "smith, john", "100%s", "back\\slash", "佐藤"])
    def test_a_name_is_only_a_name(self, connect, door, name):
        connect()
        user = door.enter(name, password_of(name))
        assert user.username == name
        assert roles_of(user) == {"research": "member"}

    @pytest.mark.parametrize("mode", [{}, DIRECT])
    @pytest.mark.parametrize(
        "name",
        ["*", "ali*", "alice)(uid=*", "*)(objectClass=*", "alice\\2a", f"alice,{USER_BASE}", "alice+cn=Alice Liddell"],
    )
    def test_a_filter_or_dn_in_place_of_a_name_finds_nobody(self, connect, door, name, mode):
        connect(**mode)
        assert door.enter(name, password_of("alice")) is None
        assert door.error == "invalid_login"
        assert not User.objects.exists()

    @pytest.mark.parametrize("mode", [{}, DIRECT])
    def test_upper_and_lower_case_and_full_width_are_one_person(self, connect, door, mode):
        connect(**mode)
        for name in ("alice", "ALICE", "Alice ", "ａｌｉｃｅ"):
            assert door.enter(name, password_of("alice")).username == "alice"
        assert User.objects.count() == 1

    def test_who_may_sign_in_by_mail_is_the_same_person(self, connect, door):
        connect(LDAP_USER_FILTER="(|(uid=%(user)s)(mail=%(user)s))")
        assert door.enter("alice", password_of("alice")) == door.enter("Person0@example.com", password_of("alice"))

    def test_t7_a_name_longer_than_its_column_signs_nobody_in(self, connect, door, newcomer):
        """PostgreSQL would refuse it in the middle of the sign-in; cut off, it might be another person's."""
        connect(LDAP_USER_FILTER="(&(sn=Newcomer)(!(uid=%(user)s)))")
        name = newcomer("x" * 151, "sales")
        assert door.enter("somebody", f"password of {name}") is None
        assert not User.objects.exists()

    def test_a_name_that_finds_two_people_signs_in_neither(self, connect, door):
        connect(LDAP_USER_FILTER="(|(uid=%(user)s)(gidNumber=6000))")
        assert door.enter("alice", password_of("alice")) is None

    def test_attributes_can_be_others(self, connect, door):
        connect(LDAP_FIRST_NAME_ATTRIBUTE="sn", LDAP_LAST_NAME_ATTRIBUTE="cn", LDAP_MAIL_ATTRIBUTE="homeDirectory")
        user = door.enter("yamada", password_of("yamada"))
        assert (user.first_name, user.last_name, user.email) == ("山田", "太郎 山田", "/home/2")


class TestLocalAccounts:
    @pytest.fixture
    def local_alice(self, db) -> User:
        return User.objects.create_user("alice", password="a local password")

    def test_they_work_beside_the_directory(self, connect, door, local_alice):
        connect()
        assert door.enter("Alice", "a local password") == local_alice

    def test_the_directory_never_takes_over_a_name(self, connect, door, local_alice):
        connect()
        assert door.enter("ALICE", password_of("alice")) is None
        local_alice.refresh_from_db()
        assert (local_alice.directory_id, local_alice.first_name) == (None, "")
        assert User.objects.count() == 1

    def test_who_reaches_the_name_by_another_way_is_told_why(self, connect, door, local_alice):
        connect(LDAP_USER_FILTER="(|(uid=%(user)s)(mail=%(user)s))")
        assert door.enter("person0@example.com", password_of("alice")) is None
        assert door.error == company.NameTaken.code
        assert not AccessAttempt.objects.exists()


class TestChanges:
    def test_a_new_name_is_the_same_account(self, connect, door, directory, newcomer):
        connect()
        before = door.enter(newcomer("hanako", "sales"), "password of hanako")
        with directory.as_root() as root:
            root.rename_s(directory.people["hanako"].dn, "uid=hana")
        directory.people["hana"] = colleague("hana", "Hana", "Newcomer")
        del directory.people["hanako"]
        try:
            assert door.enter("hana", "password of hanako") == before
            before.refresh_from_db()
            assert before.username == "hana"
        finally:
            directory.dismiss("hana")

    def test_a_name_that_is_given_anew_inherits_nothing(self, connect, door, directory, newcomer):
        connect()
        first = door.enter(newcomer("kato", "sales"), "password of kato")
        issue_key(tenant=Tenant.objects.get(slug="sales"), user=first, name="laptop")
        directory.dismiss("kato")
        second = door.enter(newcomer("kato", "sales"), "password of kato")
        assert second.pk != first.pk
        assert second.username == "kato"
        assert not second.keys.exists()
        first.refresh_from_db()
        assert first.username == f"kato.former.{first.pk}"

    def test_two_first_sign_ins_at_once_make_one_person(self, transactional_db):
        person = company.Person(
            id="x", username="mori", first_name="", last_name="", mail="", roles={"sales": "member"},
            is_operator=None, is_admitted=True,
        )  # fmt: skip
        together = threading.Barrier(4)
        made = []

        def sign_in() -> None:
            with contextlib.closing(connection):
                together.wait(10)
                made.append(directory_users.apply_entry(person)[0].pk)

        threads = [threading.Thread(target=sign_in) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(made) == 4
        assert set(made) == {User.objects.get().pk}

    def test_what_did_not_change_is_not_written(self, connect, door):
        found = connect()
        door.enter("bob", password_of("bob"))
        before = CatalogueRevision.objects.get().number
        user, changed = directory_users.apply_entry(company.find_person(found, "bob"))
        assert (user.username, changed) == ("bob", False)
        assert CatalogueRevision.objects.get().number == before

    def test_who_left_and_comes_back_is_active_again(self, connect, door):
        connect()
        user = door.enter("alice", password_of("alice"))
        directory_users.deactivate(user)
        assert door.enter("alice", password_of("alice")) == user
        user.refresh_from_db()
        assert (user.is_active, user.left_directory_at) == (True, None)

    def test_whom_an_operator_switched_off_stays_out(self, connect, door):
        connect()
        user = door.enter("alice", password_of("alice"))
        user.is_active = False
        user.save()
        assert door.enter("alice", password_of("alice")) is None
        assert door.error == "inactive"

    def test_an_open_session_ends_with_the_account(self, connect, door):
        connect()
        user = door.enter("alice", password_of("alice"))
        assert door.client.get("/keys/").status_code == 200
        directory_users.deactivate(user)
        assert door.client.get("/keys/").headers["location"].startswith("/sign-in/")


class TestGroups:
    def test_groups_lead_to_tenants_and_the_higher_role_wins(self, connect, door):
        connect()
        assert roles_of(door.enter("alice", password_of("alice"))) == {"research": "member"}
        assert roles_of(door.enter("bob", password_of("bob"))) == {"research": "admin"}
        assert roles_of(door.enter("charlie", password_of("charlie"))) == {"sales": "member"}

    def test_one_group_may_lead_to_several_tenants(self, connect, door):
        connect(LDAP_GROUP_TENANTS=json.dumps({group_dn("sales"): ["sales", "research:admin"]}))
        assert roles_of(door.enter("charlie", password_of("charlie"))) == {"sales": "member", "research": "admin"}

    def test_groups_within_groups_count(self, connect, door):
        connect()
        assert roles_of(door.enter("yamada", password_of("yamada"))) == {"research": "member"}

    def test_groups_within_groups_count_only_if_wanted(self, connect, door):
        connect(LDAP_NESTED_GROUPS="false")
        assert roles_of(door.enter("yamada", password_of("yamada"))) == {}
        assert roles_of(door.enter("alice", password_of("alice"))) == {"research": "member"}

    def test_groups_that_hold_each_other_do_no_harm(self, connect, door):
        connect(LDAP_GROUP_TENANTS=json.dumps({group_dn("circle"): "everybody"}))
        assert roles_of(door.enter("yamada", password_of("yamada"))) == {"everybody": "member"}

    def test_groups_by_memberof(self, connect, door):
        connect(LDAP_GROUP_TYPE="memberOf", LDAP_GROUP_BASE=None)
        assert roles_of(door.enter("bob", password_of("bob"))) == {"research": "admin"}

    def test_posix_groups_by_list_and_as_primary_group(self, connect, door):
        mapping = json.dumps({f"cn=unix-research,ou=posix,{SUFFIX}": "research"})
        connect(LDAP_GROUP_TYPE="memberUid", LDAP_GROUP_BASE=f"ou=posix,{SUFFIX}", LDAP_GROUP_TENANTS=mapping)
        assert roles_of(door.enter("alice", password_of("alice"))) == {"research": "member"}
        assert roles_of(door.enter("bob", password_of("bob"))) == {"research": "member"}
        assert roles_of(door.enter("charlie", password_of("charlie"))) == {}

    def test_dns_may_be_written_in_another_way(self, connect, door):
        other = group_dn("research").upper().replace(",", " , ")
        connect(LDAP_GROUP_TENANTS=json.dumps({other: "research"}))
        assert roles_of(door.enter("alice", password_of("alice"))) == {"research": "member"}

    def test_memberships_follow_the_directory_at_every_sign_in(self, connect, door, directory, newcomer):
        connect()
        name = newcomer("mika", "sales")
        user = door.enter(name, "password of mika")
        assert roles_of(user) == {"sales": "member"}
        directory.join(name, "research-leads")
        directory.leave(name, "sales")
        assert roles_of(door.enter(name, "password of mika")) == {"research": "admin"}
        directory.join(name, "research")
        directory.leave(name, "research-leads")
        assert roles_of(door.enter(name, "password of mika")) == {"research": "member"}
        directory.leave(name, "research")
        assert roles_of(door.enter(name, "password of mika")) == {}

    def test_memberships_set_by_hand_are_left_alone(self, connect, door, sales, research):
        connect()
        user = door.enter("alice", password_of("alice"))
        user.memberships.all().delete()
        Membership.objects.create(user=user, tenant=sales)
        Membership.objects.create(user=user, tenant=research, role="admin")
        assert roles_of(door.enter("alice", password_of("alice"))) == {"sales": "member", "research": "admin"}

    def test_tenants_are_made_when_first_needed_and_keep_their_names(self, connect, door, sales):
        connect()
        door.enter("charlie", password_of("charlie"))
        door.enter("alice", password_of("alice"))
        assert dict(Tenant.objects.values_list("slug", "name")) == {"sales": "営業部", "research": "research"}

    def test_who_is_in_no_tenant_gets_in_and_is_told_whom_to_ask(self, connect, door):
        connect()
        user = door.enter("dave", password_of("dave"))
        assert roles_of(user) == {}
        assert has(door.client.get("/"), "#no-tenant")

    def test_operators_follow_their_group_both_ways(self, connect, door, directory, newcomer, olivia):
        connect()
        name = newcomer("ops", "operators")
        user = door.enter(name, "password of ops")
        assert (user.is_staff, user.is_superuser) == (True, True)
        directory.leave(name, "operators")
        user = door.enter(name, "password of ops")
        assert (user.is_staff, user.is_superuser) == (False, False)

    def test_operators_are_set_by_hand_if_no_group_is_named(self, connect, door):
        connect(LDAP_OPERATOR_GROUP=None)
        user = door.enter("alice", password_of("alice"))
        user.is_staff = True
        user.save()
        assert door.enter("alice", password_of("alice")).is_staff

    def test_who_is_not_in_the_required_group_stays_out_and_knows_why(self, connect, door):
        connect(LDAP_REQUIRED_GROUP=group_dn("employees"))
        assert door.enter("dave", password_of("dave"))
        assert door.enter("erin", "wrong") is None
        assert door.error == "invalid_login"
        assert door.enter("erin", password_of("erin")) is None
        assert door.error == company.NotAdmitted.code
        assert AccessAttempt.objects.get().failures_since_start == 1
        assert not User.objects.filter(username="erin").exists()


class TestTrouble:
    """None of this is the person's fault: it is said as what it is, and is no failed attempt."""

    def nobody_enters_and_nothing_counts(self, door):
        for _ in range(7):
            assert door.enter("alice", password_of("alice")) is None
            assert door.response.status_code == 503
        assert not AccessAttempt.objects.exists()
        assert not User.objects.filter(username="alice").exists()

    @pytest.mark.parametrize("mode", [{}, DIRECT])
    @pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
    def test_the_directory_is_down(self, connect, door, scheme, mode):
        connect(**mode | {"LDAP_SERVER_URI": f"{scheme}://127.0.0.1:{unused_port()}"})
        self.nobody_enters_and_nothing_counts(door)
        assert door.error == company.DirectoryUnavailable.code

    def test_a_host_name_that_does_not_exist(self, connect, door):
        connect(LDAP_SERVER_URI="ldaps://directory.invalid")
        assert door.enter("alice", password_of("alice")) is None
        assert door.error == company.DirectoryUnavailable.code

    @pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
    def test_the_directory_accepts_connections_and_hangs(self, connect, door, directory, scheme):
        uri = directory.uri if scheme == "ldap" else directory.tls_uri
        connect(LDAP_SERVER_URI=uri, LDAP_TIMEOUT="0.3")
        with directory.frozen():
            begin = time.monotonic()
            assert door.enter("alice", password_of("alice")) is None
            assert time.monotonic() - begin < 3
        assert door.error == company.DirectoryUnavailable.code
        assert door.enter("alice", password_of("alice"))

    def test_the_directory_hangs_in_the_middle(self, connect, door, directory, monkeypatch):
        connect(LDAP_TIMEOUT="0.3")
        check = servers.check_answer
        with contextlib.ExitStack() as until_the_end:

            def answer_and_hang(server: str, timeout: float) -> None:
                check(server, timeout)
                until_the_end.enter_context(directory.frozen())

            monkeypatch.setattr(servers, "check_answer", answer_and_hang)
            assert door.enter("alice", password_of("alice")) is None
        assert door.error == company.DirectoryUnavailable.code

    def test_local_accounts_work_meanwhile_and_their_failures_count(self, connect, door, olivia):
        connect(LDAP_SERVER_URI=f"ldap://127.0.0.1:{unused_port()}")
        assert door.enter("olivia", "correct horse") == olivia
        assert door.enter("olivia", "wrong") is None
        assert door.error == "invalid_login"
        assert AccessAttempt.objects.get().failures_since_start == 1

    @pytest.mark.parametrize(
        "mistake",
        [
            {"LDAP_BIND_PASSWORD": "changed last night"},
            {"LDAP_USER_BASE": f"ou=nowhere,{SUFFIX}"},
            {"LDAP_GROUP_BASE": f"ou=nowhere,{SUFFIX}"},
            {"LDAP_ID_ATTRIBUTE": "employeeNumber"},
            {"LDAP_BIND_DN": None, "LDAP_BIND_PASSWORD": None},  # no account may search here
        ],
    )
    def test_our_own_settings_are_wrong(self, connect, door, mistake):
        connect(**mistake)
        self.nobody_enters_and_nothing_counts(door)
        assert door.error == company.DirectoryRefused.code


class TestActiveDirectory:
    """What of it can be tried with slapd. deploy/LDAP.md says what was tried with a real domain."""

    WINDOWS = {
        "LDAP_KIND": "activedirectory",
        "LDAP_USER_BASE": WINDOWS_BASE,
        "LDAP_NESTED_GROUPS": "false",  # slapd does not know the rule by which the other server follows groups
    }

    def test_people_are_found_by_account_name_and_known_by_guid(self, connect, door):
        found = connect(**self.WINDOWS)
        user = door.enter("SUZUKI", "password of Suzuki")
        assert user.username == "suzuki"
        assert user.directory_id == "a1c7d07b-28ff-4b6c-9a3e-2a28295c00d3"
        assert list(company.look_up_people(found, [user.directory_id]).people) == [user.directory_id]
        assert SUZUKI_GUID.hex().startswith("7bd0c7a1")  # Windows writes the first groups of bytes backwards

    def test_who_is_disabled_there_is_not_found(self, connect, door):
        connect(**self.WINDOWS)
        assert door.enter("tanaka", "password of Tanaka") is None

    @pytest.mark.parametrize(
        ("answer", "same"),
        [([b"\1alice", b"\1users"], True), ([b"\1bob", b"\1users"], False), ([], False), ([b""], False)],
    )
    def test_who_bound_must_be_who_was_found(self, connect, answer, same):
        class Connection:
            def search_s(self, base, scope, attrlist):
                assert (base, scope, attrlist) == ("", ldap.SCOPE_BASE, ["tokenGroups"])
                return [("", {"tokenGroups": answer})]

        class Found:
            connection = Connection()
            attrs = {"objectSid": ["\1alice" if answer != [b""] else ""]}

        assert backend.is_bound_as(connect(**self.WINDOWS), Found) is same

    @pytest.mark.parametrize(("who", "same"), [("alice", True), ("bob", False)])
    def test_elsewhere_the_server_is_asked_who_one_is(self, connect, directory, who, same):
        bound = ldap.initialize(directory.uri)
        bound.simple_bind_s(PEOPLE[who].dn, password_of(who))

        class Found:
            connection = bound
            dn = PEOPLE["alice"].dn.upper()

        assert backend.is_bound_as(connect(), Found) is same
        bound.unbind_s()


def test_a_leaver_s_keys_stop(connect, door):
    connect()
    user = door.enter("alice", password_of("alice"))
    issue_key(tenant=Tenant.objects.get(slug="research"), user=user, name="laptop")
    assert ApiKey.objects.usable().count() == 1
    directory_users.deactivate(user)
    assert ApiKey.objects.usable().count() == 0
