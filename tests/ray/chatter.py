"""python tests/ray/chatter.py URL KEY: asks for chat completions, one after the other, until its input ends.

Runs inside a namespace; standard library only. Each line of its output is {"at", "tokens"}; tokens 0: the call failed.
"""

import json
import sys
import threading
import time
import urllib.request

WITHIN = 30.0
BODY = {"model": "m", "messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 8, "temperature": 0}


def ask(url: str, key: str) -> int:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(BODY).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=WITHIN) as answer:
            return int(json.loads(answer.read())["usage"]["completion_tokens"])
    except (OSError, ValueError, KeyError):
        return 0


def chat(url: str, key: str) -> None:
    while True:
        at = time.monotonic()
        sys.stdout.write(json.dumps({"at": at, "tokens": ask(url, key)}) + "\n")
        sys.stdout.flush()
        time.sleep(0.2)


if __name__ == "__main__":
    threading.Thread(target=chat, args=sys.argv[1:3], daemon=True).start()
    sys.stdin.read()
