"""No caller's words stay here: no prompt, answer or key text is in a file of the installation or in what it prints.

Canaries go through a whole portal process at its most talkative log level, in every way that a call can end; then
every file of its state directory is searched for them: database, its WAL, spool, logs, secrets.
"""

import contextlib
import json
import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from apiproxy.dataplane.access_log import REJECTED
from tests import engine
from tests.engine import ANSWER, DONE, FINISH, SSE, chunk, event, unary
from tests.installation import Installation, installed
from tests.waiting import until

PROMPT = "canary-prompt-5417"
ANSWERED = "canary-answer-8802"
AGENT = "canary-agent-3390"
SOUND = "canary-sound-6126"
PROGRAM = "program-7731/1.0"  # a key shows its owner with what it was last used, nothing else does
CANARIES = (PROMPT, ANSWERED, AGENT, SOUND)


def said(text: str) -> str:
    return event([{"index": 0, "delta": {"content": text}, "finish_reason": None}])


WORDS = {"send": chunk(said(ANSWERED))}
STREAM = [{"send": SSE}, WORDS, {"send": chunk(said(ANSWERED) + FINISH + DONE) + "0\r\n\r\n"}]
CHOICE = {"index": 0, "message": {"role": "assistant", "content": ANSWERED}, "finish_reason": "stop"}
WHOLE = [{"send": unary(200, {**ANSWER, "choices": [CHOICE]})}]


@dataclass
class Caller:
    """A caller whose every text is a canary."""

    url: str
    key: str

    def __post_init__(self) -> None:
        headers = {"authorization": f"Bearer {self.key}", "x-request-id": AGENT, "cookie": PROMPT}
        headers["user-agent"] = f"{PROGRAM} ({AGENT}) {AGENT}/1"
        self.http = httpx2.Client(base_url=self.url, headers=headers, timeout=20)

    def body(self, script: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": PROMPT}]
        return {"model": "plain", "messages": messages, "script": script, **more}

    def chat(self, script: list[dict[str, Any]], **more: Any) -> httpx2.Response:
        return self.http.post("/v1/chat/completions", json=self.body(script, **more))

    def leave(self, script: list[dict[str, Any]], **more: Any) -> None:
        """Leave after the answer's first bytes, or after half a second without any."""
        body = self.body(script, **more)
        with (
            contextlib.suppress(httpx2.ReadTimeout),
            self.http.stream("POST", "/v1/chat/completions", json=body, timeout=0.5) as response,
        ):
            next(response.iter_raw())


@pytest.fixture(scope="module", params=["text", "json"])
def place(request, tmp_path_factory) -> Iterator[tuple[Installation, engine.Running, Caller]]:
    var = tmp_path_factory.mktemp("var")
    with engine.running() as fake, installed(var, LOG_LEVEL="DEBUG", LOG_FORMAT=request.param) as installation:
        key = installation.furnish(fake.url)
        installation.start()
        until(installation.answers)
        yield installation, fake, Caller(installation.url, key)


def found(var: Path, *texts: str) -> list[tuple[str, str]]:
    """Return which of these texts is in which file. They are ASCII, so that JSON and `repr` write them the same."""
    files = {path: path.read_bytes() for path in var.rglob("*") if path.is_file() and "static" not in path.parts}
    assert {"madoguchi.sqlite3", "up.log"} <= {path.name for path in files}
    assert any(path.suffix == ".jsonl" for path in files)
    return [(path.name, text) for path, content in files.items() for text in texts if text.encode() in content]


HEARD = [{"send": unary(200, {"text": ANSWERED})}]
RECORDING = SOUND.encode() * 500_000  # 8.5 MB: more than sockets hold


def transcribe(caller: Caller, script: list[dict[str, Any]], model: str = "plain", **more: str) -> httpx2.Response:
    fields = {"model": model, "prompt": PROMPT, "script": json.dumps(script), **more}
    files = {"file": (f"{PROMPT}.wav", RECORDING)}
    return caller.http.post("/v1/audio/transcriptions", data=fields, files=files)


def recorded(caller: Caller) -> None:
    """Send recordings: answered, refused by us and by the engine, broken, with their model's name last, left."""
    assert ANSWERED in transcribe(caller, HEARD).text
    assert transcribe(caller, HEARD, model=PROMPT).status_code == 404
    told = {"error": {"message": f"cannot hear {PROMPT}"}}
    assert transcribe(caller, [{"send": unary(400, told)}]).status_code == 400
    assert transcribe(caller, [{"reset": True}]).status_code == 502
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{PROMPT}.wav"\r\n\r\n'
    model = '--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nplain\r\n'
    form = {"content-type": "multipart/form-data; boundary=b"}
    late = head.encode() + RECORDING + f"\r\n{model}".encode()
    for end, status in ((b"--b--\r\n", 200), (b"--b\r\n" + SOUND.encode(), 400)):
        answer = caller.http.post("/v1/audio/transcriptions", content=late + end, headers=form)
        assert answer.status_code == status
    with contextlib.suppress(httpx2.ReadTimeout):
        caller.http.post("/v1/audio/transcriptions", content=late + b"--b", headers=form, timeout=0.5)
    fields = {"model": "plain", "reading": '{"wait": 0.01}', "script": json.dumps(HEARD)}
    with contextlib.suppress(httpx2.TimeoutException):
        files = {"file": ("a.wav", RECORDING * 4)}
        caller.http.post("/v1/audio/transcriptions", data=fields, files=files, timeout=1)


def finished(caller: Caller) -> None:
    assert ANSWERED in caller.chat(WHOLE).text
    assert ANSWERED in caller.chat(STREAM, stream=True).text
    assert ANSWERED in caller.chat(STREAM, model="assembled").text


def aborted(caller: Caller) -> None:
    caller.leave([{"send": SSE}, WORDS, WORDS, {"hang": True}], stream=True)
    caller.leave([{"send": SSE}, WORDS, {"hang": True}], model="assembled")
    caller.leave([{"hang": True}])


def refused_by_us(caller: Caller) -> None:
    assert caller.chat(WHOLE, model=PROMPT).status_code == 404
    assert caller.chat(WHOLE, stream_options=PROMPT).status_code == 400
    assert caller.http.post("/v1/chat/completions", content=f'{{"{PROMPT}": "{PROMPT}').status_code == 400
    assert caller.http.post(f"/v1/{PROMPT}", json={}).status_code == 404
    assert caller.http.get(f"/v1/models/{PROMPT}").status_code == 404
    assert caller.http.get(f"/{PROMPT}?q={PROMPT}").status_code == 404
    for text in (caller.key[:-1], caller.key[:-1] + ("1" if caller.key.endswith("0") else "0"), PROMPT):
        assert caller.http.get("/v1/models", headers={"authorization": f"Bearer {text}"}).status_code == 401


def failed(caller: Caller) -> None:
    told = {"error": {"message": f"cannot do {PROMPT} for {ANSWERED}", "param": PROMPT}}
    assert caller.chat([{"send": unary(400, told)}]).status_code == 400
    assert caller.chat([{"send": unary(500, told)}]).status_code == 502
    assert caller.chat([{"send": f"{ANSWERED} is not HTTP\r\n\r\n"}, {"close": True}]).status_code == 502
    assert caller.chat([{"send": unary(200, {})[:-1] + ANSWERED}, {"close": True}]).status_code in (200, 502)
    crash = f'data: {{"error": {{"message": "{ANSWERED}"}}}}\n\n'
    for end in ({"reset": True}, {"send": chunk(crash) + "0\r\n\r\n"}, {"send": ANSWERED}):
        assert "error" in caller.chat([{"send": SSE}, WORDS, WORDS, end, {"close": True}], stream=True).text
    broken = [{"send": SSE}, {"send": chunk(f"data: {ANSWERED} is no JSON\n\n" + FINISH + DONE) + "0\r\n\r\n"}]
    caller.chat(broken, model="assembled")
    caller.chat(broken, stream=True)


def test_no_words_and_no_key_reach_disk_or_log_however_calls_end(place):
    installation, fake, caller = place
    for way in (finished, aborted, refused_by_us, failed, recorded):
        way(caller)
    until(lambda: fake.seen()["running"] == fake.seen()["uploading"] == 0)
    until(
        lambda: {"finished", "aborted", "refused", "failed"} <= {row["status"] for row in installation.usage().values()}
    )
    # Lines are gathered for a tenth of a second, and what was gathered dies with its process. The last call's row and
    # line come after all others'.
    last = caller.chat(WHOLE).headers["x-request-id"]
    until(lambda: last in installation.usage())
    until(lambda: any(last in line and "madoguchi.calls" in line for line in installation.log.splitlines()))
    # One that is cut by the gateway's death, with a spool that outlives it.
    script = [{"send": SSE}, WORDS, {"hang": True}]
    with caller.http.stream("POST", "/v1/chat/completions", json=caller.body(script, stream=True)) as response:
        next(response.iter_raw())
        assert "interrupted" in "".join(path.read_text() for path in (installation.var / "spool").glob("*.jsonl"))
        assert found(installation.var, *CANARIES, caller.key) == []
        installation.process.send_signal(signal.SIGKILL)
        installation.process.wait()
    assert found(installation.var, *CANARIES, caller.key) == []
    assert "DEBUG" in installation.log  # it did say what it could
    assert REJECTED in installation.log


def test_the_program_is_known_of_a_keys_last_use_and_in_no_log(place):
    installation, _, _ = place
    assert installation.read("select last_used_with from keys_apikey") == [(PROGRAM,)]
    tables = installation.read("select name from sqlite_master where type = 'table' and name != 'keys_apikey'")
    for (table,) in tables:
        assert PROGRAM not in str(installation.read(f"select * from {table}"))
    assert PROGRAM not in installation.log


def test_each_call_is_a_line_of_facts(place):
    installation, _, _ = place
    usage = installation.usage()
    assert len(usage) > 10
    for request_id, row in usage.items():
        if row["status"] == "interrupted":
            continue  # its gateway was killed
        (line,) = [line for line in installation.log.splitlines() if request_id in line and "madoguchi.calls" in line]
        facts = facts_in(line)
        for name in ("model", "endpoint", "status", "prompt_tokens", "completion_tokens", "estimated"):
            assert facts[name] == str(row[name] if name != "estimated" else bool(row[name]))
        for name in ("key", "user", "tenant", "replica"):
            assert facts[name] == str(row[f"{name}_id"])
        assert facts["ms"] == str(row["duration_ms"])
        assert facts["http"] == "200" or row["status"] in ("failed", "refused", "aborted")


def facts_in(line: str) -> dict[str, str]:
    """Return the facts of a line in either format, as texts."""
    if line.startswith("{"):
        return {name: str(value) for name, value in json.loads(line).items()}
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def test_every_line_is_an_object_where_json_was_asked_for(place):
    installation, _, _ = place
    # But for the address, which `up` says to the person in front of it at each of its starts.
    lines = [line for line in installation.log.splitlines() if f" {installation.url} " not in line]
    if "LOG_FORMAT" in installation.env and installation.env["LOG_FORMAT"] == "json":
        for line in lines:
            assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
    else:
        assert all(line.startswith(("20", "    ")) for line in lines)


def test_the_search_finds_what_is_there(place):
    installation, _, caller = place
    places = {name for name, _ in found(installation.var, caller.key[:12])}
    assert places
    assert places <= {"madoguchi.sqlite3", "madoguchi.sqlite3-wal"}


def test_an_internal_error_is_logged_without_what_it_was_about(counter, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)

    def broken(limits, model, estimate, now):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(counter.application.gateway.services.limits, "admit", broken)
    response = counter.chat(messages=[{"role": "user", "content": PROMPT}], user=AGENT)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    (logged,) = [record for record in caplog.records if record.exc_info]
    text = logging.Formatter().format(logged)
    assert response.headers["x-request-id"] in text
    assert "a mistake of ours" in text
    for canary in (*CANARIES, counter.key):
        assert canary not in caplog.text
