"""Connections to the directory's servers, and searches whose answers are whole.

Servers are tried in their order until one answers, may be trusted and takes our account. Nothing here knows people.
"""

import logging
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import ldap
from ldap.cidict import cidict
from ldap.controls import SimplePagedResultsControl
from ldap.controls.ppolicy import PasswordPolicyControl
from ldap.ldapobject import SimpleLDAPObject

from portal.accounts.directory import account_state
from portal.accounts.directory.configuration import Directory
from portal.accounts.directory.errors import DirectoryError, NoAnswer, Refused

log = logging.getLogger(__name__)

PAGE = 500  # entries at a time; Active Directory gives 1,000 at most, OpenLDAP 500 unless told otherwise
RANGE = 1500  # values at a time; what Active Directory gives at most
# libldap says the same of a certificate that it does not accept as of a server that is gone.
UNTRUSTED = (ldap.SERVER_DOWN, ldap.CONNECT_ERROR)
# What a server that is away, ending or overloaded makes of a question.
SILENCE = (
    *UNTRUSTED,
    ldap.TIMEOUT,
    ldap.TIMELIMIT_EXCEEDED,
    ldap.UNAVAILABLE,
    ldap.BUSY,
)
# An entry that is not there, or that we may not know of.
ABSENT = (ldap.NO_SUCH_OBJECT, ldap.INSUFFICIENT_ACCESS, ldap.INVALID_DN_SYNTAX)


class Entry(NamedTuple):
    """`attributes` has lists of bytes, or of str where django-auth-ldap read them; names in any case."""

    dn: str
    attributes: Mapping[str, Any]


class Connection(SimpleLDAPObject):  # type: ignore[misc]
    """To one server. Binding as a person raises AccountRefused where the server tells that it is not the password."""

    def __init__(self, server: str, service: str) -> None:
        super().__init__(server)
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
    """This server. Raises NoAnswer (with what libldap says of its certificate) and Refused."""
    if not answers(server, directory.timeout):
        raise NoAnswer(f"no answer within {directory.timeout:g} s")
    with translated():
        connection = Connection(server, directory.bind_dn)
        try:
            for option, value in directory.options().items():
                connection.set_option(option, value)
            if directory.start_tls:
                _start_tls(connection)
            if bind:
                connection.simple_bind_s(directory.bind_dn, directory.bind_password)
            else:
                _reach(connection)
        except (ldap.LDAPError, DirectoryError):
            connection.unbind_s()
            raise
    return connection


def _start_tls(connection: Connection) -> None:
    """Raises NoAnswer whatever the reason: a server that we may not trust is as good as none."""
    try:
        connection.start_tls_s()
    except ldap.LDAPError as error:
        raise NoAnswer(f"no StartTLS. {our_error(error)}") from error


def _reach(connection: Connection) -> None:
    """Connects, which looks at the certificate; what the server thinks of the question is not asked."""
    try:
        connection.search_s("", ldap.SCOPE_BASE, attrlist=["1.1"])
    except SILENCE:
        raise
    except ldap.LDAPError as error:
        log.debug("An answer is all that was asked for: %s", error)


def answers(server: str, timeout: float) -> bool:
    """Whether anybody is there; whether it is the right one is for libldap to say, whose errors say more.

    Asked before every connection, because libldap itself (2.5 with GnuTLS, as in Debian 12) never returns, with one
    core at 100 %, when a server accepts the connection and then says nothing to the TLS handshake.
    """
    parts = urlsplit(server)
    if parts.scheme == "ldaps":
        return _shakes_hands(parts.hostname or "", parts.port or 636, timeout)
    connection = ldap.initialize(server)
    connection.set_option(ldap.OPT_NETWORK_TIMEOUT, timeout)
    connection.set_option(ldap.OPT_TIMEOUT, timeout)
    try:
        connection.search_s("", ldap.SCOPE_BASE, attrlist=["1.1"])
    except SILENCE:
        return False
    except ldap.LDAPError:
        return True  # a refusal is an answer
    else:
        return True
    finally:
        connection.unbind_s()


def _shakes_hands(host: str, port: int, timeout: float) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLError:
        return True  # a refusal is an answer
    except OSError:
        return False


@contextmanager
def service_connection(directory: Directory) -> Iterator[Connection]:
    """A connection bound as LDAP_BIND_DN (or as nobody, if that is unset). Raises NoAnswer and Refused, also for
    LDAP's errors inside."""
    if not directory.can_look_up:
        raise Refused("LDAP_USER_BASE and LDAP_BIND_DN are needed to look people up who do not sign in themselves")
    connection = connect(directory, bind=True)
    with translated():
        try:
            yield connection
        finally:
            connection.unbind_s()


@contextmanager
def translated() -> Iterator[None]:
    """LDAP's errors inside become NoAnswer or Refused."""
    try:
        yield
    except ldap.LDAPError as error:
        raise our_error(error) from error


def our_error(error: ldap.LDAPError) -> DirectoryError:
    """The sentence is for operators; people are told by the kind of error."""
    facts = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    said = ": ".join(str(facts[name]) for name in ("desc", "info") if facts.get(name)) or type(error).__name__
    if isinstance(error, UNTRUSTED):
        said += "; if the server is up: LDAP_CA_FILE does not vouch for its certificate, or that is for another name"
    if isinstance(error, SILENCE):
        return NoAnswer(f"The directory does not answer ({said})")
    return Refused(f"The directory refuses what the portal asks ({said})")


def search(connection: Any, base: str, query: str, attributes: list[str]) -> list[Entry]:
    """All entries below `base`, a page at a time. Raises LDAPError."""
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


def read(connection: Any, dn: str, attributes: list[str], query: str = "(objectClass=*)") -> Entry | None:
    """One entry; None if there is none, it does not match, or we may not know of it."""
    try:
        results = connection.search_s(dn, ldap.SCOPE_BASE, query, attributes)
    except ABSENT:
        return None
    return next((Entry(found, cidict(values)) for found, values in results if found is not None), None)


def exists(connection: Any, dn: str) -> bool:
    """Whether there is such a place, as far as the server tells; we need not be allowed to read it itself."""
    try:
        connection.search_s(dn, ldap.SCOPE_BASE, attrlist=["1.1"])
    except (ldap.NO_SUCH_OBJECT, ldap.INVALID_DN_SYNTAX):
        return False
    except ldap.INSUFFICIENT_ACCESS:
        log.debug("%s may not be read", dn)
    return True


def ranged(directory: Directory, name: str) -> str:
    """How to ask for the first values of an attribute that may have thousands."""
    return f"{name};range=0-{RANGE - 1}" if directory.kind == "activedirectory" else name


def all_values(connection: Any, entry: Entry, name: str) -> list[Any]:
    """All values of an attribute; the further ranges of one with many ([MS-ADTS] 3.1.1.3.1.3.3) are asked for here."""
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
