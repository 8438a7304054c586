"""PYTHON-OF-LITELLM -P litellm_replay.py < streams.json: at which of its texts LiteLLM ends each stream.

Each stream is served to LiteLLM's own client as an engine would. What it does about loops is in its code for streams,
which its gateway uses as well. Prints a list of numbers, null for a stream that went through. Nothing leaves the
machine.
"""

import contextlib
import json
import logging
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches prices when it is imported
import litellm


class Engine(BaseHTTPRequestHandler):
    streams: list[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # LiteLLM may end the answer
            self.wfile.write(self.streams[int(body["messages"][0]["content"])].encode())

    def log_message(self, *_: object) -> None:
        pass


def ended_at(number: int, url: str) -> int | None:
    """Return how many texts of this stream had come when LiteLLM ended it."""
    question = [{"role": "user", "content": str(number)}]
    texts = 0
    try:
        for chunk in litellm.completion(
            model="openai/m", api_base=url, api_key="k", messages=question, stream=True, max_retries=0
        ):
            texts += bool(chunk.choices and chunk.choices[0].delta.content)
    except Exception as error:  # it wraps its own error in others
        if "repeating the same chunk" not in str(error):
            raise
        return texts + 1  # the one that it did not pass on
    return None


def main() -> None:
    Engine.streams = json.load(sys.stdin)
    logging.disable()
    litellm.suppress_debug_info = litellm.disable_streaming_logging = True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    json.dump([ended_at(number, url) for number in range(len(Engine.streams))], sys.stdout)


if __name__ == "__main__":
    main()
