"""A real company directory for tests: OpenLDAP's slapd in a directory of its own, with TLS, people and groups.

`with running_directory() as directory:` or the fixture `directory` (one per test process). Nothing of the machine's
own LDAP configuration is read or written.

The people: alice, bob and yamada belong to research (yamada through a group within its group), bob is its admin,
charlie belongs to sales, olivia operates, dave is in no group at all, erin is in no group of ours; some have names that
try to be more than a name.
"""

import contextlib
import datetime
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ldap
import ldap.dn
import ldap.ldapobject
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from ldap.controls.simple import RelaxRulesControl

from tests.ports import unused_port
from tests.waiting import until

SUFFIX = "dc=example,dc=com"
ROOT_DN = f"cn=root,{SUFFIX}"
ROOT_PASSWORD = "root of the test directory"
USER_BASE = f"ou=people,{SUFFIX}"
GROUP_BASE = f"ou=groups,{SUFFIX}"
SERVICE_DN = f"cn=madoguchi,ou=services,{SUFFIX}"
SERVICE_PASSWORD = "the service's own password"
POLICY_DN = f"cn=strict,ou=policies,{SUFFIX}"  # for passwords of who has it as pwdPolicySubentry
START_TIMEOUT = 20.0  # seconds; a start takes 0.1

WINDOWS_BASE = f"ou=windows,{SUFFIX}"
SUZUKI_GUID = bytes.fromhex("7bd0c7a1ff286c4b9a3e2a28295c00d3")  # with bytes that mean something in a filter: ( ) * NUL

# What of Active Directory's schema matters to a portal, so that its filters and its binary ids can be tried here.
WINDOWS_SCHEMA = """
attributetype ( 1.2.840.113556.1.4.221 NAME 'sAMAccountName' EQUALITY caseIgnoreMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.4.2 NAME 'objectGUID' EQUALITY octetStringMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.40 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.4.8 NAME 'userAccountControl' EQUALITY integerMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.4.782 NAME 'objectCategory' EQUALITY caseIgnoreMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )
# And how 389 and FreeIPA disable an account
attributetype ( 2.16.840.1.113730.3.1.610 NAME 'nsAccountLock' EQUALITY caseIgnoreMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )
objectclass ( 1.3.6.1.4.1.4203.666.3.1 NAME 'lockable' SUP top AUXILIARY MAY nsAccountLock )
objectclass ( 1.2.840.113556.1.5.9 NAME 'user' SUP top AUXILIARY
  MUST ( sAMAccountName $ objectGUID $ userAccountControl $ objectCategory ) )
"""

CONFIGURATION = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/nis.schema
include {home}/windows.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
moduleload ppolicy
pidfile {home}/slapd.pid
argsfile {home}/slapd.args
TLSCACertificateFile {home}/ca.pem
TLSCertificateFile {home}/server.pem
TLSCertificateKeyFile {home}/server.key
TLSVerifyClient never
# What makes an empty password dangerous: many directories answer such a bind with "success".
allow bind_anon_dn
database mdb
suffix {suffix}
rootdn {root_dn}
rootpw "{root_password}"
directory {home}/data
maxsize 33554432
dbnosync
index objectClass,uid,member,entryUUID eq
# Strangers may only prove who they are.
access to attrs=userPassword by anonymous auth by * none
# An account that may read what is below a place may not always read the place itself.
access to dn.regex="^ou=(people|groups),{suffix}$" by users search by * none
access to * by users read by * none
overlay memberof
# Holds only for who has a pwdPolicySubentry.
overlay ppolicy
ppolicy_use_lockout
"""


@dataclass(frozen=True)
class Colleague:
    uid: str
    password: str
    given_name: str
    surname: str
    dn: str


def colleague(uid: str, given_name: str, surname: str) -> Colleague:
    dn = f"uid={ldap.dn.escape_dn_chars(uid)},{USER_BASE}"
    return Colleague(uid, f"password of {uid}", given_name, surname, dn)


PEOPLE = {
    person.uid: person
    for person in (
        colleague("alice", "Alice", "Liddell"),
        colleague("bob", "Bob", "Dodgson"),
        colleague("yamada", "太郎", "山田"),
        colleague("charlie", "Charlie", "Brown"),
        colleague("olivia", "Olivia", "Twist"),
        colleague("dave", "Dave", "Null"),
        colleague("erin", "Erin", "Outsider"),
        colleague("佐藤", "花子", "佐藤"),
        colleague("star*", "Star", "Asterisk"),
        colleague("a)(uid=b", "Paren", "Thesis"),
        colleague("smith, john", "John", "Smith"),
        colleague("100%s", "Per", "Cent"),
        colleague("back\\slash", "Back", "Slash"),
    )
}


def group_dn(name: str) -> str:
    return f"cn={name},{GROUP_BASE}"


# Members are names of people, or of groups (with a leading @).
GROUPS = {
    "research-lab": ["yamada"],
    "research": ["alice", "bob", "@research-lab", "star*", "a)(uid=b", "smith, john", "100%s", "back\\slash", "佐藤"],
    "research-leads": ["bob"],
    "sales": ["charlie"],
    "operators": ["olivia"],
    "employees": ["@research", "@sales", "@operators", "dave", "@circle"],
    "circle": ["@employees"],  # groups that contain each other: reading must end
    "elsewhere": ["erin"],
}
TENANTS = {
    group_dn("research"): "research",
    group_dn("research-leads"): "research:admin",
    group_dn("sales"): "sales",
}


@dataclass
class LdapServer:
    """A running server. `uri` is for StartTLS (or plain), `tls_uri` for LDAPS."""

    home: Path
    port: int
    tls_port: int
    process: subprocess.Popen[bytes]

    @property
    def uri(self) -> str:
        return f"ldap://127.0.0.1:{self.port}"

    @property
    def tls_uri(self) -> str:
        return f"ldaps://127.0.0.1:{self.tls_port}"

    @property
    def ca_file(self) -> Path:
        return self.home / "ca.pem"


@dataclass
class Directory(LdapServer):
    """A running slapd."""

    people: dict[str, Colleague] = field(default_factory=lambda: dict(PEOPLE))

    @property
    def other_ca_file(self) -> Path:
        """A certificate authority that has nothing to do with this server."""
        return self.home / "other-ca.pem"

    def env(self, **overrides: str | None) -> dict[str, str]:
        """Return the LDAP_* variables: search and bind over StartTLS, nested groups. None leaves a variable out."""
        values: dict[str, str | None] = {
            "LDAP_SERVER_URI": self.uri,
            "LDAP_CA_FILE": str(self.ca_file),
            "LDAP_BIND_DN": SERVICE_DN,
            "LDAP_BIND_PASSWORD": SERVICE_PASSWORD,
            "LDAP_USER_BASE": USER_BASE,
            "LDAP_GROUP_BASE": GROUP_BASE,
            "LDAP_GROUP_TENANTS": json.dumps(TENANTS),
            "LDAP_OPERATOR_GROUP": group_dn("operators"),
        }
        return {name: value for name, value in {**values, **overrides}.items() if value is not None}

    @contextlib.contextmanager
    def as_root(self) -> Iterator[ldap.ldapobject.SimpleLDAPObject]:
        """Provide a connection that may change everything; for tests that hire, move and dismiss people."""
        connection = ldap.initialize(self.uri)
        connection.set_option(ldap.OPT_NETWORK_TIMEOUT, 5)
        try:
            connection.simple_bind_s(ROOT_DN, ROOT_PASSWORD)
            yield connection
        finally:
            connection.unbind_s()

    def hire(self, uid: str, *groups: str) -> Colleague:
        """Return a new colleague in these groups, or an old one with all memberships set again; ends with `dismiss`."""
        person = colleague(uid, uid.title(), "Newcomer")
        with self.as_root() as root:
            root.add_s(person.dn, _entry(person, len(self.people)))
            for name in groups:
                root.modify_s(group_dn(name), [(ldap.MOD_ADD, "member", person.dn.encode())])
        self.people[uid] = person
        return person

    def dismiss(self, uid: str) -> None:
        person = self.people.pop(uid)
        with self.as_root() as root:
            for name in GROUPS:
                with contextlib.suppress(ldap.NO_SUCH_ATTRIBUTE):
                    root.modify_s(group_dn(name), [(ldap.MOD_DELETE, "member", person.dn.encode())])
            root.delete_s(person.dn)

    def change(self, uid: str, **attributes: str) -> None:
        """Set attributes of a person's entry; an empty value takes one away."""
        with self.as_root() as root:
            changes = [(name, [value.encode()] if value else None) for name, value in attributes.items()]
            root.modify_ext_s(
                self.people[uid].dn,
                [(ldap.MOD_REPLACE, name, value) for name, value in changes],
                serverctrls=[RelaxRulesControl()],  # also those that the server itself keeps
            )

    def join(self, uid: str, group: str) -> None:
        with self.as_root() as root:
            root.modify_s(group_dn(group), [(ldap.MOD_ADD, "member", self.people[uid].dn.encode())])

    def leave(self, uid: str, group: str) -> None:
        with self.as_root() as root:
            root.modify_s(group_dn(group), [(ldap.MOD_DELETE, "member", self.people[uid].dn.encode())])

    @contextlib.contextmanager
    def without_group(self, inner: str, outer: str) -> Iterator[None]:
        """Provide the inner group is no member of the outer one."""
        member = group_dn(inner).encode()
        with self.as_root() as root:
            root.modify_s(group_dn(outer), [(ldap.MOD_DELETE, "member", member)])
            try:
                yield
            finally:
                root.modify_s(group_dn(outer), [(ldap.MOD_ADD, "member", member)])

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Provide the server accepts connections (its kernel does) and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_directory() -> Iterator[Directory]:
    """Start a directory, fill it, stop it and remove its files."""
    home = Path(tempfile.mkdtemp(prefix="slapd-"))
    directory = None
    try:
        write_certificates(home)
        directory = _start(home)
        _fill(directory)
        yield directory
    finally:
        if directory:
            directory.process.terminate()
            directory.process.wait(10)
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def directory() -> Iterator[Directory]:
    """Provide one directory per test process. Tests that change it put it back (`hire`, `dismiss`, `join`, `leave`)."""
    with running_directory() as running:
        yield running


def _start(home: Path) -> Directory:
    """Start slapd and wait until it answers. If another program took the port in between, try another."""
    (home / "data").mkdir()
    (home / "windows.schema").write_text(WINDOWS_SCHEMA)
    (home / "slapd.conf").write_text(
        CONFIGURATION.format(home=home, suffix=SUFFIX, root_dn=ROOT_DN, root_password=ROOT_PASSWORD)
    )
    # A copy: Ubuntu confines /usr/sbin/slapd by its path to files under /etc/ldap and /var/lib/ldap.
    program = Path(shutil.copy(shutil.which("slapd", path="/usr/sbin:/usr/local/sbin:/usr/bin") or "slapd", home))
    for _attempt in range(5):
        port, tls_port = unused_port(), unused_port()
        addresses = f"ldap://127.0.0.1:{port} ldaps://127.0.0.1:{tls_port}"
        with (home / "log").open("wb") as log:
            # -d keeps it in the foreground, as our child
            process = subprocess.Popen(
                [program, "-d", "0", "-f", home / "slapd.conf", "-h", addresses], stdout=log, stderr=log
            )
        directory = Directory(home, port, tls_port, process)
        if _answers(directory):
            return directory
    raise RuntimeError(f"slapd does not start: {(home / 'log').read_text()}")


def _answers(directory: Directory) -> bool:
    """Return True as soon as root can bind, False if the process has ended."""

    def is_bound() -> bool:
        with contextlib.suppress(ldap.SERVER_DOWN), directory.as_root():
            return True
        return False

    try:
        until(lambda: is_bound() or directory.process.poll() is not None, START_TIMEOUT)
    except AssertionError:
        directory.process.kill()
        raise
    return directory.process.poll() is None


def _fill(directory: Directory) -> None:
    with directory.as_root() as root:
        root.add_s(SUFFIX, [("objectClass", [b"dcObject", b"organization"]), ("dc", [b"example"]), ("o", [b"Example"])])
        for unit in ("people", "groups", "services", "posix", "windows", "policies"):
            root.add_s(f"ou={unit},{SUFFIX}", [("objectClass", [b"organizationalUnit"]), ("ou", [unit.encode()])])
        root.add_s(
            SERVICE_DN,
            [
                ("objectClass", [b"organizationalRole", b"simpleSecurityObject"]),
                ("cn", [b"madoguchi"]),
                ("userPassword", [SERVICE_PASSWORD.encode()]),
            ],
        )
        for number, person in enumerate(PEOPLE.values()):
            root.add_s(person.dn, _entry(person, number))
        for name, members in GROUPS.items():
            dns = [group_dn(member[1:]) if member[0] == "@" else PEOPLE[member].dn for member in members]
            root.add_s(
                group_dn(name),
                [
                    ("objectClass", [b"groupOfNames"]),
                    ("cn", [name.encode()]),
                    # groupOfNames may not be empty: root stays when the last person goes
                    ("member", [dn.encode() for dn in [ROOT_DN, *dns]]),
                ],
            )
        root.add_s(
            f"cn=unix-research,ou=posix,{SUFFIX}",
            [
                ("objectClass", [b"posixGroup"]),
                ("cn", [b"unix-research"]),
                ("gidNumber", [b"7000"]),
                ("memberUid", [b"alice"]),
            ],
        )

        root.add_s(
            POLICY_DN,
            [
                ("objectClass", [b"device", b"pwdPolicy"]),
                ("cn", [b"strict"]),
                ("pwdAttribute", [b"userPassword"]),
                ("pwdMaxAge", [b"3600"]),
                ("pwdMustChange", [b"TRUE"]),
                ("pwdLockout", [b"TRUE"]),
                ("pwdMaxFailure", [b"2"]),
            ],
        )
    _fill_windows(directory)


def _fill_windows(directory: Directory) -> None:
    """Add an enabled and a disabled account as Active Directory has them; 2 in userAccountControl means disabled."""
    with directory.as_root() as root:
        for name, control, guid in (("Suzuki", 0x200, SUZUKI_GUID), ("Tanaka", 0x202, os.urandom(16))):
            person = colleague(name, "一郎", "鈴木")
            attributes = {**dict(_entry(person, 90)), "objectGUID": [guid], "sAMAccountName": [name.encode()]}
            attributes |= {"userAccountControl": [str(control).encode()], "objectCategory": [b"person"]}
            attributes["objectClass"] = [b"inetOrgPerson", b"posixAccount", b"user"]
            root.add_s(f"cn={name},{WINDOWS_BASE}", list(attributes.items()))


def _entry(person: Colleague, number: int) -> list[tuple[str, list[bytes]]]:
    attributes = {
        "uid": person.uid,
        "cn": f"{person.given_name} {person.surname}",
        "givenName": person.given_name,
        "sn": person.surname,
        "mail": f"person{number}@example.com",
        "userPassword": person.password,
        "uidNumber": str(5000 + number),
        # bob's primary group is the posix group of research
        "gidNumber": "7000" if person.uid == "bob" else "6000",
        "homeDirectory": f"/home/{number}",
    }
    return [("objectClass", [b"inetOrgPerson", b"posixAccount"])] + [
        (name, [value.encode()]) for name, value in attributes.items()
    ]


def write_certificates(home: Path) -> None:
    ca_key, ca = _authority("Test directory CA")
    (home / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    _, other = _authority("Another CA")
    (home / "other-ca.pem").write_bytes(other.public_bytes(serialization.Encoding.PEM))
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]  # and not localhost, so that a wrong name can be tried
    certificate = (
        _certificate("Test directory", key, ca.subject)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    (home / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (home / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _authority(name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _certificate(name, key, subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _certificate(name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
    )
