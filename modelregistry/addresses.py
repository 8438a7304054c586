"""The address of a host, where its engines listen and gateways reach them: what is valid, and if the host has it."""

import re
import socket
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Literal

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

# Host names as in RFC 1123. Programs that resolve names take one that ends in a number for an address, though not all
# for the same one (0x7f000001, 10.1, 2130706433).
_NAME = re.compile(
    r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)

_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]*|\d+")
# Addresses that no machine has: "this network", reserved ones (with 255.255.255.255, broadcast), and IPv6's ways to
# write an address of IPv4, which would hide one of those (mapped, compatible, NAT64).
_UNASSIGNABLE = [
    ip_network(network) for network in ("0.0.0.0/8", "240.0.0.0/4", "::ffff:0:0/96", "::/96", "64:ff9b::/96")
]


def validate(address: str) -> None:
    """Raise ValidationError unless this is one IPv4 or IPv6 address, or a host name. Looks nothing up."""
    try:
        found = ip_address(address)
    except ValueError:
        if not _NAME.fullmatch(address) or _NUMBER.fullmatch(address.rpartition(".")[2]):
            raise ValidationError(
                _("Give an IP address or a host name, without port and without http://."), code="bad-address"
            ) from None
        return
    # A zone (fe80::1%eth0) is a name that only this machine knows.
    unassignable = found.is_multicast or (not found.is_loopback and any(found in network for network in _UNASSIGNABLE))
    if unassignable or "%" in address:
        raise ValidationError(_unreachable(address), code="bad-address")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressFault:
    """Why engines cannot listen at the host's address. `reason`: the system's words, or seconds."""

    code: Literal["address-unknown", "address-missing", "address-slow"]
    address: str
    reason: str = ""

    def __str__(self) -> str:
        """Return the sentence for logs and the command line; pages show it in the reader's language."""
        return IN_ENGLISH[self.code] % {"address": self.address, "reason": self.reason}


IN_ENGLISH = {
    "address-unknown": "The host’s address %(address)s cannot be looked up.",
    "address-missing": "This machine does not have the host’s address %(address)s (%(reason)s).",
    "address-slow": "The host’s address %(address)s could not be looked up within %(reason)s s.",
}


def find_fault(address: str) -> AddressFault | None:
    """Return why engines on this machine cannot listen at this address; None: they can.

    Resolves a name, which may block for as long as name servers take. A wildcard (0.0.0.0), which earlier releases
    allowed, serves the gateway of this machine, so engines with it keep running; `validate` refuses it now.
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


def _unreachable(address: str) -> str:
    return _("%(address)s is not an address at which gateways can reach a host: enter one of the host’s own.") % {
        "address": address
    }
