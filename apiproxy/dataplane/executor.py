"""A thread for calls that block, which keeps no process from ending.

The threads of a ThreadPoolExecutor are joined when the interpreter ends: one that waits for a database that hangs
would keep a gateway from ending after SIGTERM until it is killed.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonExecutor(Executor):
    """Runs one call at a time, in the order in which they came."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put(partial(_call, [future], function, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """The thread ends after the calls that it has been given; never waits for it."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # what it was given, and what came of it, is not kept until the next one


def _call(futures: list[Future[T]], function: Callable[..., T], args: Any, kwargs: Any) -> None:
    """`futures`: the one to be told, out of which it is taken. An error holds this frame by its traceback; if the frame
    held the future, which holds the error, only the garbage collector could free what the function was given."""
    future = futures.pop()
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001 - it is for whoever asked
        future.set_exception(error)
    else:
        future.set_result(result)
    finally:
        del future
