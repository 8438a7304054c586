"""Who calls: the key of a request, and where it comes from."""

from collections.abc import Callable, Sequence
from itertools import islice

from apiproxy.dataplane import openwebui
from apiproxy.dataplane.catalogue import Catalogue, Key
from apiproxy.dataplane.client_address import ClientAddress, client_address_of, in_networks
from apiproxy.dataplane.downstream import Scope
from apiproxy.dataplane.errors import InvalidKey, NetworkNotAllowed
from apiproxy.dataplane.services import Services

# Texts of keys whose digests are remembered: a digest takes 6 µs. Only those of usable keys, for one catalogue.
REMEMBERED = 10_000
RENEWED_AT_ONCE = 200  # every 2 s


class Authenticator:
    """`catalogue` returns the one in force."""

    def __init__(self, services: Services, *, catalogue: Callable[[], Catalogue], wall: Callable[[], float]) -> None:
        self._services = services
        self._catalogue = catalogue
        self._wall = wall
        self._digests: dict[str, str] = {}  # by the key's text
        # By ids of keys, used since `take_renewals`: all their digests, as they are stored under a former secret.
        self._renewals: dict[int, Sequence[str]] = {}

    def forget(self) -> None:
        """Forget the keys that were used. Call it for a new catalogue."""
        self._digests.clear()

    def find_used_key(self, text: str) -> Key | None:
        """Return the key with this text if it was used under this catalogue before, as most were."""
        digest = self._digests.get(text)
        return None if digest is None else self._catalogue().key(digest, self._wall())

    async def find_key(self, text: str) -> Key:
        """Return the key with this text, looked up again if it is not known yet. Raises InvalidKey."""
        digests = self._services.digests(text)
        if not digests:
            raise InvalidKey("invalid_api_key")
        digest = self._find_usable(digests)
        if digest is None:  # perhaps it was created a moment ago
            await self._services.refresh()
            digest = self._find_usable(digests)
        key = self._catalogue().key(digest, self._wall()) if digest else None
        if digest is None or key is None:
            raise InvalidKey("invalid_api_key", digest=digests[0])
        if digest != digests[0]:
            self._renewals[key.id] = digests
        if len(self._digests) < REMEMBERED:
            self._digests[text] = digest
        return key

    def _find_usable(self, digests: Sequence[str]) -> str | None:
        """Return the one of these by which the catalogue knows a usable key."""
        catalogue, now = self._catalogue(), self._wall()
        return next((digest for digest in digests if catalogue.key(digest, now)), None)

    def take_renewals(self) -> dict[int, Sequence[str]]:
        """Return the digests of some keys that were used and are stored under a secret that was replaced, by their ids.

        Further ones are for later: what writes them also writes usage, which is not to wait for 20,000 of them.
        """
        taken = dict(islice(self._renewals.items(), RENEWED_AT_ONCE))
        for key in taken:
            del self._renewals[key]
        return taken

    def find_origin(self, scope: Scope, headers: dict[bytes, bytes]) -> ClientAddress:
        """Return where a call comes from. Its key need not be known."""
        peer = scope.get("client")
        return client_address_of(peer[0] if peer else "", headers, scope["headers"], self._services.proxies)

    def locate(self, key: Key, scope: Scope, headers: dict[bytes, bytes]) -> ClientAddress:
        """Return where the call comes from, and for which end user. Raises NetworkNotAllowed."""
        caller = self.find_origin(scope, headers)
        if key.networks and not in_networks(caller.address, key.networks):
            raise NetworkNotAllowed("network_not_allowed", address=caller.address or "?")
        if key.user_secret:
            named = openwebui.verify_person(headers, (key.user_secret, *key.former_user_secrets), self._wall())
            if named.fault:
                self._services.metrics.count_unverified_user(named.fault)
            return caller._replace(end_user=named.name, end_user_id=named.id)
        if key.takes_user_headers:
            named = openwebui.find_person(headers)
            return caller._replace(end_user=named.name, end_user_id=named.id)
        return caller


def bearer_text(headers: dict[bytes, bytes]) -> str:
    """Return the text of the API key, from OpenAI's or from Anthropic's header. Raises InvalidKey."""
    scheme, _, text = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not text:
        text = headers.get(b"x-api-key", b"").decode("latin-1")
    if not text.strip():
        raise InvalidKey("missing_api_key")
    return text.strip()
