"""The address of a host, where its engines listen and gateways reach them: what may be given, and is it here?"""

import re
import socket
from ipaddress import ip_address, ip_network

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

# As RFC 1123 has host names. What ends in a number is an address to the programs that resolve names, though not the
# same one to each (0x7f000001, 10.1, 2130706433).
_NAME = re.compile(
    r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)

_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]*|\d+")
# No machine's own: "this network", what is reserved (with 255.255.255.255, everybody), and IPv6's ways to write an
# address of IPv4, which would hide one of those (mapped, compatible, NAT64).
_NOBODYS = [ip_network(network) for network in ("0.0.0.0/8", "240.0.0.0/4", "::ffff:0:0/96", "::/96", "64:ff9b::/96")]


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
    # A zone (fe80::1%eth0) is a name of this machine's own, of which others know nothing.
    nobodys = found.is_multicast or (not found.is_loopback and any(found in network for network in _NOBODYS))
    if nobodys or "%" in address:
        raise ValidationError(_unreachable(address), code="bad-address")


def fault(address: str) -> str:
    """Why engines on this machine cannot listen at this address, as a sentence; empty: they can.

    Looks a name up, which may block for as long as name servers take. A wildcard (0.0.0.0), which could be given once,
    serves the gateway of this machine, so what runs with it goes on; `validate` takes it no more.
    """
    try:
        family, _kind, _protocol, _canonical, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind(place)
    except (UnicodeError, socket.gaierror):
        return _("The host’s address %(address)s cannot be looked up.") % {"address": address}
    except OSError as error:
        return _("This machine does not have the host’s address %(address)s (%(reason)s).") % {
            "address": address,
            "reason": error.strerror,
        }
    return ""


def too_slow(address: str, seconds: float) -> str:
    """The same, of a name that was not found within this time."""
    return _("The host’s address %(address)s could not be looked up within %(seconds)g s.") % {
        "address": address,
        "seconds": seconds,
    }


def _unreachable(address: str) -> str:
    return _("%(address)s is no address at which gateways can reach a host: give one of its own.") % {
        "address": address
    }
