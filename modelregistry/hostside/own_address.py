"""Whether this machine has an address at which engines are to listen."""

import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from modelregistry.wire_bounds import Line, Name


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressFault:
    """Why engines cannot listen at the host's address. `reason`: the system's words, or seconds."""

    code: Literal["address-unknown", "address-missing", "address-slow"]
    address: Name
    reason: Line = ""

    def __str__(self) -> str:
        """Return the sentence for logs and the command line; pages show it in the reader's language."""
        return IN_ENGLISH[self.code] % {"address": self.address, "reason": self.reason}


IN_ENGLISH = {
    "address-unknown": "The host’s address %(address)s cannot be looked up.",
    "address-missing": "This machine does not have the host’s address %(address)s (%(reason)s).",
    "address-slow": "The host’s address %(address)s could not be looked up within %(reason)s s.",
}


def is_loopback(address: str) -> bool:
    """Return whether the address leads no other machine to this one. Resolves a name, as `find_fault` does."""
    try:
        found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    except (UnicodeError, OSError):
        return False
    return ip_address(found[4][0]).is_loopback


def find_fault(address: str) -> AddressFault | None:
    """Return why engines on this machine cannot listen at this address; None: they can.

    Resolves a name, which may block for as long as name servers take. A wildcard (0.0.0.0), which earlier releases
    allowed, serves the gateway of this machine, so engines with it keep running; `addresses.validate` refuses it now.
    """
    try:
        family, _kind, _protocol, _canonical, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind(place)
    except (UnicodeError, socket.gaierror):
        return AddressFault(code="address-unknown", address=address)
    except OSError as error:
        return AddressFault(code="address-missing", address=address, reason=error.strerror or str(error))
    return None
