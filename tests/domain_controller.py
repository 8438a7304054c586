"""A real Active Directory for tests: Samba's domain controller, in a network of its own, with people and groups.

`with running_domain() as domain:` or the fixture `domain` (one per test process that asks for it). Nothing of the
machine's own Samba is read or written. Provisioning takes 10 s, once for each version of Samba; what it made is kept
in MADOGUCHI_CACHE and copied. A start takes about a second.

The people: suzuki and tanaka belong to Research (tanaka through a group within its group), mori is its admin, ito
operates, kimura belongs to Sales, the password of stale has expired; `svc-madoguchi` is the account that looks people
up.
"""

import contextlib
import hashlib
import inspect
import json
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ldap
import ldap.dn
import ldap.ldapobject
import pytest
from django.conf import settings

from modelregistry.install.build_cache import build_once
from tests import own_network
from tests.slapd import LdapServer, write_certificates
from tests.waiting import until

REALM = "corp.example.com"
SUFFIX = "DC=corp,DC=example,DC=com"
USER_BASE = f"OU=People,{SUFFIX}"
GROUP_BASE = f"OU=Groups,{SUFFIX}"
ADMIN, ADMIN_PASSWORD = f"administrator@{REALM}", "Administrator-of-the-test-1"
SERVICE, SERVICE_PASSWORD = f"svc-madoguchi@{REALM}", "the service's own password"
START_TIMEOUT = 30.0  # seconds; a start takes 1
TEN_YEARS, IN_2010 = 3650 * 864_000_000_000, 129_100_000_000_000_000  # in 100 ns, the latter since 1601
STALE = "stale"  # whose password is from 2010
NORMAL, DISABLED, NEVER_EXPIRES = 0x200, 0x202, 0x10200  # userAccountControl

PEOPLE = {
    "suzuki": ("一郎", "鈴木"),
    "tanaka": ("次郎", "田中"),
    "mori": ("三郎", "森"),
    "ito": ("四郎", "伊藤"),
    "kimura": ("五郎", "木村"),
}
# Members are names of people, or of groups (with a leading @).
GROUPS = {
    "Research Lab": ["tanaka"],
    "Research": ["suzuki", "mori", "@Research Lab"],
    "Research Leads": ["mori"],
    "Sales": ["kimura"],
    "Operators": ["ito"],
}


def person_dn(name: str) -> str:
    return f"CN={ldap.dn.escape_dn_chars(name)},{USER_BASE}"


def group_dn(name: str) -> str:
    return f"CN={ldap.dn.escape_dn_chars(name)},{GROUP_BASE}"


TENANTS = {
    group_dn("Research"): "research",
    group_dn("Research Leads"): "research:admin",
    group_dn("Sales"): "sales",
}

# Of all that a domain controller does only what tests ask: LDAP. Not even Kerberos, for passwords come by LDAP.
CONFIGURATION = """
[global]
netbios name = DC1
realm = CORP.EXAMPLE.COM
workgroup = CORP
server role = active directory domain controller
server services = ldap
interfaces = lo
bind interfaces only = yes
private dir = {home}/private
state directory = {home}/state
cache directory = {home}/cache
lock directory = {home}/lock
pid directory = {home}
ncalrpc dir = {home}/ncalrpc
winbindd socket directory = {home}/winbindd
binddns dir = {home}/bind-dns
ntp signd socket directory = {home}/ntp
log file = {home}/samba.log
tls certfile = {home}/server.pem
tls keyfile = {home}/server.key
tls cafile = {home}/ca.pem
tls dh params file =
"""


# As `samba-tool domain provision`, which cannot leave out the files that Windows' clients read by SMB: their owners are
# users that a user namespace does not have.
PROVISION = """
import logging, sys
from samba.auth import system_session
from samba.dsdb import DS_DOMAIN_FUNCTION_2008_R2
from samba.param import LoadParm
from samba.provision import provision
nothing, home, realm, password = sys.argv[1:]
settings = LoadParm(filename_for_non_global_lp=nothing)
for name, value in ("interfaces", "lo"), ("bind interfaces only", "yes"):
    settings.set(name, value)
provision(
    logging.getLogger(), system_session(), smbconf=nothing, targetdir=home, realm=realm, domain="CORP", hostname="dc1",
    hostip="127.0.0.1", adminpass=password, serverrole="active directory domain controller", dns_backend="NONE",
    skip_sysvolacl=True, lp=settings, dom_for_fun_level=DS_DOMAIN_FUNCTION_2008_R2,
)
"""

# A password older than the domain allows, which no server lets anybody make: as Samba's own tools do when they migrate.
AGE_PASSWORD = """
import sys
import ldb
from samba.auth import system_session
from samba.param import LoadParm
from samba.samdb import SamDB
configuration, database, dn, set_at = sys.argv[1:]
accounts = SamDB(url=database, session_info=system_session(), lp=LoadParm(filename_for_non_global_lp=configuration))
message = ldb.Message(ldb.Dn(accounts, dn))
message["pwdLastSet"] = ldb.MessageElement(set_at, ldb.FLAG_MOD_REPLACE, "pwdLastSet")
accounts.modify(message, controls=["local_oid:1.3.6.1.4.1.7165.4.3.12:0"])
"""


@dataclass
class Domain(LdapServer):
    """A running domain controller."""

    def env(self, **overrides: str | None) -> dict[str, str]:
        """Return the LDAP_* variables as deploy/LDAP.md has them for Active Directory. None leaves a variable out."""
        values: dict[str, str | None] = {
            "LDAP_KIND": "activedirectory",
            "LDAP_SERVER_URI": self.tls_uri,
            "LDAP_CA_FILE": str(self.ca_file),
            "LDAP_BIND_DN": SERVICE,
            "LDAP_BIND_PASSWORD": SERVICE_PASSWORD,
            "LDAP_USER_BASE": SUFFIX,
            "LDAP_GROUP_BASE": SUFFIX,
            "LDAP_GROUP_TENANTS": json.dumps(TENANTS),
            "LDAP_OPERATOR_GROUP": group_dn("Operators"),
        }
        return {name: value for name, value in {**values, **overrides}.items() if value is not None}

    @contextlib.contextmanager
    def as_admin(self) -> Iterator[ldap.ldapobject.SimpleLDAPObject]:
        """Provide a connection that may change everything."""
        connection = ldap.initialize(self.tls_uri)
        for option, value in (
            (ldap.OPT_NETWORK_TIMEOUT, 10),
            (ldap.OPT_REFERRALS, 0),
            (ldap.OPT_X_TLS_CACERTFILE, str(self.ca_file)),
            (ldap.OPT_X_TLS_NEWCTX, 0),
        ):
            connection.set_option(option, value)
        try:
            connection.simple_bind_s(ADMIN, ADMIN_PASSWORD)
            yield connection
        finally:
            connection.unbind_s()

    def hire(self, name: str, *groups: str, **attributes: Any) -> str:
        """Return a new person in these groups; the password is "password of <name>". Ends with `dismiss`."""
        with self.as_admin() as admin:
            add_person(admin, name, "", name.title(), **attributes)
            for group in groups:
                admin.modify_s(group_dn(group), [(ldap.MOD_ADD, "member", person_dn(name).encode())])
        return name

    def change(self, dn: str, **attributes: Any) -> None:
        """Set attributes of a person or a group."""
        with self.as_admin() as admin:
            admin.modify_s(dn, [(ldap.MOD_REPLACE, name, _values(value)) for name, value in attributes.items()])

    def remove(self, dn: str) -> None:
        with self.as_admin() as admin, contextlib.suppress(ldap.NO_SUCH_OBJECT):
            admin.delete_s(dn)

    def dismiss(self, name: str) -> None:
        self.remove(person_dn(name))

    def join(self, dn: str, group: str) -> None:
        with self.as_admin() as admin:
            admin.modify_s(group_dn(group), [(ldap.MOD_ADD, "member", dn.encode())])

    def leave(self, dn: str, group: str) -> None:
        with self.as_admin() as admin:
            admin.modify_s(group_dn(group), [(ldap.MOD_DELETE, "member", dn.encode())])

    def move(self, dn: str, rdn: str, superior: str | None = None) -> None:
        with self.as_admin() as admin:
            admin.rename_s(dn, rdn, superior)


def add_person(admin: ldap.ldapobject.SimpleLDAPObject, name: str, given: str, surname: str, **attributes: Any) -> None:
    entry: dict[str, Any] = {
        "objectClass": [b"user"],
        "sAMAccountName": name,
        "userPrincipalName": f"{name}@{REALM}",
        "sn": surname,
        "mail": f"{name}.mail@example.com",
        "unicodePwd": [f'"password of {name}"'.encode("utf-16-le")],
        "userAccountControl": NORMAL,
        **({"givenName": given} if given else {}),
        **attributes,
    }
    admin.add_s(person_dn(name), [(key, _values(value)) for key, value in entry.items()])


def add_group(admin: ldap.ldapobject.SimpleLDAPObject, name: str, members: list[str]) -> None:
    dns = [group_dn(member[1:]) if member[0] == "@" else person_dn(member) for member in members]
    entry = [("objectClass", [b"group"]), ("sAMAccountName", [name.encode()])]
    admin.add_s(group_dn(name), entry + ([("member", [dn.encode() for dn in dns])] if dns else []))


def _values(value: str | int | list[bytes]) -> list[bytes]:
    return value if isinstance(value, list) else [str(value).encode()]


@pytest.fixture(scope="session")
def domain() -> Iterator[Domain]:
    """Provide one domain per test process. Tests that change it put it back."""
    with running_domain() as running:
        yield running


@contextlib.contextmanager
def running_domain() -> Iterator[Domain]:
    """Start a copy of the domain, stop it and remove its files."""
    with tempfile.TemporaryDirectory(prefix="samba-") as home:
        shutil.copytree(provisioned(), home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("ldapi"))  # sockets
        with _running(Path(home)) as running:
            yield running


def provisioned() -> Path:
    """Return the files of the domain with its people and groups; made by the first test that needs them."""
    program = _program("samba")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    made_of = [
        PEOPLE,
        GROUPS,
        CONFIGURATION,
        PROVISION,
        AGE_PASSWORD,
        *(inspect.getsource(function) for function in (_provision, add_person, add_group)),
    ]
    made_by = hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
    return build_once(
        settings.CACHE / "samba" / f"{re.sub(r'[^-.+0-9A-Za-z]', '_', version)}-{made_by}", _provision, print
    )


def _program(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if not found:
        raise LookupError(f"no {name} here: run `make test-setup`, or install samba-ad-dc and samba-ad-provision")
    return found


def _provision(workspace: Path) -> Path:
    home, nothing = workspace / "domain", workspace / "smb.conf"
    nothing.write_text("[global]\n")  # in place of /etc/samba/smb.conf
    command: list[str | Path] = [
        "/usr/bin/python3",
        "-c",
        PROVISION,
        nothing,
        home,
        REALM,
        ADMIN_PASSWORD,
    ]  # python3-samba's
    log = workspace / "provision.log"
    with log.open("wb") as out:
        process = own_network.start(command, {}, out, ())
        if process.wait(120):
            raise RuntimeError(f"Samba does not provision: {log.read_text()[-3000:]}")
        assert process.stdin
        process.stdin.close()
    with _running(home) as running, running.as_admin() as admin:
        # Passwords as tests have them; three wrong ones lock an account for a while.
        policy = {"pwdProperties": 0, "minPwdAge": 0, "maxPwdAge": -TEN_YEARS, "pwdHistoryLength": 0}
        policy |= {"lockoutThreshold": 3}
        admin.modify_s(SUFFIX, [(ldap.MOD_REPLACE, name, _values(value)) for name, value in policy.items()])
        for unit in ("People", "Groups", "Elsewhere"):
            admin.add_s(f"OU={unit},{SUFFIX}", [("objectClass", [b"organizationalUnit"])])
        service = [("objectClass", [b"user"]), ("sAMAccountName", [b"svc-madoguchi"])]
        service += [("unicodePwd", [f'"{SERVICE_PASSWORD}"'.encode("utf-16-le")])]
        service += [("userAccountControl", _values(NEVER_EXPIRES)), ("userPrincipalName", [SERVICE.encode()])]
        admin.add_s(f"CN=svc-madoguchi,CN=Users,{SUFFIX}", service)
        for name, (given, surname) in PEOPLE.items():
            add_person(admin, name, given, surname)
        for name, members in GROUPS.items():
            add_group(admin, name, members)
        add_person(admin, STALE, "", "Stale")
    command = ["/usr/bin/python3", "-c", AGE_PASSWORD, home / "smb.conf", home / "private" / "sam.ldb"]
    subprocess.run([*command, person_dn(STALE), str(IN_2010)], check=True)
    return home


@contextlib.contextmanager
def _running(home: Path) -> Iterator[Domain]:
    write_certificates(home)
    (home / "server.key").chmod(0o600)  # or Samba refuses it
    (home / "lock").mkdir(exist_ok=True)
    (home / "smb.conf").write_text(CONFIGURATION.format(home=home))
    # The kernel chooses the ports, and no other program can take them in between.
    with (
        socket.create_server(("127.0.0.1", 0)) as plain,
        socket.create_server(("127.0.0.1", 0)) as tls,
        (home / "log").open("wb") as log,
    ):
        ports = {plain.fileno(): 389, tls.fileno(): 636}
        command = [_program("samba"), "--foreground", "--no-process-group", "--debug-stdout", "--model=single"]
        process = own_network.start([*command, "--configfile", home / "smb.conf"], ports, log, ports)
        domain = Domain(home, plain.getsockname()[1], tls.getsockname()[1], process)
    assert process.stdin
    try:
        _wait(domain)
        yield domain
    finally:
        process.stdin.close()
        try:
            process.wait(own_network.STOP_TIMEOUT + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(domain: Domain) -> None:
    """Wait until the administrator can bind."""

    def is_bound() -> bool:
        if domain.process.poll() is not None:
            raise RuntimeError(f"samba does not start: {(domain.home / 'log').read_text()[-3000:]}")
        with contextlib.suppress(ldap.LDAPError), domain.as_admin():
            return True
        return False

    until(is_bound, START_TIMEOUT)


@pytest.fixture
def connect_domain(connect: Callable[..., Any], domain: Domain) -> Callable[..., Any]:
    """Provide `connect` to the domain in place of slapd."""

    def connect_domain(**overrides: str | None) -> Any:
        return connect(of=domain, **overrides)

    return connect_domain
