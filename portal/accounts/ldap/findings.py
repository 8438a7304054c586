"""Findings of an examination, and what its parts share: how to collect findings and describe entries."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ldap.dn

from portal.accounts.ldap.configuration import DirectorySettings
from portal.accounts.ldap.connection import Entry, LdapConnection, connect_to, exists, read_entry, translate_errors
from portal.accounts.ldap.errors import DirectoryError
from portal.accounts.ldap.values import decode_text


@dataclass(frozen=True, slots=True)
class Finding:
    ok: bool | None  # False: does not work; None: worth knowing
    code: str  # what was found, of a fixed set
    text: str


@contextmanager
def open_connection(directory: DirectorySettings, server: str, *, bind: bool) -> Iterator[LdapConnection]:
    connection = connect_to(directory, server, bind=bind)
    try:
        yield connection
    finally:
        connection.unbind_s()


def collect_findings(findings: Iterator[Finding]) -> tuple[Finding, ...]:
    """Return the findings up to the first error, which becomes the last finding."""
    found: list[Finding] = []
    try:
        with translate_errors():
            found.extend(findings)
    except DirectoryError as error:
        found.append(Finding(False, error.cause, str(error)))
    return tuple(found)


def describe_nearest(directory: DirectorySettings, connection: LdapConnection, dn: str) -> str:
    """Describe how far the path to a missing or unreadable entry leads, as a hint at the right one."""
    if not directory.bind_dn:
        return "LDAP_BIND_DN is not set, so nothing is shown that needs an account"
    parts = ldap.dn.explode_dn(dn)
    for count in range(1, len(parts)):
        place = ",".join(parts[count:])
        if exists(connection, place):
            return f"above it there is {place}"
    root = read_entry(connection, "", ["namingContexts"])
    contexts = [decode_text(value) for value in root.attributes.get("namingContexts", [])] if root else []
    own = [dn for dn in contexts if not dn.lower().startswith(("cn=configuration,", "cn=schema,"))]
    return f"the server has {', '.join(own[:5]) or 'nothing that it shows'}"


def describe_missing(directory: DirectorySettings, connection: LdapConnection, dn: str) -> str:
    return f"there is no such place, or our account may not read it; {describe_nearest(directory, connection, dn)}"


def object_classes(entry: Entry) -> str:
    return ", ".join(map(decode_text, entry.attributes.get("objectClass", []))) or "unknown"


def describe_purpose(directory: DirectorySettings, configured: str) -> str:
    places = [f"{tenant}:{role}" for tenant, role in directory.group_tenants.get(configured, ())]
    named = {
        "LDAP_GROUP_TENANTS": f"tenants {', '.join(places)}",
        "LDAP_OPERATOR_GROUP": "operators",
        "LDAP_REQUIRED_GROUP": "who may sign in",
    }
    return "; ".join(named[variable] for variable in directory.settings_of(configured))
