"""Post a text to an address that an operator entered: for seconds at most, and never to where machines keep secrets.

A host's name is looked up once, and the connection goes to one of the addresses that were checked. A name that leads
elsewhere a moment later (DNS rebinding) gains nothing by it. Through a proxy of the environment (HTTPS_PROXY, NO_PROXY)
the proxy looks the name up, and decides itself whereto it connects. It must be one of HTTP: through others, as of
SOCKS, nothing is posted, and nothing past them.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from queue import SimpleQueue
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from portal.notifications.models import Webhook

log = logging.getLogger(__name__)
Fault = Webhook.Fault

SECONDS = 10.0  # for all that is posted to one address in one run, from the lookup to the end of the last answer
CONNECT = 3.0  # for one of a name's several addresses, so that there is time for the next one
MOST_ADDRESSES = 3  # of a name
PROXY_LOOKUP = 2.0  # to look up a name that perhaps the proxy alone knows
MOST_ANSWER = 64 * 1024  # bytes of an answer that are read; only its status matters
# Of clouds, beside 169.254.169.254, which is link-local: of Amazon, Alibaba, Azure and Oracle.
METADATA = frozenset(map(ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")))
NAT64 = ip_network("64:ff9b::/96")


class ForbiddenAddress(Exception):
    """The name of a webhook's host leads to an address to which nothing is posted."""


class UnknownProxy(Exception):
    """The proxy of the environment does not speak HTTP. Has its scheme alone: there may be a password in the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How a text was received. `fault` "": it was. `status`: of the answer, 0 without one."""

    fault: str = ""
    status: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """Texts for one address, in the order in which they are posted."""

    url: str
    bodies: tuple[bytes, ...]


def check_url(url: str) -> None:
    """Raise ValidationError for what is no address to post to. A name is checked when it is looked up."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        known = False
    if not known or any(letter.isspace() or letter == "\\" for letter in url):
        raise ValidationError(_("Give an address that begins with https:// or http://."), code="no-address")
    if is_forbidden(parts.hostname or ""):
        raise ValidationError(_("Nothing is posted to link-local addresses."), code="forbidden-address")


def is_forbidden(host: str) -> bool:
    """Return whether this is an IP address to which nothing is posted.

    Chat programs are inside the company's network, also on this host, so private and loopback addresses are fine. At
    link-local ones are the services from which machines of a cloud get their own credentials.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:  # a name
        return False
    if isinstance(address, IPv6Address):
        address = _embedded_address(address) or address
    return address.is_link_local or address.is_multicast or address.is_unspecified or address in METADATA


def _embedded_address(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address to which one of IPv6 leads in the end: mapped, compatible, 6to4, or through NAT64."""
    if address in NAT64 or 1 < int(address) < 1 << 32:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def post_all(parcels: Sequence[Parcel]) -> Iterator[tuple[int, int, Delivery]]:
    """Post all parcels at the same time, and yield (parcel, body, delivery) as the answers come.

    Of one parcel the bodies are posted one after another, until one fails or half of SECONDS is over; then there would
    be too little time for the next one. Ends after SECONDS at the latest, whatever is silent. What breaks with one
    parcel stops no other one, and is raised at the end.
    """
    done: SimpleQueue[tuple[int, int, Delivery] | BaseException | None] = SimpleQueue()
    # The certificates of the system, among which is the company's own authority: 0.1 s, so once for all.
    trust = ssl.create_default_context()

    async def post_parcels() -> None:
        try:
            posting = (_post_parcel(at, parcel, trust, done.put) for at, parcel in enumerate(parcels))
            for broken in await asyncio.gather(*posting, return_exceptions=True):
                if broken is not None:
                    done.put(broken)
        finally:
            done.put(None)  # before the loop waits for what it cannot interrupt

    threading.Thread(target=lambda: asyncio.run(post_parcels()), name="webhooks", daemon=True).start()
    failure: BaseException | None = None
    while (found := done.get()) is not None:
        if isinstance(found, BaseException):
            failure = failure or found
        else:
            yield found
    if failure is not None:
        raise failure


async def _post_parcel(
    at: int, parcel: Parcel, trust: ssl.SSLContext, note: Callable[[tuple[int, int, Delivery]], None]
) -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    for number, body in enumerate(parcel.bodies):
        left = began + SECONDS - clock()
        if left < SECONDS / 2:
            break
        delivery = await _post(parcel.url, body, trust, left)
        note((at, number, delivery))
        if delivery.fault:
            break


async def _post(url: str, body: bytes, trust: ssl.SSLContext, seconds: float) -> Delivery:
    try:
        async with asyncio.timeout(seconds):
            return await _post_to_host(httpx2.URL(url), body, trust, seconds)
    except (TimeoutError, httpx2.TimeoutException):
        return Delivery(fault=Fault.TIMEOUT)
    except UnknownProxy as error:
        log.warning(
            "nothing is posted through a proxy of the scheme %r: set HTTPS_PROXY to one of http or https", *error.args
        )
        return Delivery(fault=Fault.UNREACHABLE)
    except (httpx2.HTTPError, httpx2.InvalidURL, ForbiddenAddress, OSError, ValueError):
        return Delivery(fault=Fault.UNREACHABLE)


async def _post_to_host(url: httpx2.URL, body: bytes, trust: ssl.SSLContext, seconds: float) -> Delivery:
    proxy = find_proxy(url)
    if proxy:
        with contextlib.suppress(TimeoutError, OSError):  # a name that perhaps the proxy alone can look up
            async with asyncio.timeout(PROXY_LOOKUP):
                await look_up(url)
        async with _open_client(trust, seconds, proxy=proxy) as client:
            return await _exchange(client, url, url, body)
    addresses = (await look_up(url))[:MOST_ADDRESSES]
    for address in addresses[:-1]:
        async with _open_client(trust, seconds, connect=CONNECT) as client:
            try:
                return await _exchange(client, url, url.copy_with(host=address), body)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):  # nothing was sent yet
                continue
    async with _open_client(trust, seconds) as client:
        return await _exchange(client, url, url.copy_with(host=addresses[-1]), body)


def find_proxy(url: httpx2.URL) -> str | None:
    """Return the proxy of the environment for this address, if there is one. Raises UnknownProxy."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.host):
        return None
    if "://" not in proxy:
        return f"http://{proxy}"
    scheme = proxy.partition("://")[0].lower()
    if scheme not in ("http", "https"):
        raise UnknownProxy(scheme[:20])
    return proxy


async def look_up(url: httpx2.URL) -> list[str]:
    """Return the IP addresses of the host, all of them allowed. Raises ForbiddenAddress and OSError.

    In a thread of its own, which is left alone when it takes too long: one of the loop's would be waited for.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()
    host, port = url.raw_host.decode(), url.port or (443 if url.scheme == "https" else 80)

    def ask() -> None:
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            failure = error if isinstance(error, OSError) else OSError(str(error))
            settle(lambda: answer.set_exception(failure))
        else:
            found = list(dict.fromkeys(str(address[0]) for *_rest, address in rows))
            settle(lambda: answer.set_result(found))

    def settle(act: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(lambda: None if answer.done() else act())

    threading.Thread(target=ask, name="webhook lookup", daemon=True).start()
    found = await answer
    if not found or any(map(is_forbidden, found)):
        raise ForbiddenAddress
    return found


def _open_client(
    trust: ssl.SSLContext, seconds: float, *, connect: float | None = None, proxy: str | None = None
) -> httpx2.AsyncClient:
    # No redirects: an address that leads elsewhere is not the one that the operator trusted.
    timeout = httpx2.Timeout(seconds, connect=connect or seconds)
    return httpx2.AsyncClient(verify=trust, follow_redirects=False, timeout=timeout, trust_env=False, proxy=proxy)


async def _exchange(client: httpx2.AsyncClient, url: httpx2.URL, target: httpx2.URL, body: bytes) -> Delivery:
    """Post to `target`, which is `url` with a checked address in place of the name. Raises httpx2.HTTPError."""
    headers = {"host": url.netloc.decode(), "content-type": "application/json"}
    extensions = {"sni_hostname": url.raw_host.decode()}  # whose certificate it must be
    async with client.stream("POST", target, content=body, headers=headers, extensions=extensions) as answer:
        if answer.is_redirect:
            return Delivery(fault=Fault.REDIRECT, status=answer.status_code)
        if not answer.is_success:
            return Delivery(fault=Fault.REFUSED, status=answer.status_code)
        await _skip(answer.aiter_raw())
        return Delivery(status=answer.status_code)


async def _skip(pieces: AsyncIterator[bytes]) -> None:
    read = 0
    async for piece in pieces:
        read += len(piece)
        if read > MOST_ANSWER:  # it was accepted; the rest is of no interest
            break
