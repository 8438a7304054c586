"""What a directory server's certificate says, and why it is not trusted: libldap tells neither."""

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from portal.accounts.directory.configuration import Directory
from portal.accounts.directory.errors import NoAnswer

# ExtendedRequest of StartTLS (RFC 4511 4.14.1) with message id 1: 1.3.6.1.4.1.1466.20037
START_TLS = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037"
SUCCESS = b"\x0a\x01\x00"  # resultCode of its answer


@dataclass(frozen=True, slots=True)
class Certificate:
    names: tuple[str, ...]
    issuer: str
    expires: str


def certificate(directory: Directory, server: str) -> Certificate:
    """Of a server whose certificate is trusted for its name. Raises NoAnswer with the reason why it is not."""
    parts = urlsplit(server)
    host = parts.hostname or ""
    port = parts.port or (636 if parts.scheme == "ldaps" else 389)
    context = ssl.create_default_context(cafile=directory.ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # libldap is not so strict either
    try:
        with socket.create_connection((host, port), directory.timeout) as plain:
            if parts.scheme == "ldap":
                plain.sendall(START_TLS)
                if SUCCESS not in plain.recv(1024):
                    raise NoAnswer("it does not do StartTLS")
            with context.wrap_socket(plain, server_hostname=host) as tls:
                return _facts(tls.getpeercert() or {})
    except ssl.SSLCertVerificationError as error:
        raise NoAnswer(f"its certificate is not trusted: {error.verify_message} (LDAP_CA_FILE)") from error
    except OSError as error:
        raise NoAnswer(str(error) or type(error).__name__) from error


def _facts(told: Mapping[str, object]) -> Certificate:
    def named(part: object) -> str:
        pairs = [pair for group in part for pair in group] if isinstance(part, tuple) else []
        return next((str(value) for key, value in reversed(pairs) if key in ("commonName", "organizationName")), "?")

    others = told.get("subjectAltName")
    names = [str(value) for _, value in others] if isinstance(others, tuple) else []
    return Certificate(tuple(names or [named(told.get("subject"))]), named(told.get("issuer")), str(told["notAfter"]))
