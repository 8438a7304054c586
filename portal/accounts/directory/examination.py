"""Everything that sign-in and sync need of the directory, tried one by one, for an operator to read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import ldap
import ldap.filter
from ldap.cidict import cidict

from portal.accounts.directory import account_state
from portal.accounts.directory.certificates import certificate
from portal.accounts.directory.configuration import Directory, normal
from portal.accounts.directory.connection import Connection, Entry, connect_to, exists, search, translated
from portal.accounts.directory.entries import by_name, identity, person_of
from portal.accounts.directory.errors import DirectoryError, Refused
from portal.accounts.directory.groups import Group, Groups, Walk, holders, locate, posix_members
from portal.accounts.directory.values import first


@dataclass(frozen=True, slots=True)
class Finding:
    ok: bool | None  # False: does not work; None: worth knowing
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    findings: tuple[Finding, ...]
    person_id: str = ""  # of the person whom it is about


def examine(directory: Directory, remembered: Mapping[str, str], name: str = "") -> Iterator[Section]:
    """Yields a section as soon as it is known. `name`: whose way to a role is told as well.

    Blocks for as long as the servers need, a few time-outs for each that does not answer. What fails is a finding.
    """
    servers = [_server(directory, server) for server in directory.servers]
    yield Section("Servers (LDAP_SERVER_URI)", (_trusted(directory), *servers))
    good = [server for server, finding in zip(directory.servers, servers, strict=True) if finding.ok]
    if not good:
        return
    accounts = [_account(directory, server) for server in good] if directory.can_look_up else [_no_account(directory)]
    yield Section("Account (LDAP_BIND_DN)", tuple(accounts))
    usable = next((server for server, finding in zip(good, accounts, strict=False) if finding.ok), None)
    if usable is None:
        return
    with _opened(directory, usable, bind=True) as connection, translated():
        yield Section("People (LDAP_USER_BASE)", _tried(_people(directory, connection)))
        if directory.groups:
            yield Section("Groups", _tried(_groups(directory, connection, remembered)))
        if name:
            entry = by_name(directory, connection, name)
            findings = _tried(_person(directory, connection, remembered, entry))
            yield Section(f"Person “{name}”", findings, identity(directory, entry.attributes) if entry else "")


@contextmanager
def _opened(directory: Directory, server: str, *, bind: bool) -> Iterator[Connection]:
    connection = connect_to(directory, server, bind=bind)
    try:
        yield connection
    finally:
        connection.unbind_s()


def _tried(findings: Iterator[Finding]) -> tuple[Finding, ...]:
    """As far as they come; what stops them is the last."""
    found: list[Finding] = []
    try:
        with translated():
            found.extend(findings)
    except DirectoryError as error:
        found.append(Finding(False, str(error)))
    return tuple(found)


# --- servers and our account


def _trusted(directory: Directory) -> Finding:
    if directory.ca_file:
        return Finding(None, f"trusted are the certificate authorities in {directory.ca_file}")
    return Finding(None, "nothing is encrypted: passwords can be read on their way")


def _server(directory: Directory, server: str) -> Finding:
    try:
        with _opened(directory, server, bind=False):
            pass
    except DirectoryError as error:
        return Finding(False, f"{server}: {_why(directory, server) or error}")
    if not directory.ca_file:
        return Finding(True, f"{server}: answers")
    try:
        facts = certificate(directory, server)
    except DirectoryError as error:  # trusted by libldap all the same
        return Finding(True, f"{server}: answers; {error}")
    names = ", ".join(facts.names[:5])
    return Finding(True, f"{server}: answers; certificate for {names}, from {facts.issuer}, until {facts.expires}")


def _why(directory: Directory, server: str) -> str:
    """Why there is no connection, in better words than libldap's; empty if it is not the certificate."""
    try:
        if directory.ca_file:
            certificate(directory, server)
    except DirectoryError as error:
        return str(error)
    return ""


def _account(directory: Directory, server: str) -> Finding:
    who = directory.bind_dn or "nobody (anonymous)"
    try:
        with _opened(directory, server, bind=True):
            return Finding(True, f"{server} takes {who}")
    except DirectoryError as error:
        return Finding(False, f"{server} does not take {who}: {error}")


def _no_account(directory: Directory) -> Finding:
    lacks = "LDAP_BIND_DN" if directory.user_base else "LDAP_USER_BASE"
    return Finding(
        False, f"{lacks} is not set: people can sign in, but nobody notices who leaves, and no more can be tried here"
    )


# --- people and groups


def _people(directory: Directory, connection: Connection) -> Iterator[Finding]:
    if not exists(connection, directory.user_base):
        yield Finding(False, f"{directory.user_base}: there is no such place, or our account may not read it")
        return
    entry = _anybody(directory, connection)
    if entry is None:
        yield Finding(False, f"{directory.user_base}: nobody there matches LDAP_USER_FILTER {directory.user_filter}")
        return
    yield Finding(True, f"{directory.user_base}: there are people, such as {entry.dn}")
    for attribute, variable, value in (
        (directory.id_attribute, "LDAP_ID_ATTRIBUTE", identity(directory, entry.attributes)),
        (
            directory.username_attribute,
            "LDAP_USERNAME_ATTRIBUTE",
            first(entry.attributes, directory.username_attribute),
        ),
    ):
        if not value:
            yield Finding(False, f"{attribute} ({variable}): that entry has none, or our account may not read it")


def _anybody(directory: Directory, connection: Connection) -> Entry | None:
    """One of all that there are, without waiting for the others."""
    asked = connection.search_ext(
        directory.user_base, ldap.SCOPE_SUBTREE, directory.filter_of_all, directory.attributes, sizelimit=1
    )
    try:
        while True:
            kind, results = connection.result(asked, all=0)
            for dn, attributes in results:
                if dn is not None:
                    return Entry(dn, cidict(attributes))
            if kind == ldap.RES_SEARCH_RESULT:
                return None
    except ldap.SIZELIMIT_EXCEEDED:
        return None


def _groups(directory: Directory, connection: Connection, remembered: Mapping[str, str]) -> Iterator[Finding]:
    groups = locate(directory, connection, remembered)
    walk = Walk(directory, connection, ())
    for configured in directory.groups:
        purpose = _purpose(directory, configured)
        group = groups.found.get(configured)
        if group is None:
            yield Finding(False, f"{configured} ({purpose}): not found; what depends on it stays as it is")
            continue
        if group.is_moved:
            yield Finding(None, f"{configured} ({purpose}): is now {group.dn}; change the setting")
        count, told = _members(directory, connection, walk, group)
        yield Finding(True if count else None, f"{configured} ({purpose}): {told}")


def _purpose(directory: Directory, configured: str) -> str:
    places = [f"{tenant}:{role}" for tenant, role in directory.group_tenants.get(configured, ())]
    named = {
        "LDAP_GROUP_TENANTS": f"tenants {', '.join(places)}",
        "LDAP_OPERATOR_GROUP": "operators",
        "LDAP_REQUIRED_GROUP": "who may sign in",
    }
    return "; ".join(named[variable] for variable in directory.settings_of(configured))


def _members(directory: Directory, connection: Connection, walk: Walk, group: Group) -> tuple[int, str]:
    """How many people it holds, and in words."""
    if directory.group_type == "memberOf":
        query = f"(&{directory.filter_of_all}(memberOf={ldap.filter.escape_filter_chars(group.dn)}))"
        count = len(search(connection, directory.user_base, query, ["1.1"]))
        return count, f"{count} people have it in memberOf"
    if directory.group_type == "memberUid":
        names, number = posix_members(connection, group)
        count = len(names)
        return count or int(bool(number)), f"{count} names, and whoever has gidNumber {number or '?'}"
    closure = walk.closure(group.dn)
    inner = [node for node in closure.path if node != normal(group.dn)]
    count = len(closure.members - set(closure.path))
    words = f"{count} members"
    if inner:
        words += f", counting those of {len(inner)} groups within it"
    if closure.ids:
        numbers = "".join(f"(primaryGroupID={number})" for number in sorted(closure.ids))
        query = f"(&{directory.filter_of_all}(|{numbers}))"
        primary = len(search(connection, directory.user_base, query, ["1.1"]))
        if primary:
            count += primary
            words += f", and {primary} people whose primary group it is"
    return count, words if count else "empty: it gives nobody anything"


# --- one person


def _person(
    directory: Directory, connection: Connection, remembered: Mapping[str, str], entry: Entry | None
) -> Iterator[Finding]:
    if entry is None:
        yield Finding(False, "nobody, or more than one, signs in by this name")
        return
    yield Finding(True, f"is {entry.dn}")
    groups = locate(directory, connection, remembered)
    held = holders(directory, connection, groups, [entry])[0]
    try:
        person = person_of(directory, entry, held, groups)
    except Refused as error:
        yield Finding(False, str(error))
        return
    yield Finding(None, f"user name {person.username}, mail {person.mail or '–'}, id {person.id}")
    if person.ended:
        yield Finding(False, f"the account is {person.ended} there: no sign-in, and keys stop with the next sync")
    for remark in account_state.remarks(entry.attributes):
        keys = "keys stop with the next sync" if person.has_lapsed else "keys go on working for 30 days"
        yield Finding(False, f"{remark}: no sign-in until that is set right; {keys}")
    yield _admission(directory, person.is_admitted)
    walk = Walk(directory, connection, [normal(entry.dn)])
    for configured in directory.groups:
        yield _way(directory, walk, groups, configured, entry, configured in held)
    roles = ", ".join(f"{tenant} ({role})" for tenant, role in sorted(person.roles.items()))
    yield Finding(None, f"tenants: {roles or 'none'}")
    for tenant in sorted(person.undecided):
        yield Finding(None, f"tenant {tenant}: stays as it is here, as one of its groups was not found")
    operator = {True: "yes", False: "no", None: "not decided by the directory"}[person.is_operator]
    yield Finding(None, f"operator: {operator}")


def _admission(directory: Directory, is_admitted: bool | None) -> Finding:
    if not directory.required_group:
        return Finding(True, "may sign in: everybody may")
    if is_admitted is None:
        return Finding(False, "may sign in only if that was so before: LDAP_REQUIRED_GROUP was not found")
    return Finding(is_admitted, f"{'may' if is_admitted else 'may not'} sign in: LDAP_REQUIRED_GROUP")


def _way(directory: Directory, walk: Walk, groups: Groups, configured: str, person: Entry, is_held: bool) -> Finding:
    """From the person to a group of the settings, over the groups between."""
    purpose = _purpose(directory, configured)
    group = groups.found.get(configured)
    if group is None or not is_held:
        return Finding(None, f"not in {configured} ({purpose})" if group else f"{configured} ({purpose}): not found")
    by_members = directory.group_type not in ("memberOf", "memberUid")
    way = walk.closure(group.dn).way_to(person) if by_members else [normal(group.dn)]
    if not way:  # another server's word: the two ways of asking differ
        return Finding(False, f"in {configured} ({purpose}) by the server's word, but its members do not show how")
    return Finding(True, f"in {configured} ({purpose}): {' → '.join(['person', *way])}")
