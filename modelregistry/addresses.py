"""The address of a host, where its engines listen and gateways reach them: what is valid."""

import re
from ipaddress import ip_address, ip_network

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


def _unreachable(address: str) -> str:
    return _("%(address)s is not an address at which gateways can reach a host: enter one of the host’s own.") % {
        "address": address
    }
