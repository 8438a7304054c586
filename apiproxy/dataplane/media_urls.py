"""Where pictures, recordings and videos of a call may lie. No I/O.

Engines fetch what a message points at: vLLM and llama.cpp both take `http://169.254.169.254/…`, from the engine host's
place in the network, and vLLM's `file://` is one option away. So what is not in the call itself (a data URL) must be on
one of the operator's domains. The engines that we start get the same list (`modelregistry.engines.base`).
"""

import re
from collections.abc import Collection, Iterable

from apiproxy.dataplane.validation import describe_value, invalid_value

# What engines' own parsers of addresses may read otherwise (user names, backslashes, blanks) is not accepted.
ADDRESS = re.compile(r"https?://([a-z0-9-]+(?:\.[a-z0-9-]+)*)(?::[0-9]{1,5})?(?:[/?#][!-\[\]-~]*)?", re.I | re.ASCII)


def check(places: Iterable[tuple[str, str]], domains: Collection[str]) -> None:
    """Raise BadRequest for the first address that is neither data nor on one of the domains (in small letters)."""
    for name, place in places:
        if place[:5].lower() == "data:":
            continue
        address = ADDRESS.fullmatch(place)
        if address is None or address[1].lower() not in domains:
            if domains:
                raise invalid_value(
                    "media_domain", name, allowed=", ".join(sorted(domains)), sent=describe_value(place)
                )
            raise invalid_value("media_data", name, sent=describe_value(place))
