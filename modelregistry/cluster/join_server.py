"""The join server of a cluster, beside its head: a machine asks here, before it joins, whether it would be let in.

Ray itself says "Failed to connect" to a wrong token, hangs where TLS is missing, and notices an address that others
cannot reach, or a clock that is wrong, when it is too late. It takes TLS with the cluster's certificates alone,
reads one line and writes one: `JoinRequest` and what is wrong with it.
"""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from modelregistry.cluster.access import TOKEN, VALID_BEFORE, check_secrets, tls_context
from modelregistry.cluster.link import ClusterNode, ClusterSilent
from modelregistry.host_port import join_host_port

log = logging.getLogger(__name__)

PORT = 6378
LONGEST_LINE = 16_384  # bytes
WITHIN = 15.0  # seconds for one request, its wait for its turn included
HANDSHAKE_WITHIN = 5.0  # seconds for TLS
LINE_WITHIN = 5.0  # seconds for the request itself
RESERVED_FOR = 600.0  # seconds that a name is kept for the certificate that may join with it
REACH_WITHIN = 5.0  # seconds to reach the machine at its address
AT_A_TIME = 8
CLOCKS = 30.0  # seconds that two clocks may be apart


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """A machine that wants to join. It listens at `address` and `port`, and says `nonce` to who connects there."""

    token: str
    name: str
    address: str
    port: int
    nonce: str
    ray: str
    python: str
    clock: float

    def written(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinProblem:
    """Why a machine is not let in; see `join.SENTENCES`. `there`: as the cluster has it."""

    code: str
    here: str = ""
    there: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who asks. `addresses`: those that its certificate names, and from which it comes; its own and no other's."""

    name: str
    addresses: frozenset[str]
    fingerprint: str
    issued_at: float


class NameReservation(NamedTuple):
    """The machine that a name is kept for, and until when by the monotonic clock."""

    fingerprint: str
    address: str
    until: float


class JoinServer:
    """`list_nodes`: as the head knows them; raises ClusterSilent. `ray` and `python`: the versions of the cluster.

    `find_removed`: when hosts were removed, by their names; certificates that they had before are refused.
    """

    def __init__(
        self,
        secrets: Path,
        *,
        ray: str,
        python: str,
        list_nodes: Callable[[], Awaitable[Iterable[ClusterNode]]],
        find_removed: Callable[[], Mapping[str, float]] = dict,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_secrets(secrets)
        self.find_removed = find_removed
        self.secrets = secrets
        self.ray = ray
        self.python = python
        self.list_nodes = list_nodes
        self.clock = clock
        self.free = asyncio.Semaphore(AT_A_TIME)
        self.reserved: dict[str, NameReservation] = {}  # by name

    async def listen(self, address: str, port: int = PORT) -> asyncio.Server:
        """Open it; the caller closes what it returns."""
        return await asyncio.start_server(
            self._serve,
            address,
            port,
            ssl=tls_context(self.secrets, server=True),
            ssl_handshake_timeout=HANDSHAKE_WITHIN,
            ssl_shutdown_timeout=HANDSHAKE_WITHIN,
            limit=LONGEST_LINE,
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(WITHIN):
                # Before its turn: one that sends nothing keeps no other from having its own.
                async with asyncio.timeout(LINE_WITHIN):
                    request = read_request(await reader.readline())
                problems = [JoinProblem(code="other-form")]
                if request:
                    async with self.free:
                        problems = await self.find_problems(request, _read_peer(writer))
                answer = {"clock": self.clock(), "problems": [asdict(problem) for problem in problems]}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError) as error:  # left, or wrote too long a line
            log.info("a request to join ended early: %s", error)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def find_problems(self, request: JoinRequest, peer: Peer) -> list[JoinProblem]:
        """Return why a machine is not let in, all reasons at once. The name of one that is let in is kept for it."""
        token = (self.secrets / TOKEN).read_text().strip()
        if not hmac.compare_digest(request.token.encode(), token.encode()):
            return [JoinProblem(code="wrong-token")]  # and it learns nothing else
        found = self._find_differences(request, peer)
        found += await self._find_taken(request.name)
        if plain_address(request.address) not in peer.addresses:  # this machine connects nowhere else
            own = ", ".join(sorted(peer.addresses))
            found.append(JoinProblem(code="other-address", here=request.address, there=own))
        elif not await reaches(request.address, request.port, request.nonce):
            found.append(JoinProblem(code="unreachable", here=join_host_port(request.address, request.port)))
        if not found:
            found += self._reserve(request, peer)
        return found

    def _find_differences(self, request: JoinRequest, peer: Peer) -> list[JoinProblem]:
        """Return what is wrong as far as this machine knows by itself."""
        found = []
        if request.name != peer.name:
            found.append(JoinProblem(code="other-name", here=request.name, there=peer.name))
        if peer.issued_at <= self.find_removed().get(peer.name, float("-inf")):
            found.append(JoinProblem(code="removed", here=peer.name))
        for code, here, there in (
            ("other-ray", request.ray, self.ray),
            ("other-python", request.python, self.python),
        ):
            if here != there:
                found.append(JoinProblem(code=code, here=here, there=there))
        apart = request.clock - self.clock()
        if abs(apart) > CLOCKS:
            found.append(JoinProblem(code="clocks-apart", here=f"{apart:+.0f}"))
        return found

    def _reserve(self, request: JoinRequest, peer: Peer) -> list[JoinProblem]:
        """Keep the name for this machine, unless another one was let in by it just now and is not a node yet."""
        now = time.monotonic()
        self.reserved = {name: one for name, one in self.reserved.items() if one.until > now}
        one = self.reserved.get(request.name)
        # With another certificate the same machine may have been invited again.
        if one and one.fingerprint != peer.fingerprint and one.address != request.address:
            return [JoinProblem(code="name-taken", here=request.name, there=one.address)]
        self.reserved[request.name] = NameReservation(peer.fingerprint, request.address, now + RESERVED_FOR)
        return []

    async def _find_taken(self, name: str) -> list[JoinProblem]:
        try:
            taken = [node for node in await self.list_nodes() if node.alive and node.host == name]
        except ClusterSilent as error:
            return [JoinProblem(code="no-head", there=str(error))]
        return [JoinProblem(code="name-taken", here=name, there=node.address) for node in taken[:1]]


def read_request(line: bytes) -> JoinRequest | None:
    """Return what a line says; None: it is not one of ours."""
    try:
        found = json.loads(line)
        kinds: dict[str, type] = {"port": int, "clock": float}
        values: dict[str, Any] = {}
        for name in JoinRequest.__dataclass_fields__:
            value, kind = found[name], kinds.get(name, str)
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind or (isinstance(value, str) and len(value) > 256):
                return None
            values[name] = value
        request = JoinRequest(**values)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return request if 0 < request.port < 65536 and abs(request.clock) < 1e12 else None


async def reaches(address: str, port: int, nonce: str) -> bool:
    """Return whether the machine that said this nonce is the one that this address leads to."""
    try:
        async with asyncio.timeout(REACH_WITHIN):
            reader, writer = await asyncio.open_connection(address, port, limit=LONGEST_LINE)
            try:
                said = await reader.readline()
            finally:
                writer.close()
    except (OSError, ValueError, TimeoutError):
        return False
    return hmac.compare_digest(said.strip(), nonce.encode())


async def ask_to_join(
    address: str, port: int, request: JoinRequest, secrets: Path, *, within: float = WITHIN + 5.0
) -> tuple[float, list[JoinProblem]]:
    """Ask a cluster's join server; return what its clock shows and what is wrong.

    Raises OSError, ValueError or TimeoutError; ssl.SSLError, which is an OSError: the certificates are of two clusters.
    """
    async with asyncio.timeout(within):
        reader, writer = await asyncio.open_connection(
            address, port, ssl=tls_context(secrets, server=False), limit=LONGEST_LINE
        )
        try:
            writer.write(request.written())
            await writer.drain()
            line = await reader.readline()
        finally:
            writer.close()
    if not line:
        raise ConnectionResetError("the join server closed without an answer")
    answer = json.loads(line)
    problems = [
        JoinProblem(code=str(one["code"]), here=str(one["here"]), there=str(one["there"])) for one in answer["problems"]
    ]
    return float(answer["clock"]), problems


def _read_peer(writer: asyncio.StreamWriter) -> Peer:
    connection = writer.get_extra_info("ssl_object")
    certificate = connection.getpeercert() or {}
    name = next((value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"), "")
    comes_from = plain_address(writer.get_extra_info("peername")[0])
    # Each certificate names the machine's own as well, which would be this one's here.
    named = {plain_address(value) for _, value in certificate.get("subjectAltName", ())} - {"127.0.0.1", "localhost"}
    return Peer(
        name=name,
        addresses=frozenset(named | {comes_from}),
        fingerprint=hashlib.sha256(connection.getpeercert(binary_form=True)).hexdigest(),
        issued_at=ssl.cert_time_to_seconds(certificate["notBefore"]) + VALID_BEFORE,
    )


def plain_address(address: str) -> str:
    """Return an address in the one way to write it; a name as it is."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(address))
    return address.lower()
