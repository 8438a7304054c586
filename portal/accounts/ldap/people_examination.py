"""Whether people are found where the settings look for them, told apart, and called as LDAP_USER_DN_TEMPLATE says."""

from collections.abc import Iterator

import ldap
import ldap.dn
import ldap.filter

from portal.accounts.ldap.configuration import FIRST_NAME, LAST_NAME, MAIL, Directory, normal
from portal.accounts.ldap.connection import Connection, Entry, exists, some
from portal.accounts.ldap.entries import account_name, domains, identity
from portal.accounts.ldap.errors import DirectoryError
from portal.accounts.ldap.findings import Finding, classes, no_such_place, opened
from portal.accounts.ldap.values import first

ANY_NAME = "madoguchi-checkdirectory"  # stands for a name; nobody is called so


def examine_people(directory: Directory, connection: Connection) -> Iterator[Finding]:
    base = directory.user_base
    if not exists(connection, base):
        yield Finding(False, f"{base}: {no_such_place(directory, connection, base)}")
        return
    people = some(connection, base, directory.filter_of_all, directory.attributes)
    if not people:
        yield Finding(False, f"{base}: {_nobody_matches(directory, connection)}")
        return
    yield Finding(True, f"{base}: there are people, such as {people[0].dn}")
    yield from _tells_apart(directory, people)
    yield from _is_filled(directory, people)
    yield from _finds_one(directory, connection, people[0])
    if directory.user_dn_template:
        yield from _template(directory, connection, people)


def _nobody_matches(directory: Directory, connection: Connection) -> str:
    """With an entry that does not match, for comparison."""
    made_of = "" if directory.has_own_filter else ", which LDAP_KIND and LDAP_USERNAME_ATTRIBUTE make"
    words = f"nobody there matches LDAP_USER_FILTER {directory.user_filter}{made_of}"
    for query in ("(objectClass=person)", "(objectClass=*)"):
        there = some(connection, directory.user_base, query, ["objectClass"], 2)
        entry = next((entry for entry in there if normal(entry.dn) != directory.user_base), None)
        if entry is not None:
            break
    if entry is None:
        return f"{words}; nothing is there, or our account may not read it"
    return f"{words}; what is there is such as {entry.dn} (objectClass {classes(entry)})"


def _tells_apart(directory: Directory, people: list[Entry]) -> Iterator[Finding]:
    """By the name and the id each person must be known alone. Two with one id would share an account here."""
    for attribute, variable, values in (
        (directory.id_attribute, "LDAP_ID_ATTRIBUTE", [identity(directory, entry.attributes) for entry in people]),
        (
            directory.username_attribute,
            "LDAP_USERNAME_ATTRIBUTE",
            [account_name(directory, entry.attributes) for entry in people],
        ),
    ):
        lacking = [entry.dn for entry, value in zip(people, values, strict=True) if not value]
        if len(lacking) == len(people):
            yield Finding(False, f"{attribute} ({variable}): {_nobody_has_it(people)}")
        elif lacking:
            yield Finding(
                None,
                f"{attribute} ({variable}): {len(lacking)} of {len(people)} have none, such as {lacking[0]};"
                " they cannot sign in",
            )
        owners: dict[str, str] = {}
        for entry, value in zip(people, values, strict=True):
            if value and owners.setdefault(value, entry.dn) != entry.dn:
                yield Finding(
                    False,
                    f"{attribute} ({variable}): {owners[value]} and {entry.dn} have the same, which must be unique",
                )
                break
    if directory.id_attribute.lower() in (directory.username_attribute.lower(), directory.mail_attribute.lower()):
        yield Finding(
            None,
            f"{directory.id_attribute} (LDAP_ID_ATTRIBUTE): whoever is given a leaver’s name is taken for them;"
            " better one that stays and is given once, such as entryUUID",
        )


def _nobody_has_it(people: list[Entry]) -> str:
    return f"none of {len(people)} people has it, such as {people[0].dn}, or our account may not read it"


def _is_filled(directory: Directory, people: list[Entry]) -> Iterator[Finding]:
    """What nobody has is a mistake where the settings name it, and worth knowing where they do not."""
    for attribute, variable, default in (
        (directory.first_name_attribute, "LDAP_FIRST_NAME_ATTRIBUTE", FIRST_NAME),
        (directory.last_name_attribute, "LDAP_LAST_NAME_ATTRIBUTE", LAST_NAME),
        (directory.mail_attribute, "LDAP_MAIL_ATTRIBUTE", MAIL),
    ):
        if not any(first(entry.attributes, attribute) for entry in people):
            is_default = attribute.lower() == default.lower()
            yield Finding(None if is_default else False, f"{attribute} ({variable}): {_nobody_has_it(people)}")


def _finds_one(directory: Directory, connection: Connection, person: Entry) -> Iterator[Finding]:
    name = account_name(directory, person.attributes)
    found = some(connection, directory.user_base, directory.filter_by_name(name), ["1.1"], 2) if name else []
    if len(found) > 1:
        yield Finding(
            False,
            f"LDAP_USER_FILTER {directory.user_filter}: finds {found[0].dn} and {found[1].dn} for the name {name},"
            " so that nobody can sign in by it",
        )


def _template(directory: Directory, connection: Connection, people: list[Entry]) -> Iterator[Finding]:
    template = directory.user_dn_template
    if directory.binds_by_dn:
        fitting = [entry for entry in people if _fits(entry.dn, template % {"user": ANY_NAME})]
        words = f"{template} (LDAP_USER_DN_TEMPLATE): is how {len(fitting)} of {len(people)} people are called there"
        others = "" if len(fitting) == len(people) else f", and not how {people[0].dn} is"
        yield Finding(True if not others else None if fitting else False, words + others)
    elif directory.kind == "activedirectory":
        yield _domain_of_template(directory, connection)
    elif _takes_only_dns(directory, connection):
        yield Finding(False, f"{template} (LDAP_USER_DN_TEMPLATE): is no DN, and this server takes nothing else")


def _fits(dn: str, pattern: str) -> bool:
    """Return whether there is a name that makes this DN of a pattern with ANY_NAME."""
    before, after = normal(pattern).split(ANY_NAME, 1)
    is_as_deep = len(ldap.dn.str2dn(dn)) == len(ldap.dn.str2dn(pattern))
    return is_as_deep and normal(dn).startswith(before) and normal(dn).endswith(after)


def _domain_of_template(directory: Directory, connection: Connection) -> Finding:
    template = directory.user_dn_template
    filled = template % {"user": ""}
    domain = filled.strip("@\\").casefold()
    words = f"{template} (LDAP_USER_DN_TEMPLATE)"
    if not domain or filled == domain:
        return Finding(False, f"{words}: must name the domain, as %(user)s@corp.example.com or CORP\\%(user)s")
    known = domains(connection)
    query = f"(userPrincipalName=*@{ldap.filter.escape_filter_chars(domain)})"
    if domain in known or some(connection, directory.user_base, query, ["1.1"], 1):
        return Finding(True, f"{words}: names a domain that is known there")
    names = ", ".join(sorted(known)) or "unknown"
    return Finding(False, f"{words}: {domain} is no name of this domain ({names}), nor in anybody’s userPrincipalName")


def _takes_only_dns(directory: Directory, connection: Connection) -> bool:
    """Try to bind by a name that nobody has, so that no account is locked by it."""
    with opened(directory, connection.server, bind=False) as other:
        try:
            other.simple_bind_s(directory.user_dn_template % {"user": ANY_NAME}, ANY_NAME)
        except ldap.INVALID_DN_SYNTAX:
            return True
        except (ldap.LDAPError, DirectoryError):
            return False
    return False
