"""A server of the same API that runs elsewhere: it has a URL, and nothing here starts it."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from modelregistry.engines.base import Engine, RegistrationProblem, Spec
from modelregistry.files.metadata import gettext_noop

URL_FAULTS = {
    "no-url": gettext_noop("An external engine needs a URL, for example http://10.0.0.5:8000."),
    "not-a-url": gettext_noop("%(url)s is not a URL like http://10.0.0.5:8000."),
    "more-than-an-address": gettext_noop("The URL must not hold a user name, a query or a fragment."),
    "with-v1": gettext_noop("Leave /v1 off the URL: it is added to each call."),
}


class External(Engine):
    """An engine of another provider, or one of ours behind another gateway."""

    name = "external"
    title = gettext_noop("external (a URL)")
    external = True

    def check_registration(self, spec: Spec, url: str) -> Iterator[RegistrationProblem]:
        if spec.path:
            yield RegistrationProblem(
                field="path", code="needless-path", sentence=gettext_noop("An external engine has a URL, not a path.")
            )
        elif code := _url_fault(url):
            yield RegistrationProblem(field="url", code=code, sentence=URL_FAULTS[code], values={"url": url})
        if spec.version:
            yield RegistrationProblem(
                field="engine_version",
                code="needless-version",
                sentence=gettext_noop("The version of an external engine cannot be chosen here."),
            )


def _url_fault(url: str) -> str:
    """Return a key of URL_FAULTS; empty: the URL is fine."""
    if not url:
        return "no-url"
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed:
        return "not-a-url"
    if parts.query or parts.fragment or parts.username:
        return "more-than-an-address"
    if parts.path.rstrip("/").endswith("/v1"):
        return "with-v1"
    return ""
