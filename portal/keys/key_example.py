"""The example that pages show for a key: the model that is best to try now, called in three ways."""

from dataclasses import dataclass

from django.conf import settings
from django.http import HttpRequest

from portal.keys import model_access
from portal.keys.code_samples import Calls, calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """How to call `offer`. `base_url` ends in /v1."""

    offer: model_access.AvailableModel
    calls: Calls
    base_url: str


def base_url(request: HttpRequest) -> str:
    """Return the address that clients of the API are given: PUBLIC_URL.

    Else the one that this person's browser used.
    """
    return f"{settings.PUBLIC_URL or request.build_absolute_uri('/').rstrip('/')}/v1"


def example(
    request: HttpRequest, offered: list[model_access.AvailableModel], text: str = "", *, chosen: str = ""
) -> Example | None:
    """An example with the key's text, or without it reading the key from the environment. None: there is no model.

    `chosen`: the name of the model to call; else, and if it is not offered, the one that is best to try.
    """
    offer = next((offer for offer in offered if offer.name == chosen), None) or model_access.suggested_model(offered)
    if offer is None:
        return None
    url = base_url(request)
    return Example(offer=offer, calls=calls(offer, base_url=url, key=text), base_url=url)
