"""An executor with one thread for calls that block, which does not keep the process from ending.

The threads of a ThreadPoolExecutor are joined when the interpreter ends: one that waits for a database that hangs would
keep a gateway from ending after SIGTERM until it is killed.
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
        self._calls.put(partial(_run_call, [future], function, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread after the calls that it has been given, without waiting for it."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # its arguments and its result are not kept until the next one


def _run_call(futures: list[Future[T]], function: Callable[..., T], args: Any, kwargs: Any) -> None:
    """Run the call and set its future, which is taken out of `futures`.

    An error holds this frame by its traceback; if the frame held the future, which holds the error, only the garbage
    collector could free the function's arguments.
    """
    future = futures.pop()
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001 - the caller gets it
        future.set_exception(error)
    else:
        future.set_result(result)
    finally:
        del future
