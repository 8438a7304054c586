"""One person: who is meant by a name, may they sign in, and by which groups have they what."""

from collections.abc import Iterator, Mapping

from portal.accounts.ldap import account_state
from portal.accounts.ldap.configuration import Directory, normal
from portal.accounts.ldap.connection import Connection, Entry
from portal.accounts.ldap.entries import Person, all_by_name, domains, person_of
from portal.accounts.ldap.errors import Refused
from portal.accounts.ldap.findings import Finding, purpose
from portal.accounts.ldap.groups import Groups, Walk, holders, locate_groups


def examine_person(
    directory: Directory, connection: Connection, remembered: Mapping[str, str], name: str, people: list[Person]
) -> Iterator[Finding]:
    """Add whom it finds to `people`."""
    entries = all_by_name(directory, connection, name)
    if len(entries) != 1:
        yield Finding(False, _not_one(directory, connection, name, entries))
        return
    [entry] = entries
    yield Finding(True, f"is {entry.dn}")
    groups = locate_groups(directory, connection, remembered)
    held = holders(directory, connection, groups, [entry])[0]
    try:
        person = person_of(directory, entry, held, groups)
    except Refused as error:
        yield Finding(False, str(error))
        return
    people.append(person)
    yield Finding(None, f"user name {person.username}, mail {person.mail or '–'}, id {person.id}")
    yield from _admission(directory, person, account_state.remarks(entry.attributes))
    walk = Walk(directory, connection, [normal(entry.dn)])
    for configured in directory.groups:
        yield _way(directory, walk, groups, configured, entry, configured in held)
    roles = ", ".join(f"{tenant} ({role})" for tenant, role in sorted(person.roles.items()))
    yield Finding(None, f"tenants: {roles or 'none'}")
    for tenant in sorted(person.undecided):
        yield Finding(None, f"tenant {tenant}: stays as it is here, as one of its groups was not found")
    operator = {True: "yes", False: "no", None: "not decided by the directory"}[person.is_operator]
    yield Finding(None, f"operator: {operator}")


def _not_one(directory: Directory, connection: Connection, name: str, entries: list[Entry]) -> str:
    if entries:
        dns = "; ".join(entry.dn for entry in entries[:5])
        return f"{len(entries)} people are meant by this name, so nobody can sign in by it: {dns}"
    domain = name.rpartition("\\")[0]
    if domain and directory.kind == "activedirectory" and domain.casefold() not in (known := domains(connection)):
        return f"nobody signs in by this name: {domain} is no name of this domain ({', '.join(sorted(known))})"
    others = "".join(f", nor in {attribute}" for attribute in directory.other_names if "@" in name)
    return (
        f"nobody signs in by this name: below {directory.user_base} nobody has it by"
        f" LDAP_USER_FILTER {directory.user_filter}{others}"
    )


def _admission(directory: Directory, person: Person, remarks: tuple[str, ...]) -> Iterator[Finding]:
    """Whether they may sign in: by their account, and by LDAP_REQUIRED_GROUP."""
    if person.ended:
        yield Finding(False, f"the account is {person.ended} there: no sign-in, and keys stop with the next sync")
    for remark in remarks:
        keys = "keys stop with the next sync" if person.has_lapsed else "keys go on working for 30 days"
        yield Finding(False, f"{remark}: no sign-in until that is set right; {keys}")
    is_stopped = bool(person.ended or remarks)
    if not directory.required_group:
        words = "LDAP_REQUIRED_GROUP is not set, so no group is needed"
        yield Finding(None, words) if is_stopped else Finding(True, f"may sign in: {words}")
    elif person.is_admitted is None:
        yield Finding(False, "may sign in only if that was so before: LDAP_REQUIRED_GROUP was not found")
    elif not person.is_admitted:
        yield Finding(False, "may not sign in: not in LDAP_REQUIRED_GROUP")
    else:
        yield (
            Finding(None, "is in LDAP_REQUIRED_GROUP")
            if is_stopped
            else Finding(True, "may sign in: is in LDAP_REQUIRED_GROUP")
        )


def _way(directory: Directory, walk: Walk, groups: Groups, configured: str, person: Entry, is_held: bool) -> Finding:
    """From the person to a group of the settings, over the groups between."""
    named = purpose(directory, configured)
    group = groups.found.get(configured)
    if group is None or not is_held:
        return Finding(None, f"not in {configured} ({named})" if group else f"{configured} ({named}): not found")
    by_members = directory.group_type not in ("memberOf", "memberUid")
    way = walk.closure(group.dn).way_to(person) if by_members else [normal(group.dn)]
    if not way:  # another server's word: the two ways of asking differ
        return Finding(False, f"in {configured} ({named}) by the server's word, but its members do not show how")
    return Finding(True, f"in {configured} ({named}): {' → '.join(['person', *way])}")
