"""Networks from which a key may be used, as people type them."""

import re
from collections.abc import Iterable
from ipaddress import ip_network

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _


def parse_networks(text: str) -> list[str]:
    """Return the networks in a text, separated by lines, commas or spaces, as ApiKey stores them; each once.

    A single address becomes a network of one. Raises ValidationError, which names the wrong part.
    """
    found = [parse_network(word) for word in re.split(r"[\s,、，;]+", text) if word]
    return list(dict.fromkeys(found))


def parse_network(word: str) -> str:
    """Return one network as ApiKey stores it. Raises ValidationError."""
    try:
        return str(ip_network(word))
    except ValueError:
        pass
    try:
        meant = ip_network(word, strict=False)
    except ValueError as error:
        raise ValidationError(
            _("%(network)s is not a network. Examples: 10.1.0.0/16, 192.168.7.5"),
            code="not-a-network",
            params={"network": word},
        ) from error
    # Not accepted silently: a person who wrote the address of one machine may have meant that machine.
    raise ValidationError(
        _("%(network)s is an address within a network. Enter %(whole)s for the network or %(alone)s for the address."),
        code="host-bits",
        params={"network": word, "whole": meant, "alone": word.partition("/")[0]},
    )


def format_networks(networks: Iterable[str]) -> str:
    """Return the networks, one per line, for a form."""
    return "\n".join(networks)
