"""The JDK's HTTP client over plain http, which offers HTTP/2 with every request: Spring AI, LangChain4j, JetBrains."""

import json
from collections.abc import Iterator

import pytest

from tests import engine
from tests.clients.office import QUESTION

FIELDS = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "temperature": 0}


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """Provide a fake engine: what is answered does not matter to this client."""
    with engine.running() as fake:
        yield {"fake": fake.url}


def test_g1_the_jdk_s_client_is_answered_although_it_offers_http_2(office, jdk):
    for version in ("HTTP_2", "HTTP_1_1"):
        status, spoken, [body] = jdk.call(version, "/chat/completions", {**FIELDS, "model": "fake"})
        assert (status, spoken) == (200, "HTTP_1_1"), body
        assert json.loads(body)["choices"][0]["message"]["content"]
    # One connection, several requests: what one of them left unread would be the next one's beginning.
    status, _, lines = jdk.call("HTTP_2", "/chat/completions", {**FIELDS, "model": "fake", "stream": True})
    assert (status, lines[-2 if lines[-1] == "" else -1]) == (200, "data: [DONE]")
    status, _, [body] = jdk.call("HTTP_2", "/embeddings", {"model": "fake", "input": ["a", "b" * 500]})
    assert status == 200
    status, _, [body] = jdk.call("HTTP_2", "/models")
    assert (status, len(json.loads(body)["data"])) == (200, 2)
    assert [row.status for row in office.rows(4)] == ["finished"] * 4


def test_g1_the_jdk_s_client_sees_why_it_was_refused(jdk):
    for fields, expected in (
        ({"model": "nope"}, (404, "model_not_found")),
        ({"model": ""}, (400, "invalid_value")),
    ):
        status, _, [body] = jdk.call("HTTP_2", "/chat/completions", {**FIELDS, **fields})
        assert (status, json.loads(body)["error"]["code"]) == expected
