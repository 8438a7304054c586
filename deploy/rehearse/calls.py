"""What people and programs do from their desks, through TLS: `python -m deploy.rehearse.calls sign-in|stream|load …`.

Runs in a network of the rehearsal and prints one object as JSON. Calls are not tried again.
"""

import argparse
import asyncio
import json
import re
import ssl
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2

TOKEN = re.compile(r'name="csrfmiddlewaretoken" value="([^"]+)"')
QUESTION = [{"role": "user", "content": "Count from 1 to 100, one number a line."}]
PATIENCE = 300.0  # seconds for an answer


def sign_in(http: httpx2.Client, name: str, password: str) -> dict[str, Any]:
    """Sign in as a browser does, and return what pages answer afterwards."""
    token = TOKEN.search(http.get("/sign-in/").text)
    assert token, "the page has no form"
    form = {"username": name, "password": password, "csrfmiddlewaretoken": token[1]}
    posted = http.post("/sign-in/", data=form, headers={"referer": f"{http.base_url}/sign-in/"})
    found = {"signed_in": posted.status_code == 302, "operations": http.get("/operations/").status_code}
    return {**found, "home": http.get("/").status_code}


@dataclass
class Load:
    """Streams that are open all the time, and one call and one page a second. `failures`: what was not whole."""

    http: httpx2.AsyncClient
    model: str
    streams: int
    ended: dict[str, int] = field(default_factory=lambda: {"streams": 0, "calls": 0, "pages": 0})
    failures: list[str] = field(default_factory=list)
    tokens: int = 0
    slowest_call: float = 0.0
    longest_pause: float = 0.0  # between two tokens of a stream
    going: bool = True

    async def run(self) -> dict[str, Any]:
        """Return what became of all calls, once standard input has ended and what is open then has."""
        tasks = [asyncio.create_task(self.repeat("streams", self.stream)) for _ in range(self.streams)]
        tasks += [
            asyncio.create_task(self.repeat("calls", self.call)),
            asyncio.create_task(self.repeat("pages", self.page)),
        ]
        await asyncio.to_thread(sys.stdin.read)
        self.going = False
        await asyncio.gather(*tasks)
        figures = {"tokens": self.tokens, "slowest_call": self.slowest_call, "longest_pause": self.longest_pause}
        return {**self.ended, "failures": self.failures, **figures}

    async def repeat(self, kind: str, request: Any) -> None:
        while self.going:
            began = time.monotonic()
            try:
                why = await request()
            except (httpx2.HTTPError, ValueError) as error:
                why = repr(error)
            self.ended[kind] += 1
            if why:
                self.failures.append(f"{time.time():.1f} {kind} {why}")
            if kind == "calls":
                self.slowest_call = max(self.slowest_call, time.monotonic() - began)
            if kind != "streams" or why:
                await asyncio.sleep(max(0.0, began + 1.0 - time.monotonic()))

    async def stream(self) -> str:
        """Return why a stream was not whole; "" if it was."""
        body = {"model": self.model, "messages": QUESTION, "stream": True, "max_tokens": 100}
        received, last = "", time.monotonic()
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            async for piece in response.aiter_text():
                received += piece
                self.longest_pause = max(self.longest_pause, time.monotonic() - last)
                last = time.monotonic()
        self.tokens += received.count('"content"')
        if response.status_code != 200:
            return f"{response.status_code} {received[:300]}"
        return "" if received.rstrip().endswith("data: [DONE]") and '"error"' not in received else received[-300:]

    async def call(self) -> str:
        body = {"model": self.model, "messages": QUESTION, "max_tokens": 4}
        response = await self.http.post("/v1/chat/completions", json=body)
        whole = response.status_code == 200 and json.loads(response.content)["choices"]
        return "" if whole else f"{response.status_code} {response.text[:300]}"

    async def page(self) -> str:
        response = await self.http.get("/sign-in/")
        return "" if response.status_code == 200 else f"{response.status_code} {response.text[:100]}"


async def put_load(options: argparse.Namespace, trust: ssl.SSLContext) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {options.key}"}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
    client = httpx2.AsyncClient(
        base_url=options.url, headers=headers, verify=trust, limits=limits, timeout=PATIENCE, trust_env=False
    )
    async with client as http:
        load = Load(http, options.model, options.streams)
        if options.what == "load":
            return await load.run()
        began = time.monotonic()
        why = await load.stream()
        return {"why": why, "tokens": load.tokens, "seconds": time.monotonic() - began}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.rehearse.calls", description=__doc__)
    parser.add_argument("what", choices=("sign-in", "stream", "load"))
    parser.add_argument("--url", required=True)
    parser.add_argument("--trust", required=True, help="the certificate of the authority")
    parser.add_argument("--key", default="", help="an API key")
    parser.add_argument("--name", default="", help="of the person; the password is on standard input")
    parser.add_argument("--model", default="")
    parser.add_argument("--streams", type=int, default=3)
    options = parser.parse_args(words)
    trust = ssl.create_default_context(cafile=options.trust)
    if options.what == "sign-in":
        with httpx2.Client(base_url=options.url, verify=trust, timeout=60, trust_env=False) as http:
            print(json.dumps(sign_in(http, options.name, sys.stdin.read().strip())))
    else:
        print(json.dumps(asyncio.run(put_load(options, trust))))


if __name__ == "__main__":
    main(sys.argv[1:])
