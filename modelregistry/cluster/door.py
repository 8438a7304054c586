"""The door of a cluster: where a machine asks, before it joins, whether it would be let in. Runs beside the head.

Ray itself says "Failed to connect" to a wrong token, hangs where TLS is missing, and notices an address that others
cannot reach, or a clock that is wrong, when it is too late. The door takes TLS with the cluster's certificates alone,
reads one line and writes one: `Knock` and what is wrong with it.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelregistry.cluster.access import AUTHORITY, CERTIFICATE, KEY, TOKEN, check_secrets
from modelregistry.cluster.link import ClusterNode, ClusterSilent

log = logging.getLogger(__name__)

PORT = 6378
LONGEST_LINE = 16_384  # bytes
WITHIN = 15.0  # seconds for all of a visit
REACH_WITHIN = 5.0  # seconds to reach the visitor at its address
AT_A_TIME = 8
CLOCKS = 30.0  # seconds that two clocks may be apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Knock:
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


class Door:
    """`list_nodes`: as the head knows them; raises ClusterSilent. `ray` and `python`: the versions of the cluster."""

    def __init__(
        self,
        secrets: Path,
        *,
        ray: str,
        python: str,
        list_nodes: Callable[[], Awaitable[Iterable[ClusterNode]]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_secrets(secrets)
        self.secrets = secrets
        self.ray = ray
        self.python = python
        self.list_nodes = list_nodes
        self.clock = clock
        self.free = asyncio.Semaphore(AT_A_TIME)

    async def listen(self, address: str, port: int = PORT) -> asyncio.Server:
        """Open it; the caller closes what it returns."""
        return await asyncio.start_server(
            self._visit, address, port, ssl=_context(self.secrets, server=True), limit=LONGEST_LINE
        )

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self.free, asyncio.timeout(WITHIN):
                knock = read_knock(await reader.readline())
                problems = [JoinProblem(code="other-form")]
                if knock:
                    problems = await self.find_problems(knock, _read_name(writer))
                answer = {"clock": self.clock(), "problems": [asdict(problem) for problem in problems]}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError) as error:  # left, or wrote too long a line
            log.info("a visit to the door ended early: %s", error)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def find_problems(self, knock: Knock, certified: str) -> list[JoinProblem]:
        """Return why a machine is not let in, all reasons at once; `certified`: the name in its certificate."""
        token = (self.secrets / TOKEN).read_text().strip()
        if not hmac.compare_digest(knock.token.encode(), token.encode()):
            return [JoinProblem(code="wrong-token")]  # and it learns nothing else
        found = []
        if knock.name != certified:
            found.append(JoinProblem(code="other-name", here=knock.name, there=certified))
        for code, here, there in (
            ("other-ray", knock.ray, self.ray),
            ("other-python", knock.python, self.python),
        ):
            if here != there:
                found.append(JoinProblem(code=code, here=here, there=there))
        apart = knock.clock - self.clock()
        if abs(apart) > CLOCKS:
            found.append(JoinProblem(code="clocks-apart", here=f"{apart:+.0f}"))
        found += await self._find_taken(knock.name)
        if not await reaches(knock.address, knock.port, knock.nonce):
            found.append(JoinProblem(code="unreachable", here=f"{knock.address}:{knock.port}"))
        return found

    async def _find_taken(self, name: str) -> list[JoinProblem]:
        try:
            taken = [node for node in await self.list_nodes() if node.alive and node.host == name]
        except ClusterSilent as error:
            return [JoinProblem(code="no-head", there=str(error))]
        return [JoinProblem(code="name-taken", here=name, there=node.address) for node in taken[:1]]


def read_knock(line: bytes) -> Knock | None:
    """Return what a line says; None: it is not one of ours."""
    try:
        found = json.loads(line)
        kinds: dict[str, type] = {"port": int, "clock": float}
        values: dict[str, Any] = {}
        for name in Knock.__dataclass_fields__:
            value, kind = found[name], kinds.get(name, str)
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind or (isinstance(value, str) and len(value) > 256):
                return None
            values[name] = value
        knock = Knock(**values)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return knock if 0 < knock.port < 65536 and abs(knock.clock) < 1e12 else None


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


async def knock_at(
    address: str, port: int, knock: Knock, secrets: Path, *, within: float = WITHIN + 5.0
) -> tuple[float, list[JoinProblem]]:
    """Ask at a cluster's door; return what its clock shows and what is wrong. Raises OSError, ValueError, TimeoutError.

    ssl.SSLError, which is an OSError: the certificates of both are not of one cluster.
    """
    async with asyncio.timeout(within):
        reader, writer = await asyncio.open_connection(
            address, port, ssl=_context(secrets, server=False), limit=LONGEST_LINE
        )
        try:
            writer.write(knock.written())
            await writer.drain()
            line = await reader.readline()
        finally:
            writer.close()
    if not line:
        raise ConnectionResetError("the door was closed without a word")
    answer = json.loads(line)
    problems = [
        JoinProblem(code=str(one["code"]), here=str(one["here"]), there=str(one["there"])) for one in answer["problems"]
    ]
    return float(answer["clock"]), problems


def _context(secrets: Path, *, server: bool) -> ssl.SSLContext:
    purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
    context = ssl.create_default_context(purpose, cafile=str(secrets / AUTHORITY))
    context.load_cert_chain(secrets / CERTIFICATE, secrets / KEY)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _read_name(writer: asyncio.StreamWriter) -> str:
    """Return the common name of the visitor's certificate."""
    certificate = writer.get_extra_info("peercert") or {}
    return next((value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"), "")
