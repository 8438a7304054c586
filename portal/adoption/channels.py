"""By which way people use models, as far as it can be known. Pure."""

from collections.abc import Mapping

from django.utils.translation import gettext_lazy as _

from portal.usage import client_classes

PLAYGROUND, CODING, OWN, UNKNOWN = "playground", "coding", "own", "unknown"
CHANNELS = {
    PLAYGROUND: _("Playground"),
    "openai": _("OpenAI library"),
    "dify": "Dify",
    "openwebui": "Open WebUI",
    CODING: _("Coding agents"),
    OWN: _("Own programs"),
    UNKNOWN: _("not known"),
}
ORDER = tuple(CHANNELS)
# Parts of a key's name that say more than the HTTP library which the program calls with.
HINTS = {"dify": "dify", "webui": "openwebui"}


def channel_of(client_class: str, *, is_playground: bool, key_name: str) -> str:
    """Return the channel of calls of this class of programs with a key of this name."""
    if is_playground:
        return PLAYGROUND
    if client_class in client_classes.CODING_AGENTS:
        return CODING
    if client_class in ("dify", "openwebui"):
        return client_class
    name = key_name.lower()
    for part, channel in HINTS.items():
        if part in name:
            return channel
    if client_class == client_classes.UNKNOWN:
        return UNKNOWN
    return client_class if client_class == client_classes.OPENAI else OWN


def most_used(answers: Mapping[str, int]) -> str:
    """Return the channel with the most answers; of equals the first in CHANNELS."""
    return min(answers, key=lambda channel: (-answers[channel], ORDER.index(channel)))
