"""Examine whether the groups of the settings exist and have members; if not, say what is likely meant."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import ldap.dn
import ldap.filter

from portal.accounts.ldap.configuration import DirectorySettings, normalize_dn
from portal.accounts.ldap.connection import Entry, LdapConnection, exists, read_entry, search, search_sample
from portal.accounts.ldap.findings import Finding, describe_missing, describe_nearest, describe_purpose, object_classes
from portal.accounts.ldap.groups import (
    MAX_SINGLE_READS,
    Groups,
    GroupWalk,
    LdapGroup,
    is_below,
    locate_groups,
    read_posix_members,
)
from portal.accounts.ldap.values import decode_text

# Object classes of entries that are named in place of a group by mistake.
NO_GROUPS = {"person", "inetorgperson", "account", "posixaccount", "user", "simplesecurityobject"} | {
    "organizationalunit",
    "organizationalrole",
    "organization",
    "domain",
    "container",
}
LISTS = ("member", "uniqueMember", "memberUid")  # the attributes in which groups list their members


class Trouble(NamedTuple):
    """What is certainly wrong with a group. `code`: that of its finding."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class GroupMembers:
    """How many people a group gives access; if none, why."""

    count: int
    words: str
    trouble: Trouble | None = None
    is_empty: bool = False  # it lists no member at all, as far as LDAP_GROUP_TYPE shows


def examine_groups(
    directory: DirectorySettings, connection: LdapConnection, remembered: Mapping[str, str]
) -> Iterator[Finding]:
    """Yield findings about each group of the settings: whether it is found, and how many members it gives access."""
    if directory.group_base and not exists(connection, directory.group_base):
        place = describe_missing(directory, connection, directory.group_base)
        yield Finding(False, "no-such-place", f"{directory.group_base} (LDAP_GROUP_BASE): {place}")
        return
    yield from _examine_places(directory)
    groups = locate_groups(directory, connection, remembered)
    walk = GroupWalk(directory, connection, ())
    has_people = _has_people(directory, connection)
    members_of = {
        configured: _count_members(directory, connection, walk, group, has_people=has_people)
        for configured, group in groups.found.items()
    }
    is_all_empty = not any(members.count for members in members_of.values())
    for configured in directory.groups:
        name = f"{configured} ({describe_purpose(directory, configured)})"
        group = groups.found.get(configured)
        if group is None:
            place = describe_nearest(directory, connection, configured)
            words = "not found, or our account may not read it, so what depends on it stays as it is"
            yield Finding(False, "group-missing", f"{name}: {words}; {place}")
            continue
        if group.is_moved:
            yield Finding(None, "group-moved", f"{name}: is now {group.dn}; change the setting")
        yield _examine_members(directory, configured, name, members_of[configured], is_all_empty=is_all_empty)
    required = members_of.get(directory.required_group)
    if required and required.count and _admits_no_operator(directory, connection, walk, groups):
        words = "none of LDAP_OPERATOR_GROUP is in LDAP_REQUIRED_GROUP, so no operator may sign in"
        yield Finding(False, "no-operator-admitted", words)


def _examine_members(
    directory: DirectorySettings, configured: str, name: str, members: GroupMembers, *, is_all_empty: bool
) -> Finding:
    if members.count:
        return Finding(True, "members", f"{name}: {members.words}")
    words = f"{members.words}: it gives access to no one"
    if members.trouble:
        words += f"; {members.trouble.text}"
    elif is_all_empty and members.is_empty:
        words += f"; is LDAP_GROUP_TYPE={directory.group_type} how groups list their members there?"
    # A tenant's group may be empty on purpose. That there is no operator, or that no one may sign in, is a mistake.
    is_for_tenants_only = set(directory.settings_of(configured)) == {"LDAP_GROUP_TENANTS"}
    is_wrong = members.trouble or is_all_empty or not is_for_tenants_only
    code = members.trouble.code if members.trouble else "no-members"
    return Finding(False if is_wrong else None, code, f"{name}: {words}")


def _admits_no_operator(
    directory: DirectorySettings, connection: LdapConnection, walk: GroupWalk, groups: Groups
) -> bool:
    """Return whether LDAP_REQUIRED_GROUP shuts out all of LDAP_OPERATOR_GROUP, which lists its members."""
    operators, admitted = groups.found.get(directory.operator_group), groups.found.get(directory.required_group)
    if operators is None or admitted is None or directory.group_type not in LISTS[:2]:
        return False
    members = walk.closure(operators.dn).members
    entries = (
        read_entry(connection, dn, ["primaryGroupID"], directory.filter_of_all)
        for dn in sorted(members)[:MAX_SINGLE_READS]
    )
    people = [entry for entry in entries if entry is not None]
    return bool(people) and len(members) <= MAX_SINGLE_READS and not any(map(walk.closure(admitted.dn).holds, people))


def _has_people(directory: DirectorySettings, connection: LdapConnection) -> bool:
    """Return whether any people are found to compare members with. If not, that is a finding of its own."""
    base = directory.user_base
    return exists(connection, base) and bool(search_sample(connection, base, directory.filter_of_all, ["1.1"], 1))


def _examine_places(directory: DirectorySettings) -> Iterator[Finding]:
    """Yield groups of the settings outside LDAP_GROUP_BASE. In Active Directory the place does not matter."""
    if directory.kind == "activedirectory" or not directory.group_base:
        return
    outside = [dn for dn in directory.groups if not is_below(dn, directory.group_base)]
    if len(outside) == len(directory.groups) and directory.nested_groups:
        yield Finding(
            False,
            "groups-elsewhere",
            f"{directory.group_base} (LDAP_GROUP_BASE): none of the groups of the settings is below it,"
            " so groups within them are not found",
        )
        return
    for dn in outside:
        words = "is not below LDAP_GROUP_BASE, so it is not found again once it is renamed"
        yield Finding(None, "group-elsewhere", f"{dn}: {words}")


def _count_members(
    directory: DirectorySettings, connection: LdapConnection, walk: GroupWalk, group: LdapGroup, *, has_people: bool
) -> GroupMembers:
    match directory.group_type:
        case "memberOf":
            members = _count_by_member_of(directory, connection, group, has_people=has_people)
        case "memberUid":
            members = _count_by_member_uid(directory, connection, group, has_people=has_people)
        case _:
            members = _count_by_member(directory, connection, walk, group, has_people=has_people)
    if members.count or members.trouble:
        return members
    return replace(members, trouble=_explain_empty(directory, connection, group))


def _count_by_member_of(
    directory: DirectorySettings, connection: LdapConnection, group: LdapGroup, *, has_people: bool
) -> GroupMembers:
    query = f"(&{directory.filter_of_all}(memberOf={ldap.filter.escape_filter_chars(group.dn)}))"
    count = len(search(connection, directory.user_base, query, ["1.1"])) if has_people else 0
    return GroupMembers(count, f"{count} people have it in memberOf", is_empty=not count)


def _count_by_member_uid(
    directory: DirectorySettings, connection: LdapConnection, group: LdapGroup, *, has_people: bool
) -> GroupMembers:
    names, number = read_posix_members(connection, group)
    words = f"{len(names)} names, and all people with gidNumber {number or '?'}"
    if not names and not number:
        return GroupMembers(0, "empty", is_empty=True)
    pairs = [(directory.username_attribute, name) for name in sorted(names)[:MAX_SINGLE_READS]]
    pairs += [("gidNumber", number)] if number else []
    those = "".join(f"({attribute}={ldap.filter.escape_filter_chars(value)})" for attribute, value in pairs)
    query = f"(&{directory.filter_of_all}(|{those}))"
    if (
        has_people
        and len(names) <= MAX_SINGLE_READS
        and not search_sample(connection, directory.user_base, query, ["1.1"], 1)
    ):
        trouble = f"none of the people found is in it ({directory.username_attribute}, gidNumber)"
        return GroupMembers(0, words, Trouble("members-unknown", trouble))
    return GroupMembers(max(len(names), 1), words)


def _count_by_member(
    directory: DirectorySettings, connection: LdapConnection, walk: GroupWalk, group: LdapGroup, *, has_people: bool
) -> GroupMembers:
    closure = walk.closure(group.dn)
    inner = [node for node in closure.path if node != normalize_dn(group.dn)]
    members = closure.members - set(closure.path)
    count, words = len(members), f"{len(members)} members"
    if inner:
        words += f", counting those of {len(inner)} groups within it"
    if closure.ids and has_people:
        numbers = "".join(f"(primaryGroupID={number})" for number in sorted(closure.ids))
        query = f"(&{directory.filter_of_all}(|{numbers}))"
        primary = len(search(connection, directory.user_base, query, ["1.1"]))
        if primary:
            return GroupMembers(count + primary, f"{words}, and {primary} people whose primary group it is")
    if not count:
        return GroupMembers(0, "empty", is_empty=True)
    if (
        has_people
        and count <= MAX_SINGLE_READS
        and not any(_is_person(directory, connection, dn) for dn in sorted(members))
    ):
        places = "LDAP_USER_BASE, LDAP_USER_FILTER" + ("" if directory.nested_groups else ", LDAP_NESTED_GROUPS")
        return GroupMembers(0, f"{words}, but none of the people found is among them ({places})")
    return GroupMembers(count, words)


def _is_person(directory: DirectorySettings, connection: LdapConnection, dn: str) -> bool:
    if not is_below(dn, directory.user_base):
        return False
    return read_entry(connection, dn, ["1.1"], directory.filter_of_all) is not None


def _explain_empty(directory: DirectorySettings, connection: LdapConnection, group: LdapGroup) -> Trouble | None:
    """Return what suggests that another group, or another LDAP_GROUP_TYPE, is meant."""
    entry = read_entry(connection, group.dn, ["objectClass", *LISTS])
    if entry is None:
        return None
    if {name.lower() for name in map(decode_text, entry.attributes.get("objectClass", []))} & NO_GROUPS:
        return Trouble("not-a-group", f"it is not a group (objectClass {object_classes(entry)})")
    used = next((name for name in LISTS if name != directory.group_type and entry.attributes.get(name)), "")
    if not used:
        return None
    # Where people have memberOf, a group may list members as well, but none that are people.
    if directory.group_type == "memberOf" and used != "memberUid" and not _lists_people(directory, connection, entry):
        return None
    return Trouble("other-group-type", f"its members are in {used}, but LDAP_GROUP_TYPE is {directory.group_type}")


def _lists_people(directory: DirectorySettings, connection: LdapConnection, group: Entry) -> bool:
    """Return whether people are members of the group, whatever their memberOf says."""
    members = [decode_text(value) for name in LISTS[:2] for value in group.attributes.get(name, [])]
    return any(
        _is_person(directory, connection, normalize_dn(dn)) for dn in members[:MAX_SINGLE_READS] if ldap.dn.is_dn(dn)
    )
