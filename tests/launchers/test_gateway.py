"""Our gateway before each launcher of llama.cpp, with a real model for chat and one for embeddings.

What differs between the three is shown here in one place: what a client of ours must never notice.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest

from tests import engines
from tests.installation import Installation, installed
from tests.lifecycle import LAUNCHERS, Launcher
from tests.waiting import until

pytestmark = pytest.mark.timeout(600)

QUESTION = [{"role": "user", "content": "Count from one to one hundred."}]
ENDS = {"length", "stop"}
LONG = [{"role": "user", "content": "word " * 3000}]


@dataclass
class House:
    launcher: Launcher
    madoguchi: Installation
    sdk: openai.OpenAI
    http: httpx2.Client

    def chat(self, tokens: int = 8, **fields: Any) -> Any:
        # llama-cpp-python knows no `ignore_eos`: an answer of its may be shorter than asked for.
        more = {"extra_body": {"ignore_eos": True}}
        fields = {"messages": QUESTION, "max_tokens": tokens, "temperature": 0} | more | fields
        return self.sdk.chat.completions.create(model="smol", **fields)

    def row(self, request_id: str) -> dict[str, Any]:
        return until(lambda: self.madoguchi.usage().get(request_id), 30)


@pytest.fixture(scope="module", params=LAUNCHERS, ids=lambda each: each.name)
def house(request, tmp_path_factory) -> Iterator[House]:
    launcher = request.param
    with installed(tmp_path_factory.mktemp("var")) as madoguchi:
        chat, vectors = launcher.options(engines.chat_model()), launcher.options(engines.embedding_model())
        madoguchi.manage("registermodel", "smol", *chat, "--context=1024", "--slots=2")
        madoguchi.manage("registermodel", "minilm", *vectors, "--task=embedding")
        key = madoguchi.start_for("smol", "minilm", seconds=180)
        sdk = openai.OpenAI(base_url=f"{madoguchi.url}/v1", api_key=key, max_retries=0, timeout=200)
        http = httpx2.Client(base_url=madoguchi.url, headers={"x-api-key": key}, timeout=200)
        yield House(launcher, madoguchi, sdk, http)
        assert madoguchi.stop() == 0


def test_a_stream_is_whole_and_metered(house):
    stream = house.chat(12, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    counted = house.launcher.name == "llama-cpp-python"  # it reports no usage in streams: what came is counted
    assert (chunks[-1].usage is None) == counted
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ENDS
    row = house.row(stream.response.headers["x-request-id"])
    assert (row["status"], bool(row["estimated"])) == ("finished", counted)
    told = 12 if counted else chunks[-1].usage.completion_tokens
    assert told <= row["completion_tokens"] <= told + counted  # its last chunk is empty, and counted too


def test_an_answer_in_one_piece_is_whole_and_metered(house):
    answer = house.chat(12)
    assert answer.choices[0].finish_reason in ENDS
    assert answer.choices[0].message.content
    row = house.row(answer._request_id)
    assert (row["status"], row["completion_tokens"]) == ("finished", answer.usage.completion_tokens)
    assert 5 <= row["completion_tokens"] <= 13


def test_embeddings_come_as_the_sdk_asks_for_them(house):
    """base64, which llama-cpp-python does not know."""
    answer = house.sdk.embeddings.create(model="minilm", input=["ping", "pong"])
    assert [len(item.embedding) for item in answer.data] == [384, 384]
    assert answer.usage.total_tokens > 0
    raw = house.http.post("/v1/embeddings", json={"model": "minilm", "input": "ping", "encoding_format": "base64"})
    assert raw.status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_that_is_too_long_is_a_refusal_and_never_an_answer(house, stream):
    """llama-cpp-python answers a stream with 200 and nothing."""
    body = {"model": "smol", "messages": LONG, "max_tokens": 5, "stream": stream}
    answer = house.http.post("/v1/chat/completions", json=body)
    assert answer.status_code >= 400
    assert answer.json()["error"]["message"]
    if house.launcher.name != "llama-cpp-python":
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    house.chat(1)  # and the engine is not taken for broken


def test_streams_beside_each_other_are_all_whole(house):
    """Any other request ends a stream of llama-cpp-python early, unless it is started with the right words."""
    ends: list[str] = []

    def one() -> None:
        chunks = list(house.chat(60, stream=True))
        ends.append([chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1])

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    house.http.get("/v1/models")
    for thread in threads:
        thread.join()
    assert len(ends) == 3
    assert set(ends) <= ENDS


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(house, stream):
    """All llama.cpp servers run an answer in one piece to its end; the gateway asks for a stream instead."""
    # llama-cpp-python knows no ignore_eos, so the question itself must ask for much.
    story = [{"role": "user", "content": "Tell a long story about the life of a cat, year by year."}]
    body = {"model": "smol", "messages": story, "max_tokens": 900, "stream": stream, "ignore_eos": True}
    if stream:
        with house.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            next(answer.iter_bytes())
    else:
        with pytest.raises(httpx2.ReadTimeout):
            house.http.post("/v1/chat/completions", json=body, timeout=httpx2.Timeout(200, read=0.7))
    # 900 tokens would take 20 s and more; with every slot taken this would wait for them.
    slots = house.launcher.slots
    answers = [house.chat(1) for _ in range(slots)]
    assert len(answers) == slots
    aborted = until(lambda: [row for row in house.madoguchi.usage().values() if row["status"] == "aborted"], 30)
    assert aborted[-1]["completion_tokens"] < 600


def test_engine_errors_do_not_show_its_files(house):
    body = {"model": "smol", "messages": [{"role": "nobody", "content": 5}], "max_tokens": 2}
    answer = house.http.post("/v1/chat/completions", json=body)
    assert ".gguf" not in answer.text
    assert "site-packages" not in answer.text
    house.chat(1)


def test_the_usage_of_all_calls_is_recorded_once(house):
    answer = house.chat(3)
    rows = json.loads(house.madoguchi.manage("usage", "--json", "--by", "model"))
    assert {row["model"] for row in rows} >= {"smol"}
    assert house.row(answer._request_id)["completion_tokens"] == answer.usage.completion_tokens
