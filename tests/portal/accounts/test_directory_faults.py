"""Faults that were seen with OpenLDAP, each with its number: accounts that ended, groups that went, servers, limits."""

import json
import logging
import socketserver
import threading
from collections.abc import Callable, Iterator

import environs
import ldap
import pytest
from axes.models import AccessAttempt
from django.core.management import CommandError, call_command

from portal.accounts import ldap as company
from portal.accounts.ldap import connection as servers
from portal.accounts.ldap import groups as company_groups
from portal.accounts.models import DirectoryState, Tenant, User
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey
from portal.notifications.models import Notice
from tests.portal.recorded import roles_of
from tests.ports import unused_port
from tests.slapd import GROUP_BASE, POLICY_DN, ROOT_DN, SUFFIX, TENANTS, Directory, group_dn

pytestmark = pytest.mark.django_db


@pytest.fixture
def strict(directory, newcomer) -> str:
    """Provide a person to whose password the policy applies."""
    name = newcomer("nakata", "sales")
    directory.change(name, pwdPolicySubentry=POLICY_DN)
    return name


class TestAccounts:
    @pytest.mark.parametrize(
        ("attribute", "value"),
        [
            ("pwdAccountLockedTime", "000001010000Z"),
            ("nsAccountLock", "TRUE"),
            ("shadowExpire", "19000"),
        ],
    )
    def test_d1_the_keys_of_an_account_that_ended_stop(self, connect, door, directory, strict, attribute, value):
        connect()
        assert door.enter("alice", "password of alice")  # one of two may go without --force
        user = door.enter(strict, f"password of {strict}")
        issue_key(tenant=Tenant.objects.get(slug="sales"), user=user, name="laptop")
        with directory.as_root() as root:
            root.modify_s(directory.people[strict].dn, [(ldap.MOD_ADD, "objectClass", [b"shadowAccount", b"lockable"])])
        directory.change(strict, **{attribute: value})
        call_command("syncdirectory")
        user.refresh_from_db()
        assert not user.is_active
        assert not ApiKey.objects.usable().exists()
        assert door.enter(strict, f"password of {strict}") is None
        # The server reports a lock whatever was typed, so the person reads no more than a stranger would.
        is_hidden = attribute == "pwdAccountLockedTime"
        assert (door.error == "invalid_login") is AccessAttempt.objects.exists() is is_hidden
        directory.change(strict, **{attribute: ""})
        call_command("syncdirectory")
        assert ApiKey.objects.usable().exists()

    @pytest.mark.parametrize(
        ("attributes", "kind"),
        [
            ({"pwdChangedTime": "20200101000000Z"}, company.PasswordExpired),
            ({"pwdReset": "TRUE"}, company.PasswordMustChange),
        ],
    )
    def test_d4_each_cause_has_its_sentence_and_counts_as_no_attempt(
        self, connect, door, directory, strict, attributes, kind
    ):
        connect()
        directory.change(strict, **attributes)
        assert door.enter(strict, f"password of {strict}") is None
        assert door.error == kind.code
        assert not AccessAttempt.objects.exists()
        assert door.enter(strict, "wrong") is None  # and a stranger learns nothing
        assert door.error == "invalid_login"

    def test_d4_a_lock_is_told_and_stops_no_keys(self, connect, door, strict):
        connect()
        user = door.enter(strict, f"password of {strict}")
        for _ in range(2):
            door.enter(strict, "wrong")
        assert door.enter(strict, f"password of {strict}") is None
        assert door.error == company.AccountLocked.code
        call_command("syncdirectory")
        user.refresh_from_db()
        assert user.is_active

    def test_d4_mail_addresses_and_names_are_one_person(self, connect, door):
        connect()
        assert door.enter("Person0@example.com", "password of alice") == door.enter("alice", "password of alice")

    def test_d4_an_entry_that_cannot_be_used_does_not_end_the_sync(self, connect, door, directory, newcomer):
        connect()
        assert door.enter("alice", "password of alice")
        user = door.enter(newcomer("kojima", "sales"), "password of kojima")
        User.objects.filter(username="alice").update(first_name="An older one")
        with directory.as_root() as root:
            root.rename_s(directory.people["kojima"].dn, f"uid={'k' * 151}")
        try:
            call_command("syncdirectory")
        finally:
            with directory.as_root() as root:
                root.rename_s(f"uid={'k' * 151},ou=people,{SUFFIX}", "uid=kojima")
        assert DirectoryState.objects.get().outcome["unclear"] == ["kojima"]
        user.refresh_from_db()
        assert user.is_active
        assert roles_of(user) == {"sales": "member"}
        assert User.objects.get(username="alice").first_name == "Alice"


class TestGroups:
    @pytest.fixture
    def renamed(self, directory: Directory) -> Iterator[Callable[..., None]]:
        """Provide a function that renames a group; at the end rename it back."""
        done = []

        def rename(name: str, new: str, superior: str = GROUP_BASE) -> None:
            with directory.as_root() as root:
                root.rename_s(group_dn(name), f"cn={new}", superior)
            done.append((name, new, superior))

        yield rename
        with directory.as_root() as root:
            for name, new, superior in done:
                root.rename_s(f"cn={new},{superior}", f"cn={name}", GROUP_BASE)

    def problems(self) -> set[tuple[str, str]]:
        return {
            (notice.facts["problem"], notice.facts["settings"])
            for notice in Notice.objects.filter(kind="directory-group")
        }

    def test_d2_a_renamed_group_is_followed_and_told(self, connect, door, olivia, renamed):
        connect()
        user = door.enter("charlie", "password of charlie")
        call_command("syncdirectory")
        renamed("sales", "field-sales")
        call_command("syncdirectory")
        assert roles_of(user) == {"sales": "member"}
        assert roles_of(door.enter("charlie", "password of charlie")) == {"sales": "member"}
        assert self.problems() == {("moved", "LDAP_GROUP_TENANTS")}

    def test_d2_a_group_that_was_never_found_changes_nothing_and_is_told(self, connect, door, olivia):
        connect()
        users = [door.enter(name, f"password of {name}") for name in ("alice", "bob", "charlie")]
        before = [roles_of(user) for user in users]
        connect(LDAP_GROUP_TENANTS=json.dumps({f"cn=gone,{GROUP_BASE}": ["research", "sales"]}))
        with pytest.raises(CommandError, match="cn=gone"):
            call_command("syncdirectory")
        outcome = DirectoryState.objects.get().outcome
        assert [outcome[name] for name in ("people", "left", "returned", "changed")] == [3, 0, 0, 0]
        assert [roles_of(user) for user in users] == before
        assert self.problems() == {("missing", "LDAP_GROUP_TENANTS")}

    def test_d2_found_again_it_is_followed_again(self, connect, door, olivia, directory, renamed):
        connect()
        user = door.enter("charlie", "password of charlie")
        renamed("sales", "field-sales", f"ou=posix,{SUFFIX}")  # outside of where groups are, so not even by its id
        with pytest.raises(CommandError):
            call_command("syncdirectory")
        assert roles_of(user) == {"sales": "member"}
        connect(LDAP_GROUP_TENANTS=json.dumps({**TENANTS, f"cn=field-sales,ou=posix,{SUFFIX}": "sales:admin"}))
        with pytest.raises(CommandError):
            call_command("syncdirectory")
        assert roles_of(user) == {"sales": "admin"}

    def test_d2_what_is_gone_again_is_told_again(self, connect, door, olivia, directory):
        connect()
        elsewhere = f"ou=posix,{SUFFIX}"
        assert door.enter("charlie", "password of charlie")
        for _ in range(2):
            with directory.as_root() as root:
                root.rename_s(group_dn("sales"), "cn=sales", elsewhere)
            try:
                with pytest.raises(CommandError):
                    call_command("syncdirectory")
            finally:
                with directory.as_root() as root:
                    root.rename_s(f"cn=sales,{elsewhere}", "cn=sales", GROUP_BASE)
            call_command("syncdirectory")
        assert Notice.objects.filter(kind="directory-group", facts__problem="missing").count() == 2

    def test_d2_a_group_that_is_gone_is_told_also_when_nothing_else_is_believed(self, connect, door, olivia):
        connect()
        assert door.enter("charlie", "password of charlie")
        connect(
            LDAP_USER_BASE=f"ou=posix,{SUFFIX}", LDAP_OPERATOR_GROUP=f"cn=gone,{GROUP_BASE}"
        )  # where there are no people
        with pytest.raises(CommandError):
            call_command("syncdirectory")
        assert self.problems() == {("missing", "LDAP_OPERATOR_GROUP")}

    def test_the_page_names_groups_that_are_not_where_they_should_be(self, connect, door, olivia, renamed, client):
        connect()
        assert door.enter("charlie", "password of charlie")
        call_command("syncdirectory")
        renamed("sales", "field-sales")
        call_command("syncdirectory")
        client.force_login(olivia, backend="portal.accounts.backends.LocalBackend")
        page = client.get("/operations/directory/").content.decode()
        assert 'id="groups"' in page
        assert f"cn=field-sales,{GROUP_BASE}" in page
        assert DirectoryState.objects.get().problem == ""

    @pytest.mark.parametrize("few", [company_groups.MAX_SINGLE_READS, 0])
    def test_groups_and_people_may_be_in_one_place(self, connect, door, monkeypatch, few):
        monkeypatch.setattr(company_groups, "MAX_SINGLE_READS", few)  # 0: all groups are listed instead
        connect(LDAP_USER_BASE=SUFFIX, LDAP_GROUP_BASE=SUFFIX)
        assert roles_of(door.enter("yamada", "password of yamada")) == {"research": "member"}
        assert roles_of(door.enter("dave", "password of dave")) == {}


MANY = 600  # groups; OpenLDAP gives 500 entries by default


@pytest.fixture(scope="class")
def many(directory: Directory) -> Iterator[list[str]]:
    """Make as many groups, each with the same eleven people, and return their names."""
    people = [directory.hire(f"clerk{number}", "sales").uid for number in range(11)]
    members = [ROOT_DN.encode(), *(directory.people[name].dn.encode() for name in people)]
    with directory.as_root() as root:
        for number in range(MANY):
            entry = [("objectClass", [b"groupOfNames"]), ("cn", [b"many%d" % number]), ("member", members)]
            root.add_s(group_dn(f"many{number}"), entry)
    yield people
    with directory.as_root() as root:
        for number in range(MANY):
            root.delete_s(group_dn(f"many{number}"))
    for name in people:
        directory.dismiss(name)


class TestManyGroups:
    @pytest.mark.parametrize("base", [GROUP_BASE, SUFFIX])
    def test_d4_who_is_in_more_groups_than_the_server_gives_signs_in(self, connect, door, many, monkeypatch, base):
        monkeypatch.setattr(company_groups, "MAX_SINGLE_READS", 0)
        connect(LDAP_GROUP_BASE=base, LDAP_USER_BASE=SUFFIX)
        assert roles_of(door.enter("clerk0", "password of clerk0")) == {"sales": "member"}

    def test_d4_a_sync_asks_by_group_and_not_by_person(self, connect, door, many, monkeypatch):
        found = connect()
        users = [door.enter(name, f"password of {name}") for name in many]
        questions = []
        ask = servers.LdapConnection.search_ext

        def count(self, *arguments, **more):
            questions.append(arguments)
            return ask(self, *arguments, **more)

        monkeypatch.setattr(servers.LdapConnection, "search_ext", count)
        people = company.look_up_people(found, [user.directory_id for user in users]).people
        assert [dict(people[user.directory_id].roles) for user in users] == [{"sales": "member"}] * len(many)
        # the two bases, each group looked up and read, the group within one tried and read, and everybody at once
        assert len(questions) == 2 + 2 * len(found.groups) + 2 + 1


class WithoutTls(socketserver.BaseRequestHandler):
    """Of LDAP just enough: it finds nothing, and does not know StartTLS."""

    def handle(self) -> None:
        while request := self.request.recv(4096):
            number, operation = request[4], request[5]
            if operation == 0x42:  # unbind
                return
            result = {0x63: b"\x65\x07\x0a\x01\x00\x04\x00\x04\x00", 0x77: b"\x78\x07\x0a\x01\x02\x04\x00\x04\x00"}
            answer = b"\x02\x01" + bytes([number]) + result[operation]
            self.request.sendall(bytes([0x30, len(answer)]) + answer)


class TestServers:
    def test_d4_a_server_without_starttls_does_not_keep_the_next_from_being_asked(self, connect, door, directory):
        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), WithoutTls) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,)).start()
            try:
                plain = f"ldap://127.0.0.1:{server.server_address[1]}"
                connect(LDAP_SERVER_URI=f"{plain} {directory.uri}")
                assert door.enter("alice", "password of alice")
                connect(LDAP_SERVER_URI=plain)
                assert door.enter("alice", "password of alice") is None
                assert door.error == company.DirectoryUnavailable.code
            finally:
                server.shutdown()

    def test_d4_a_bad_certificate_does_not_keep_the_next_server_from_being_asked(
        self, connect, door, directory, caplog
    ):
        bad = directory.tls_uri.replace("127.0.0.1", "localhost")  # the certificate is for 127.0.0.1
        with caplog.at_level(logging.WARNING):
            connect(LDAP_SERVER_URI=f"{bad} {directory.tls_uri}")
            assert door.enter("alice", "password of alice")
            call_command("syncdirectory")
        assert bad in caplog.text
        connect(LDAP_SERVER_URI=bad)
        assert door.enter("alice", "password of alice") is None
        assert door.error == company.DirectoryUnavailable.code

    @pytest.mark.parametrize("encryption", ["ldaps", "starttls"])
    def test_d3_the_system_s_authorities_count_without_any_of_our_own(
        self, connect, door, directory, monkeypatch, encryption
    ):
        uri = directory.tls_uri if encryption == "ldaps" else directory.uri
        monkeypatch.setenv("SSL_CERT_FILE", str(directory.ca_file))
        connect(LDAP_SERVER_URI=uri, LDAP_CA_FILE=None)
        assert door.enter("alice", "password of alice")
        monkeypatch.setenv("SSL_CERT_FILE", str(directory.other_ca_file))
        connect(LDAP_SERVER_URI=uri, LDAP_CA_FILE=None)
        assert door.enter("alice", "password of alice") is None

    def test_d3_a_system_without_authorities_says_so_at_once(self, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
        monkeypatch.setattr("portal.accounts.ldap.configuration.SYSTEM_CA_FILES", ("/nowhere/either",))
        monkeypatch.setattr("ssl.get_default_verify_paths", lambda: type("Paths", (), {"cafile": None}))
        monkeypatch.setenv("LDAP_SERVER_URI", "ldaps://ldap.example.com")
        monkeypatch.setenv("LDAP_USER_BASE", SUFFIX)
        with pytest.raises(environs.EnvError, match="LDAP_CA_FILE"):
            company.read_settings(environs.FileAwareEnv())

    @pytest.mark.parametrize(
        "mistake",
        [
            {"LDAP_SERVER_URI": f"ldap://127.0.0.1:{unused_port()}"},
            {"LDAP_BIND_PASSWORD": "changed last night"},
            {"LDAP_USER_BASE": f"ou=nowhere,{SUFFIX}"},
            {"LDAP_GROUP_BASE": f"ou=nowhere,{SUFFIX}"},
        ],
    )
    def test_d3_before_the_first_sign_in_a_sync_tells_what_is_wrong(self, connect, mistake):
        connect(**mistake)
        with pytest.raises(CommandError):
            call_command("syncdirectory")
        connect()
        call_command("syncdirectory")
