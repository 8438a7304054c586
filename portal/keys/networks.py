"""Networks from which a key may be used, as people type them."""

import re
from collections.abc import Iterable
from ipaddress import ip_network

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _


def parse_networks(text: str) -> list[str]:
    """Return the networks of a text, one per line or apart by commas or spaces, as ApiKey keeps them; each once.

    A single address is the network of it alone. Raises ValidationError, which names what is wrong.
    """
    found = [canonical(word) for word in re.split(r"[\s,、，;]+", text) if word]
    return list(dict.fromkeys(found))


def canonical(word: str) -> str:
    try:
        return str(ip_network(word))
    except ValueError:
        pass
    try:
        meant = ip_network(word, strict=False)
    except ValueError as error:
        raise ValidationError(
            _("%(network)s is not a network. Examples: 10.1.0.0/16, 192.168.7.5"), params={"network": word}
        ) from error
    # Not taken silently: who wrote the address of one machine may have meant that machine.
    raise ValidationError(
        _("%(network)s is an address within a network. Write %(whole)s for the network or %(alone)s for the address."),
        params={"network": word, "whole": meant, "alone": word.partition("/")[0]},
    )


def format_networks(networks: Iterable[str]) -> str:
    """Return one per line, for a form."""
    return "\n".join(networks)
