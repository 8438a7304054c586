import asyncio
import gc
import subprocess
import sys
import threading
import weakref

import pytest

from apiproxy.dataplane.executor import DaemonExecutor
from tests.waiting import until

HANGS = """
import threading
from apiproxy.dataplane.executor import DaemonExecutor
DaemonExecutor("t").submit(threading.Event().wait)
print("ended")
"""


def test_calls_are_made_in_order_and_answered():
    thread, made = DaemonExecutor("t"), []
    futures = [thread.submit(made.append, number) for number in range(100)]
    assert thread.submit(lambda: threading.current_thread().name).result(5) == "t"
    assert all(future.done() for future in futures)
    assert made == list(range(100))


def test_what_a_call_raises_is_its_callers_and_the_next_is_made():
    thread = DaemonExecutor("t")
    with pytest.raises(ZeroDivisionError):
        thread.submit(lambda: 1 / 0).result(5)
    assert thread.submit(str, 7).result(5) == "7"


def test_a_call_that_was_given_up_before_its_turn_is_not_made():
    thread, go, made = DaemonExecutor("t"), threading.Event(), []
    thread.submit(go.wait)
    assert thread.submit(made.append, 1).cancel()
    go.set()
    thread.submit(str).result(5)
    assert made == []


def test_the_thread_ends_after_what_it_was_given():
    thread, ends = DaemonExecutor("t"), []
    found = thread.submit(threading.current_thread).result(5)
    thread.submit(ends.append, 1)
    thread.shutdown()
    found.join(5)
    assert not found.is_alive()
    assert ends == [1]


def test_a_call_that_hangs_keeps_no_process_from_ending():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "ended\n")


class Large:
    pass


async def test_what_a_call_was_given_and_what_became_of_it_is_free_when_it_is_over():
    """Also of a call that failed, and without the garbage collector, which a gateway runs rarely."""
    made: list[weakref.ref[Large]] = []

    def fail(given: Large) -> None:
        inside = Large()
        made.append(weakref.ref(inside))
        raise ValueError("no")

    thread, loop = DaemonExecutor("test"), asyncio.get_running_loop()
    gc.disable()
    try:
        given = Large()
        made.append(weakref.ref(given))
        with pytest.raises(ValueError, match="no"):
            await loop.run_in_executor(thread, fail, given)
        del given
        given = Large()
        made.append(weakref.ref(given))
        await loop.run_in_executor(thread, id, given)
        del given
        assert len(made) == 3
        until(lambda: all(one() is None for one in made), 10)  # the thread lets go a moment after it has set the future
    finally:
        gc.enable()
        thread.shutdown()
