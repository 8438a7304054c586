"""python tests/own_network.py FD:PORT... -- COMMAND... : a server whose ports are fixed, in a network of its own.

Started by `start` under unshare(1), so that a server that knows no other ports than 389 and 636 can run several times
and beside one that the machine has. Each FD is a listening socket of the network outside; what connects to it reaches
PORT of the one inside. All of it ends when standard input does, so also when the process that started it is killed.
Without root it takes a user namespace, in which it is root. Standard library only.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
STOP_TIMEOUT = 10.0  # seconds between TERM and KILL


def start(
    command: Iterable[str | Path], ports: Mapping[int, int], log: IO[bytes], descriptors: Iterable[int]
) -> subprocess.Popen[bytes]:
    """Run the command; `ports` maps descriptors of listening sockets to ports inside. Close its stdin to end it."""
    return subprocess.Popen(
        [
            *(shutil.which("unshare") or "unshare", "--net", "--pid", "--fork", "--kill-child"),
            *(() if os.geteuid() == 0 else ("--user", "--map-root-user")),
            *(sys.executable, __file__, *(f"{fd}:{port}" for fd, port in ports.items()), "--", *map(str, command)),
        ],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        pass_fds=tuple(descriptors),
    )


def bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


async def pass_on(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # no program listens there yet, or one side is gone: the connection just ends
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
        finally:
            inner_writer.close()
    writer.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()  # LDAP knows no half-closed connections


async def main(ports: list[str], command: list[str]) -> int:
    bring_up_loopback()
    server = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL)
    doors = []
    for pair in ports:
        fd, port = map(int, pair.split(":"))

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = port) -> None:
            await pass_on(port, reader, writer)

        doors.append(await asyncio.start_server(serve, sock=socket.socket(fileno=fd)))
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    end, died = asyncio.ensure_future(orders.read()), asyncio.ensure_future(server.wait())
    await asyncio.wait({end, died}, return_when=asyncio.FIRST_COMPLETED)
    if not died.done():
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(died, STOP_TIMEOUT)
    return server.returncode or 0  # whatever else runs here ends with this process, the first of its namespace


if __name__ == "__main__":
    cut = sys.argv.index("--")
    # At once: open connections belong to no process any more, and the server need not be waited for.
    os._exit(asyncio.run(main(sys.argv[1:cut], sys.argv[cut + 1 :])))
