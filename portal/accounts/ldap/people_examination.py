"""Examine whether people are found, have unique names and ids, and are named as LDAP_USER_DN_TEMPLATE says."""

from collections.abc import Iterator

import ldap
import ldap.dn
import ldap.filter

from portal.accounts.ldap.configuration import FIRST_NAME, LAST_NAME, MAIL, DirectorySettings, normalize_dn
from portal.accounts.ldap.connection import Entry, LdapConnection, exists, search_sample
from portal.accounts.ldap.entries import account_name, domain_names, entry_id
from portal.accounts.ldap.errors import DirectoryError
from portal.accounts.ldap.findings import Finding, describe_missing, object_classes, open_connection
from portal.accounts.ldap.values import first_text

ANY_NAME = "madoguchi-checkdirectory"  # a placeholder that no account has as its name


def examine_people(directory: DirectorySettings, connection: LdapConnection) -> Iterator[Finding]:
    base = directory.user_base
    if not exists(connection, base):
        yield Finding(False, "no-such-place", f"{base}: {describe_missing(directory, connection, base)}")
        return
    people = search_sample(connection, base, directory.filter_of_all, directory.attributes)
    if not people:
        yield Finding(False, "no-match", f"{base}: {_describe_no_match(directory, connection)}")
        return
    yield Finding(True, "people", f"{base}: there are people, such as {people[0].dn}")
    yield from _examine_uniqueness(directory, people)
    yield from _examine_attributes(directory, people)
    yield from _examine_filter(directory, connection, people[0])
    if directory.user_dn_template:
        yield from _examine_template(directory, connection, people)


def _describe_no_match(directory: DirectorySettings, connection: LdapConnection) -> str:
    """Say that no entry matches the filter, and show one that does not match, for comparison."""
    made_of = "" if directory.has_own_filter else ", which LDAP_KIND and LDAP_USERNAME_ATTRIBUTE make"
    words = f"no entry there matches LDAP_USER_FILTER {directory.user_filter}{made_of}"
    for query in ("(objectClass=person)", "(objectClass=*)"):
        there = search_sample(connection, directory.user_base, query, ["objectClass"], 2)
        entry = next((entry for entry in there if normalize_dn(entry.dn) != directory.user_base), None)
        if entry is not None:
            break
    if entry is None:
        return f"{words}; nothing is there, or our account may not read it"
    return f"{words}; an entry there is {entry.dn} (objectClass {object_classes(entry)})"


def _examine_uniqueness(directory: DirectorySettings, people: list[Entry]) -> Iterator[Finding]:
    """Yield findings about names and ids that are missing or not unique: two people with one id share an account."""
    for attribute, variable, values in (
        (directory.id_attribute, "LDAP_ID_ATTRIBUTE", [entry_id(directory, entry.attributes) for entry in people]),
        (
            directory.username_attribute,
            "LDAP_USERNAME_ATTRIBUTE",
            [account_name(directory, entry.attributes) for entry in people],
        ),
    ):
        lacking = [entry.dn for entry, value in zip(people, values, strict=True) if not value]
        if len(lacking) == len(people):
            yield Finding(False, "attribute-missing", f"{attribute} ({variable}): {_describe_absence(people)}")
        elif lacking:
            yield Finding(
                None,
                "attribute-lacking",
                f"{attribute} ({variable}): {len(lacking)} of {len(people)} have none, such as {lacking[0]};"
                " they cannot sign in",
            )
        owners: dict[str, str] = {}
        for entry, value in zip(people, values, strict=True):
            if value and owners.setdefault(value, entry.dn) != entry.dn:
                yield Finding(
                    False,
                    "attribute-shared",
                    f"{attribute} ({variable}): {owners[value]} and {entry.dn} have the same, which must be unique",
                )
                break
    if directory.id_attribute.lower() in (directory.username_attribute.lower(), directory.mail_attribute.lower()):
        yield Finding(
            None,
            "id-reusable",
            f"{directory.id_attribute} (LDAP_ID_ATTRIBUTE): a new person with a leaver’s name is taken for the"
            " leaver; use an attribute that never changes and is never given again, such as entryUUID",
        )


def _describe_absence(people: list[Entry]) -> str:
    return f"none of {len(people)} people has it, such as {people[0].dn}, or our account may not read it"


def _examine_attributes(directory: DirectorySettings, people: list[Entry]) -> Iterator[Finding]:
    """Yield attributes that no person has: a failure if the settings name them, else only worth knowing."""
    for attribute, variable, default in (
        (directory.first_name_attribute, "LDAP_FIRST_NAME_ATTRIBUTE", FIRST_NAME),
        (directory.last_name_attribute, "LDAP_LAST_NAME_ATTRIBUTE", LAST_NAME),
        (directory.mail_attribute, "LDAP_MAIL_ATTRIBUTE", MAIL),
    ):
        if not any(first_text(entry.attributes, attribute) for entry in people):
            is_default = attribute.lower() == default.lower()
            ok = None if is_default else False
            yield Finding(ok, "attribute-missing", f"{attribute} ({variable}): {_describe_absence(people)}")


def _examine_filter(directory: DirectorySettings, connection: LdapConnection, person: Entry) -> Iterator[Finding]:
    name = account_name(directory, person.attributes)
    found = search_sample(connection, directory.user_base, directory.filter_by_name(name), ["1.1"], 2) if name else []
    if len(found) > 1:
        yield Finding(
            False,
            "filter-ambiguous",
            f"LDAP_USER_FILTER {directory.user_filter}: finds {found[0].dn} and {found[1].dn} for the name {name},"
            " so that no one can sign in by it",
        )


def _examine_template(
    directory: DirectorySettings, connection: LdapConnection, people: list[Entry]
) -> Iterator[Finding]:
    template = directory.user_dn_template
    if directory.binds_by_dn:
        fitting = [entry for entry in people if _matches_template(entry.dn, template % {"user": ANY_NAME})]
        words = f"{template} (LDAP_USER_DN_TEMPLATE): is how {len(fitting)} of {len(people)} people are called there"
        others = "" if len(fitting) == len(people) else f", and not how {people[0].dn} is"
        yield Finding(True if not others else None if fitting else False, "template", words + others)
    elif directory.kind == "activedirectory":
        yield _examine_template_domain(directory, connection)
    elif _takes_only_dns(directory, connection):
        words = "is not a DN, and this server takes nothing else"
        yield Finding(False, "template-not-dn", f"{template} (LDAP_USER_DN_TEMPLATE): {words}")


def _matches_template(dn: str, pattern: str) -> bool:
    """Return whether some name in place of ANY_NAME turns the pattern into this DN."""
    before, after = normalize_dn(pattern).split(ANY_NAME, 1)
    is_as_deep = len(ldap.dn.str2dn(dn)) == len(ldap.dn.str2dn(pattern))
    return is_as_deep and normalize_dn(dn).startswith(before) and normalize_dn(dn).endswith(after)


def _examine_template_domain(directory: DirectorySettings, connection: LdapConnection) -> Finding:
    template = directory.user_dn_template
    filled = template % {"user": ""}
    domain = filled.strip("@\\").casefold()
    words = f"{template} (LDAP_USER_DN_TEMPLATE)"
    if not domain or filled == domain:
        hint = "must name the domain, as %(user)s@corp.example.com or CORP\\%(user)s"
        return Finding(False, "template-without-domain", f"{words}: {hint}")
    known = domain_names(connection)
    query = f"(userPrincipalName=*@{ldap.filter.escape_filter_chars(domain)})"
    if domain in known or search_sample(connection, directory.user_base, query, ["1.1"], 1):
        return Finding(True, "template", f"{words}: names a domain that is known there")
    names = ", ".join(sorted(known)) or "unknown"
    hint = f"{domain} is not a name of this domain ({names}), nor in any userPrincipalName"
    return Finding(False, "template-other-domain", f"{words}: {hint}")


def _takes_only_dns(directory: DirectorySettings, connection: LdapConnection) -> bool:
    """Try to bind by a name that no account has, so that none is locked by it."""
    with open_connection(directory, connection.server, bind=False) as other:
        try:
            other.simple_bind_s(directory.user_dn_template % {"user": ANY_NAME}, ANY_NAME)
        except ldap.INVALID_DN_SYNTAX:
            return True
        except (ldap.LDAPError, DirectoryError):
            return False
    return False
