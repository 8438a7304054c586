"""Whether the groups of the settings are there and give anybody anything; if not, what is likely to be meant."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import ldap.dn
import ldap.filter

from portal.accounts.ldap.configuration import Directory, normal
from portal.accounts.ldap.connection import Connection, Entry, exists, read, search, some
from portal.accounts.ldap.findings import Finding, classes, nearest, no_such_place, purpose
from portal.accounts.ldap.groups import FEW, Group, Groups, Walk, is_below, locate_groups, posix_members
from portal.accounts.ldap.values import text

# What an entry is that is named in place of a group.
NO_GROUPS = {"person", "inetorgperson", "account", "posixaccount", "user", "simplesecurityobject"} | {
    "organizationalunit",
    "organizationalrole",
    "organization",
    "domain",
    "container",
}
LISTS = ("member", "uniqueMember", "memberUid")  # the attributes in which groups list their members


@dataclass(frozen=True, slots=True)
class Holding:
    """Whom a group gives something: how many, in words, and if that is nobody, why."""

    count: int
    words: str
    trouble: str = ""  # what is certainly wrong with it
    is_empty: bool = False  # it lists nobody at all, as far as LDAP_GROUP_TYPE shows


def examine_groups(directory: Directory, connection: Connection, remembered: Mapping[str, str]) -> Iterator[Finding]:
    if directory.group_base and not exists(connection, directory.group_base):
        place = no_such_place(directory, connection, directory.group_base)
        yield Finding(False, f"{directory.group_base} (LDAP_GROUP_BASE): {place}")
        return
    yield from _outside(directory)
    groups = locate_groups(directory, connection, remembered)
    walk = Walk(directory, connection, ())
    has_people = _has_people(directory, connection)
    holdings = {
        configured: _holding(directory, connection, walk, group, has_people=has_people)
        for configured, group in groups.found.items()
    }
    is_all_empty = not any(holding.count for holding in holdings.values())
    for configured in directory.groups:
        name = f"{configured} ({purpose(directory, configured)})"
        group, holding = groups.found.get(configured), holdings.get(configured)
        if group is None or holding is None:
            place = nearest(directory, connection, configured)
            words = "not found, or our account may not read it, so what depends on it stays as it is"
            yield Finding(False, f"{name}: {words}; {place}")
            continue
        if group.is_moved:
            yield Finding(None, f"{name}: is now {group.dn}; change the setting")
        if holding.count:
            yield Finding(True, f"{name}: {holding.words}")
            continue
        # An empty group of a tenant may be meant. That nobody operates, may sign in or gets anything is not.
        is_wrong = holding.trouble or is_all_empty or set(directory.settings_of(configured)) != {"LDAP_GROUP_TENANTS"}
        words = f"{holding.words}: it gives nobody anything"
        if holding.trouble:
            words += f"; {holding.trouble}"
        elif is_all_empty and holding.is_empty:
            words += f"; is LDAP_GROUP_TYPE={directory.group_type} how groups list their members there?"
        yield Finding(False if is_wrong else None, f"{name}: {words}")
    admitted = holdings.get(directory.required_group)
    if admitted and admitted.count and _admits_no_operator(directory, connection, walk, groups):
        yield Finding(False, "none of LDAP_OPERATOR_GROUP is in LDAP_REQUIRED_GROUP, so no operator may sign in")


def _admits_no_operator(directory: Directory, connection: Connection, walk: Walk, groups: Groups) -> bool:
    """Return whether LDAP_REQUIRED_GROUP shuts out all of LDAP_OPERATOR_GROUP, which lists its members."""
    operators, admitted = groups.found.get(directory.operator_group), groups.found.get(directory.required_group)
    if operators is None or admitted is None or directory.group_type not in LISTS[:2]:
        return False
    members = walk.closure(operators.dn).members
    entries = (read(connection, dn, ["primaryGroupID"], directory.filter_of_all) for dn in sorted(members)[:FEW])
    people = [entry for entry in entries if entry is not None]
    return bool(people) and len(members) <= FEW and not any(map(walk.closure(admitted.dn).holds, people))


def _has_people(directory: Directory, connection: Connection) -> bool:
    """Return whether members of groups can be held against people. If not, that is told by itself."""
    base = directory.user_base
    return exists(connection, base) and bool(some(connection, base, directory.filter_of_all, ["1.1"], 1))


def _outside(directory: Directory) -> Iterator[Finding]:
    """Yield groups of the settings that are not where groups should be. Active Directory is not asked by place."""
    if directory.kind == "activedirectory" or not directory.group_base:
        return
    outside = [dn for dn in directory.groups if not is_below(dn, directory.group_base)]
    if len(outside) == len(directory.groups) and directory.nested_groups:
        yield Finding(
            False,
            f"{directory.group_base} (LDAP_GROUP_BASE): none of the groups of the settings is below it,"
            " so groups within them are not found",
        )
        return
    for dn in outside:
        yield Finding(None, f"{dn}: is not below LDAP_GROUP_BASE, so it is not found again once it is renamed")


def _holding(directory: Directory, connection: Connection, walk: Walk, group: Group, *, has_people: bool) -> Holding:
    match directory.group_type:
        case "memberOf":
            holding = _held_by_entry(directory, connection, group, has_people=has_people)
        case "memberUid":
            holding = _held_by_name(directory, connection, group, has_people=has_people)
        case _:
            holding = _held_by_member(directory, connection, walk, group, has_people=has_people)
    if holding.count or holding.trouble:
        return holding
    return replace(holding, trouble=_why_empty(directory, connection, group))


def _held_by_entry(directory: Directory, connection: Connection, group: Group, *, has_people: bool) -> Holding:
    query = f"(&{directory.filter_of_all}(memberOf={ldap.filter.escape_filter_chars(group.dn)}))"
    count = len(search(connection, directory.user_base, query, ["1.1"])) if has_people else 0
    return Holding(count, f"{count} people have it in memberOf", is_empty=not count)


def _held_by_name(directory: Directory, connection: Connection, group: Group, *, has_people: bool) -> Holding:
    names, number = posix_members(connection, group)
    words = f"{len(names)} names, and whoever has gidNumber {number or '?'}"
    if not names and not number:
        return Holding(0, "empty", is_empty=True)
    pairs = [(directory.username_attribute, name) for name in sorted(names)[:FEW]]
    pairs += [("gidNumber", number)] if number else []
    those = "".join(f"({attribute}={ldap.filter.escape_filter_chars(value)})" for attribute, value in pairs)
    query = f"(&{directory.filter_of_all}(|{those}))"
    if has_people and len(names) <= FEW and not some(connection, directory.user_base, query, ["1.1"], 1):
        return Holding(0, words, f"none of the people there is meant ({directory.username_attribute}, gidNumber)")
    return Holding(max(len(names), 1), words)


def _held_by_member(
    directory: Directory, connection: Connection, walk: Walk, group: Group, *, has_people: bool
) -> Holding:
    closure = walk.closure(group.dn)
    inner = [node for node in closure.path if node != normal(group.dn)]
    members = closure.members - set(closure.path)
    count, words = len(members), f"{len(members)} members"
    if inner:
        words += f", counting those of {len(inner)} groups within it"
    if closure.ids and has_people:
        numbers = "".join(f"(primaryGroupID={number})" for number in sorted(closure.ids))
        query = f"(&{directory.filter_of_all}(|{numbers}))"
        primary = len(search(connection, directory.user_base, query, ["1.1"]))
        if primary:
            return Holding(count + primary, f"{words}, and {primary} people whose primary group it is")
    if not count:
        return Holding(0, "empty", is_empty=True)
    if has_people and count <= FEW and not any(_is_person(directory, connection, dn) for dn in sorted(members)):
        places = "LDAP_USER_BASE, LDAP_USER_FILTER" + ("" if directory.nested_groups else ", LDAP_NESTED_GROUPS")
        return Holding(0, f"{words}, none of whom is one of the people ({places})")
    return Holding(count, words)


def _is_person(directory: Directory, connection: Connection, dn: str) -> bool:
    if not is_below(dn, directory.user_base):
        return False
    return read(connection, dn, ["1.1"], directory.filter_of_all) is not None


def _why_empty(directory: Directory, connection: Connection, group: Group) -> str:
    """What shows that another group, or another LDAP_GROUP_TYPE, is meant; empty if nothing does."""
    entry = read(connection, group.dn, ["objectClass", *LISTS])
    if entry is None:
        return ""
    if {name.lower() for name in map(text, entry.attributes.get("objectClass", []))} & NO_GROUPS:
        return f"it is not a group (objectClass {classes(entry)})"
    used = next((name for name in LISTS if name != directory.group_type and entry.attributes.get(name)), "")
    if not used:
        return ""
    # Also where people have memberOf, a group may list members, but then none who is a person.
    if directory.group_type == "memberOf" and used != "memberUid" and not _lists_people(directory, connection, entry):
        return ""
    return f"its members are in {used}, but LDAP_GROUP_TYPE is {directory.group_type}"


def _lists_people(directory: Directory, connection: Connection, group: Entry) -> bool:
    """Return whether it has people as members, whatever these have in memberOf."""
    members = [text(value) for name in LISTS[:2] for value in group.attributes.get(name, [])]
    return any(_is_person(directory, connection, normal(dn)) for dn in members[:FEW] if ldap.dn.is_dn(dn))
