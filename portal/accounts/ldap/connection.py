"""Connections to the directory's servers, and searches whose answers are whole.

Servers are tried in their order until one answers, may be trusted and takes our account. Nothing here knows people.
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
from portal.accounts.ldap.certificates import certificate
from portal.accounts.ldap.configuration import Directory
from portal.accounts.ldap.errors import (
    AccountDisabled,
    AccountExpired,
    AccountLocked,
    AccountRefused,
    DirectoryError,
    NoAnswer,
    PasswordExpired,
    PasswordMustChange,
    Refused,
    SignInRestricted,
)
from portal.accounts.ldap.reachability import SILENCE, UNREACHED, check_answer

log = logging.getLogger(__name__)

PAGE = 500  # entries at a time; Active Directory gives 1,000 at most, OpenLDAP 500 unless told otherwise
RANGE = 1500  # values at a time; what Active Directory gives at most
# An entry that is not there, or that we may not know of.
NOT_HERE = (ldap.NO_SUCH_OBJECT, ldap.INVALID_DN_SYNTAX, ldap.REFERRAL)  # the last: another server may have it
ABSENT = (*NOT_HERE, ldap.INSUFFICIENT_ACCESS)
# Why our own account is not taken, by what the server tells.
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
# What is most likely wrong in the settings when a server refuses a question.
QUESTION_TROUBLE: Mapping[type[ldap.LDAPError], str] = {
    ldap.NO_SUCH_OBJECT: "there is no such place: LDAP_USER_BASE or LDAP_GROUP_BASE",
    ldap.REFERRAL: "that is of another domain or server: LDAP_USER_BASE or LDAP_GROUP_BASE",
    ldap.INSUFFICIENT_ACCESS: "our account may not read that: LDAP_BIND_DN",
    ldap.OPERATIONS_ERROR: "Active Directory says so to who is not signed in: LDAP_BIND_DN",
    ldap.SIZELIMIT_EXCEEDED: "it gives fewer entries at a time than there are, even in pages",
}


class Entry(NamedTuple):
    """`attributes` has lists of bytes, or of str where django-auth-ldap read them; names in any case."""

    dn: str
    attributes: Mapping[str, Any]


class Connection(SimpleLDAPObject):  # type: ignore[misc]
    """To one server. Binding as a person raises AccountRefused where the server tells that it is not the password."""

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
            if refusal := account_state.refusal(error):
                raise refusal from error
            if account_state.is_told_to_anybody(error):
                log.warning("%s is refused: %s", who, our_error(error))
                raise ldap.INVALID_CREDENTIALS from error
            raise
        if refusal := account_state.of_policy(answer[3]):
            raise refusal  # bound, but only to change the password
        return answer


def connect(directory: Directory, *, bind: bool) -> Connection:
    """The first server that answers and may be trusted; with `bind` also one that we are bound to as LDAP_BIND_DN.

    Blocks for `timeout` seconds for each server that does not answer. Raises NoAnswer when none does, which tells of
    each, and Refused when one does not take our account.
    """
    troubles = []
    for server in directory.servers:
        try:
            connection = connect_to(directory, server, bind=bind)
        except NoAnswer as error:
            troubles.append(f"{server}: {error}")
        else:
            for trouble in troubles:
                log.warning("A server of the directory is passed over. %s", trouble)
            return connection
    raise NoAnswer(f"The directory does not answer. {'; '.join(troubles)}")


def connect_to(directory: Directory, server: str, *, bind: bool) -> Connection:
    """This server. Raises NoAnswer and Refused, both with the cause, as far as it can be found."""
    with translate_errors():
        check_answer(server, directory.timeout)
        connection = Connection(server, directory.bind_dn)
    try:
        for option, value in directory.options().items():
            connection.set_option(option, value)
        if directory.start_tls:
            _start_tls(connection)
        if bind:
            _bind(directory, connection)
        else:
            _reach(connection)
    except UNREACHED as error:  # of somebody who has just answered
        connection.unbind_s()
        raise _distrust(directory, server, error) from error
    except ldap.LDAPError as error:
        connection.unbind_s()
        raise our_error(error) from error
    except DirectoryError:
        connection.unbind_s()
        raise
    return connection


def _start_tls(connection: Connection) -> None:
    """Raise NoAnswer also for a refusal: a server that we may not trust is as good as none."""
    try:
        connection.start_tls_s()
    except SILENCE:
        raise
    except ldap.LDAPError as error:
        raise NoAnswer(f"it does not do StartTLS: use ldaps://, or have it set up there ({_said(error)})") from error


def _bind(directory: Directory, connection: Connection) -> None:
    """As our own account. Raises Refused with what is wrong with that."""
    try:
        connection.simple_bind_s(directory.bind_dn, directory.bind_password)
    except SILENCE:
        raise
    except ldap.LDAPError as error:
        who = f"our account {directory.bind_dn}" if directory.bind_dn else "us without an account (LDAP_BIND_DN)"
        refusal = account_state.refusal(error)
        known = ACCOUNT_TROUBLE.get(type(refusal)) if refusal else BIND_TROUBLE.get(type(error))
        raise Refused(
            f"The directory does not take {who}: {known or 'no more is known'}. It says: {_said(error)}"
        ) from error


def _distrust(directory: Directory, server: str, error: ldap.LDAPError) -> NoAnswer:
    """Why libldap ends a connection to a server that answers: nearly always for its certificate."""
    if directory.ca_file:
        try:
            certificate(directory, server)
        except NoAnswer as found:
            return found
    return NoAnswer(f"it ends the connection ({_said(error)})")


def _reach(connection: Connection) -> None:
    """Connect, which looks at the certificate; what the server thinks of the question is not asked."""
    try:
        connection.search_s("", ldap.SCOPE_BASE, attrlist=["1.1"])
    except SILENCE:
        raise
    except ldap.LDAPError as error:
        log.debug("An answer is all that was asked for: %s", error)


@contextmanager
def service_connection(directory: Directory) -> Iterator[Connection]:
    """A connection bound as LDAP_BIND_DN (or as nobody, if that is unset). Raises NoAnswer and Refused, also for
    LDAP's errors inside."""
    if not directory.can_look_up:
        raise Refused("LDAP_USER_BASE and LDAP_BIND_DN are needed to look people up who do not sign in themselves")
    connection = connect(directory, bind=True)
    with translate_errors():
        try:
            yield connection
        finally:
            connection.unbind_s()


@contextmanager
def translate_errors() -> Iterator[None]:
    """LDAP's errors inside become NoAnswer or Refused."""
    try:
        yield
    except ldap.LDAPError as error:
        raise our_error(error) from error


def our_error(error: ldap.LDAPError) -> DirectoryError:
    """Return the sentence is for operators; people are told by the kind of error."""
    if isinstance(error, SILENCE):
        return NoAnswer(f"The directory does not answer ({_said(error)})")
    known = QUESTION_TROUBLE.get(type(error))
    return Refused(f"The directory refuses what the portal asks ({_said(error)}){f'; {known}' if known else ''}")


def _said(error: ldap.LDAPError) -> str:
    """In the words of libldap and of the server."""
    facts = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    # Of a place that is not there Samba tells no more than a line of its source.
    told = ("desc",) if isinstance(error, ldap.NO_SUCH_OBJECT) else ("desc", "info")
    return ": ".join(str(facts[name]) for name in told if facts.get(name)) or type(error).__name__


def search(connection: Any, base: str, query: str, attributes: list[str]) -> list[Entry]:
    """Return all entries below `base`, a page at a time. Raises LDAPError."""
    page = SimplePagedResultsControl(False, size=PAGE, cookie="")
    found: list[Entry] = []
    while True:
        asked = connection.search_ext(base, ldap.SCOPE_SUBTREE, query, attributes, serverctrls=[page])
        _, results, _, controls = connection.result3(asked)
        found += [Entry(dn, cidict(values)) for dn, values in results if dn is not None]  # None: a referral
        cookies = [c.cookie for c in controls if c.controlType == SimplePagedResultsControl.controlType]
        if not cookies or not cookies[0]:
            return found
        page.cookie = cookies[0]


def some(connection: Any, base: str, query: str, attributes: list[str], most: int = PAGE) -> list[Entry]:
    """Up to so many of the entries below `base`, at most a page. Raises LDAPError."""
    page = SimplePagedResultsControl(False, size=most, cookie="")
    asked = connection.search_ext(base, ldap.SCOPE_SUBTREE, query, attributes, serverctrls=[page])
    _, results, _, _ = connection.result3(asked)
    return [Entry(dn, cidict(values)) for dn, values in results if dn is not None][:most]


def read(connection: Any, dn: str, attributes: list[str], query: str = "(objectClass=*)") -> Entry | None:
    """Return one entry; None if there is none, it does not match, or we may not know of it."""
    try:
        results = connection.search_s(dn, ldap.SCOPE_BASE, query, attributes)
    except ABSENT:
        return None
    return next((Entry(found, cidict(values)) for found, values in results if found is not None), None)


def exists(connection: Any, dn: str) -> bool:
    """Return whether there is such a place, as far as the server tells; we need not be allowed to read it itself."""
    try:
        connection.search_s(dn, ldap.SCOPE_BASE, attrlist=["1.1"])
    except NOT_HERE:
        return False
    except ldap.INSUFFICIENT_ACCESS:
        log.debug("%s may not be read", dn)
    return True


def ranged(directory: Directory, name: str) -> str:
    """How to ask for the first values of an attribute that may have thousands."""
    return f"{name};range=0-{RANGE - 1}" if directory.kind == "activedirectory" else name


def all_values(connection: Any, entry: Entry, name: str) -> list[Any]:
    """Return all values of an attribute; the further ranges of one with many ([MS-ADTS] 3.1.1.3.1.3.3) are asked for
    here.
    """
    values = list(entry.attributes.get(name, []))
    attributes: Mapping[str, Any] = entry.attributes
    while True:
        ranges = ((key, _range_of(name, key)) for key in attributes)
        found = next(((key, match) for key, match in ranges if match), None)
        if found is None:
            return values
        key, match = found
        values += attributes[key]
        if match[2] == "*":
            return values
        following = int(match[2]) + 1
        more = read(connection, entry.dn, [f"{name};range={following}-{following + RANGE - 1}"])
        attributes = more.attributes if more else {}


def _range_of(name: str, key: str) -> re.Match[str] | None:
    """Of "member;range=0-1499"; the last range ends with a star."""
    return re.fullmatch(rf"{re.escape(name)};range=(\d+)-(\d+|\*)", key, re.IGNORECASE)
