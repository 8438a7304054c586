"""What an examination finds, and what its parts share: how a finding is come by, and what leads to the right place."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ldap.dn

from portal.accounts.ldap.configuration import Directory
from portal.accounts.ldap.connection import Connection, Entry, connect_to, exists, read, translate_errors
from portal.accounts.ldap.errors import DirectoryError
from portal.accounts.ldap.values import text


@dataclass(frozen=True, slots=True)
class Finding:
    ok: bool | None  # False: does not work; None: worth knowing
    text: str


@contextmanager
def opened(directory: Directory, server: str, *, bind: bool) -> Iterator[Connection]:
    connection = connect_to(directory, server, bind=bind)
    try:
        yield connection
    finally:
        connection.unbind_s()


def tried(findings: Iterator[Finding]) -> tuple[Finding, ...]:
    """As far as they come; what stops them is the last."""
    found: list[Finding] = []
    try:
        with translate_errors():
            found.extend(findings)
    except DirectoryError as error:
        found.append(Finding(False, str(error)))
    return tuple(found)


def nearest(directory: Directory, connection: Connection, dn: str) -> str:
    """What leads to the right place where there is none, or none that we may read: where the way to it ends."""
    if not directory.bind_dn:
        return "LDAP_BIND_DN is not set, so nothing is shown that needs an account"
    parts = ldap.dn.explode_dn(dn)
    for count in range(1, len(parts)):
        place = ",".join(parts[count:])
        if exists(connection, place):
            return f"above it there is {place}"
    root = read(connection, "", ["namingContexts"])
    contexts = [text(value) for value in root.attributes.get("namingContexts", [])] if root else []
    own = [dn for dn in contexts if not dn.lower().startswith(("cn=configuration,", "cn=schema,"))]
    return f"the server has {', '.join(own[:5]) or 'nothing that it shows'}"


def no_such_place(directory: Directory, connection: Connection, dn: str) -> str:
    return f"there is no such place, or our account may not read it; {nearest(directory, connection, dn)}"


def classes(entry: Entry) -> str:
    return ", ".join(map(text, entry.attributes.get("objectClass", []))) or "unknown"


def purpose(directory: Directory, configured: str) -> str:
    places = [f"{tenant}:{role}" for tenant, role in directory.group_tenants.get(configured, ())]
    named = {
        "LDAP_GROUP_TENANTS": f"tenants {', '.join(places)}",
        "LDAP_OPERATOR_GROUP": "operators",
        "LDAP_REQUIRED_GROUP": "who may sign in",
    }
    return "; ".join(named[variable] for variable in directory.settings_of(configured))
