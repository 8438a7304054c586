"""Threads for what blocks: calls to the database, and waiting for processes."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Executor:
    """So many threads; what exceeds them waits. Whoever makes it closes it."""

    def __init__(self, number: int, name: str) -> None:
        self.threads = ThreadPoolExecutor(number, name)

    async def do(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return its result, or what it raises. A cancelled caller leaves it running to its end."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Return at once: what is being done ends by itself."""
        self.threads.shutdown(wait=False)
