"""Try everything that sign-in and sync need of the directory, one by one, for an operator to read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from portal.accounts.ldap.certificates import read_certificate
from portal.accounts.ldap.configuration import DirectorySettings
from portal.accounts.ldap.connection import LdapConnection, read_entry, translate_errors
from portal.accounts.ldap.entries import Person
from portal.accounts.ldap.errors import DirectoryError
from portal.accounts.ldap.findings import Finding, collect_findings, open_connection
from portal.accounts.ldap.group_examination import examine_groups
from portal.accounts.ldap.people_examination import examine_people
from portal.accounts.ldap.person_examination import examine_person
from portal.accounts.ldap.values import decode_text

# Of supportedCapabilities of the root entry ([MS-ADTS] 3.1.1.3.4.3): LDAP_CAP_ACTIVE_DIRECTORY_OID.
ACTIVE_DIRECTORY = "1.2.840.113556.1.4.800"


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    findings: tuple[Finding, ...]
    is_person: bool = False  # whether it is about a person
    person: Person | None = None  # the person that the directory found


def examine_directory(directory: DirectorySettings, remembered: Mapping[str, str], name: str = "") -> Iterator[Section]:
    """Yield each section as soon as it is known. `name`: a person whose groups and roles are examined as well.

    Blocks for as long as the servers need, a few time-outs for each that does not answer. Failures become findings.
    """
    servers = [_examine_server(directory, server) for server in directory.servers]
    yield Section("Servers (LDAP_SERVER_URI)", (_examine_trust(directory), *servers))
    good = [server for server, finding in zip(directory.servers, servers, strict=True) if finding.ok]
    if not good:
        return
    accounts = (
        [_examine_account(directory, server) for server in good]
        if directory.can_look_up
        else [_report_no_account(directory)]
    )
    yield Section("Account (LDAP_BIND_DN)", tuple(accounts))
    usable = next((server for server, finding in zip(good, accounts, strict=False) if finding.ok), None)
    if usable is None:
        return
    with open_connection(directory, usable, bind=True) as connection, translate_errors():
        yield Section("Kind (LDAP_KIND)", collect_findings(_examine_kind(directory, connection)))
        yield Section("People (LDAP_USER_BASE)", collect_findings(examine_people(directory, connection)))
        if directory.groups:
            yield Section("Groups", collect_findings(examine_groups(directory, connection, remembered)))
        if name:
            person: list[Person] = []
            findings = collect_findings(examine_person(directory, connection, remembered, name, person))
            yield Section(f"Person “{name}”", findings, is_person=True, person=person[0] if person else None)


def _examine_trust(directory: DirectorySettings) -> Finding:
    if directory.ca_file:
        return Finding(None, "authorities", f"trusted certificate authorities: those in {directory.ca_file}")
    return Finding(None, "unencrypted", "nothing is encrypted: passwords can be read on the network")


def _examine_server(directory: DirectorySettings, server: str) -> Finding:
    try:
        with open_connection(directory, server, bind=False):
            pass
    except DirectoryError as error:
        return Finding(False, error.cause, f"{server}: {error}")
    if not directory.ca_file:
        return Finding(True, "server", f"{server}: answers")
    try:
        facts = read_certificate(directory, server)
    except DirectoryError as error:  # trusted by libldap all the same
        return Finding(True, "server", f"{server}: answers, and libldap trusts it; other software says: {error}")
    names = ", ".join(facts.names[:5])
    words = f"answers; certificate for {names}, from {facts.issuer}, until {facts.expires}"
    return Finding(True, "certificate", f"{server}: {words}")


def _examine_account(directory: DirectorySettings, server: str) -> Finding:
    who = directory.bind_dn or "us without an account (LDAP_BIND_DN)"
    try:
        with open_connection(directory, server, bind=True):
            return Finding(True, "account", f"{server} takes {who}")
    except DirectoryError as error:
        return Finding(False, error.cause, f"{server}: {error}")


def _report_no_account(directory: DirectorySettings) -> Finding:
    lacks = "LDAP_BIND_DN" if directory.user_base else "LDAP_USER_BASE"
    words = "is not set: people can sign in, but leavers go unnoticed, and no more can be checked here"
    return Finding(False, "no-account", f"{lacks} {words}")


def _examine_kind(directory: DirectorySettings, connection: LdapConnection) -> Iterator[Finding]:
    root = read_entry(connection, "", ["supportedCapabilities", "namingContexts"])
    if root is None or not root.attributes.get("namingContexts"):
        yield Finding(None, "kind-hidden", "the server does not show what kind it is")
        return
    is_active_directory = ACTIVE_DIRECTORY in map(decode_text, root.attributes.get("supportedCapabilities", []))
    if is_active_directory == (directory.kind == "activedirectory"):
        words = f"{'this is an' if is_active_directory else 'this is not an'} Active Directory"
        yield Finding(True, "kind", f"{directory.kind}: {words}")
    elif is_active_directory:
        yield Finding(
            False,
            "is-active-directory",
            "it is an Active Directory: set LDAP_KIND=activedirectory, or accounts that have ended keep working here",
        )
    else:
        yield Finding(
            False, "is-not-active-directory", "it is not an Active Directory: remove LDAP_KIND=activedirectory"
        )
