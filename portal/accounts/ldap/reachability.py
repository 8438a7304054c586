"""Check whether a server answers at an address; if not, name the likely cause for an operator.

Nothing is trusted and nothing secret is sent here. A check costs one connection, the search for a cause two more.
"""

import socket
import ssl
import time
from urllib.parse import urlsplit

import ldap

from portal.accounts.ldap.errors import DirectoryUnavailable

PORTS = {"ldap": 389, "ldaps": 636}
# What libldap says of a server that is gone as well as of one that it does not trust.
UNREACHED = (ldap.SERVER_DOWN, ldap.CONNECT_ERROR)
# How a server that is down, stopping or overloaded fails a request.
SILENCE = (*UNREACHED, ldap.TIMEOUT, ldap.TIMELIMIT_EXCEEDED, ldap.UNAVAILABLE, ldap.BUSY)
# OpenSSL's reasons for what is not TLS at all. Others, such as alerts, come from a server that speaks TLS.
NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_EOF_WHILE_READING", "PACKET_LENGTH_TOO_LONG")


def host_and_port(server: str) -> tuple[str, int]:
    """Return the host and port of an ldap:// or ldaps:// address."""
    parts = urlsplit(server)
    return parts.hostname or "", parts.port or PORTS[parts.scheme]


def check_answer(server: str, timeout: float) -> None:
    """Raise DirectoryUnavailable with the cause unless the server speaks what the address says: LDAP, or TLS for ldaps://.

    Whether it is the right server is for libldap to check. Called before every connection, because libldap itself (2.5
    with GnuTLS, as in Debian 12) never returns, with one core at 100 %, when a server accepts the connection and then
    does not answer the TLS handshake. Blocks for `timeout` seconds if there is no answer, little longer otherwise.
    """
    if server.startswith("ldaps:"):
        _check_tls(server, timeout)
    else:
        _check_ldap(server, timeout)


def _check_tls(server: str, timeout: float) -> None:
    host, port = host_and_port(server)
    plain = f"ldap://{urlsplit(server).netloc}"
    if _speaks_tls(host, port, timeout):
        return
    if _speaks_ldap(plain if urlsplit(server).port else f"{plain}:{port}", timeout):
        raise DirectoryUnavailable(
            "it speaks LDAP there, but not TLS from the first byte: write ldap:// for StartTLS, or its port",
            "ldap-first",
        )
    raise DirectoryUnavailable(f"the server on port {port} does not speak TLS: is that the port of LDAPS?", "no-tls")


def _check_ldap(server: str, timeout: float) -> None:
    host, port = host_and_port(server)
    started = time.monotonic()
    try:
        _probe_ldap(server, timeout)
    except UNREACHED as error:
        if time.monotonic() - started >= timeout:
            raise _no_answer(timeout) from error
    except ldap.TIMEOUT as error:
        hint = "; on the port of LDAPS write ldaps://" if port == PORTS["ldaps"] else ""
        raise _no_answer(timeout, hint) from error
    except SILENCE as error:
        raise DirectoryUnavailable(f"it is too busy, or stopping ({type(error).__name__})", "busy") from error
    else:
        return
    if _speaks_tls(host, port, timeout):
        raise DirectoryUnavailable(
            "it speaks TLS from the first byte there: write ldaps://, or the port for StartTLS", "tls-first"
        )
    raise DirectoryUnavailable(f"the server on port {port} does not speak LDAP: is that the right port?", "no-ldap")


def _probe_ldap(server: str, timeout: float) -> None:
    """Send a request. Raises one of SILENCE unless there is an answer in LDAP, be it a refusal."""
    connection = ldap.initialize(server)
    connection.set_option(ldap.OPT_NETWORK_TIMEOUT, timeout)
    connection.set_option(ldap.OPT_TIMEOUT, timeout)
    try:
        connection.search_s("", ldap.SCOPE_BASE, attrlist=["1.1"])
    except SILENCE:
        raise
    except ldap.LDAPError:
        return  # a refusal is an answer
    finally:
        connection.unbind_s()


def _speaks_ldap(server: str, timeout: float) -> bool:
    try:
        _probe_ldap(server, timeout)
    except SILENCE:
        return False
    return True


def _speaks_tls(host: str, port: int, timeout: float) -> bool:
    """Return whether the server speaks TLS. Raises DirectoryUnavailable if none listens there or answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout) as plain:
            return _shakes_hands(context, plain, host)
    except socket.gaierror as error:
        raise DirectoryUnavailable(
            f"this machine does not know the name {host} ({error.strerror})", "unknown-host"
        ) from error
    except ConnectionRefusedError as error:
        words = f"no server listens on port {port} of {host} (connection refused)"
        raise DirectoryUnavailable(words, "connection-refused") from error
    except TimeoutError as error:
        raise _no_answer(timeout) from error
    except OSError as error:
        raise DirectoryUnavailable(f"it cannot be reached ({error.strerror or error})", "unreachable") from error


def _shakes_hands(context: ssl.SSLContext, plain: socket.socket, host: str) -> bool:
    try:
        with context.wrap_socket(plain, server_hostname=host):
            return True
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError, BrokenPipeError):
        return False
    except ssl.SSLError as error:
        return error.reason not in NOT_TLS


def _no_answer(timeout: float, hint: str = "") -> DirectoryUnavailable:
    return DirectoryUnavailable(f"no answer within {timeout:g} s (LDAP_TIMEOUT){hint}", "time-out")
