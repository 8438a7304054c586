"""The main job, with real parts: slapd, llama.cpp, the openai SDK, the pages, real sockets and real kill -9.

sign in -> create a key -> stream an answer -> embeddings -> the usage page shows it -> revoke -> 401
"""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser

import httpx2
import openai
import pytest
from django.conf import settings

from modelregistry.install.demo_models import MINILM, SMOLLM2
from tests.installation import Installation, installed
from tests.slapd import Directory
from tests.waiting import until

LONG = {
    "model": "smollm2",
    "max_tokens": 400,
    "messages": [{"role": "user", "content": "Count from 1 to 1000."}],
    "extra_body": {"ignore_eos": True},  # llama.cpp's: no end before max_tokens
}


@pytest.fixture(scope="module")
def madoguchi(directory: Directory, tmp_path_factory) -> Iterator[Installation]:
    with installed(tmp_path_factory.mktemp("var"), **directory.env()) as installation:
        chat, embedding = SMOLLM2.path(settings.CACHE), MINILM.path(settings.CACHE)
        # One thread: several wait for each other by spinning, and on a busy machine a token may take a second.
        shape = ("--context", "1024", "--slots", "2", "--arg=--threads=1")
        installation.manage("registermodel", "smollm2", "--engine", "llama.cpp", "--path", str(chat), *shape)
        task = ("--task", "embedding")
        installation.manage("registermodel", "minilm", "--engine", "llama.cpp", "--path", str(embedding), *task)
        installation.start()
        installation.ready("smollm2", "minilm")
        yield installation


class Tables(HTMLParser):
    """The cells of a page's table bodies, row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data) -> None:
        if self._cell:
            self.rows[-1][-1] += data.strip()


class Browser:
    """A person's browser without the pictures: cookies, forms and their tokens."""

    def __init__(self, url: str) -> None:
        self._client = httpx2.Client(base_url=url, follow_redirects=True, headers={"accept-language": "en"}, timeout=30)

    def get(self, path: str) -> str:
        response = self._client.get(path)
        assert response.status_code == 200, response.text
        return response.text

    def submit(self, path: str, action: str = "", **fields: str) -> str:
        """Post the form on the page at `path` (to `action`, if that is elsewhere); gives the page that comes."""
        hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', self.get(path)))
        response = self._client.post(
            action or path, data={**hidden, **fields}, headers={"referer": str(self._client.base_url)}
        )
        assert response.status_code == 200, response.text
        return response.text

    def usage(self) -> dict[str, tuple[int, int, int]]:
        """Return what the usage page shows: model -> (requests, tokens in, tokens out)."""
        rows = [row for row in Tables(self.get("/usage/")).rows if len(row) == 6 and row[2].replace(",", "").isdigit()]
        figures = {row[1]: tuple(int(cell.replace(",", "")) for cell in row[2:5]) for row in rows}
        return figures


def sdk(madoguchi: Installation, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{madoguchi.url}/v1", api_key=key, max_retries=0, timeout=60)


def new_key(madoguchi: Installation, person: str) -> str:
    return madoguchi.manage("createkey", "--tenant", "research", "--user", person)


def sign_in(madoguchi: Installation, directory: Directory, name: str) -> Browser:
    browser = Browser(madoguchi.url)
    page = browser.submit("/sign-in/", username=name, password=directory.people[name].password)
    assert "sign-out" in page
    return browser


def running(madoguchi: Installation) -> int:
    """Return requests that the chat engine is working on, by its own metrics."""
    replica = madoguchi.replica("smollm2")
    text = httpx2.get(f"{replica['url']}/metrics", headers={"authorization": f"Bearer {replica['api_key']}"}).text
    return int(float(re.search(r"^llamacpp:requests_processing (\S+)", text, re.M)[1]))


def test_from_sign_in_to_a_metered_answer_to_a_revoked_key(madoguchi, directory):
    browser = sign_in(madoguchi, directory, "alice")
    page = browser.submit("/keys/new/", name="story", lifetime="30")
    (key,) = set(re.findall(r"mdg_[0-9A-Za-z]{38}", page))
    client = sdk(madoguchi, key)
    assert sorted(model.id for model in client.models.list()) == ["minilm", "smollm2"]

    arrived, usage = [], None
    stream = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Tell me a story."}],
        max_tokens=60,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        arrived.append(time.monotonic())
        usage = chunk.usage or usage
    assert len(arrived) > 10
    assert arrived[-1] - arrived[0] > 0.1  # over time, not in one piece at the end

    embedded = client.embeddings.create(model="minilm", input=["窓口で申し込む", "a counter"])
    assert [len(item.embedding) for item in embedded.data] == [384, 384]
    shown = until(lambda: len(figures := browser.usage()) == 2 and figures, 5)
    assert shown == {
        "smollm2": (1, usage.prompt_tokens, usage.completion_tokens),
        "minilm": (1, embedded.usage.prompt_tokens, 0),
    }

    begun = time.monotonic()
    browser.submit(f"/keys/{key[:12]}/", f"/keys/{key[:12]}/revoke/")

    def refused() -> bool:
        try:
            client.models.list()
        except openai.AuthenticationError as error:
            return error.code == "invalid_api_key"
        return False

    until(refused, 2)
    assert time.monotonic() - begun < 2


def test_a_stream_that_the_client_aborts_stops_the_engine_and_is_metered(madoguchi, directory):
    sign_in(madoguchi, directory, "bob")
    client = sdk(madoguchi, new_key(madoguchi, "bob"))
    stream = client.chat.completions.create(**LONG, stream=True)
    for number, _ in enumerate(stream):
        if number == 10:
            break
    assert running(madoguchi) == 1
    stream.close()
    begun = time.monotonic()
    until(lambda: running(madoguchi) == 0, 1)
    assert time.monotonic() - begun < 1
    row = until(lambda: [row for row in usage_by_user(madoguchi) if row["user"] == "bob"], 5)[0]
    assert row["requests"] == 1
    assert 5 <= row["completion_tokens"] < 100


def test_a_unary_call_that_the_client_gives_up_stops_the_engine(madoguchi, directory):
    sign_in(madoguchi, directory, "yamada")
    client = sdk(madoguchi, new_key(madoguchi, "yamada"))
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1).chat.completions.create(**{**LONG, "max_tokens": 900})
    until(lambda: running(madoguchi) == 0, 3)  # left to itself it would go on for 9 s and more


def test_the_supervisor_is_killed_and_the_engine_keeps_its_process_and_its_requests(madoguchi, directory):
    sign_in(madoguchi, directory, "佐藤")
    client = sdk(madoguchi, new_key(madoguchi, "佐藤"))
    before = madoguchi.replica("smollm2")
    chunks: list[str] = []
    asked = client.chat.completions.create(**{**LONG, "max_tokens": 150}, stream=True)
    reading = threading.Thread(
        target=lambda: chunks.extend(c.choices[0].finish_reason or "" for c in asked if c.choices)
    )
    reading.start()
    supervisor = madoguchi.pid_of("supervise")
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: [pid for pid, name in madoguchi.processes().items() if "supervise" in name and pid != supervisor], 15)
    reading.join(60)
    assert chunks[-1] in ("stop", "length")
    after = madoguchi.replica("smollm2")
    assert (after["pid"], after["url"], after["state"]) == (before["pid"], before["url"], "ready")
    os.kill(before["pid"], 0)


def test_sigterm_leaves_no_process(madoguchi):
    assert len(madoguchi.processes()) > 4
    assert madoguchi.stop() == 0
    assert madoguchi.processes() == {}


def usage_by_user(madoguchi: Installation) -> list[dict]:
    return json.loads(madoguchi.manage("usage", "--by", "user", "--json"))
