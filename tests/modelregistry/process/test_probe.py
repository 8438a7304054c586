"""Questions to an engine, over a real socket, from a server that answers what each test says."""

import asyncio
import json
import socket
from types import SimpleNamespace

import httpx2
import pytest

from modelregistry.process import probe
from modelregistry.process.probe import ProbeFailed, ProbeRefusal, Target

LLAMA_METRICS = """# HELP llamacpp:requests_processing Number of requests processing
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
llamacpp:requests_deferred 3
llamacpp:prompt_tokens_total 100
llamacpp:tokens_predicted_total 20
"""


@pytest.fixture
async def engine():
    """Serve an engine. `answers` by path: (status, body), or seconds of silence. `asked`: the requests."""
    engine = SimpleNamespace(answers={}, asked=[])

    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        length = next((int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length:")), 0)
        body = await reader.readexactly(length)
        read = json.loads(body) if "content-type: application/json" in head.lower() else body
        engine.asked.append((path, "authorization: bearer k" in head.lower(), read))
        answer = engine.answers.get(path, (404, ""))
        if isinstance(answer, int | float):
            await asyncio.sleep(answer)
            writer.close()
            return
        status, text = answer
        text = text if isinstance(text, str) else json.dumps(text)
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n{text}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield engine


@pytest.fixture
async def client():
    async with httpx2.AsyncClient(trust_env=False) as client:
        yield client


def target(engine, launcher="llama-server", task="chat"):
    return Target(launcher=launcher, url=engine.url, api_key="k", model="m", task=task)


async def test_a_check_shows_what_runs_and_what_was_done(client, engine):
    engine.answers = {"/health": (200, ""), "/metrics": (200, LLAMA_METRICS)}
    look = await probe.check_health(client, target(engine))
    assert (look.healthy, look.running, look.work) == (True, 5, 120)
    assert all(key for _, key, _ in engine.asked)


async def test_vllms_metrics_are_summed_over_their_labels(client, engine):
    text = (
        'vllm:num_requests_running{engine="0",model_name="m"} 1.0\n'
        'vllm:num_requests_running{engine="1",model_name="m"} 2.0\n'
        'vllm:num_requests_waiting{engine="0"} 4\nvllm:generation_tokens_total{model_name="a b"} 1e3\n'
    )
    engine.answers = {"/health": (200, ""), "/metrics": (200, text)}
    look = await probe.check_health(client, target(engine, "vllm"))
    assert (look.running, look.work) == (7, 1000)


async def test_an_engine_that_loads_is_not_well(client, engine):
    engine.answers = {"/health": (503, {"error": {"message": "Loading model", "code": 503}})}
    look = await probe.check_health(client, target(engine))
    assert not look.healthy
    assert all(fact in look.detail for fact in ("/health", "503", "Loading model"))


async def test_an_engine_too_busy_to_report_is_healthy(client, engine):
    engine.answers = {"/health": (200, ""), "/metrics": 3}
    look = await probe.check_health(client, target(engine))
    assert (look.healthy, look.running, look.work) == (True, None, None)


async def test_an_engine_that_does_not_listen_is_not_well(client):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nobody = SimpleNamespace(url=f"http://127.0.0.1:{port}")
    assert not (await probe.check_health(client, target(nobody))).healthy
    with pytest.raises(ProbeFailed):
        await probe.ask_question(client, target(nobody))


async def test_llama_cpp_python_is_asked_for_nothing_that_waits_for_its_stream(client, engine):
    engine.answers = {"/openapi.json": (200, "{}")}
    look = await probe.check_health(client, target(engine, "llama-cpp-python"))
    assert look.healthy
    assert [path for path, _, _ in engine.asked] == ["/openapi.json"]


async def test_an_external_engine_is_never_asked_to_work(client, engine):
    engine.answers = {"/v1/models": (200, {"data": []})}
    assert (await probe.check_health(client, target(engine, ""))).healthy
    assert [path for path, _, _ in engine.asked] == ["/v1/models"]


@pytest.mark.parametrize(
    ("status", "healthy"),
    [(200, True), (404, True), (405, True), (401, False), (403, False), (500, False), (502, False)],
)
async def test_how_an_external_engine_is_judged(client, engine, status, healthy):
    engine.answers = {"/v1/models": (status, {"data": []})}
    assert (await probe.check_health(client, target(engine, ""))).healthy is healthy


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {"content-type": "text/html; charset=utf-8"}, "<!doctype html><title>Sign in</title>"),
        (404, {"content-type": "text/html"}, "<h1>Not Found</h1>"),
        (302, {"location": "https://sso.example.com/"}, ""),
        (200, {}, ""),
        (200, {"content-type": "application/json"}, '"ok"'),
    ],
)
async def test_g5_what_answers_with_a_page_is_no_engine(status, headers, body):
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers=headers, content=body)

    page = Target(launcher="", url="http://127.0.0.1", api_key="", model="m", task="chat")
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
        look = await probe.check_health(client, page)
    assert not look.healthy
    assert look.detail


CHOICE = {"choices": [{"message": {"content": "pong"}}]}


async def test_a_chat_model_is_asked_for_one_token(client, engine):
    engine.answers = {"/v1/chat/completions": (200, CHOICE)}
    await probe.ask_question(client, target(engine))
    [(_, key, body)] = engine.asked
    assert key
    assert (body["model"], body["max_tokens"]) == ("m", 1)


async def test_a_model_without_a_chat_template_may_complete(client, engine):
    engine.answers = {"/v1/chat/completions": (400, {"error": "no template"}), "/v1/completions": (200, CHOICE)}
    await probe.ask_question(client, target(engine))


async def test_a_refusal_is_reported_in_the_engines_words(client, engine):
    engine.answers = {path: (400, {"error": {"message": "no\n  way"}}) for path in ("/v1/chat/completions",)}
    with pytest.raises(ProbeRefusal, match="/v1/chat/completions: 400 no way"):
        await probe.ask_question(client, target(engine))


async def test_loading_is_no_refusal(client, engine):
    engine.answers = {"/v1/chat/completions": (503, {"error": {"message": "Loading model"}})}
    with pytest.raises(ProbeFailed) as waiting:
        await probe.ask_question(client, target(engine))
    assert not isinstance(waiting.value, ProbeRefusal)


async def test_a_silent_engine_has_its_time(client, engine):
    engine.answers = {"/v1/chat/completions": 5}
    with pytest.raises(ProbeFailed) as silent:
        await probe.ask_question(client, target(engine), within=0.2)
    assert not isinstance(silent.value, ProbeRefusal)
    assert isinstance(silent.value.__cause__, TimeoutError)


@pytest.mark.parametrize(
    ("task", "path", "good", "bad"),
    [
        ("chat", "/v1/chat/completions", CHOICE, {"choices": []}),
        ("embedding", "/v1/embeddings", {"data": [{"embedding": [0.1]}]}, {"data": [{"embedding": []}]}),
        ("rerank", "/v1/rerank", {"results": [{"index": 0}]}, {"results": []}),
        ("transcription", "/v1/audio/transcriptions", {"text": ""}, {"words": ""}),
    ],
)
async def test_each_task_has_its_question(client, engine, task, path, good, bad):
    engine.answers = {path: (200, good)}
    await probe.ask_question(client, target(engine, task=task))
    for wrong in (bad, {}, [], "not JSON"):
        engine.answers = {path: (200, wrong)}
        with pytest.raises(ProbeRefusal):
            await probe.ask_question(client, target(engine, task=task))


def test_metrics_that_cannot_be_read_are_left_out():
    assert probe.sum_metrics('a 1\na{x="}"} 2\n# a 5\nb nonsense\n\nc\n') == {"a": 3}
