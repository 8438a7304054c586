"""The groups that the settings name: where they are, and who their members are.

Each group is looked up first, then its members are read. All groups of a person are never requested: there may be more
than a server returns. A group that is not found is reported as missing, because what depends on it must stay as it is.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ldap
import ldap.dn
import ldap.filter

from portal.accounts.ldap.configuration import DirectorySettings, normalize_dn
from portal.accounts.ldap.connection import (
    ABSENT,
    Entry,
    LdapConnection,
    all_values,
    exists,
    ranged_attribute,
    read_entry,
    search,
)
from portal.accounts.ldap.errors import DirectoryRefused
from portal.accounts.ldap.values import decode_text, first_bytes, first_text, format_guid

log = logging.getLogger(__name__)

# LDAP_MATCHING_RULE_IN_CHAIN: Active Directory follows groups within groups by itself.
IN_CHAIN = "1.2.840.113556.1.4.1941"
# The attribute that identifies a group: Active Directory, OpenLDAP and 389, older 389, FreeIPA.
IDS = ("objectGUID", "entryUUID", "nsUniqueId", "ipaUniqueID")
MAX_SINGLE_READS = 50  # entries that are read one by one before all groups are listed instead


@dataclass(frozen=True, slots=True)
class LdapGroup:
    configured: str  # the DN in the settings, in normal form
    dn: str  # where it is now, as the server writes it
    id: str  # stays when it is renamed or moved; empty if the server has no such attribute

    @property
    def is_moved(self) -> bool:
        return normalize_dn(self.dn) != self.configured


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of the settings, by their DN there."""

    found: Mapping[str, LdapGroup] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()

    def undecided_tenants(self, directory: DirectorySettings) -> frozenset[str]:
        """Return the tenants that a missing group leads to: their members must not lose their membership."""
        return frozenset(tenant for group in self.missing for tenant, _ in directory.group_tenants.get(group, ()))


def locate_groups(directory: DirectorySettings, connection: LdapConnection, remembered: Mapping[str, str]) -> Groups:
    """Look up each group by its DN, else by the id that `remembered` has for it. Raises LDAPError, DirectoryRefused."""
    if directory.groups and directory.group_base and not exists(connection, directory.group_base):
        raise DirectoryRefused(
            f"There is no {directory.group_base}, or we may not read it (LDAP_GROUP_BASE)", "no-such-place"
        )
    found = {}
    for configured in directory.groups:
        entry = read_entry(connection, configured, list(IDS))
        if entry is None and (id := remembered.get(configured)):
            entry = _find_by_id(directory, connection, id)
        if entry is not None:
            found[configured] = LdapGroup(configured, entry.dn, _group_id(entry.attributes))
    return Groups(found, frozenset(directory.groups) - found.keys())


def find_groups_of(
    directory: DirectorySettings, connection: LdapConnection, groups: Groups, people: Sequence[Entry]
) -> list[frozenset[str]]:
    """Return the groups of each person, by their DN in the settings. Raises LDAPError."""
    match directory.group_type:
        case "memberOf":
            by_dn = {normalize_dn(group.dn): group.configured for group in groups.found.values()}
            primary = PrimaryGroups(connection)
            return [_groups_by_member_of(connection, person, by_dn, primary.find_dn(person)) for person in people]
        case "memberUid":
            members = [(group.configured, read_posix_members(connection, group)) for group in groups.found.values()]
            return [
                frozenset(
                    name for name, (names, number) in members if _is_posix_member(directory, person, names, number)
                )
                for person in people
            ]
    if directory.kind == "activedirectory" and len(people) == 1:
        return [_groups_by_chain(directory, connection, groups, people[0])]
    walk = GroupWalk(directory, connection, [normalize_dn(person.dn) for person in people])
    closures = [(group.configured, walk.closure(group.dn)) for group in groups.found.values()]
    return [frozenset(name for name, closure in closures if closure.holds(person)) for person in people]


class PrimaryGroups:
    """The primary groups of people in Active Directory; each is read once.

    Such a group lists no members and is in no memberOf: the person's entry has the last part of its security id.
    """

    def __init__(self, connection: LdapConnection) -> None:
        self.connection = connection
        self.known: dict[bytes, str] = {}

    def find_dn(self, person: Entry) -> str:
        """Return the DN of the person's primary group; empty if there is none, or we may not read it."""
        own, number = first_bytes(person.attributes, "objectSid"), first_text(person.attributes, "primaryGroupID")
        if len(own) < 12 or not number.isdecimal() or int(number) >= 2**32:
            return ""
        sid = own[:-4] + int(number).to_bytes(4, "little")
        if sid not in self.known:
            entry = read_entry(self.connection, f"<SID={sid.hex()}>", ["1.1"])
            self.known[sid] = entry.dn if entry else ""
        return self.known[sid]


# --- by a list of names, in the person's entry or in the group's


def _groups_by_member_of(
    connection: LdapConnection, person: Entry, by_dn: Mapping[str, str], primary: str
) -> frozenset[str]:
    named = {normalize_dn(dn) for dn in (primary, *map(decode_text, all_values(connection, person, "memberOf"))) if dn}
    return frozenset(configured for dn, configured in by_dn.items() if dn in named)


def read_posix_members(connection: LdapConnection, group: LdapGroup) -> tuple[frozenset[str], str]:
    entry = read_entry(connection, group.dn, ["memberUid", "gidNumber"])
    attributes: Mapping[str, Any] = entry.attributes if entry else {}
    return frozenset(map(decode_text, attributes.get("memberUid", []))), first_text(attributes, "gidNumber")


def _is_posix_member(directory: DirectorySettings, person: Entry, names: Collection[str], number: str) -> bool:
    primary = first_text(person.attributes, "gidNumber")
    return first_text(person.attributes, directory.username_attribute) in names or bool(number and number == primary)


# --- one person of Active Directory: the server follows groups within groups


def _groups_by_chain(
    directory: DirectorySettings, connection: LdapConnection, groups: Groups, person: Entry
) -> frozenset[str]:
    primary = PrimaryGroups(connection).find_dn(person)
    members = [person.dn, *([primary] if primary else [])]
    attribute = f"member:{IN_CHAIN}:" if directory.nested_groups else "member"
    query = "".join(f"({attribute}={ldap.filter.escape_filter_chars(dn)})" for dn in members)
    return frozenset(
        group.configured
        for group in groups.found.values()
        if (primary and normalize_dn(primary) == normalize_dn(group.dn))
        or read_entry(connection, group.dn, ["1.1"], f"(|{query})")
    )


# --- many people: each group's members are read, and those of the groups within it


@dataclass(slots=True)
class Closure:
    """A group and the groups within it, from the outermost: the node of each, and the group that contains it."""

    path: dict[str, "Node"] = field(default_factory=dict)
    outer: dict[str, str] = field(default_factory=dict)
    members: set[str] = field(default_factory=set)  # of all these groups, DNs in normal form
    ids: set[str] = field(default_factory=set)  # the last parts of their security ids

    def holds(self, person: Entry) -> bool:
        return normalize_dn(person.dn) in self.members or first_text(person.attributes, "primaryGroupID") in self.ids

    def path_to(self, person: Entry) -> list[str]:
        """Return the groups from the person's own to the outermost one; empty if the person is in none of them."""
        own, number = normalize_dn(person.dn), first_text(person.attributes, "primaryGroupID")
        dn = next((dn for dn, node in self.path.items() if own in node.members or (number and node.id == number)), "")
        way = []
        while dn:
            way.append(dn)
            dn = self.outer.get(dn, "")
        return way


@dataclass(slots=True)
class Node:
    members: frozenset[str]
    id: str  # the last part of its security id; empty outside Active Directory
    groups: tuple[str, ...]  # DNs of the groups within it


class GroupWalk:
    """Reads each group once, whichever groups of the settings lead to it.

    `people`: DNs, in normal form, of members that are known to be people and need not be tried as groups.
    """

    def __init__(self, directory: DirectorySettings, connection: LdapConnection, people: Iterable[str]) -> None:
        self.directory, self.connection = directory, connection
        self.people = frozenset(people)
        self.nodes: dict[str, Node | None] = {}
        self.all_groups: frozenset[str] | None = None
        self.is_group: dict[str, bool] = {}

    def closure(self, dn: str) -> Closure:
        closure, waiting, seen = Closure(), [normalize_dn(dn)], {normalize_dn(dn)}
        while waiting:
            outer = waiting.pop(0)
            node = self.node(outer)
            if node is None:
                continue
            closure.path[outer] = node
            closure.members |= node.members
            closure.ids |= {node.id} - {""}
            for inner in node.groups:
                if inner not in seen:
                    seen.add(inner)
                    waiting.append(inner)
                    closure.outer[inner] = outer
        return closure

    def node(self, dn: str) -> Node | None:
        if dn not in self.nodes:
            self.nodes[dn] = self._read(dn)
        return self.nodes[dn]

    def _read(self, dn: str) -> Node | None:
        attribute = self.directory.group_type
        entry = read_entry(self.connection, dn, [ranged_attribute(self.directory, attribute), "objectSid"])
        if entry is None:
            return None
        members = frozenset(_normalize_dns(all_values(self.connection, entry, attribute)))
        sid = first_bytes(entry.attributes, "objectSid")
        number = str(int.from_bytes(sid[-4:], "little")) if len(sid) >= 12 else ""
        return Node(members, number, self._groups_within(dn, members) if self.directory.nested_groups else ())

    def _groups_within(self, dn: str, members: frozenset[str]) -> tuple[str, ...]:
        if self.directory.kind == "activedirectory":
            query = f"(&(objectCategory=group)(memberOf={ldap.filter.escape_filter_chars(dn)}))"
            return tuple(normalize_dn(entry.dn) for entry in search(self.connection, _domain_base(dn), query, ["1.1"]))
        return tuple(member for member in self._candidates(members) if self._is_group(member))

    def _candidates(self, members: frozenset[str]) -> list[str]:
        """Return the members that may be groups: below the base of groups, and not where only people are."""
        groups, people = self.directory.group_base, self.directory.user_base
        only_people = people if people and people != groups and not is_below(groups, people) else None
        found = [
            member
            for member in members - self.people
            if is_below(member, groups) and not (only_people and is_below(member, only_people))
        ]
        if len(found) > MAX_SINGLE_READS and self.all_groups is None:
            self.all_groups = self._list_groups()
        return sorted(found)

    def _is_group(self, dn: str) -> bool:
        if self.all_groups:
            return dn in self.all_groups
        if dn not in self.is_group:
            self.is_group[dn] = read_entry(self.connection, dn, ["1.1"], f"({self.directory.group_type}=*)") is not None
        return self.is_group[dn]

    def _list_groups(self) -> frozenset[str]:
        """Return all groups; none if there are more than the server returns, so that each is read by itself."""
        query = f"({self.directory.group_type}=*)"
        try:
            entries = search(self.connection, self.directory.group_base, query, ["1.1"])
        except (ldap.SIZELIMIT_EXCEEDED, ldap.ADMINLIMIT_EXCEEDED):
            return frozenset()
        return frozenset(normalize_dn(entry.dn) for entry in entries)


def _normalize_dns(values: Iterable[Any]) -> Iterable[str]:
    """Yield DNs in normal form; skip what is not a DN (a uniqueMember may end in a number, RFC 4517 3.3.21)."""
    for value in values:
        dn = decode_text(value)
        try:
            yield normalize_dn(dn)
        except ldap.DECODING_ERROR:
            log.warning("A group has a member that is not a DN: %.200r", dn)


def is_below(dn: str, base: str) -> bool:
    """Return whether `dn` is `base` or below it, both in normal form."""
    return dn == base or dn.endswith(f",{base}") or not base


def _domain_base(dn: str) -> str:
    """Return the base of the domain that a DN is in, such as DC=corp,DC=example,DC=com."""
    parts = ldap.dn.explode_dn(dn)
    return ",".join(part for part in parts if part.lower().startswith("dc="))


# --- what identifies a group


def _group_id(attributes: Mapping[str, Any]) -> str:
    """Return the id of a group as "<attribute>=<value>": the attribute is needed to find the group by it."""
    for name in IDS:
        value = format_guid(attributes) if name == "objectGUID" else first_text(attributes, name)
        if value:
            return f"{name}={value}"
    return ""


def _find_by_id(directory: DirectorySettings, connection: LdapConnection, id: str) -> Entry | None:
    name, _, value = id.partition("=")
    if name not in IDS:
        return None
    if name == "objectGUID":
        return read_entry(connection, f"<GUID={value}>", list(IDS))
    query = f"({name}={ldap.filter.escape_filter_chars(value)})"
    try:
        entries = search(connection, directory.group_base or _domain_base(directory.user_base), query, list(IDS))
    except ABSENT:
        return None
    return entries[0] if len(entries) == 1 else None
