"""The example that pages show for a key: how to call the model that is best to try now."""

from dataclasses import dataclass

from django.conf import settings
from django.http import HttpRequest

from portal.keys import model_access
from portal.keys.code_samples import CodeSamples, make_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """How to call the model `offer`. `base_url` ends in /v1."""

    offer: model_access.AvailableModel
    samples: CodeSamples
    base_url: str


def base_url(request: HttpRequest) -> str:
    """Return the address for clients of the API: of PUBLIC_URL, else of the site as this browser reaches it."""
    return f"{settings.PUBLIC_URL or request.build_absolute_uri('/').rstrip('/')}/v1"


def make_example(
    request: HttpRequest, offered: list[model_access.AvailableModel], text: str = "", *, chosen: str = ""
) -> Example | None:
    """Return an example with the key's text; without text it reads the key from the environment. None: no model.

    `chosen`: the name of the model to call. Without it, or if it is not offered: the model that is best to try.
    """
    offer = next((offer for offer in offered if offer.name == chosen), None) or model_access.suggested_model(offered)
    if offer is None:
        return None
    url = base_url(request)
    return Example(offer=offer, samples=make_samples(offer, base_url=url, key=text), base_url=url)
