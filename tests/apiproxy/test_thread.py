import subprocess
import sys
import threading

import pytest

from apiproxy.thread import Thread

HANGS = """
import threading
from apiproxy.thread import Thread
Thread("t").submit(threading.Event().wait)
print("ended")
"""


def test_calls_are_made_in_order_and_answered():
    thread, made = Thread("t"), []
    futures = [thread.submit(made.append, number) for number in range(100)]
    assert thread.submit(lambda: threading.current_thread().name).result(5) == "t"
    assert all(future.done() for future in futures)
    assert made == list(range(100))


def test_what_a_call_raises_is_its_callers_and_the_next_is_made():
    thread = Thread("t")
    with pytest.raises(ZeroDivisionError):
        thread.submit(lambda: 1 / 0).result(5)
    assert thread.submit(str, 7).result(5) == "7"


def test_a_call_that_was_given_up_before_its_turn_is_not_made():
    thread, go, made = Thread("t"), threading.Event(), []
    thread.submit(go.wait)
    assert thread.submit(made.append, 1).cancel()
    go.set()
    thread.submit(str).result(5)
    assert made == []


def test_the_thread_ends_after_what_it_was_given():
    thread, ends = Thread("t"), []
    found = thread.submit(threading.current_thread).result(5)
    thread.submit(ends.append, 1)
    thread.shutdown()
    found.join(5)
    assert not found.is_alive()
    assert ends == [1]


def test_a_call_that_hangs_keeps_no_process_from_ending():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "ended\n")
