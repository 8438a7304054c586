"""Connections to the directory's servers, and searches that return complete answers.

Servers are tried in order until one answers, is trusted and accepts our account. Nothing here knows about people.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import ldap
from ldap.cidict import cidict
from ldap.controls import SimplePagedResultsControl
from ldap.controls.ppolicy import PasswordPolicyControl
from ldap.ldapobject import SimpleLDAPObject

from portal.accounts.ldap import account_state
from portal.accounts.ldap.certificates import read_certificate
from portal.accounts.ldap.configuration import DirectorySettings
from portal.accounts.ldap.errors import (
    AccountDisabled,
    AccountExpired,
    AccountLocked,
    AccountRefused,
    DirectoryError,
    DirectoryRefused,
    DirectoryUnavailable,
    PasswordExpired,
    PasswordMustChange,
    SignInRestricted,
)
from portal.accounts.ldap.reachability import SILENCE, UNREACHED, check_answer

log = logging.getLogger(__name__)

PAGE = 500  # entries at a time; Active Directory returns 1,000 at most, OpenLDAP 500 by default
RANGE = 1500  # values at a time, the most that Active Directory returns
# The entry does not exist, or we may not know of it.
NOT_HERE = (ldap.NO_SUCH_OBJECT, ldap.INVALID_DN_SYNTAX, ldap.REFERRAL)  # the last: another server may have it
ABSENT = (*NOT_HERE, ldap.INSUFFICIENT_ACCESS)
# Why our own account is not accepted, by what the server reports.
ACCOUNT_TROUBLE: Mapping[type[AccountRefused], str] = {
    AccountDisabled: "it is disabled there",
    AccountExpired: "it has expired there",
    AccountLocked: "it is locked there",
    PasswordExpired: "its password has expired; renew it there and in LDAP_BIND_PASSWORD",
    PasswordMustChange: "its password must be changed first; do so, and set LDAP_BIND_PASSWORD",
    SignInRestricted: "it may not sign in at this hour, or from this machine",
}
BIND_TROUBLE: Mapping[type[ldap.LDAPError], str] = {
    ldap.INVALID_CREDENTIALS: "there is no such account, or its password is another (LDAP_BIND_DN, LDAP_BIND_PASSWORD)",
    ldap.INVALID_DN_SYNTAX: "it takes only a DN in LDAP_BIND_DN, such as cn=madoguchi,ou=services,dc=example,dc=com",
    ldap.NO_SUCH_OBJECT: "there is no such account (LDAP_BIND_DN)",
    ldap.INAPPROPRIATE_AUTH: "that entry has no password, or may not sign in by one (LDAP_BIND_DN)",
    ldap.STRONG_AUTH_REQUIRED: "it takes passwords encrypted only; remove LDAP_START_TLS=false, or use ldaps://",
    ldap.CONFIDENTIALITY_REQUIRED: "it takes passwords encrypted only; remove LDAP_START_TLS=false, or use ldaps://",
}
# What is most likely wrong in the settings when a server refuses a request.
QUESTION_TROUBLE: Mapping[type[ldap.LDAPError], str] = {
    ldap.NO_SUCH_OBJECT: "there is no such place: LDAP_USER_BASE or LDAP_GROUP_BASE",
    ldap.REFERRAL: "that belongs to another domain or server: LDAP_USER_BASE or LDAP_GROUP_BASE",
    ldap.INSUFFICIENT_ACCESS: "our account may not read that: LDAP_BIND_DN",
    ldap.OPERATIONS_ERROR: "Active Directory answers so when we are not signed in: LDAP_BIND_DN",
    ldap.SIZELIMIT_EXCEEDED: "it returns fewer entries than there are, even in pages",
}


class Entry(NamedTuple):
    """An entry. `attributes` holds lists of bytes, or of str where django-auth-ldap read them; names in any case."""

    dn: str
    attributes: Mapping[str, Any]


class LdapConnection(SimpleLDAPObject):  # type: ignore[misc]
    """A connection to one server.

    Binding as a person raises AccountRefused if the server says that the password is not the reason.
    """

    def __init__(self, server: str, service: str) -> None:
        super().__init__(server)
        self.server = server
        self.service = service  # the DN or name of our own account

    def simple_bind_s(self, who: str = "", cred: str = "", *_: Any, **__: Any) -> Any:
        if not who or who == self.service:
            return super().simple_bind_s(who, cred)
        try:
            answer = self.result3(self.simple_bind(who, cred, [PasswordPolicyControl()]))
        except ldap.LDAPError as error:
            if refusal := account_state.classify_refusal(error):
                raise refusal from error
            if account_state.is_refused_before_password(error):
                log.warning("%s is refused: %s", who, to_directory_error(error))
                raise ldap.INVALID_CREDENTIALS from error
            raise
        if refusal := account_state.read_policy_control(answer[3]):
            raise refusal  # bound, but only to change the password
        return answer


def connect(directory: DirectorySettings, *, bind: bool) -> LdapConnection:
    """Connect to the first server that answers and is trusted; with `bind` also bind as LDAP_BIND_DN.

    Blocks for `timeout` seconds for each server that does not answer. Raises DirectoryUnavailable if none
    does, with the cause for each, and DirectoryRefused if one does not accept our account.
    """
    troubles, cause = [], ""
    for server in directory.servers:
        try:
            connection = connect_to(directory, server, bind=bind)
        except DirectoryUnavailable as error:
            troubles.append(f"{server}: {error}")
            cause = error.cause
        else:
            for trouble in troubles:
                log.warning("A server of the directory was skipped. %s", trouble)
            return connection
    raise DirectoryUnavailable(f"The directory does not answer. {'; '.join(troubles)}", cause)


def connect_to(directory: DirectorySettings, server: str, *, bind: bool) -> LdapConnection:
    """Connect to this server. Raises DirectoryUnavailable and DirectoryRefused, with the cause if it can be found."""
    with translate_errors():
        check_answer(server, directory.timeout)
        connection = LdapConnection(server, directory.bind_dn)
    try:
        for option, value in directory.connection_options().items():
            connection.set_option(option, value)
        if directory.start_tls:
            _start_tls(connection)
        if bind:
            _bind(directory, connection)
        else:
            _probe(connection)
    except UNREACHED as error:  # from a server that has just answered
        connection.unbind_s()
        raise _explain_disconnect(directory, server, error) from error
    except ldap.LDAPError as error:
        connection.unbind_s()
        raise to_directory_error(error) from error
    except DirectoryError:
        connection.unbind_s()
        raise
    return connection


def _start_tls(connection: LdapConnection) -> None:
    """Start TLS. Raises DirectoryUnavailable also for a refusal: a server that is not trusted is as good as none."""
    try:
        connection.start_tls_s()
    except SILENCE:
        raise
    except ldap.LDAPError as error:
        raise DirectoryUnavailable(
            f"it does not do StartTLS: use ldaps://, or have it set up there ({_server_message(error)})", "no-starttls"
        ) from error


def _bind(directory: DirectorySettings, connection: LdapConnection) -> None:
    """Bind as our own account. Raises DirectoryRefused with the reason if the server does not accept it."""
    try:
        connection.simple_bind_s(directory.bind_dn, directory.bind_password)
    except SILENCE:
        raise
    except ldap.LDAPError as error:
        who = f"our account {directory.bind_dn}" if directory.bind_dn else "us without an account (LDAP_BIND_DN)"
        refusal = account_state.classify_refusal(error)
        known = ACCOUNT_TROUBLE.get(type(refusal)) if refusal else BIND_TROUBLE.get(type(error))
        raise DirectoryRefused(
            f"The directory does not take {who}: {known or 'no more is known'}. It says: {_server_message(error)}",
            refusal.code if refusal else type(error).__name__,
        ) from error


def _explain_disconnect(directory: DirectorySettings, server: str, error: ldap.LDAPError) -> DirectoryUnavailable:
    """Return why libldap closed a connection to a server that answers: nearly always because of its certificate."""
    if directory.ca_file:
        try:
            read_certificate(directory, server)
        except DirectoryUnavailable as found:
            return found
    return DirectoryUnavailable(f"it closes the connection ({_server_message(error)})", "closed")


def _probe(connection: LdapConnection) -> None:
    """Connect, which checks the certificate. Any answer of the server will do."""
    try:
        connection.search_s("", ldap.SCOPE_BASE, attrlist=["1.1"])
    except SILENCE:
        raise
    except ldap.LDAPError as error:
        log.debug("Any answer was enough: %s", error)


@contextmanager
def service_connection(directory: DirectorySettings) -> Iterator[LdapConnection]:
    """Open a connection bound as LDAP_BIND_DN, or anonymously if that is unset.

    Raises DirectoryUnavailable and DirectoryRefused, also for LDAP's errors inside.
    """
    if not directory.can_look_up:
        raise DirectoryRefused(
            "LDAP_USER_BASE and LDAP_BIND_DN are needed to look people up who do not sign in themselves", "no-account"
        )
    connection = connect(directory, bind=True)
    with translate_errors():
        try:
            yield connection
        finally:
            connection.unbind_s()


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise DirectoryUnavailable or DirectoryRefused in place of LDAP's errors inside."""
    try:
        yield
    except ldap.LDAPError as error:
        raise to_directory_error(error) from error


def to_directory_error(error: ldap.LDAPError) -> DirectoryError:
    """Return the error as DirectoryUnavailable or DirectoryRefused.

    Its sentence is for operators; people see one for the class.
    """
    if isinstance(error, SILENCE):
        return DirectoryUnavailable(f"The directory does not answer ({_server_message(error)})", type(error).__name__)
    known = QUESTION_TROUBLE.get(type(error))
    return DirectoryRefused(
        f"The directory refuses what the portal asks ({_server_message(error)}){f'; {known}' if known else ''}",
        type(error).__name__,
    )


def _server_message(error: ldap.LDAPError) -> str:
    """Return the error in the words of libldap and of the server."""
    facts = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    # For a missing entry, Samba adds nothing but a line of its source code.
    names = ("desc",) if isinstance(error, ldap.NO_SUCH_OBJECT) else ("desc", "info")
    return ": ".join(str(facts[name]) for name in names if facts.get(name)) or type(error).__name__


def search(connection: Any, base: str, query: str, attributes: list[str]) -> list[Entry]:
    """Return all entries below `base`, a page at a time. Raises LDAPError."""
    page = SimplePagedResultsControl(False, size=PAGE, cookie="")
    found: list[Entry] = []
    while True:
        request = connection.search_ext(base, ldap.SCOPE_SUBTREE, query, attributes, serverctrls=[page])
        _, results, _, controls = connection.result3(request)
        found += [Entry(dn, cidict(values)) for dn, values in results if dn is not None]  # None: a referral
        cookies = [c.cookie for c in controls if c.controlType == SimplePagedResultsControl.controlType]
        if not cookies or not cookies[0]:
            return found
        page.cookie = cookies[0]


def search_sample(connection: Any, base: str, query: str, attributes: list[str], most: int = PAGE) -> list[Entry]:
    """Return up to `most` entries below `base`, at most a page. Raises LDAPError."""
    page = SimplePagedResultsControl(False, size=most, cookie="")
    request = connection.search_ext(base, ldap.SCOPE_SUBTREE, query, attributes, serverctrls=[page])
    _, results, _, _ = connection.result3(request)
    return [Entry(dn, cidict(values)) for dn, values in results if dn is not None][:most]


def read_entry(connection: Any, dn: str, attributes: list[str], query: str = "(objectClass=*)") -> Entry | None:
    """Return one entry; None if it does not exist, does not match, or we may not know of it."""
    try:
        results = connection.search_s(dn, ldap.SCOPE_BASE, query, attributes)
    except ABSENT:
        return None
    return next((Entry(found, cidict(values)) for found, values in results if found is not None), None)


def exists(connection: Any, dn: str) -> bool:
    """Return whether the entry exists, as far as the server shows; we need not be allowed to read it."""
    try:
        connection.search_s(dn, ldap.SCOPE_BASE, attrlist=["1.1"])
    except NOT_HERE:
        return False
    except ldap.INSUFFICIENT_ACCESS:
        log.debug("%s may not be read", dn)
    return True


def ranged_attribute(directory: DirectorySettings, name: str) -> str:
    """Return the name by which to request the first values of an attribute that may have thousands."""
    return f"{name};range=0-{RANGE - 1}" if directory.kind == "activedirectory" else name


def all_values(connection: Any, entry: Entry, name: str) -> list[Any]:
    """Return all values of an attribute, requesting further ranges ([MS-ADTS] 3.1.1.3.1.3.3) if there are many."""
    values = list(entry.attributes.get(name, []))
    attributes: Mapping[str, Any] = entry.attributes
    while True:
        ranges = ((key, _match_range(name, key)) for key in attributes)
        found = next(((key, match) for key, match in ranges if match), None)
        if found is None:
            return values
        key, match = found
        values += attributes[key]
        if match[2] == "*":
            return values
        following = int(match[2]) + 1
        more = read_entry(connection, entry.dn, [f"{name};range={following}-{following + RANGE - 1}"])
        attributes = more.attributes if more else {}


def _match_range(name: str, key: str) -> re.Match[str] | None:
    """Match "member;range=0-1499"; the last range ends with a star."""
    return re.fullmatch(rf"{re.escape(name)};range=(\d+)-(\d+|\*)", key, re.IGNORECASE)
