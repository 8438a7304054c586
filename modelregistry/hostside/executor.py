"""Threads for what blocks: calls to the database, and waiting for processes."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Executor:
    """A fixed number of threads; further calls wait. Its creator closes it."""

    def __init__(self, number: int, name: str) -> None:
        self.threads = ThreadPoolExecutor(number, name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the function in a thread, and return its result. It runs to its end also if the caller is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Take no more calls. Returns at once; running calls finish by themselves."""
        self.threads.shutdown(wait=False)
