"""Questions to the directory about people: who is this, who of these is still there, what may they be here."""

import logging
import unicodedata
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import ldap.dn
import ldap.filter

from portal.accounts.ldap import account_state
from portal.accounts.ldap.configuration import Directory
from portal.accounts.ldap.connection import Connection, Entry, exists, read, search, service_connection, some
from portal.accounts.ldap.errors import Refused
from portal.accounts.ldap.groups import Groups, holders, locate_groups
from portal.accounts.ldap.values import first, first_bytes, guid_filter, guid_text

log = logging.getLogger(__name__)

CHUNK = 50  # people asked for at once in `look_up_people`


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """What the directory says about somebody. `roles` maps tenants' short names to "member" or "admin"."""

    id: str
    username: str
    first_name: str
    last_name: str
    mail: str
    roles: Mapping[str, str]
    is_operator: bool | None  # None: the directory does not decide it, or its group was not found
    is_admitted: bool | None  # None: the group that may sign in was not found
    ended: str = ""  # why the account has come to an end, a key of account_state.ENDED
    has_lapsed: bool = False  # for 30 days nobody could sign in as them, because of a lock or the password
    undecided: frozenset[str] = frozenset()  # tenants of which a group was not found: `roles` may lack some of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """`people` by id, of those asked about. `unclear`: whose entry is there but cannot be used, and why."""

    people: Mapping[str, Person] = field(default_factory=dict)
    unclear: Mapping[str, str] = field(default_factory=dict)
    groups: Groups = field(default_factory=Groups)


def look_up_people(directory: Directory, ids: Collection[str], remembered: Mapping[str, str] | None = None) -> Findings:
    """Who of these is in the directory. `remembered`: ids of the groups of the settings, by the DN that these have.

    Blocks for as long as the directory needs: a search for every 50 people, and one or two for each group. Asks it
    also when there is nobody to ask about. Raises NoAnswer or Refused, then nothing is known about anybody.
    """
    wanted = sorted(ids)
    people: dict[str, Person] = {}
    unclear: dict[str, str] = {}
    with service_connection(directory) as connection:
        if not exists(connection, directory.user_base):
            raise Refused(f"There is no {directory.user_base}, or we may not read it (LDAP_USER_BASE)")
        if not wanted and not some(connection, directory.user_base, directory.filter_of_all, ["1.1"], 1):
            raise Refused(f"Nobody below {directory.user_base} matches LDAP_USER_FILTER {directory.user_filter}")
        groups = locate_groups(directory, connection, remembered or {})
        entries: list[Entry] = []
        for start in range(0, len(wanted), CHUNK):
            these = "".join(_by_id(directory, id) for id in wanted[start : start + CHUNK])
            query = f"(&{directory.filter_of_all}(|{these}))"
            entries += search(connection, directory.user_base, query, directory.attributes)
        for entry, held in zip(entries, holders(directory, connection, groups, entries), strict=True):
            try:
                person = person_of(directory, entry, held, groups)
            except Refused as error:
                log.warning("%s stays as it is here: %s", entry.dn, error)
                unclear[identity(directory, entry.attributes)] = str(error)
            else:
                people[person.id] = person
    return Findings(people=people, unclear=unclear, groups=groups)


def find(directory: Directory, username: str, remembered: Mapping[str, str] | None = None) -> Person | None:
    """Who signs in by this name. Raises NoAnswer or Refused."""
    with service_connection(directory) as connection:
        entry = by_name(directory, connection, username)
        return in_full(directory, connection, entry, remembered or {}) if entry else None


def in_full(directory: Directory, connection: Connection, entry: Entry, remembered: Mapping[str, str]) -> Person:
    """Return the person of an entry, with what follows from groups. Raises LDAPError and Refused."""
    groups = locate_groups(directory, connection, remembered)
    return person_of(directory, entry, holders(directory, connection, groups, [entry])[0], groups)


# --- names by which people sign in


def by_name(directory: Directory, connection: Connection, typed: str) -> Entry | None:
    """Return the entry of whoever signs in by what was typed; None if there is none, or several. Raises LDAPError."""
    found = all_by_name(directory, connection, typed)
    return found[0] if len(found) == 1 else None


def all_by_name(directory: Directory, connection: Connection, typed: str) -> list[Entry]:
    """Return the entries that what was typed may mean. Nobody signs in by it if they are several.

    An account name goes before all else, so that nobody's mail address can stand in another's way. Raises LDAPError.
    """
    for query in _queries(directory, connection, unicodedata.normalize("NFKC", typed).strip()):
        found = search(connection, directory.user_base, query, directory.attributes)
        if found:
            return found
    return []


def _queries(directory: Directory, connection: Connection, name: str) -> list[str]:
    """Filter to try one after the other."""
    domain, separator, account = name.rpartition("\\")
    if directory.kind == "activedirectory" and separator:
        return [directory.filter_by_name(account)] if domain.casefold() in domains(connection) else []
    queries = [directory.filter_by_name(name)]
    if "@" in name:
        queries += [directory.filter_by(attribute, name) for attribute in directory.other_names]
        account, _, domain = name.rpartition("@")
        if directory.kind == "activedirectory" and domain.casefold() in domains(connection):
            # An implicit user principal name ([MS-ADTS] 5.1.1.1.1): everybody has one, whatever the attribute says.
            queries.insert(-1 if directory.other_names else len(queries), directory.filter_by_name(account))
    return queries


def domains(connection: Connection) -> frozenset[str]:
    """What stands before a backslash or behind an @ and means this domain, in lower case: its two names."""
    names = ["defaultNamingContext", "configurationNamingContext"]
    root = read(connection, "", names)
    here, configuration = (first(root.attributes, name) if root else "" for name in names)
    if not here:
        return frozenset()
    dns = ".".join(part.partition("=")[2] for part in ldap.dn.explode_dn(here))
    query = f"(&(objectClass=crossRef)(nCName={ldap.filter.escape_filter_chars(here)}))"
    rows = search(connection, f"CN=Partitions,{configuration}", query, ["nETBIOSName"]) if configuration else []
    netbios = [first(row.attributes, "nETBIOSName") for row in rows] or [dns.partition(".")[0]]
    return frozenset(name.casefold() for name in (dns, *netbios) if name)


# --- what follows from an entry

# What our columns hold of a name that tells people apart.
LONGEST_NAME, LONGEST_ID = 150, 255


def person_of(directory: Directory, entry: Entry, held: Collection[str], groups: Groups) -> Person:
    """`held`: the groups of the settings that hold this person.

    Raises Refused for an entry without a name or an id, or with one that is longer than our columns.
    """
    attributes, now = entry.attributes, datetime.now(UTC)
    username = account_name(directory, attributes)
    id = identity(directory, attributes)
    for value, most, variable in (
        (username, LONGEST_NAME, "LDAP_USERNAME_ATTRIBUTE"),
        (id, LONGEST_ID, "LDAP_ID_ATTRIBUTE"),
    ):
        if not value:
            raise Refused(f"{entry.dn} has no value, or none that we may read, of the attribute in {variable}")
        if len(value) > most:  # cut off, it might be another person's
            raise Refused(f"{entry.dn} has a value of more than {most} characters in the attribute in {variable}")
    return Person(
        id=id,
        username=username,
        first_name=first(attributes, directory.first_name_attribute),
        last_name=first(attributes, directory.last_name_attribute),
        mail=first(attributes, directory.mail_attribute),
        roles=directory.roles(held),
        is_operator=_holds(directory.operator_group, held, groups) if directory.operator_group else None,
        is_admitted=_holds(directory.required_group, held, groups) if directory.required_group else True,
        ended=account_state.ended(attributes, now),
        has_lapsed=account_state.has_lapsed(attributes, now),
        undecided=groups.undecided_tenants(directory),
    )


def _holds(group: str, held: Collection[str], groups: Groups) -> bool | None:
    return None if group in groups.missing else group in held


def security_id(attributes: Mapping[str, Any]) -> bytes:
    """Return a person's own; only of Active Directory, empty if it may not be read."""
    return first_bytes(attributes, "objectSid")


def security_ids_of_asker(connection: Any) -> list[bytes]:
    """Return the person's own and those of their groups; none if the server has no such thing."""
    answer = connection.search_s("", ldap.SCOPE_BASE, attrlist=["tokenGroups"])
    return [value for _, attributes in answer for value in attributes.get("tokenGroups", []) if value]


def account_name(directory: Directory, attributes: Mapping[str, Any]) -> str:
    """Return the name here, in one spelling."""
    return unicodedata.normalize("NFKC", first(attributes, directory.username_attribute)).strip().lower()


def identity(directory: Directory, attributes: Mapping[str, Any]) -> str:
    """What stays when a person's name changes."""
    if directory.id_attribute.lower() == "objectguid":
        return guid_text(attributes, directory.id_attribute)
    return first(attributes, directory.id_attribute)


def _by_id(directory: Directory, id: str) -> str:
    if directory.id_attribute.lower() == "objectguid":
        return f"({directory.id_attribute}={guid_filter(str(uuid.UUID(id)))})"
    return f"({directory.id_attribute}={ldap.filter.escape_filter_chars(id)})"
