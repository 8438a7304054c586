"""manage.py checkdirectory: what it tries, what it says, and its status, against OpenLDAP."""

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
from portal.accounts.models import Tenant, User
from tests.slapd import GROUP_BASE, PEOPLE, SERVICE_DN, SUFFIX, USER_BASE, group_dn, unused_port

pytestmark = pytest.mark.django_db


@pytest.fixture
def check(capsys):
    """Run it; gives the lines by their mark, and whether all of it works."""

    def check(*arguments: str) -> tuple[dict[str, list[str]], bool]:
        try:
            call_command("checkdirectory", *arguments)
            works = True
        except CommandError:
            works = False
        lines: dict[str, list[str]] = {"ok": [], "FAIL": [], "": []}
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("  "):
                lines[line[2:6].strip()].append(line[8:])
        assert works == (not lines["FAIL"])
        return lines, works

    return check


def test_all_is_well(connect, check):
    connect()
    lines, works = check()
    assert works
    assert any("certificate for 127.0.0.1" in line for line in lines["ok"])
    assert any(
        line.startswith(f"{group_dn('research-leads')} (tenants research:admin): 2 members") for line in lines["ok"]
    )
    [research] = [line for line in lines["ok"] if line.startswith(f"{group_dn('research')} ")]
    assert "counting those of 1 groups within it" in research


def test_it_is_told_when_nothing_is_encrypted(connect, check):
    connect(LDAP_START_TLS="false", LDAP_CA_FILE=None)
    lines, works = check()
    assert works
    assert any("nothing is encrypted" in line for line in lines[""])


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ({"LDAP_SERVER_URI": f"ldap://127.0.0.1:{unused_port()}"}, "refused"),
        ({"LDAP_BIND_PASSWORD": "changed last night"}, "does not take"),
        ({"LDAP_BIND_DN": None, "LDAP_BIND_PASSWORD": None}, "LDAP_USER_BASE|may not read"),
        ({"LDAP_BIND_DN": "madoguchi"}, "only a DN in LDAP_BIND_DN"),
        ({"LDAP_USER_BASE": f"ou=nowhere,{SUFFIX}"}, f"there is no such place.*above it there is {SUFFIX}"),
        ({"LDAP_USER_BASE": "dc=other,dc=jp"}, f"the server has {SUFFIX}"),
        ({"LDAP_USER_BASE": GROUP_BASE}, "LDAP_USER_FILTER .*groupOfNames"),
        ({"LDAP_USER_BASE": f"ou=posix,{SUFFIX}"}, "matches LDAP_USER_FILTER"),
        ({"LDAP_USER_FILTER": "(sAMAccountName=%(user)s)"}, "LDAP_USER_FILTER .*inetOrgPerson"),
        ({"LDAP_USER_FILTER": "(|(uid=%(user)s)(objectClass=person))"}, "LDAP_USER_FILTER .*: finds .* and "),
        ({"LDAP_USERNAME_ATTRIBUTE": "nothing"}, "which LDAP_KIND and LDAP_USERNAME_ATTRIBUTE make"),
        ({"LDAP_USERNAME_ATTRIBUTE": "gidNumber"}, "for the name 6000"),
        ({"LDAP_ID_ATTRIBUTE": "objectClass"}, "LDAP_ID_ATTRIBUTE.*unique"),
        ({"LDAP_FIRST_NAME_ATTRIBUTE": "nothing"}, "LDAP_FIRST_NAME_ATTRIBUTE"),
        ({"LDAP_LAST_NAME_ATTRIBUTE": "nothing"}, "LDAP_LAST_NAME_ATTRIBUTE"),
        ({"LDAP_MAIL_ATTRIBUTE": "nothing"}, "LDAP_MAIL_ATTRIBUTE"),
        ({"LDAP_USER_DN_TEMPLATE": f"uid=%(user)s,ou=nowhere,{SUFFIX}"}, "LDAP_USER_DN_TEMPLATE.* 0 of"),
        ({"LDAP_USER_DN_TEMPLATE": "uid=%(user)s"}, "LDAP_USER_DN_TEMPLATE.* 0 of"),
        ({"LDAP_USER_DN_TEMPLATE": "%(user)s@example.com"}, "LDAP_USER_DN_TEMPLATE.*is not a DN"),
        ({"LDAP_ID_ATTRIBUTE": "employeeNumber"}, "LDAP_ID_ATTRIBUTE"),
        ({"LDAP_GROUP_BASE": f"ou=nowhere,{SUFFIX}"}, "LDAP_GROUP_BASE"),
        ({"LDAP_GROUP_BASE": USER_BASE}, "LDAP_GROUP_BASE.* none of the groups"),
        ({"LDAP_GROUP_TYPE": "uniqueMember"}, "its members are in member, but LDAP_GROUP_TYPE is uniqueMember"),
        ({"LDAP_GROUP_TYPE": "memberUid"}, "its members are in member, but LDAP_GROUP_TYPE is memberUid"),
        ({"LDAP_OPERATOR_GROUP": f"cn=unix-research,ou=posix,{SUFFIX}"}, "its members are in memberUid"),
        (
            {
                "LDAP_OPERATOR_GROUP": f"cn=unix-research,ou=posix,{SUFFIX}",
                "LDAP_GROUP_TYPE": "memberOf",
                "LDAP_GROUP_BASE": None,
            },
            "its members are in memberUid",
        ),
        ({"LDAP_OPERATOR_GROUP": PEOPLE["alice"].dn}, "it is not a group .*inetOrgPerson"),
        ({"LDAP_OPERATOR_GROUP": SERVICE_DN}, "it is not a group .*organizationalRole"),
        ({"LDAP_REQUIRED_GROUP": PEOPLE["alice"].dn}, "it is not a group"),
        ({"LDAP_REQUIRED_GROUP": group_dn("sales")}, "no operator may sign in"),
        ({"LDAP_OPERATOR_GROUP": group_dn("circle"), "LDAP_NESTED_GROUPS": "false"}, "LDAP_NESTED_GROUPS"),
        ({"LDAP_GROUP_TENANTS": json.dumps({PEOPLE["alice"].dn: "research"})}, "it is not a group"),
        ({"LDAP_OPERATOR_GROUP": f"cn=gone,{GROUP_BASE}"}, f"cn=gone,{GROUP_BASE} \\(operators\\): not found"),
    ],
)
def test_what_does_not_work_is_named(connect, check, mistake, told):
    connect(**mistake)
    lines, works = check()
    assert not works
    assert re.search(told, lines["FAIL"][-1]), lines["FAIL"]


def test_d4_servers_and_certificates_are_tried_one_by_one(connect, check, directory):
    bad = directory.tls_uri.replace("127.0.0.1", "localhost")
    dead = f"ldaps://127.0.0.1:{unused_port()}"
    connect(LDAP_SERVER_URI=f"{bad} {dead} {directory.tls_uri}")
    lines, _ = check()
    assert [line.split(" ")[0] for line in lines["FAIL"]] == [f"{bad}:", f"{dead}:"]
    assert "it is for 127.0.0.1, not for localhost" in lines["FAIL"][0]
    assert "LDAP_CA_FILE" not in lines["FAIL"][0]
    assert any(line.startswith(f"{directory.tls_uri} takes") for line in lines["ok"])
    connect(LDAP_SERVER_URI=directory.tls_uri, LDAP_CA_FILE=str(directory.other_ca_file))
    lines, _ = check()
    assert "LDAP_CA_FILE must have the one that issued it" in lines["FAIL"][0]


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
    def cause(self, connect, check):
        def cause(uri: str, **variables: str | None) -> str:
            connect(LDAP_SERVER_URI=uri, **variables)
            [line] = check()[0]["FAIL"]
            with pytest.raises(CommandError) as caught:
                call_command("syncdirectory")
            assert line in str(caught.value)
            return line

        return cause

    def test_the_port_of_the_other_encryption(self, cause, directory):
        assert "write ldaps://" in cause(directory.tls_uri.replace("ldaps", "ldap"))
        assert "write ldap://" in cause(directory.uri.replace("ldap", "ldaps"))
        plain = {"LDAP_START_TLS": "false", "LDAP_CA_FILE": None}
        assert "write ldaps://" in cause(directory.tls_uri.replace("ldaps", "ldap"), **plain)

    @pytest.mark.parametrize(
        ("starts", "ends", "told"), [(-2, -1, "has expired"), (1, 2, "is the clock of this machine right?")]
    )
    def test_a_certificate_of_another_day(self, cause, tmp_path, starts, ends, told):
        file = tmp_path / "server.pem"
        write_certificate(file, starts=timedelta(days=starts), ends=timedelta(days=ends))
        with tls_server(file) as port:
            assert told in cause(f"ldaps://127.0.0.1:{port}", LDAP_CA_FILE=str(file))

    def test_a_web_server(self, cause):
        with web_server() as port:
            assert "does not speak LDAP" in cause(f"ldap://127.0.0.1:{port}")
            assert "does not speak TLS" in cause(f"ldaps://127.0.0.1:{port}")

    def test_nobody(self, cause):
        for scheme in ("ldap", "ldaps"):
            assert "connection refused" in cause(f"{scheme}://127.0.0.1:{unused_port()}")
            assert "does not know the name no.such.host.invalid" in cause(f"{scheme}://no.such.host.invalid")

    def test_a_server_that_says_nothing(self, cause, directory):
        with directory.frozen():
            for uri in (directory.uri, directory.tls_uri):
                assert "no answer within 0.2 s" in cause(uri, LDAP_TIMEOUT="0.2")


def test_a_place_that_another_server_has_is_not_there(connect, check, directory):
    place = f"ou=elsewhere,{SUFFIX}"
    entry = [("objectClass", [b"referral", b"extensibleObject"]), ("ref", [b"ldap://other.example.com/dc=other"])]
    with directory.as_root() as root:
        root.add_s(place, [*entry, ("ou", [b"elsewhere"])])
    try:
        connect(LDAP_USER_BASE=place)
        assert "there is no such place" in check()[0]["FAIL"][0]
    finally:
        with directory.as_root() as root:
            root.delete_ext_s(place, serverctrls=[ldap.controls.simple.ManageDSAITControl()])


def test_direct_bind_alone_notices_no_leavers(connect, check):
    connect(LDAP_USER_DN_TEMPLATE=f"uid=%(user)s,{SUFFIX}", LDAP_BIND_DN=None, LDAP_BIND_PASSWORD=None)
    lines, works = check()
    assert not works
    assert "LDAP_BIND_DN" in lines["FAIL"][0]


def test_a_person_s_way_to_a_role(connect, check):
    connect()
    lines, works = check("yamada")
    assert works
    way = f"person → {group_dn('research-lab')} → {group_dn('research')}"
    assert f"in {group_dn('research')} (tenants research:member): {way}" in lines["ok"]
    assert "tenants: research (member)" in lines[""]
    assert f"not in {group_dn('operators')} (operators)" in lines[""]


def test_nothing_but_the_cause_is_told_of_groups_when_nobody_is_found(connect, check):
    connect(LDAP_USER_BASE=f"ou=posix,{SUFFIX}")
    assert len(check()[0]["FAIL"]) == 1


def test_an_empty_group_of_a_tenant_may_be_meant(connect, check, directory):
    """A groupOfNames needs a member; that of a group without people is often a placeholder."""
    empty = group_dn("newcomers")
    with directory.as_root() as root:
        root.add_s(empty, [("objectClass", [b"groupOfNames"]), ("cn", [b"newcomers"]), ("member", [SUFFIX.encode()])])
    try:
        connect(LDAP_GROUP_TENANTS=json.dumps({empty: "research"}))
        lines, works = check()
        assert works
        assert any(line.startswith(f"{empty} ") and "LDAP_USER_BASE" in line for line in lines[""])
        connect(LDAP_OPERATOR_GROUP=empty)
        [line] = check()[0]["FAIL"]
        assert line.startswith(f"{empty} (operators)")
        connect(LDAP_GROUP_TENANTS=json.dumps({empty: "research"}), LDAP_OPERATOR_GROUP=None)
        assert not check()[1]  # no person gets anything
    finally:
        with directory.as_root() as root:
            root.delete_s(empty)


def test_ids_that_two_people_share_are_seen(connect, check, newcomer):
    newcomer("endo")
    newcomer("goto")  # both are called Newcomer
    connect(LDAP_ID_ATTRIBUTE="sn")
    [line] = check()[0]["FAIL"]
    assert "LDAP_ID_ATTRIBUTE" in line
    assert "uid=endo" in line
    assert "uid=goto" in line


def test_a_template_that_fits_works_and_one_that_fits_some_is_told(connect, check, directory, newcomer):
    connect(LDAP_USER_DN_TEMPLATE=f"uid=%(user)s,{USER_BASE}")
    assert check()[1]
    person = directory.people[newcomer("endo")].dn
    with directory.as_root() as root:
        root.rename_s(person, "cn=endo", delold=0)
    try:
        lines, works = check()
        assert works
        assert any("LDAP_USER_DN_TEMPLATE" in line for line in lines[""])
    finally:
        with directory.as_root() as root:
            root.rename_s(f"cn=endo,{USER_BASE}", "uid=endo", delold=0)


def test_a_tenant_that_is_not_here_is_named_with_the_one_that_may_be_meant(connect, capsys):
    Tenant.objects.create(slug="research", name="Research")
    connect(LDAP_GROUP_TENANTS=json.dumps({group_dn("research"): "reserach", group_dn("sales"): "research"}))
    call_command("checkdirectory")
    tenants = capsys.readouterr().out.partition("Tenants (LDAP_GROUP_TENANTS)\n")[2].splitlines()
    assert len(tenants) == 1
    assert "reserach" in tenants[0]
    assert "is research meant?" in tenants[0]


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
def test_groups_of_the_other_types(connect, check, variables, name, group):
    connect(**variables)
    lines, works = check(name)
    assert works
    assert [line for line in lines["ok"] if line.startswith(f"in {group} ") and line.endswith(f"person → {group}")]


def test_a_person_who_may_not_sign_in(connect, check):
    connect(LDAP_REQUIRED_GROUP=group_dn("employees"))
    _, works = check("dave")
    assert works
    for name in ("erin", "nobody-at-all"):
        _, works = check(name)
        assert not works


def test_a_name_of_nobody_and_one_of_several_are_told_apart(connect, check, directory, newcomer):
    connect()
    [line] = check("nobody-at-all")[0]["FAIL"]
    assert line.startswith("no one signs in by this name")
    first, second = newcomer("endo"), newcomer("goto")
    for name in (first, second):
        directory.change(name, mail="both@example.com")
    [line] = check("both@example.com")[0]["FAIL"]
    assert line.startswith("2 people are meant by this name")
    assert directory.people[first].dn in line
    assert directory.people[second].dn in line


def test_a_local_account_is_told_also_of_a_name_that_the_directory_has_not(connect, check):
    connect()
    User.objects.create_user("suyama", password="x")
    assert any("suyama is a local account" in line for line in check("suyama")[0]["FAIL"])
    User.objects.create_user("alice", password="x")
    assert any("alice is a local account" in line for line in check("person0@example.com")[0]["FAIL"])


def test_what_steers_a_terminal_is_not_printed(connect, capsys):
    connect()
    with pytest.raises(CommandError):
        call_command("checkdirectory", "a\x1b[31m\nb\u202e")
    title = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Person"))
    assert title == r"Person “a\x1b[31m\nb\u202e”"


@pytest.mark.parametrize("name", ["", " ", "x" * 255])
def test_what_is_no_name_is_refused(connect, name):
    connect()
    with pytest.raises(CommandError, match="1 to 254 characters"):
        call_command("checkdirectory", name)


def test_what_the_portal_knows_of_a_person(connect, check, door):
    connect()
    assert any("no account yet" in line for line in check("alice")[0][""])
    user = door.enter("alice", "password of alice")
    assert "here alice, active" in check("alice")[0][""]
    directory_users.deactivate(user)
    assert any("because of the directory" in line for line in check("alice")[0][""])
    User.objects.filter(pk=user.pk).update(left_directory_at=None)
    assert not check("alice")[1]
    User.objects.create_user("bob", password="x")
    assert not check("bob")[1]


def test_without_a_directory_it_says_so():
    with pytest.raises(CommandError, match="LDAP_SERVER_URI is not set"):
        call_command("checkdirectory")
