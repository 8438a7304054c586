"""A state machine of Hypothesis over one Madoguchi: each rule says something odd, and looks at what comes back.

After each run nothing may be left of it (`Site.settled`), and the gateway's memory may not have grown.
"""

import re
from typing import Any
from urllib.parse import quote

import httpx2
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests import engine
from tests.fuzz import words
from tests.fuzz.site import Site

GROWTH = 40  # MB above what the gateway had when it had warmed up
ERROR = {"message", "type", "param", "code"}


class Talk(RuleBasedStateMachine):
    """`site` is set before it runs."""

    site: Site

    # --- calls

    @rule(call=words.encoded())
    def call(self, call: tuple[str, bytes]) -> None:
        """Send any body: a refusal says why, and an engine in order never makes a 5xx."""
        path, body = call
        answer = self._post(path, body)
        # The fake engine streams chat's events alone, and of this model everything is asked for as a stream.
        known = b'"assembled"' not in body or path not in ("/v1/messages", "/v1/responses")
        assert answer.status_code < (500 if known else 503), (path, body[:500], answer.status_code, answer.text[:500])
        self._well_formed(path, answer)

    @rule(call=words.bodies(), steps=words.answers())
    def odd_answer(self, call: tuple[str, dict[str, Any]], steps: list[dict[str, Any]]) -> None:
        """Give any answer of an engine: the caller gets an answer or an error, never a fault of ours."""
        path, body = call
        text = words.said({**body, "script": steps}).encode()
        answer = self._post(path, text)
        assert answer.status_code != 500, (path, text[:2000], answer.text[:500])
        self._well_formed(path, answer)

    @rule(call=words.bodies(), after=st.integers(0, 400))
    def leave(self, call: tuple[str, dict[str, Any]], after: int) -> None:
        """Leave as a caller in the middle: of the request or of its answer."""
        path, body = call
        if after % 2:
            body = {**body, "script": [{"send": engine.SSE}, {"events": 3}, {"hang": True}], "stream": True}
        data = words.said(body).encode()
        lines = (f"POST {path} HTTP/1.1", "host: x", *self.site.key_lines(), f"content-length: {len(data)}", "", "")
        whole = "\r\n".join(lines).encode() + data
        self.site.send(whole[: len(whole) - after] if after % 3 == 0 else whole)

    @rule(body=words.feedback(), number=st.integers(0, 10_000))
    def feedback(self, body: dict[str, Any], number: int) -> None:
        """Say anything about an answer, half of the time about one that was given. At most 60 a minute."""
        given = sorted(self.site.finished)
        if given and number % 2:
            body = {**body, "request_id": given[number % len(given)]}
        text = words.said(body).encode()
        headers = {**self.site.authorization, "content-type": "application/json"}
        answer = self.site.client.post("/v1/feedback", content=text, headers=headers)
        assert answer.status_code in (200, 202, 400, 404, 413, 429), (text[:500], answer.status_code, answer.text[:300])
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) >= ERROR, answer.text[:300]

    @rule(data=words.requests())
    def bytes_of_http(self, data: bytes) -> None:
        answer = self.site.send(data)
        assert not re.match(rb"HTTP/1\.1 5(?!05|01)", answer), (data, answer[:500])

    # --- pages

    @rule(
        address=st.integers(0, 10_000),
        parts=st.lists(words.PARTS, min_size=3, max_size=3),
        query=words.QUERIES,
        who=st.integers(-1, 1),
        cookies=words.COOKIES,
        write=st.booleans(),
    )
    def page(
        self, address: int, parts: list[str], query: dict[str, str], who: int, cookies: str | None, write: bool
    ) -> None:
        """Read or write any address of the site with any query, as an employee, an operator or a stranger."""
        path = "/" + self.site.addresses[address % len(self.site.addresses)]
        left = list(parts)
        path = re.sub(r"<[^>]*>|\(\?P.*?\)|[\^$\\]", lambda _: quote(left.pop(), safe="") if left else "1", path)
        cookie = self.site.cookies[who] if who >= 0 else (cookies or "")
        headers = {"cookie": cookie, "origin": self.site.installation.url}
        if write and who <= 0:
            token = re.search(r"csrftoken=(\w+)", cookie)
            form = {**query, "csrfmiddlewaretoken": token[1] if token else ""}
            answer = self.site.client.post(path, data=form, headers=headers)
        else:
            answer = self.site.client.get(path, params=query, headers=headers)
        assert answer.status_code < 500, (path, query, answer.status_code, answer.text[:300])

    # --- spools

    @rule(lines=st.lists(words.lines(), min_size=1, max_size=3))
    def spool(self, lines: list[bytes]) -> None:
        self.site.drop(b"".join(lines))

    def teardown(self) -> None:
        self.site.settled()
        assert self.site.memory() <= self.site.resident + GROWTH

    # --- what is looked at

    def _post(self, path: str, body: bytes) -> httpx2.Response:
        headers = {**self.site.authorization, "content-type": "application/json"}
        try:
            return self.site.client.post(path, content=body, headers=headers)
        except httpx2.RemoteProtocolError:  # the answer's end was missing
            return httpx2.Response(299, request=httpx2.Request("POST", path))

    def _well_formed(self, path: str, answer: httpx2.Response) -> None:
        if answer.status_code >= 400:
            error = answer.json()["error"]
            if not path.startswith("/v1/messages"):
                assert set(error) >= ERROR, answer.text[:300]
        elif answer.status_code == 200 and not path.endswith("count_tokens"):
            self.site.finished.add(answer.headers["x-request-id"])
