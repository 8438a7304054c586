"""Where pictures, recordings and videos of a call may lie. No I/O.

Engines fetch what a message points at: vLLM and llama.cpp both take `http://169.254.169.254/…`, with the engine host's
place in the network, and vLLM's `file://` is one option away. So what is not in the call itself (a data URL) must lie
on one of the operator's domains. The engines that we start are told the same (`modelregistry.engines.base`).
"""

import re
from collections.abc import Collection, Iterable

from apiproxy.dataplane.validation import invalid, shown

# What engines' own readers of addresses may understand otherwise (user names, backslashes, blanks) is no address.
ADDRESS = re.compile(r"https?://([a-z0-9-]+(?:\.[a-z0-9-]+)*)(?::[0-9]{1,5})?(?:[/?#][!-\[\]-~]*)?", re.I | re.ASCII)


def check(places: Iterable[tuple[str, str]], domains: Collection[str]) -> None:
    """Raise BadRequest for the first that is neither data nor on one of the domains (in small letters)."""
    for name, place in places:
        if place[:5].lower() == "data:":
            continue
        address = ADDRESS.fullmatch(place)
        if address is None or address[1].lower() not in domains:
            if domains:
                raise invalid("media_domain", name, allowed=", ".join(sorted(domains)), sent=shown(place))
            raise invalid("media_data", name, sent=shown(place))
