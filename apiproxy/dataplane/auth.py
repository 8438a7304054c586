"""Who calls: the key of a request, and where it comes from."""

from collections.abc import Callable

from apiproxy.dataplane import openwebui
from apiproxy.dataplane.catalogue import Catalogue, Key
from apiproxy.dataplane.client_address import ClientAddress, client_address_of, in_networks
from apiproxy.dataplane.downstream import Scope
from apiproxy.dataplane.errors import InvalidKey, NetworkNotAllowed
from apiproxy.dataplane.services import Services

# Texts of keys whose digests are remembered: a digest takes 6 µs. Only those of usable keys, for one catalogue.
REMEMBERED = 10_000


class Authenticator:
    """`catalogue` returns the one in force."""

    def __init__(self, services: Services, *, catalogue: Callable[[], Catalogue], wall: Callable[[], float]) -> None:
        self._services = services
        self._catalogue = catalogue
        self._wall = wall
        self._digests: dict[str, str] = {}  # by the key's text

    def forget(self) -> None:
        """Forget the keys that were used. Call it for a new catalogue."""
        self._digests.clear()

    def find_used_key(self, text: str) -> Key | None:
        """Return the key with this text if it was used under this catalogue before, as most were."""
        digest = self._digests.get(text)
        return None if digest is None else self._catalogue().key(digest, self._wall())

    async def find_key(self, text: str) -> Key:
        """Return the key with this text, looked up again if it is not known yet. Raises InvalidKey."""
        digest = self._services.digest(text)
        if digest is None:
            raise InvalidKey("invalid_api_key")
        key = self._catalogue().key(digest, self._wall())
        if key is None:  # perhaps it was created a moment ago
            await self._services.refresh()
            key = self._catalogue().key(digest, self._wall())
        if key is None:
            raise InvalidKey("invalid_api_key", digest=digest)
        if len(self._digests) < REMEMBERED:
            self._digests[text] = digest
        return key

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
            named = openwebui.verify_person(headers, key.user_secret, self._wall())
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
