"""manage.py checkdirectory: what it tries, what it finds, and its status, against OpenLDAP."""

import contextlib
import http.server
import ipaddress
import json
import re
import socketserver
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ldap
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.core.management import CommandError, call_command

from portal.accounts import directory_users
from portal.accounts.management.commands.checkdirectory import LONGEST_NAME, MARKS
from portal.accounts.models import Tenant, User
from tests.portal.accounts.findings import check, failure_codes, failures, texts
from tests.ports import unused_port
from tests.slapd import GROUP_BASE, PEOPLE, SERVICE_DN, SUFFIX, USER_BASE, group_dn

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(("mistake", "works"), [({}, True), ({"LDAP_USER_BASE": f"ou=nowhere,{SUFFIX}"}, False)])
def test_it_prints_what_it_finds_and_fails_with_it(connect, capsys, mistake, works):
    connect(**mistake)
    with contextlib.nullcontext() if works else pytest.raises(CommandError):
        call_command("checkdirectory", "alice")
    printed = [(line[2:6], line[8:]) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert printed == [(MARKS[finding.ok], finding.text) for finding in check("alice")]
    assert all(mark != MARKS[False] for mark, _ in printed) == works


def test_all_is_well(connect):
    connect()
    findings = check()
    assert not failures()
    [certificate] = texts("certificate", findings)
    assert "127.0.0.1" in certificate
    members = {line.split(" ")[0]: line for line in texts("members", findings)}
    leads, research = members[group_dn("research-leads")], members[group_dn("research")]
    assert "research:admin" in leads
    assert re.findall(r"\d+", leads.rpartition(":")[2]) == ["2"]
    assert re.findall(r"\d+", research.rpartition(":")[2])[1:] == ["1"]  # groups within it


def test_it_is_told_when_nothing_is_encrypted(connect):
    connect(LDAP_START_TLS="false", LDAP_CA_FILE=None)
    assert not failures()
    assert texts("unencrypted", check())


@pytest.mark.parametrize(
    ("mistake", "code", "named"),
    [
        ({"LDAP_SERVER_URI": f"ldap://127.0.0.1:{unused_port()}"}, "connection-refused", "127.0.0.1"),
        ({"LDAP_BIND_PASSWORD": "changed last night"}, "INVALID_CREDENTIALS", "LDAP_BIND_PASSWORD"),
        ({"LDAP_BIND_DN": None, "LDAP_BIND_PASSWORD": None}, "no-such-place", "LDAP_BIND_DN"),
        ({"LDAP_BIND_DN": "madoguchi"}, "INVALID_DN_SYNTAX", "LDAP_BIND_DN"),
        ({"LDAP_USER_BASE": f"ou=nowhere,{SUFFIX}"}, "no-such-place", f" {SUFFIX}"),
        ({"LDAP_USER_BASE": "dc=other,dc=jp"}, "no-such-place", f" {SUFFIX}"),
        ({"LDAP_USER_BASE": GROUP_BASE}, "no-match", "groupOfNames"),
        ({"LDAP_USER_BASE": f"ou=posix,{SUFFIX}"}, "no-match", "LDAP_USER_FILTER"),
        ({"LDAP_USER_FILTER": "(sAMAccountName=%(user)s)"}, "no-match", "inetOrgPerson"),
        ({"LDAP_USER_FILTER": "(|(uid=%(user)s)(objectClass=person))"}, "filter-ambiguous", "LDAP_USER_FILTER"),
        ({"LDAP_USERNAME_ATTRIBUTE": "nothing"}, "no-match", "LDAP_USERNAME_ATTRIBUTE"),
        ({"LDAP_USERNAME_ATTRIBUTE": "gidNumber"}, "filter-ambiguous", "6000"),
        ({"LDAP_ID_ATTRIBUTE": "objectClass"}, "attribute-shared", "LDAP_ID_ATTRIBUTE"),
        ({"LDAP_FIRST_NAME_ATTRIBUTE": "nothing"}, "attribute-missing", "LDAP_FIRST_NAME_ATTRIBUTE"),
        ({"LDAP_LAST_NAME_ATTRIBUTE": "nothing"}, "attribute-missing", "LDAP_LAST_NAME_ATTRIBUTE"),
        ({"LDAP_MAIL_ATTRIBUTE": "nothing"}, "attribute-missing", "LDAP_MAIL_ATTRIBUTE"),
        ({"LDAP_USER_DN_TEMPLATE": f"uid=%(user)s,ou=nowhere,{SUFFIX}"}, "template", " 0 "),
        ({"LDAP_USER_DN_TEMPLATE": "uid=%(user)s"}, "template", " 0 "),
        ({"LDAP_USER_DN_TEMPLATE": "%(user)s@example.com"}, "template-not-dn", "LDAP_USER_DN_TEMPLATE"),
        ({"LDAP_ID_ATTRIBUTE": "employeeNumber"}, "attribute-missing", "LDAP_ID_ATTRIBUTE"),
        ({"LDAP_GROUP_BASE": f"ou=nowhere,{SUFFIX}"}, "no-such-place", "LDAP_GROUP_BASE"),
        ({"LDAP_GROUP_BASE": USER_BASE}, "groups-elsewhere", "LDAP_GROUP_BASE"),
        ({"LDAP_GROUP_TYPE": "uniqueMember"}, "other-group-type", " member,"),
        ({"LDAP_GROUP_TYPE": "memberUid"}, "other-group-type", " member,"),
        ({"LDAP_OPERATOR_GROUP": f"cn=unix-research,ou=posix,{SUFFIX}"}, "other-group-type", " memberUid,"),
        (
            {
                "LDAP_OPERATOR_GROUP": f"cn=unix-research,ou=posix,{SUFFIX}",
                "LDAP_GROUP_TYPE": "memberOf",
                "LDAP_GROUP_BASE": None,
            },
            "other-group-type",
            " memberUid,",
        ),
        ({"LDAP_OPERATOR_GROUP": PEOPLE["alice"].dn}, "not-a-group", "inetOrgPerson"),
        ({"LDAP_OPERATOR_GROUP": SERVICE_DN}, "not-a-group", "organizationalRole"),
        ({"LDAP_REQUIRED_GROUP": PEOPLE["alice"].dn}, "not-a-group", PEOPLE["alice"].dn),
        ({"LDAP_REQUIRED_GROUP": group_dn("sales")}, "no-operator-admitted", "LDAP_REQUIRED_GROUP"),
        (
            {"LDAP_OPERATOR_GROUP": group_dn("circle"), "LDAP_NESTED_GROUPS": "false"},
            "no-members",
            "LDAP_NESTED_GROUPS",
        ),
        ({"LDAP_GROUP_TENANTS": json.dumps({PEOPLE["alice"].dn: "research"})}, "not-a-group", PEOPLE["alice"].dn),
        ({"LDAP_OPERATOR_GROUP": f"cn=gone,{GROUP_BASE}"}, "group-missing", f"cn=gone,{GROUP_BASE}"),
    ],
)
def test_what_does_not_work_is_named(connect, mistake, code, named):
    connect(**mistake)
    last = failures()[-1]
    assert last.code == code
    assert named in last.text


def test_d4_servers_and_certificates_are_tried_one_by_one(connect, directory):
    bad = directory.tls_uri.replace("127.0.0.1", "localhost")
    dead = f"ldaps://127.0.0.1:{unused_port()}"
    connect(LDAP_SERVER_URI=f"{bad} {dead} {directory.tls_uri}")
    other, none = failures()
    assert (other.code, none.code) == ("certificate-name", "connection-refused")
    assert other.text.startswith(f"{bad}:")
    assert none.text.startswith(f"{dead}:")
    assert {"127.0.0.1,", "localhost;"} <= set(other.text.split())
    [account] = texts("account", check())
    assert account.startswith(f"{directory.tls_uri} ")
    connect(LDAP_SERVER_URI=directory.tls_uri, LDAP_CA_FILE=str(directory.other_ca_file))
    [failure] = failures()
    assert failure.code == "certificate-authority"
    assert "LDAP_CA_FILE" in failure.text


@contextlib.contextmanager
def web_server() -> Iterator[int]:
    """Give its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@contextlib.contextmanager
def tls_server(certificate: Path) -> Iterator[int]:
    """Provide the port of a server that shakes hands with its certificate and says no more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    class ShakeHands(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), context.wrap_socket(self.request, server_side=True) as encrypted:
                encrypted.recv(1)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), ShakeHands) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def write_certificate(path: Path, *, starts: timedelta, ends: timedelta) -> None:
    """Make a certificate for 127.0.0.1 that vouches for itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now + starts).not_valid_after(now + ends)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = made.add_extension(addresses, critical=False).sign(key, hashes.SHA256())
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(signed.public_bytes(encoding) + secret)


class TestAddresses:
    """The cause is in the line, whichever command is asked, and none waits for longer than it says."""

    @pytest.fixture
    def cause(self, connect):
        def cause(uri: str, **variables: str | None) -> str:
            connect(LDAP_SERVER_URI=uri, **variables)
            [failure] = failures()
            with pytest.raises(CommandError) as caught:
                call_command("syncdirectory")
            assert failure.text in str(caught.value)
            return failure.code

        return cause

    def test_the_port_of_the_other_encryption(self, cause, directory):
        assert cause(directory.tls_uri.replace("ldaps", "ldap")) == "tls-first"
        assert cause(directory.uri.replace("ldap", "ldaps")) == "ldap-first"
        plain = {"LDAP_START_TLS": "false", "LDAP_CA_FILE": None}
        assert cause(directory.tls_uri.replace("ldaps", "ldap"), **plain) == "tls-first"

    @pytest.mark.parametrize(
        ("starts", "ends", "code"), [(-2, -1, "certificate-expired"), (1, 2, "certificate-not-yet-valid")]
    )
    def test_a_certificate_of_another_day(self, cause, tmp_path, starts, ends, code):
        file = tmp_path / "server.pem"
        write_certificate(file, starts=timedelta(days=starts), ends=timedelta(days=ends))
        with tls_server(file) as port:
            assert cause(f"ldaps://127.0.0.1:{port}", LDAP_CA_FILE=str(file)) == code

    def test_a_web_server(self, cause):
        with web_server() as port:
            assert cause(f"ldap://127.0.0.1:{port}") == "no-ldap"
            assert cause(f"ldaps://127.0.0.1:{port}") == "no-tls"

    def test_nobody(self, cause):
        for scheme in ("ldap", "ldaps"):
            assert cause(f"{scheme}://127.0.0.1:{unused_port()}") == "connection-refused"
            assert cause(f"{scheme}://no.such.host.invalid") == "unknown-host"

    def test_a_server_that_says_nothing(self, cause, directory):
        with directory.frozen():
            for uri in (directory.uri, directory.tls_uri):
                assert cause(uri, LDAP_TIMEOUT="0.2") == "time-out"


def test_a_place_that_another_server_has_is_not_there(connect, directory):
    place = f"ou=elsewhere,{SUFFIX}"
    entry = [("objectClass", [b"referral", b"extensibleObject"]), ("ref", [b"ldap://other.example.com/dc=other"])]
    with directory.as_root() as root:
        root.add_s(place, [*entry, ("ou", [b"elsewhere"])])
    try:
        connect(LDAP_USER_BASE=place)
        assert failures()[0].code == "no-such-place"
    finally:
        with directory.as_root() as root:
            root.delete_ext_s(place, serverctrls=[ldap.controls.simple.ManageDSAITControl()])


def test_direct_bind_alone_notices_no_leavers(connect):
    connect(LDAP_USER_DN_TEMPLATE=f"uid=%(user)s,{SUFFIX}", LDAP_BIND_DN=None, LDAP_BIND_PASSWORD=None)
    assert failures()[0].code == "no-account"


def test_a_person_s_way_to_a_role(connect):
    connect()
    findings = check("yamada")
    assert not failures("yamada")
    [member] = texts("member", findings)
    assert member.endswith(f" → {group_dn('research-lab')} → {group_dn('research')}")
    [tenants] = texts("tenants", findings)
    assert "research (member)" in tenants
    assert any(group_dn("operators") in text for text in texts("not-a-member", findings))


def test_nothing_but_the_cause_is_told_of_groups_when_nobody_is_found(connect):
    connect(LDAP_USER_BASE=f"ou=posix,{SUFFIX}")
    assert len(failures()) == 1


def test_an_empty_group_of_a_tenant_may_be_meant(connect, directory):
    """A groupOfNames needs a member; that of a group without people is often a placeholder."""
    empty = group_dn("newcomers")
    with directory.as_root() as root:
        root.add_s(empty, [("objectClass", [b"groupOfNames"]), ("cn", [b"newcomers"]), ("member", [SUFFIX.encode()])])
    try:
        connect(LDAP_GROUP_TENANTS=json.dumps({empty: "research"}))
        assert not failures()
        [text] = texts("no-members", check())
        assert text.startswith(f"{empty} ")
        assert "LDAP_USER_BASE" in text
        connect(LDAP_OPERATOR_GROUP=empty)
        [failure] = failures()
        assert failure.code == "no-members"
        assert failure.text.startswith(f"{empty} ")
        connect(LDAP_GROUP_TENANTS=json.dumps({empty: "research"}), LDAP_OPERATOR_GROUP=None)
        assert failures()  # no person gets anything
    finally:
        with directory.as_root() as root:
            root.delete_s(empty)


def test_ids_that_two_people_share_are_seen(connect, newcomer):
    newcomer("endo")
    newcomer("goto")  # both are called Newcomer
    connect(LDAP_ID_ATTRIBUTE="sn")
    [failure] = failures()
    assert failure.code == "attribute-shared"
    for name in ("LDAP_ID_ATTRIBUTE", "uid=endo", "uid=goto"):
        assert name in failure.text


def test_a_template_that_fits_works_and_one_that_fits_some_is_told(connect, directory, newcomer):
    connect(LDAP_USER_DN_TEMPLATE=f"uid=%(user)s,{USER_BASE}")
    assert not failures()
    person = directory.people[newcomer("endo")].dn
    with directory.as_root() as root:
        root.rename_s(person, "cn=endo", delold=0)
    try:
        assert not failures()
        [finding] = [finding for finding in check() if finding.code == "template"]
        assert finding.ok is None
    finally:
        with directory.as_root() as root:
            root.rename_s(f"cn=endo,{USER_BASE}", "uid=endo", delold=0)


def test_a_tenant_that_is_not_here_is_named_with_the_one_that_may_be_meant(connect):
    Tenant.objects.create(slug="research", name="Research")
    connect(LDAP_GROUP_TENANTS=json.dumps({group_dn("research"): "reserach", group_dn("sales"): "research"}))
    [text] = texts("tenant-to-come", check())
    assert text.startswith("reserach:")
    assert "research" in text


@pytest.mark.parametrize(
    ("variables", "name", "group"),
    [
        ({"LDAP_GROUP_TYPE": "memberOf", "LDAP_GROUP_BASE": None}, "bob", group_dn("research-leads")),
        (
            {
                "LDAP_GROUP_TYPE": "memberUid",
                "LDAP_GROUP_TENANTS": None,
                "LDAP_OPERATOR_GROUP": f"cn=unix-research,ou=posix,{SUFFIX}",
            },
            "alice",
            f"cn=unix-research,ou=posix,{SUFFIX}",
        ),
    ],
)
def test_groups_of_the_other_types(connect, variables, name, group):
    connect(**variables)
    assert not failures(name)
    assert any(text.endswith(f" → {group}") for text in texts("member", check(name)))


def test_a_person_who_may_not_sign_in(connect):
    connect(LDAP_REQUIRED_GROUP=group_dn("employees"))
    assert not failures("dave")
    assert failure_codes("erin") == ["not-admitted"]
    assert failure_codes("nobody-at-all") == ["name-unknown"]


def test_a_name_of_nobody_and_one_of_several_are_told_apart(connect, directory, newcomer):
    connect()
    assert failure_codes("nobody-at-all") == ["name-unknown"]
    first, second = newcomer("endo"), newcomer("goto")
    for name in (first, second):
        directory.change(name, mail="both@example.com")
    [failure] = failures("both@example.com")
    assert failure.code == "name-ambiguous"
    assert directory.people[first].dn in failure.text
    assert directory.people[second].dn in failure.text


def test_a_local_account_is_told_also_of_a_name_that_the_directory_has_not(connect):
    connect()
    for account, typed in (("suyama", "suyama"), ("alice", "person0@example.com")):
        User.objects.create_user(account, password="x")
        [text] = texts("local-account", failures(typed))
        assert account in text


def test_what_steers_a_terminal_is_not_printed(connect, capsys):
    connect()
    with pytest.raises(CommandError):
        call_command("checkdirectory", "a\x1b[31m\nb\u202e")
    printed = capsys.readouterr().out
    assert r"a\x1b[31m\nb\u202e" in printed
    assert not {"\x1b", "\u202e"} & set(printed)


@pytest.mark.parametrize("name", ["", " ", "x" * 255])
def test_what_is_no_name_is_refused(connect, name):
    connect()
    with pytest.raises(CommandError, match=str(LONGEST_NAME)):
        call_command("checkdirectory", name)


def test_what_the_portal_knows_of_a_person(connect, door):
    connect()
    assert texts("account-to-come", check("alice"))
    user = door.enter("alice", "password of alice")
    assert texts("account-active", check("alice"))
    directory_users.deactivate(user)
    assert texts("account-left", check("alice"))
    User.objects.filter(pk=user.pk).update(left_directory_at=None)
    assert failure_codes("alice") == ["account-off"]
    User.objects.create_user("bob", password="x")
    assert failure_codes("bob") == ["local-account"]


def test_without_a_directory_it_says_so():
    with pytest.raises(CommandError, match="LDAP_SERVER_URI"):
        call_command("checkdirectory")
