"""Look up people in the directory: by the name they type or by id, with the roles that their groups give."""

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
from portal.accounts.ldap.configuration import DirectorySettings
from portal.accounts.ldap.connection import (
    Entry,
    LdapConnection,
    exists,
    read_entry,
    search,
    search_sample,
    service_connection,
)
from portal.accounts.ldap.errors import DirectoryRefused
from portal.accounts.ldap.groups import Groups, find_groups_of, locate_groups
from portal.accounts.ldap.values import escape_guid, first_bytes, first_text, format_guid

log = logging.getLogger(__name__)

CHUNK = 50  # people requested at once in `look_up_people`


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """What the directory says about a person. `roles` maps tenants' short names to "member" or "admin"."""

    id: str
    username: str
    first_name: str
    last_name: str
    mail: str
    roles: Mapping[str, str]
    is_operator: bool | None  # None: the directory does not decide it, or its group was not found
    is_admitted: bool | None  # None: the group that may sign in was not found
    end_reason: str = ""  # why the account has ended, a key of account_state.END_REASONS
    has_lapsed: bool = False  # no sign-in was possible for 30 days, because of a lock or the password
    undecided: frozenset[str] = frozenset()  # tenants of which a group was not found: `roles` may lack some of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The answer of `look_up_people`. `people` by id. `unclear`: why an entry that exists cannot be used, by id."""

    people: Mapping[str, Person] = field(default_factory=dict)
    unclear: Mapping[str, str] = field(default_factory=dict)
    groups: Groups = field(default_factory=Groups)


def look_up_people(
    directory: DirectorySettings, ids: Collection[str], remembered: Mapping[str, str] | None = None
) -> Findings:
    """Return which of these people are in the directory.

    `remembered`: ids of the groups of the settings, by their DN in the settings. Blocks for as long as the directory
    needs: a search for every 50 people, and one or two for each group. Makes requests even if `ids` is empty, to test
    the settings. Raises DirectoryUnavailable or DirectoryRefused; then nothing is known about anyone.
    """
    wanted = sorted(ids)
    people: dict[str, Person] = {}
    unclear: dict[str, str] = {}
    with service_connection(directory) as connection:
        if not exists(connection, directory.user_base):
            raise DirectoryRefused(
                f"There is no {directory.user_base}, or we may not read it (LDAP_USER_BASE)", "no-such-place"
            )
        if not wanted and not search_sample(connection, directory.user_base, directory.filter_of_all, ["1.1"], 1):
            raise DirectoryRefused(
                f"No one below {directory.user_base} matches LDAP_USER_FILTER {directory.user_filter}", "no-match"
            )
        groups = locate_groups(directory, connection, remembered or {})
        entries: list[Entry] = []
        for start in range(0, len(wanted), CHUNK):
            these = "".join(_id_filter(directory, id) for id in wanted[start : start + CHUNK])
            query = f"(&{directory.filter_of_all}(|{these}))"
            entries += search(connection, directory.user_base, query, directory.attributes)
        for entry, group_dns in zip(entries, find_groups_of(directory, connection, groups, entries), strict=True):
            try:
                person = build_person(directory, entry, group_dns, groups)
            except DirectoryRefused as error:
                log.warning("%s stays as it is here: %s", entry.dn, error)
                unclear[entry_id(directory, entry.attributes)] = str(error)
            else:
                people[person.id] = person
    return Findings(people=people, unclear=unclear, groups=groups)


def find_person(
    directory: DirectorySettings, username: str, remembered: Mapping[str, str] | None = None
) -> Person | None:
    """Return the person who signs in by this name, or None. Raises DirectoryUnavailable or DirectoryRefused."""
    with service_connection(directory) as connection:
        entry = find_entry(directory, connection, username)
        return read_person(directory, connection, entry, remembered or {}) if entry else None


def read_person(
    directory: DirectorySettings, connection: LdapConnection, entry: Entry, remembered: Mapping[str, str]
) -> Person:
    """Return the person of an entry, with what follows from groups. Raises LDAPError and DirectoryRefused."""
    groups = locate_groups(directory, connection, remembered)
    return build_person(directory, entry, find_groups_of(directory, connection, groups, [entry])[0], groups)


# --- names by which people sign in


def find_entry(directory: DirectorySettings, connection: LdapConnection, typed: str) -> Entry | None:
    """Return the entry of the person who signs in by what was typed; None if none or several. Raises LDAPError."""
    found = find_entries(directory, connection, typed)
    return found[0] if len(found) == 1 else None


def find_entries(directory: DirectorySettings, connection: LdapConnection, typed: str) -> list[Entry]:
    """Return the entries that what was typed may mean. If there are several, no one can sign in by it.

    An account name takes precedence, so that one person's mail address cannot block another person's account name.
    Raises LDAPError.
    """
    for query in _name_filters(directory, connection, unicodedata.normalize("NFKC", typed).strip()):
        found = search(connection, directory.user_base, query, directory.attributes)
        if found:
            return found
    return []


def _name_filters(directory: DirectorySettings, connection: LdapConnection, name: str) -> list[str]:
    """Return filters to try one after the other."""
    domain, separator, account = name.rpartition("\\")
    if directory.kind == "activedirectory" and separator:
        return [directory.filter_by_name(account)] if domain.casefold() in domain_names(connection) else []
    queries = [directory.filter_by_name(name)]
    if "@" in name:
        queries += [directory.filter_by(attribute, name) for attribute in directory.other_names]
        account, _, domain = name.rpartition("@")
        if directory.kind == "activedirectory" and domain.casefold() in domain_names(connection):
            # An implicit user principal name ([MS-ADTS] 5.1.1.1.1): every account has one, whatever the attribute says.
            queries.insert(-1 if directory.other_names else len(queries), directory.filter_by_name(account))
    return queries


def domain_names(connection: LdapConnection) -> frozenset[str]:
    """Return the two names of this domain, in lower case, as written before a backslash or after an @."""
    names = ["defaultNamingContext", "configurationNamingContext"]
    root = read_entry(connection, "", names)
    here, configuration = (first_text(root.attributes, name) if root else "" for name in names)
    if not here:
        return frozenset()
    dns = ".".join(part.partition("=")[2] for part in ldap.dn.explode_dn(here))
    query = f"(&(objectClass=crossRef)(nCName={ldap.filter.escape_filter_chars(here)}))"
    rows = search(connection, f"CN=Partitions,{configuration}", query, ["nETBIOSName"]) if configuration else []
    netbios = [first_text(row.attributes, "nETBIOSName") for row in rows] or [dns.partition(".")[0]]
    return frozenset(name.casefold() for name in (dns, *netbios) if name)


# --- what follows from an entry

# Characters that our columns hold.
LONGEST_NAME, LONGEST_ID = 150, 255


def build_person(directory: DirectorySettings, entry: Entry, group_dns: Collection[str], groups: Groups) -> Person:
    """Return the person of an entry. `group_dns`: the groups of the settings that they are in.

    Raises DirectoryRefused for an entry without a name or an id, or with one that is longer than our columns.
    """
    attributes, now = entry.attributes, datetime.now(UTC)
    username = account_name(directory, attributes)
    id = entry_id(directory, attributes)
    for value, most, variable in (
        (username, LONGEST_NAME, "LDAP_USERNAME_ATTRIBUTE"),
        (id, LONGEST_ID, "LDAP_ID_ATTRIBUTE"),
    ):
        if not value:
            raise DirectoryRefused(f"{entry.dn} has no value, or none that we may read, of the attribute in {variable}")
        if len(value) > most:  # cut off, it might equal another person's
            raise DirectoryRefused(
                f"{entry.dn} has a value of more than {most} characters in the attribute in {variable}"
            )
    return Person(
        id=id,
        username=username,
        first_name=first_text(attributes, directory.first_name_attribute),
        last_name=first_text(attributes, directory.last_name_attribute),
        mail=first_text(attributes, directory.mail_attribute),
        roles=directory.roles(group_dns),
        is_operator=_is_in_group(directory.operator_group, group_dns, groups) if directory.operator_group else None,
        is_admitted=_is_in_group(directory.required_group, group_dns, groups) if directory.required_group else True,
        end_reason=account_state.find_end_reason(attributes, now),
        has_lapsed=account_state.has_lapsed(attributes, now),
        undecided=groups.undecided_tenants(directory),
    )


def _is_in_group(group: str, group_dns: Collection[str], groups: Groups) -> bool | None:
    return None if group in groups.missing else group in group_dns


def security_id(attributes: Mapping[str, Any]) -> bytes:
    """Return a person's security id; only Active Directory has one, and it is empty if we may not read it."""
    return first_bytes(attributes, "objectSid")


def token_groups(connection: Any) -> list[bytes]:
    """Return the security ids of the account that is bound and of its groups; none outside Active Directory."""
    answer = connection.search_s("", ldap.SCOPE_BASE, attrlist=["tokenGroups"])
    return [value for _, attributes in answer for value in attributes.get("tokenGroups", []) if value]


def account_name(directory: DirectorySettings, attributes: Mapping[str, Any]) -> str:
    """Return the account name as the portal stores it: NFKC, lower case."""
    return unicodedata.normalize("NFKC", first_text(attributes, directory.username_attribute)).strip().lower()


def entry_id(directory: DirectorySettings, attributes: Mapping[str, Any]) -> str:
    """Return the id of the entry, which stays when the person's name changes."""
    if directory.id_attribute.lower() == "objectguid":
        return format_guid(attributes, directory.id_attribute)
    return first_text(attributes, directory.id_attribute)


def _id_filter(directory: DirectorySettings, id: str) -> str:
    if directory.id_attribute.lower() == "objectguid":
        return f"({directory.id_attribute}={escape_guid(str(uuid.UUID(id)))})"
    return f"({directory.id_attribute}={ldap.filter.escape_filter_chars(id)})"
