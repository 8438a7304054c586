"""python tests/ray/prober.py URL…: asks each address ten times a second until its input ends; standard library only.

Runs inside a namespace. Each line of its output is {"at": seconds, "url", "pid"}: the time by the clock that all
processes of this machine share, and what answered; pid 0: nothing did, 1: what says no pid.
"""

import json
import sys
import threading
import time
import urllib.request

EVERY = 0.1
WITHIN = 1.0


def ask(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=WITHIN) as answer:
            said = answer.read()
            return int(said) if said.isdigit() else 1
    except (OSError, ValueError):
        return 0


def probe(url: str) -> None:
    while True:
        at = time.monotonic()
        line = json.dumps({"at": at, "url": url, "pid": ask(url)})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        time.sleep(max(0.0, EVERY - (time.monotonic() - at)))


if __name__ == "__main__":
    for each in sys.argv[1:]:
        threading.Thread(target=probe, args=[each], daemon=True).start()
    sys.stdin.read()
