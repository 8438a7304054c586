"""What a server's process and the one that started it agree on, so that another can take its place unnoticed.

Listeners are bound once and inherited. A process that starts reports when it can accept connections; workers of one run
begin together, or the first would take all that wait. Two signals
ask it to end: SIGTERM soon (what is open may go on for STOP_SECONDS), RETIRE when another process accepts on the same
listeners already (what is open may go on for as long as GATEWAY_DRAIN says).
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Mapping, MutableMapping

RETIRE = signal.SIGUSR1
STOP_SECONDS = 10  # that open answers may go on after SIGTERM before they are cut off

# Variables of the environment of what is started.
LISTENERS = "MADOGUCHI_LISTENERS"  # "gateway=3,portal=4": descriptors
READY = "MADOGUCHI_READY"  # the descriptor of a connection by which a process reports that it can serve
# What processes have in common of which one takes the place of another: meanwhile both may serve, also gateways which
# count limits in their memory.
GROUP = "MADOGUCHI_GROUP"


def listening_port(bind: str, port: int) -> socket.socket:
    """Return a socket that is bound, but not listening: the first worker that is ready makes it listen."""
    listener = socket.socket(socket.AF_INET6 if ":" in bind else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it: otherwise tokens would wait for the acknowledgement of the one before.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((bind, port))
    return listener


def format_listeners(listeners: Mapping[str, socket.socket]) -> str:
    return ",".join(f"{name}={listener.fileno()}" for name, listener in listeners.items())


def inherit_listeners(environment: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """Return the listeners that this process was started with, by name, and forget the variable that names them."""
    words = environment.pop(LISTENERS, "")
    pairs = [word.partition("=") for word in words.split(",") if word]
    return {name: socket.socket(fileno=int(number)) for name, _, number in pairs}


def report_ready(environment: MutableMapping[str, str]) -> None:
    """Report that this process accepts connections, if it was asked to, and forget how."""
    if number := environment.pop(READY, ""):
        with socket.socket(fileno=int(number)) as asking:
            send_ready(asking)


async def wait_for_others(environment: MutableMapping[str, str]) -> None:
    """Report that this process can accept connections, if it was asked to, and return when it may."""
    if number := environment.pop(READY, ""):
        with socket.socket(fileno=int(number)) as asking:
            asking.setblocking(False)
            send_ready(asking)
            with contextlib.suppress(ConnectionResetError):
                await asyncio.get_running_loop().sock_recv(asking, 100)


def send_ready(asking: socket.socket) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked will ask this process to end
        asking.send(b"ready\n")
