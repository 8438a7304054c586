"""A real vLLM with a model that gives vectors: embeddings, scores and rankings through the gateway, as recorded."""

from collections.abc import Iterator

import httpx2
import openai
import pytest

from tests import engines
from tests.installation import Installation, installed
from tests.waiting import until

pytestmark = pytest.mark.timeout(600)

QUERY = "What is the capital of France?"
DOCUMENTS = ["I had an apple for lunch.", "Paris is the capital of France.", "The train was late."]


@pytest.fixture(scope="module")
def madoguchi(tmp_path_factory) -> Iterator[Installation]:
    with installed(tmp_path_factory.mktemp("var"), **engines.VLLM_ON_CPU) as madoguchi:
        shape = ("--path", str(engines.sentence_model()), "--task", "embedding", "--context", "256")
        madoguchi.manage("registermodel", "minilm", "--engine", "vllm", *shape, "--arg=--enforce-eager")
        tenant = "from portal.accounts.models import Tenant; Tenant.objects.create(slug='research', name='研究部')"
        madoguchi.manage("shell", "--verbosity", "0", "--command", tenant)
        madoguchi.start()
        madoguchi.ready("minilm", seconds=400)
        yield madoguchi
        assert madoguchi.stop() == 0


@pytest.fixture(scope="module")
def key(madoguchi) -> str:
    return madoguchi.manage("createkey", "--tenant", "research", "--service", "test")


@pytest.fixture
def sdk(madoguchi, key) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{madoguchi.url}/v1", api_key=key, max_retries=0, timeout=120) as sdk:
        yield sdk


@pytest.fixture
def http(madoguchi, key) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=madoguchi.url, headers={"x-api-key": key}, timeout=120) as http:
        yield http


def read_record(madoguchi: Installation, request_id: str) -> tuple[str, int, int, str, int]:
    row = until(lambda: madoguchi.usage().get(request_id), 30)
    return tuple(row[name] for name in ("endpoint", "prompt_tokens", "completion_tokens", "status", "estimated"))


def test_vectors_come_as_floats_and_as_base64_in_order(madoguchi, sdk):
    by_base64 = sdk.embeddings.create(model="minilm", input=DOCUMENTS)  # the SDK's own choice
    floats = sdk.embeddings.create(model="minilm", input=DOCUMENTS, encoding_format="float")
    alone = sdk.embeddings.create(model="minilm", input=DOCUMENTS[1], encoding_format="float")
    assert [(item.index, len(item.embedding)) for item in floats.data] == [(0, 384), (1, 384), (2, 384)]
    for one, other in zip(by_base64.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-4)
    assert floats.data[1].embedding == pytest.approx(alone.data[0].embedding, abs=0.02)
    for answer in (by_base64, floats, alone):
        told = ("/v1/embeddings", answer.usage.prompt_tokens, 0, "finished", 0)
        assert read_record(madoguchi, answer._request_id) == told


def test_token_ids_are_embedded_as_well(sdk):
    assert len(sdk.embeddings.create(model="minilm", input=[[101, 2054, 102], [101, 102]]).data) == 2


def test_documents_are_ranked(madoguchi, http):
    answer = http.post(
        "/v1/rerank", json={"model": "minilm", "query": QUERY, "documents": DOCUMENTS, "top_n": 2, "no_such_field": 1}
    )
    results = answer.json()["results"]
    assert len(results) == 2
    assert results[0]["index"] == 1
    assert results[0]["relevance_score"] > 0.6 > results[1]["relevance_score"]
    used = answer.json()["usage"]["total_tokens"]
    assert used > 20
    assert read_record(madoguchi, answer.headers["x-request-id"]) == ("/v1/rerank", used, 0, "finished", 0)


def test_pairs_are_scored(madoguchi, http):
    answer = http.post("/v1/score", json={"model": "minilm", "text_1": QUERY, "text_2": DOCUMENTS})
    scores = [item["score"] for item in answer.json()["data"]]
    assert max(scores) == scores[1]
    used = answer.json()["usage"]["prompt_tokens"]
    assert read_record(madoguchi, answer.headers["x-request-id"]) == ("/v1/score", used, 0, "finished", 0)


@pytest.mark.parametrize(("path", "name"), [("/v1/embeddings", "input"), ("/v1/rerank", "query")])
def test_a_text_that_is_too_long_is_reported_as_such(madoguchi, http, path, name):
    answer = http.post(path, json={"model": "minilm", "documents": ["a"], name: "word " * 400})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert read_record(madoguchi, answer.headers["x-request-id"]) == (path, 0, 0, "refused", 0)


def test_a_model_for_vectors_does_not_chat(sdk):
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "hi"}])
    assert refused.value.code == "model_not_supported"
