"""Ports of this machine that no program listens on."""

import random
import socket


def unused_port() -> int:
    """Return one below those that the kernel gives to connections, which could take it before a program listens."""
    return in_a_row(1, random.SystemRandom())


def in_a_row(count: int, dice: random.Random) -> int:
    """Return the first of so many, below those that the kernel gives to connections."""
    while True:
        first = dice.randrange(20_000, 32_000)
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
