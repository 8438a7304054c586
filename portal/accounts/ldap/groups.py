"""The groups that the settings name: where they are, and whom they hold.

Each is looked up first, and asked for its members: never a person for all of their groups, of which there may be more
than a server gives. One that is not found holds nobody and says so, for what depends on it must stay as it is.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ldap
import ldap.dn
import ldap.filter

from portal.accounts.ldap.configuration import Directory, normal
from portal.accounts.ldap.connection import ABSENT, Connection, Entry, all_values, exists, ranged, read, search
from portal.accounts.ldap.errors import Refused
from portal.accounts.ldap.values import first, first_bytes, guid_text, text

log = logging.getLogger(__name__)

# LDAP_MATCHING_RULE_IN_CHAIN: Active Directory follows groups within groups by itself.
IN_CHAIN = "1.2.840.113556.1.4.1941"
# What identifies a group whatever it is called: Active Directory, OpenLDAP and 389, older 389, FreeIPA.
IDS = ("objectGUID", "entryUUID", "nsUniqueId", "ipaUniqueID")
FEW = 50  # entries that are read one by one before all groups are listed instead


@dataclass(frozen=True, slots=True)
class Group:
    configured: str  # the DN in the settings, in normal form
    dn: str  # where it is now, as the server writes it
    id: str  # stays when it is renamed or moved; empty if the server has no such thing

    @property
    def is_moved(self) -> bool:
        return normal(self.dn) != self.configured


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of the settings, by the DN that these have."""

    found: Mapping[str, Group] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()

    def undecided_tenants(self, directory: Directory) -> frozenset[str]:
        """Tenants to which a missing group leads: whoever belongs to them must not lose that."""
        return frozenset(tenant for group in self.missing for tenant, _ in directory.group_tenants.get(group, ()))


def locate_groups(directory: Directory, connection: Connection, remembered: Mapping[str, str]) -> Groups:
    """Look each group up by its DN, else by the id that `remembered` has for that DN. Raises LDAPError and Refused."""
    if directory.groups and directory.group_base and not exists(connection, directory.group_base):
        raise Refused(f"There is no {directory.group_base}, or we may not read it (LDAP_GROUP_BASE)")
    found = {}
    for configured in directory.groups:
        entry = read(connection, configured, list(IDS))
        if entry is None and (id := remembered.get(configured)):
            entry = _by_id(directory, connection, id)
        if entry is not None:
            found[configured] = Group(configured, entry.dn, _id(entry.attributes))
    return Groups(found, frozenset(directory.groups) - found.keys())


def holders(
    directory: Directory, connection: Connection, groups: Groups, people: Sequence[Entry]
) -> list[frozenset[str]]:
    """For each of the people the groups, by their DN in the settings, that hold them. Raises LDAPError."""
    match directory.group_type:
        case "memberOf":
            by_dn = {normal(group.dn): group.configured for group in groups.found.values()}
            primary = PrimaryGroups(connection)
            return [_listed(connection, person, by_dn, primary.of(person)) for person in people]
        case "memberUid":
            held = [(group.configured, posix_members(connection, group)) for group in groups.found.values()]
            return [
                frozenset(name for name, (names, number) in held if _is_posix_member(directory, person, names, number))
                for person in people
            ]
    if directory.kind == "activedirectory" and len(people) == 1:
        return [_in_chain(directory, connection, groups, people[0])]
    walk = Walk(directory, connection, [normal(person.dn) for person in people])
    closures = [(group.configured, walk.closure(group.dn)) for group in groups.found.values()]
    return [frozenset(name for name, closure in closures if closure.holds(person)) for person in people]


class PrimaryGroups:
    """Of people of Active Directory. Such a group lists no members and is in no memberOf: the person's entry has the
    last part of its security id. Each is asked for once."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.known: dict[bytes, str] = {}

    def of(self, person: Entry) -> str:
        """Return its DN; empty if there is none, or it may not be read."""
        own, number = first_bytes(person.attributes, "objectSid"), first(person.attributes, "primaryGroupID")
        if len(own) < 12 or not number.isdecimal() or int(number) >= 2**32:
            return ""
        sid = own[:-4] + int(number).to_bytes(4, "little")
        if sid not in self.known:
            entry = read(self.connection, f"<SID={sid.hex()}>", ["1.1"])
            self.known[sid] = entry.dn if entry else ""
        return self.known[sid]


# --- by a list of names, in the person's entry or in the group's


def _listed(connection: Connection, person: Entry, by_dn: Mapping[str, str], primary: str) -> frozenset[str]:
    named = {normal(dn) for dn in (primary, *map(text, all_values(connection, person, "memberOf"))) if dn}
    return frozenset(configured for dn, configured in by_dn.items() if dn in named)


def posix_members(connection: Connection, group: Group) -> tuple[frozenset[str], str]:
    entry = read(connection, group.dn, ["memberUid", "gidNumber"])
    attributes: Mapping[str, Any] = entry.attributes if entry else {}
    return frozenset(map(text, attributes.get("memberUid", []))), first(attributes, "gidNumber")


def _is_posix_member(directory: Directory, person: Entry, names: Collection[str], number: str) -> bool:
    primary = first(person.attributes, "gidNumber")
    return first(person.attributes, directory.username_attribute) in names or bool(number and number == primary)


# --- one person of Active Directory: the server follows groups within groups


def _in_chain(directory: Directory, connection: Connection, groups: Groups, person: Entry) -> frozenset[str]:
    primary = PrimaryGroups(connection).of(person)
    members = [person.dn, *([primary] if primary else [])]
    attribute = f"member:{IN_CHAIN}:" if directory.nested_groups else "member"
    query = "".join(f"({attribute}={ldap.filter.escape_filter_chars(dn)})" for dn in members)
    return frozenset(
        group.configured
        for group in groups.found.values()
        if (primary and normal(primary) == normal(group.dn)) or read(connection, group.dn, ["1.1"], f"(|{query})")
    )


# --- many people: each group's members are read, and those of the groups within it


@dataclass(slots=True)
class Closure:
    """A group and the groups within it, from the outermost: the node of each, and the group that it was found in."""

    path: dict[str, "Node"] = field(default_factory=dict)
    outer: dict[str, str] = field(default_factory=dict)
    members: set[str] = field(default_factory=set)  # of all of them, DNs in normal form
    ids: set[str] = field(default_factory=set)  # the last parts of their security ids

    def holds(self, person: Entry) -> bool:
        return normal(person.dn) in self.members or first(person.attributes, "primaryGroupID") in self.ids

    def way_to(self, person: Entry) -> list[str]:
        """Return the groups by which the person is in the outermost one, from theirs to that; empty if not in it."""
        own, number = normal(person.dn), first(person.attributes, "primaryGroupID")
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


class Walk:
    """Reads each group once, whichever of the groups of the settings lead to it.

    `people` are the DNs, in normal form, of those whom it is about: members that need not be tried as groups.
    """

    def __init__(self, directory: Directory, connection: Connection, people: Iterable[str]) -> None:
        self.directory, self.connection = directory, connection
        self.people = frozenset(people)
        self.nodes: dict[str, Node | None] = {}
        self.all_groups: frozenset[str] | None = None
        self.is_group: dict[str, bool] = {}

    def closure(self, dn: str) -> Closure:
        closure, waiting, seen = Closure(), [normal(dn)], {normal(dn)}
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
        entry = read(self.connection, dn, [ranged(self.directory, attribute), "objectSid"])
        if entry is None:
            return None
        members = frozenset(_normals(all_values(self.connection, entry, attribute)))
        sid = first_bytes(entry.attributes, "objectSid")
        number = str(int.from_bytes(sid[-4:], "little")) if len(sid) >= 12 else ""
        return Node(members, number, self._groups_within(dn, members) if self.directory.nested_groups else ())

    def _groups_within(self, dn: str, members: frozenset[str]) -> tuple[str, ...]:
        if self.directory.kind == "activedirectory":
            query = f"(&(objectCategory=group)(memberOf={ldap.filter.escape_filter_chars(dn)}))"
            return tuple(normal(entry.dn) for entry in search(self.connection, _domain(dn), query, ["1.1"]))
        return tuple(member for member in self._candidates(members) if self._is_group(member))

    def _candidates(self, members: frozenset[str]) -> list[str]:
        """Return those that may be groups: below where groups are, and not where only people are."""
        groups, people = self.directory.group_base, self.directory.user_base
        only_people = people if people and people != groups and not is_below(groups, people) else None
        found = [
            member
            for member in members - self.people
            if is_below(member, groups) and not (only_people and is_below(member, only_people))
        ]
        if len(found) > FEW and self.all_groups is None:
            self.all_groups = self._list_groups()
        return sorted(found)

    def _is_group(self, dn: str) -> bool:
        if self.all_groups:
            return dn in self.all_groups
        if dn not in self.is_group:
            self.is_group[dn] = read(self.connection, dn, ["1.1"], f"({self.directory.group_type}=*)") is not None
        return self.is_group[dn]

    def _list_groups(self) -> frozenset[str]:
        """Return all there are; none if they are more than the server gives, so that each is looked at by itself."""
        query = f"({self.directory.group_type}=*)"
        try:
            entries = search(self.connection, self.directory.group_base, query, ["1.1"])
        except (ldap.SIZELIMIT_EXCEEDED, ldap.ADMINLIMIT_EXCEEDED):
            return frozenset()
        return frozenset(normal(entry.dn) for entry in entries)


def _normals(values: Iterable[Any]) -> Iterable[str]:
    """DNs in normal form; what is none is left out (a uniqueMember may have a number behind it, RFC 4517 3.3.21)."""
    for value in values:
        dn = text(value)
        try:
            yield normal(dn)
        except ldap.DECODING_ERROR:
            log.warning("A group has a member that is not a DN: %.200r", dn)


def is_below(dn: str, base: str) -> bool:
    """Return both in normal form."""
    return dn == base or dn.endswith(f",{base}") or not base


def _domain(dn: str) -> str:
    """DC=corp,DC=example,DC=com of a DN in it."""
    parts = ldap.dn.explode_dn(dn)
    return ",".join(part for part in parts if part.lower().startswith("dc="))


# --- what identifies a group


def _id(attributes: Mapping[str, Any]) -> str:
    """As "<attribute>=<value>", for the attribute is what it can be found by."""
    for name in IDS:
        value = guid_text(attributes) if name == "objectGUID" else first(attributes, name)
        if value:
            return f"{name}={value}"
    return ""


def _by_id(directory: Directory, connection: Connection, id: str) -> Entry | None:
    name, _, value = id.partition("=")
    if name not in IDS:
        return None
    if name == "objectGUID":
        return read(connection, f"<GUID={value}>", list(IDS))
    query = f"({name}={ldap.filter.escape_filter_chars(value)})"
    try:
        entries = search(connection, directory.group_base or _domain(directory.user_base), query, list(IDS))
    except ABSENT:
        return None
    return entries[0] if len(entries) == 1 else None
