"""What a directory server's certificate says, and why it is not trusted: libldap reports neither."""

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from portal.accounts.ldap.configuration import DirectorySettings
from portal.accounts.ldap.errors import DirectoryUnavailable
from portal.accounts.ldap.reachability import host_and_port

# ExtendedRequest of StartTLS (RFC 4511 4.14.1) with message id 1: 1.3.6.1.4.1.1466.20037
START_TLS = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037"
SUCCESS = b"\x0a\x01\x00"  # resultCode of its answer
# OpenSSL's X509_V_ERR_…, by what an operator can do about them
OTHER_NAME = (62, 64)  # HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH
OTHER_AUTHORITY = (18, 19, 20, 21)  # SELF_SIGNED…, UNABLE_TO_GET_ISSUER_CERT_LOCALLY, UNABLE_TO_VERIFY_LEAF_SIGNATURE
NOT_YET_VALID, EXPIRED = 9, 10


@dataclass(frozen=True, slots=True)
class Certificate:
    names: tuple[str, ...]
    issuer: str
    expires: str


def read_certificate(directory: DirectorySettings, server: str) -> Certificate:
    """Return the server's certificate.

    Raises DirectoryUnavailable, with the reason, if it is not trusted for the server's name.
    """
    try:
        return _fetch_certificate(directory, server, check_name=True)
    except ssl.SSLCertVerificationError as error:
        raise _explain_distrust(directory, server, error) from error
    except OSError as error:
        reason = error.strerror or error
        raise DirectoryUnavailable(f"no certificate could be read ({reason})", "certificate-unreadable") from error


def _explain_distrust(
    directory: DirectorySettings, server: str, error: ssl.SSLCertVerificationError
) -> DirectoryUnavailable:
    cause, words = "certificate", error.verify_message
    match error.verify_code:
        case code if code in OTHER_NAME:
            names = ", ".join(_read_names(directory, server)) or "another name"
            host = host_and_port(server)[0]
            cause = "certificate-name"
            words = f"it is for {names}, not for {host}; LDAP_SERVER_URI must have a name that it is for"
        case code if code in OTHER_AUTHORITY:
            cause = "certificate-authority"
            words = (
                f"no authority in {directory.ca_file} vouches for it ({error.verify_message});"
                " LDAP_CA_FILE must have the one that issued it"
            )
        case code if code == EXPIRED:
            cause = "certificate-expired"
            words = "it or its authority’s has expired, and must be renewed there"
        case code if code == NOT_YET_VALID:
            cause = "certificate-not-yet-valid"
            words = "it or its authority’s is not valid yet; is the clock of this machine right?"
    return DirectoryUnavailable(f"its certificate is not trusted: {words}", cause)


def _read_names(directory: DirectorySettings, server: str) -> tuple[str, ...]:
    """Return the names in a certificate that is trusted except for its name."""
    try:
        return _fetch_certificate(directory, server, check_name=False).names[:5]
    except OSError:
        return ()


def _fetch_certificate(directory: DirectorySettings, server: str, *, check_name: bool) -> Certificate:
    """Connect and return the certificate. Raises OSError (also ssl.SSLCertVerificationError), DirectoryUnavailable."""
    host, port = host_and_port(server)
    context = ssl.create_default_context(cafile=directory.ca_file)
    context.check_hostname = check_name
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # libldap is not so strict either
    with socket.create_connection((host, port), directory.timeout) as plain:
        if urlsplit(server).scheme == "ldap":
            plain.sendall(START_TLS)
            if SUCCESS not in plain.recv(1024):
                raise DirectoryUnavailable(
                    "it does not do StartTLS: use ldaps://, or have it set up there", "no-starttls"
                )
        with context.wrap_socket(plain, server_hostname=host) as tls:
            return _parse_certificate(tls.getpeercert() or {})


def _parse_certificate(fields: Mapping[str, object]) -> Certificate:
    def find_name(part: object) -> str:
        pairs = [pair for group in part for pair in group] if isinstance(part, tuple) else []
        return next((str(value) for key, value in reversed(pairs) if key in ("commonName", "organizationName")), "?")

    others = fields.get("subjectAltName")
    names = [str(value) for _, value in others] if isinstance(others, tuple) else []
    return Certificate(
        tuple(names or [find_name(fields.get("subject"))]), find_name(fields.get("issuer")), str(fields["notAfter"])
    )
