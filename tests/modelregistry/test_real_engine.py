"""Real llama.cpp out of the xllamacpp wheel, with SmolLM2 and MiniLM, under a real supervisor.

Starting, streaming, stopping and every kind of death are in tests/lifecycle.py, imported here.
"""

import contextlib
import json
import time
from http.client import IncompleteRead
from urllib.error import HTTPError

import pytest
from django.core.management import CommandError

from modelregistry.models import Replica, ServedModel
from modelregistry.process import log_filter
from tests import engines
from tests.lifecycle import *  # noqa: F403 - its tests are ours
from tests.lifecycle import Launcher, call, chat, register
from tests.waiting import until


@pytest.fixture
def launcher():
    """Return the one that needs no compiler. All three: tests/launchers."""
    return Launcher("xllamacpp")


def test_the_context_is_what_each_request_may_use(real):
    real.supervise()
    register(real, "smol", engines.chat_model(), "--context=512", "--slots=3")
    ready = real.reaches("ready", "smol", seconds=60)
    slots = json.load(call(ready, "/slots"))
    assert [slot["n_ctx"] for slot in slots] == [512] * 3
    with pytest.raises(HTTPError) as refusal:
        chat(ready, 1, messages=[{"role": "user", "content": "word " * 600}])
    assert refusal.value.code == 400
    assert json.load(refusal.value)["error"]["n_ctx"] == 512
    assert until(lambda: Replica.objects.get().memory_bytes) > 100_000_000


def test_embeddings_are_served_also_of_long_inputs(real):
    real.supervise()
    register(real, "minilm", engines.embedding_model(), "--task=embedding")
    ready = real.reaches("ready", "minilm", seconds=60)
    long = "word " * 400  # more than the 128 tokens that a quarter of its context would hold
    body = json.load(call(ready, "/v1/embeddings", {"input": ["ping", long]}))
    assert [len(item["embedding"]) for item in body["data"]] == [384, 384]
    assert body["usage"]["total_tokens"] > 400


def test_e8_what_llama_server_takes_reaches_the_wheels_server_and_the_rest_is_refused(real, tmp_path):
    with pytest.raises(CommandError, match="--no-such-thing"):
        register(real, "smol", engines.chat_model(), "--arg=--no-such-thing")
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (tmp_path / "ours.jinja").write_text(template)
    real.supervise()
    said = ["--jinja", f"--chat-template-file={tmp_path / 'ours.jinja'}", "--rope-scaling", "linear"]
    register(real, "smol", engines.chat_model(), "--context=512", *(f"--arg={arg}" for arg in said))
    ready = real.reaches("ready", "smol", seconds=60)
    assert json.load(call(ready, "/props"))["chat_template"] == template


def test_p4_what_people_ask_for_in_grammars_and_schemas_is_not_in_its_log(real):
    """llama.cpp writes them to its standard error, whatever its verbosity."""
    real.supervise()
    register(real, "smol", engines.chat_model())
    ready = real.reaches("ready", "smol", seconds=60)
    forms = [
        *({"grammar": text} for text in ('root ::= "kumquat" [', "root ::= kumquat", 'root ::=\n"kumquat"\n[')),
        *({"json_schema": schema} for schema in ({"type": "kumquat"}, {"$ref": "http://kumquat/x"})),
        {"json_schema": {"type": "string", "pattern": "^(?=kumquat)x$"}},
        {"messages": [{"role": "user", "content": [{"type": "kumquat"}]}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"pattern": "kumquat("}}}]},
    ]
    answers = []
    for form in forms:
        with contextlib.suppress(HTTPError):
            answers.append(chat(ready, 2, **form).read())
    chat(ready, 2).read()
    directory = real.run_of(ready).directory
    log = until(
        lambda: (text := (directory / "engine.log").read_text()).count("stop processing") > len(answers) and text
    )
    assert "kumquat" not in log
    assert log_filter.LEFT_OUT.decode() in log  # it is said that something was left out
    assert not [path.name for path in directory.iterdir() if b"kumquat" in path.read_bytes()]


# --- The launcher by itself


@pytest.fixture
def launched(tmp_path):
    """Provide the launcher as a plain process, with five seconds of grace."""
    engine, url = engines.launch(
        tmp_path, engines.chat_model(), "--alias=smol", "--metrics", "--parallel=1", "--ctx-size=1024", "--grace=5"
    )
    yield engine, Replica(url=url, api_key="k", model=ServedModel(name="smol"))
    engine.kill()
    engine.wait()


def test_it_leaves_at_once_when_nothing_runs(launched):
    engine, _ = launched
    began = time.monotonic()
    engine.terminate()
    assert engine.wait(20) == 0
    assert time.monotonic() - began < 4


def test_it_lets_running_requests_finish(launched):
    engine, replica = launched
    with chat(replica, 20, stream=True) as answer:
        answer.readline()
        engine.terminate()
        assert answer.read().decode().rstrip().endswith("data: [DONE]")
    assert engine.wait(20) == 0


def test_it_does_not_wait_longer_than_its_grace(launched):
    engine, replica = launched
    with chat(replica, 900, stream=True) as answer:
        answer.readline()
        began = time.monotonic()
        engine.terminate()
        with pytest.raises(IncompleteRead):
            answer.read()
        # It was cut, so the engine did not wait for its end: 9 s here, three times as much on a busy machine.
        assert 4 < time.monotonic() - began < 25
    assert engine.wait(20) == 0
