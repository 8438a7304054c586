"""What a real llama.cpp goes through under a real supervisor, whichever launcher runs it.

A test file imports all of this and has a fixture `launcher`: one that CI has (tests/modelregistry/test_real_engine.py),
or each of the three (tests/launchers).
"""

import json
import os
import signal
from dataclasses import dataclass
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from django.core.management import call_command

from modelregistry.models import Replica, ServedModel
from modelregistry.process import process
from modelregistry.supervisor.adoption import ADOPTED
from tests import engines
from tests.output import lines_of
from tests.waiting import until

# Of a start, on a machine that is busy with other tests.
STARTED = 90
SECRET = "the password is kumquat-4711"


@dataclass(frozen=True)
class Launcher:
    """`one_thread`: several wait for each other by spinning, and on a busy machine a token may take a second."""

    name: str
    one_thread: tuple[str, ...] = ("--threads", "1")
    slots: int = 2

    def options(self, path):
        """Return the options of `registermodel`."""
        args = [f"--arg={word}" for word in self.one_thread]
        return ["--engine=llama.cpp", f"--launcher={self.name}", f"--path={path}", *args]


LAUNCHERS = (
    Launcher("llama-server"),
    Launcher("xllamacpp"),
    Launcher("llama-cpp-python", one_thread=("--n_threads", "1"), slots=1),
)


@pytest.fixture
def real(site, launcher):
    """Return a site whose llama.cpp is the real one, out of the cache."""
    del site.environment["LLAMA_SERVER_COMMAND"]
    site.environment["PATH"] = os.defpath
    site.launcher = launcher
    return site


def register(site, name, path, *options):
    call_command("registermodel", name, *site.launcher.options(path), *options)


def started(site, *options):
    """Provide SmolLM2, ready, with two slots where the launcher has them."""
    register(site, "smol", engines.chat_model(), "--context=1024", "--slots=2", *options)
    return site.reaches("ready", "smol", seconds=STARTED)


def call(replica, path, body=None, key=None):
    request = Request(
        replica.url + path,
        data=json.dumps(body | {"model": replica.model.name}).encode() if body else None,
        headers={"authorization": f"Bearer {key or replica.api_key}", "content-type": "application/json"},
    )
    return urlopen(request, timeout=60)


def chat(replica, tokens, **more):
    question = {"messages": [{"role": "user", "content": "Count from one to one hundred."}], "max_tokens": tokens}
    return call(replica, "/v1/chat/completions", question | {"ignore_eos": True, "temperature": 0} | more)


def events(text):
    """Return the objects of a stream; its end must have come."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def finished(text):
    return [event["choices"][0]["finish_reason"] for event in events(text) if event["choices"]][-1]


def replaced(site, before):
    """Return the next process of the model, when it is ready."""
    return until(
        lambda: (row := site.replica("smol")) and row.pid not in (None, before.pid) and row.state == "ready" and row,
        STARTED,
    )


def test_it_streams_and_answers_when_it_is_called_ready(real):
    real.supervise()
    ready = started(real)
    assert (ready.launcher, ready.slots) == (real.launcher.name, real.launcher.slots)
    with chat(ready, 12, stream=True) as answer:
        text = answer.read().decode()
    assert finished(text) in ("length", "stop")
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events(text) if event["choices"])
    answer = json.load(chat(ready, 5))
    assert answer["model"] == "smol"
    assert answer["usage"]["completion_tokens"] == 5


def test_it_embeds(real):
    real.supervise()
    register(real, "minilm", engines.embedding_model(), "--task=embedding")
    ready = real.reaches("ready", "minilm", seconds=STARTED)
    body = json.load(call(ready, "/v1/embeddings", {"input": ["ping", "word " * 400]}))
    assert [len(item["embedding"]) for item in body["data"]] == [384, 384]


def test_it_answers_nobody_without_its_key(real):
    real.supervise()
    ready = started(real)
    for path, body in (("/v1/models", None), ("/v1/chat/completions", {"messages": []}), ("/v1/embeddings", {"a": 1})):
        with pytest.raises(HTTPError) as refusal:
            call(ready, path, body, key="wrong")
        assert refusal.value.code == 401


def test_what_people_ask_is_not_in_its_log(real):
    real.supervise()
    ready = started(real)
    chat(ready, 3, messages=[{"role": "user", "content": SECRET}]).read()
    with chat(ready, 3, stream=True, messages=[{"role": "user", "content": SECRET}]) as answer:
        answer.read()
    log = process.log_tail(real.run_of(ready).directory, 10_000)
    assert log
    assert "kumquat" not in log


def test_a_model_that_is_stopped_finishes_what_runs(real):
    """Off the catalogue, then drained, then ended: nothing is cut, nothing is left."""
    real.supervise(ENGINE_STOP_GRACE="30")
    ready = started(real)
    with chat(ready, 120, stream=True) as answer:
        first = answer.readline()
        model = ServedModel.objects.get()
        model.enabled = False
        model.save()
        until(lambda: (row := real.replica("smol")) is None or row.state != "ready")
        assert finished((first + answer.read()).decode()) in ("length", "stop")
    until(lambda: real.living() == [], 60)
    until(lambda: (row := real.replica("smol")) is None or row.pid is None)


def test_a_killed_engine_breaks_its_streams_and_is_started_again(real):
    real.supervise()
    ready = started(real)
    with chat(ready, 900, stream=True) as answer:
        first = answer.readline()
        os.kill(ready.pid, signal.SIGKILL)
        try:
            text = (first + answer.read()).decode()
        except (HTTPException, OSError):
            text = ""
    assert "[DONE]" not in text
    down = until(lambda: (row := real.replica("smol")).pid is None and row)
    assert (down.url, down.restarts) == ("", 1)
    assert json.load(chat(replaced(real, ready), 1))["usage"]["completion_tokens"] == 1


def test_an_engine_whose_shim_is_killed_is_ended_and_started_again(real):
    """Check that without its shim, which knows how it ends and stops all of it, the engine is stopped."""
    real.supervise()
    ready = started(real)
    run = real.run_of(ready)
    os.kill(run.shim.pid, signal.SIGKILL)
    again = replaced(real, ready)
    assert process.find_leftovers(run) == []
    assert json.load(chat(again, 1))["usage"]["completion_tokens"] == 1


def test_a_killed_supervisor_is_followed_by_one_that_adopts(real):
    """The engine keeps its pid and its requests; the next supervisor can stop it."""
    supervisor = real.supervise()
    before = started(real)
    with chat(before, 300, stream=True) as answer:
        first = answer.readline()
        supervisor.kill()
        supervisor.wait()
        second = real.supervise("--stop-engines")
        until(lambda: lines_of(ADOPTED, real.log.read_text()))
        text = (first + answer.read()).decode()
    assert finished(text) in ("length", "stop")
    after = Replica.objects.get()
    assert (after.pid, after.url, after.state) == (before.pid, before.url, "ready")
    assert after.changed_at == before.changed_at
    assert json.load(chat(after, 1))["usage"]["completion_tokens"] == 1
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0
    assert real.living() == []


def test_an_operators_restart_gives_another_process(real):
    real.supervise()
    before = started(real)
    model = ServedModel.objects.get()
    model.generation += 1
    model.save()
    after = replaced(real, before)
    assert after.restarts == 0
    until(lambda: process.find_leftovers(real.run_of(before)) == [])


def test_a_model_that_cannot_be_loaded_says_why(real, tmp_path):
    """Its header is in order, so it may be registered; only the engine misses a tensor."""
    real.supervise()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(engines.chat_model().read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_z.weight", 1))
    register(real, "broken", broken)
    down = until(lambda: (row := real.replica("broken")) and row.pid is None and row.detail and row, STARTED)
    assert process.exit_of(real.run_of(down)).code == 1
    assert "'blk.0.attn_q.weight'" in down.detail
