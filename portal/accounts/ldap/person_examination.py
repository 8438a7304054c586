"""Examine one person: which entry a name means, whether they may sign in, and which groups give them what."""

from collections.abc import Iterator, Mapping

from portal.accounts.ldap import account_state
from portal.accounts.ldap.configuration import DirectorySettings, normalize_dn
from portal.accounts.ldap.connection import Entry, LdapConnection
from portal.accounts.ldap.entries import Person, build_person, domain_names, find_entries
from portal.accounts.ldap.errors import DirectoryRefused
from portal.accounts.ldap.findings import Finding, describe_purpose
from portal.accounts.ldap.groups import Groups, GroupWalk, find_groups_of, locate_groups


def examine_person(
    directory: DirectorySettings,
    connection: LdapConnection,
    remembered: Mapping[str, str],
    name: str,
    people: list[Person],
) -> Iterator[Finding]:
    """Yield findings about the person who signs in by `name`, and append that person to `people` if found."""
    entries = find_entries(directory, connection, name)
    if len(entries) != 1:
        yield _report_no_match(directory, connection, name, entries)
        return
    [entry] = entries
    yield Finding(True, "person", f"is {entry.dn}")
    groups = locate_groups(directory, connection, remembered)
    group_dns = find_groups_of(directory, connection, groups, [entry])[0]
    try:
        person = build_person(directory, entry, group_dns, groups)
    except DirectoryRefused as error:
        yield Finding(False, error.cause, str(error))
        return
    people.append(person)
    yield Finding(None, "attributes", f"user name {person.username}, mail {person.mail or '–'}, id {person.id}")
    yield from _examine_admission(directory, person, account_state.list_obstacles(entry.attributes))
    walk = GroupWalk(directory, connection, [normalize_dn(entry.dn)])
    for configured in directory.groups:
        yield _examine_group(directory, walk, groups, configured, entry, configured in group_dns)
    roles = ", ".join(f"{tenant} ({role})" for tenant, role in sorted(person.roles.items()))
    yield Finding(None, "tenants", f"tenants: {roles or 'none'}")
    for tenant in sorted(person.undecided):
        yield Finding(None, "undecided", f"tenant {tenant}: stays as it is here, as one of its groups was not found")
    operator = {True: "yes", False: "no", None: "not decided by the directory"}[person.is_operator]
    yield Finding(None, "operator", f"operator: {operator}")


def _report_no_match(
    directory: DirectorySettings, connection: LdapConnection, name: str, entries: list[Entry]
) -> Finding:
    if entries:
        dns = "; ".join(entry.dn for entry in entries[:5])
        words = f"{len(entries)} people are meant by this name, so no one can sign in by it"
        return Finding(False, "name-ambiguous", f"{words}: {dns}")
    domain = name.rpartition("\\")[0]
    if domain and directory.kind == "activedirectory" and domain.casefold() not in (known := domain_names(connection)):
        words = f"no one signs in by this name: {domain} is not a name of this domain ({', '.join(sorted(known))})"
        return Finding(False, "other-domain", words)
    others = "".join(f", nor in {attribute}" for attribute in directory.other_names if "@" in name)
    words = f"no one signs in by this name: below {directory.user_base} no entry has it by"
    return Finding(False, "name-unknown", f"{words} LDAP_USER_FILTER {directory.user_filter}{others}")


def _examine_admission(directory: DirectorySettings, person: Person, obstacles: tuple[str, ...]) -> Iterator[Finding]:
    """Yield whether they may sign in: by the state of their account, and by LDAP_REQUIRED_GROUP."""
    if person.end_reason:
        words = f"the account is {person.end_reason} there: no sign-in, and keys stop with the next sync"
        yield Finding(False, f"account-{person.end_reason}", words)
    for obstacle in obstacles:
        keys = "keys stop with the next sync" if person.has_lapsed else "keys keep working for 30 days"
        words = f"{account_state.OBSTACLES[obstacle]}: no sign-in until that is fixed; {keys}"
        yield Finding(False, obstacle, words)
    is_stopped = bool(person.end_reason or obstacles)
    if not directory.required_group:
        words = "LDAP_REQUIRED_GROUP is not set, so no group is needed"
        yield _report_admission(words, is_stopped=is_stopped)
    elif person.is_admitted is None:
        words = "may sign in only if they could before: LDAP_REQUIRED_GROUP was not found"
        yield Finding(False, "admission-unknown", words)
    elif not person.is_admitted:
        yield Finding(False, "not-admitted", "may not sign in: not in LDAP_REQUIRED_GROUP")
    else:
        yield _report_admission("is in LDAP_REQUIRED_GROUP", is_stopped=is_stopped)


def _report_admission(words: str, *, is_stopped: bool) -> Finding:
    """Report what admits a person. `is_stopped`: they cannot sign in for another reason."""
    if is_stopped:
        return Finding(None, "in-group", words)
    return Finding(True, "admitted", f"may sign in: {words}")


def _examine_group(
    directory: DirectorySettings, walk: GroupWalk, groups: Groups, configured: str, person: Entry, is_held: bool
) -> Finding:
    """Return the path from the person to a group of the settings, over the groups between."""
    named = describe_purpose(directory, configured)
    group = groups.found.get(configured)
    if group is None or not is_held:
        if group:
            return Finding(None, "not-a-member", f"not in {configured} ({named})")
        return Finding(None, "group-missing", f"{configured} ({named}): not found")
    by_members = directory.group_type not in ("memberOf", "memberUid")
    way = walk.closure(group.dn).path_to(person) if by_members else [normalize_dn(group.dn)]
    if not way:  # the server says so: the two ways of asking differ
        words = f"in {configured} ({named}) according to the server, but its members do not show how"
        return Finding(False, "path-unknown", words)
    return Finding(True, "member", f"in {configured} ({named}): {' → '.join(['person', *way])}")
