"""What goes on beside a test."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import connections


@contextmanager
def repeating(do: Callable[[], object], *, every: float = 1.0) -> Iterator[None]:
    """Do it again every so many seconds, in a thread with a connection of its own, from now to the end of the block."""
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            do()
            over.wait(every)
        connections.close_all()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
