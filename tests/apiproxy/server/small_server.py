"""A server that answers each connection with its process id, directory and WORDS; what handovers are tested with.

FAILS in the environment: it ends before it serves. STARTS_IN: seconds before it serves.
"""

import os
import select
import signal
import sys
import time

from apiproxy.server.succession import RETIRE, inherit_listeners, report_ready


def main() -> None:
    if "FAILS" in os.environ:
        sys.exit(3)
    time.sleep(float(os.environ.get("STARTS_IN", "0")))
    (listener,) = inherit_listeners(os.environ).values()
    for number in (RETIRE, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    listener.listen(100)
    report_ready(os.environ)
    listener.setblocking(False)  # the handover may accept there as well
    while select.select([listener], [], []):
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        with connection:
            words = (str(os.getpid()), str(os.getppid()), os.getcwd(), os.environ.get("WORDS", ""))
            connection.sendall("\n".join(words).encode())


if __name__ == "__main__":
    main()
