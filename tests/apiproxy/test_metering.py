"""Metering of a running gateway goes on, whatever one call or one line of the spool does to it."""

import contextlib
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import Mock

import httpx2
import pytest
from django.core.management import call_command
from django.db import OperationalError
from django.test import Client

from apiproxy.dataplane.call_meter import CHECKPOINT, CallMeter
from apiproxy.dataplane.client_address import ClientAddress
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import ENDPOINTS
from apiproxy.dataplane.ledger import DatabaseUnavailable
from apiproxy.dataplane.limits.units import Consumption
from apiproxy.dataplane.throughput import MAX_RATE
from apiproxy.dataplane.token_usage import Tokens
from apiproxy.dataplane.usage_events import Usage
from apiproxy.dataplane.validation import MAX_CONTEXT
from apiproxy.server.asgi import UNMETERED, readiness
from modelregistry.supervisor.watchdog import HANGS, Down
from portal.keys.lifecycle import rotate_key
from portal.quotas.models import Quota
from portal.usage.models import UsageBacklog, UsageRecord, UsageSetAside
from tests import engine
from tests.apiproxy.conftest import serve_gateway
from tests.apiproxy.exposition import samples
from tests.apiproxy.served import KEY, SERVED
from tests.engine import ANSWER, DONE, FINISH, SSE, chunk, unary, usage_event
from tests.installation import installed
from tests.output import numbers_in
from tests.waiting import until

END = chunk(FINISH + usage_event(11, 4) + DONE) + "0\r\n\r\n"


def metric(counter, name: str, labels: str = "") -> float:
    return samples(counter.client.get("/metrics").text).get(f"madoguchi_{name}[{labels}]", 0)


def read_readiness(counter) -> tuple[int, dict]:
    answer = counter.client.get("/readyz")
    return answer.status_code, answer.json()


def run(*words: str) -> str:
    out = io.StringIO()
    call_command(*words, stdout=out)
    return out.getvalue()


def leave(counter, line: bytes) -> None:
    """Leave a line as a gateway that died did; the living one takes it with its own next call."""
    draft = counter.application.gateway.services.spool.directory / "000000000000-000000.draft"
    draft.write_bytes(line)
    draft.rename(draft.with_suffix(".jsonl"))


def facts(counter, **more) -> dict:
    """Return the members of a call as its line in the spool has them."""
    row = counter.usage()[0]
    names = [name for name in Usage.__dataclass_fields__ if hasattr(row, name)]
    told = {name: getattr(row, name) for name in names if name not in ("key", "user", "tenant")}
    return {
        **told,
        **{"key": row.key_id, "user": row.user_id, "tenant": row.tenant_id, "replica": row.replica_id},
        "started": row.started_at.timestamp(),
        **more,
    }


def test_m7_a_line_that_no_database_takes_ends_nobodys_metering_and_operators_see_it(counter, olivia):
    counter.chat()
    assert read_readiness(counter) == (200, {"status": "ready"})
    bad = facts(counter, request_id="bad", prompt_tokens=10**18)
    leave(counter, json.dumps({"close": bad}).encode() + b"\n")
    counter.chat()
    counter.usage(2)
    until(lambda: read_readiness(counter) == (200, {"status": "ready", "usage_set_aside": 1}))
    assert metric(counter, "usage_refused_total") == 1
    assert metric(counter, "usage_set_aside") == 1
    until(UsageSetAside.objects.exists)
    pages = Client()
    pages.force_login(olivia)
    assert "data-set-aside=" in pages.get("/operations/").content.decode()

    assert "prompt_tokens" in run("setaside")
    path = counter.application.gateway.services.spool.directory / "refused.txt"
    path.write_text(path.read_text().replace(str(10**18), "7"))  # the mend
    assert numbers_in(run("setaside", "--replay")) == [1, 0]  # recorded, and still set aside
    assert UsageRecord.objects.get(request_id="bad").prompt_tokens == 7
    until(lambda: read_readiness(counter) == (200, {"status": "ready"}))
    until(lambda: not UsageSetAside.objects.exists())
    assert "data-set-aside=" not in pages.get("/operations/").content.decode()


def test_usage_that_waits_on_disk_for_long_is_reported_until_it_is_recorded(counter, monkeypatch):
    monkeypatch.setattr("apiproxy.dataplane.backlog.MUCH", 1)
    monkeypatch.setattr("apiproxy.dataplane.backlog.LONG", 0.0)
    with monkeypatch.context() as broken:
        broken.setattr("portal.usage.records.record_usage", Mock(side_effect=OperationalError("no such column")))
        counter.chat()
        until(UsageBacklog.objects.exists)
    until(lambda: not UsageBacklog.objects.exists())
    assert counter.usage()


def test_m7_what_never_will_be_recorded_can_be_given_up(counter):
    leave(counter, b"nonsense\n")
    counter.chat()
    until(lambda: read_readiness(counter)[1].get("usage_set_aside") == 1)
    directory = counter.application.gateway.services.spool.directory
    said = run("setaside", "--discard")
    until(lambda: "usage_set_aside" not in read_readiness(counter)[1])
    [kept] = [path for path in directory.iterdir() if str(path) in said]
    assert "nonsense" in kept.read_text()
    assert numbers_in(run("setaside", "--replay")) == []  # nothing was there


def test_m7_a_gateway_starts_whatever_is_in_the_spool(transactional_db, settings, tmp_path):
    settings.SPOOL, settings.RUN = tmp_path / "spool", tmp_path / "run"
    settings.SPOOL.mkdir()
    (settings.SPOOL / "000000000000-000000.jsonl").write_bytes(b'{"close":{"n":1}}\n\0\0{{{\n' + b"\xff" * 999 + b"\n")
    (settings.SPOOL / "111111111111-000000.jsonl").mkdir()
    (settings.SPOOL / "222222222222.lock").touch()
    with serve_gateway() as (url, application, _):
        until(lambda: len(application.drain.set_aside) == 3)
        assert url


@contextmanager
def broken(application):
    """Provide the ledger, broken by an unexpected error."""
    run = application.drain.run

    def falls() -> int:
        raise RuntimeError("of something new")

    application.drain.run = falls
    try:
        yield
    finally:
        application.drain.run = run


def test_m7_a_task_that_falls_is_shown_and_goes_on_by_itself(counter):
    with broken(counter.application):
        counter.chat()
        until(lambda: read_readiness(counter)[1].get("tasks_down"))
        status, told = read_readiness(counter)
        assert (status, told["tasks_down"][0]["task"], told["tasks_down"][0]["why"]) == (
            200,
            "metering",
            "RuntimeError",
        )
        until(lambda: metric(counter, "tasks_down") == 1)
        assert metric(counter, "task_failures_total", "task=metering") >= 1
        assert counter.chat().status_code == 200
    counter.usage(2)
    until(lambda: read_readiness(counter) == (200, {"status": "ready"}))
    until(lambda: metric(counter, "tasks_down") == 0)


@pytest.mark.parametrize(
    ("accepting", "down", "status"),
    [
        (True, [], 200),
        (False, [], 503),
        (True, [Down("metering", "KeyError", UNMETERED - 1)], 200),
        (True, [Down("metering", "KeyError", UNMETERED + 1)], 503),
        (True, [Down("metering", HANGS, UNMETERED + 1)], 200),  # for a database that is away; calls go on without it
        (True, [Down("refusals", "KeyError", UNMETERED + 1)], 200),
    ],
)
def test_m7_a_gateway_is_taken_away_only_if_its_metering_is_broken_for_long(accepting, down, status):
    assert readiness(accepting, down, 0)[0] == status


def test_m7_a_failure_in_a_calls_end_still_records_it_and_gives_back_what_was_reserved(counter, research, monkeypatch):
    Quota.objects.create(tenant=research, unit="concurrent", window="", amount=1)
    counter.wait_for_catalogue()
    gateway = counter.application.gateway
    admit = gateway.services.limits.admit

    async def and_its_settling_fails(*words):
        return Falls(await admit(*words))

    monkeypatch.setattr(gateway.services.limits, "admit", and_its_settling_fails)
    for stream in (False, True):
        script = [{"send": SSE}, {"events": 3}, {"send": END}] if stream else []
        counter.chat(stream=stream, **({"script": script} if stream else {}))
    monkeypatch.undo()
    assert counter.chat().status_code == 200  # nothing stays reserved
    assert len(counter.usage(3)) == 3
    assert counter.application.gateway.in_flight == 0


class Falls:
    """A reservation that cannot be settled."""

    def __init__(self, hold) -> None:
        self._hold = hold
        self.release, self.headers = hold.release, hold.headers

    def settle(self, used: Consumption) -> None:
        raise OverflowError("int too large")


def test_m1_what_cannot_be_guessed_ends_the_call_and_records_it(counter, monkeypatch):
    """A client leaves, and the guess of what the engine made fails."""
    gateway = counter.application.gateway

    def falls(model: int, seconds: float) -> float:
        raise OverflowError("int too large to convert to float")

    monkeypatch.setattr(gateway.services.throughput, "estimate", falls)
    script = [{"wait": 30}, {"send": SSE}]
    with pytest.raises(httpx2.ReadTimeout):
        counter.client.post(
            "/v1/chat/completions", json={"model": "fake", "messages": [], "script": script}, timeout=0.5
        )
    (row,) = counter.usage()
    assert row.status == "failed"
    until(lambda: gateway.in_flight == 0)


def test_m4_usage_that_cannot_be_right_is_charged_once_and_teaches_no_rate(counter):
    usage = {"prompt_tokens": 7, "completion_tokens": 10**9}
    assert counter.chat(script=[{"send": unary(200, {**ANSWER, "usage": usage})}]).status_code == 200
    body = {"model": "fake", "messages": [], "script": [{"hang": True}]}
    with pytest.raises(httpx2.ReadTimeout):
        counter.client.post("/v1/chat/completions", json=body, timeout=0.5)
    wrong, aborted = counter.usage(2)
    assert wrong.prompt_tokens + wrong.completion_tokens == MAX_CONTEXT
    assert aborted.status == "aborted"
    assert 0 < aborted.completion_tokens <= MAX_RATE * (aborted.duration_ms + 10) / 1000  # is taken just before


def test_m9_rotating_a_key_does_not_raise_its_limits(counter):
    Quota.objects.create(key=counter.key_row, unit="requests", window="day", amount=3)
    counter.wait_for_catalogue()
    assert [counter.chat().status_code for _ in range(2)] == [200, 200]
    row, text = counter.key_row, counter.key
    given = 0
    for _ in range(3):
        row, text = rotate_key(row, timedelta(hours=1))
        counter.wait_for_catalogue()
        for one in (counter.key, text):
            answer = counter.client.post(
                "/v1/chat/completions",
                json={"model": "fake", "messages": []},
                headers={"authorization": f"Bearer {one}"},
            )
            given += answer.status_code == 200
    assert given == 1


# --- a gateway that is killed, a database that is away


def test_m8_of_what_a_killed_gateway_was_doing_is_recorded_what_was_counted(tmp_path):
    """A stream, an answer that is put together and one of which no byte was seen."""
    script = [{"send": SSE}, {"events": 400, "every": 0.02}, {"wait": 10}]
    with engine.running() as fake, installed(tmp_path / "var") as installation:
        key = installation.furnish(fake.url)
        installation.serve()
        until(installation.answers)
        calls = {"stream": {"model": "plain", "stream": True}, "assembled": {"model": "assembled"}}
        bodies = {name: {"messages": [], "script": script, **more} for name, more in calls.items()}
        bodies["unary"] = {"model": "plain", "messages": [], "script": [{"wait": 18}]}
        with ThreadPoolExecutor(3) as callers:
            for body in bodies.values():
                callers.submit(post, installation.url, key, body)
            until(lambda: len(checkpoints(installation)) == 3)
            counted = checkpoints(installation)
            installation.process.kill()
            installation.process.wait()
        installation.serve()
        until(lambda: len(installation.usage()) == 3)
        rows = installation.usage()
        assert {row["status"] for row in rows.values()} == {"interrupted"}
        for request_id, row in rows.items():
            assert row["completion_tokens"] >= counted[request_id]
            assert row["duration_ms"] >= 1000 * CHECKPOINT
        assert sum(row["completion_tokens"] > 20 for row in rows.values()) >= 2
        installation.process.terminate()
        installation.process.wait(30)


def post(url: str, key: str, body: dict) -> None:
    with contextlib.suppress(httpx2.TransportError):
        httpx2.post(f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)


def checkpoints(installation) -> dict[str, int]:
    """Return the tokens counted of each call that was written down a while after it began."""
    found = {}
    for path in (installation.var / "spool").glob("*.jsonl"):
        for line in path.read_bytes().rstrip(b"\0").splitlines():
            facts = json.loads(line)["open"]
            if facts["duration_ms"] >= 1000 * CHECKPOINT:
                found[facts["request_id"]] = facts["completion_tokens"]
    return found


def test_m8_checkpoints_of_a_long_stream_are_few():
    """So the spool does not grow with how long streams last."""
    lines: list[int] = []
    spool = SimpleNamespace(open_call=lambda usage: lines.append(usage.duration_ms // 1000))
    context = RequestContext("req_1", ENDPOINTS["/v1/chat/completions"], KEY, ClientAddress("", ""), None)
    context.call, context.model = requests.parse(b'{"model": "m"}'), SERVED
    meter = CallMeter(SimpleNamespace(spool=spool), context, None, 0.0)
    exchange = {"metered": False, "reached": True, "began": 0.0, "first_byte_at": None}
    meter.exchange = SimpleNamespace(used=lambda: (Tokens(prompt=1, completion=7), True), **exchange)
    for now in range(3600):
        meter.exchange.now = lambda now=now: float(now)
        meter.checkpoint(float(now))
    assert lines[0] == CHECKPOINT
    assert len([at for at in lines if at <= 600]) <= 25
    assert len(lines) <= 35
    assert all(later - earlier <= max(CHECKPOINT, later / 4) + 1 for earlier, later in pairwise(lines))


def test_m5_what_waits_for_the_database_is_shown_while_it_waits(counter, monkeypatch):
    """Away, and hanging, when no thread can look at files either."""
    counter.chat()
    counter.usage()
    until(lambda: metric(counter, "spool_bytes") == 0)
    go = threading.Event()

    def away(rows) -> None:
        go.wait(30)
        raise DatabaseUnavailable("gone")

    record = counter.application.drain.record
    counter.application.drain.record = away
    sizes = []
    for number in (1, 2):
        counter.chat()
        until(lambda number=number: metric(counter, "spool_bytes") > 200 * number)
        sizes.append(metric(counter, "spool_bytes"))
    go.set()
    counter.chat()
    until(lambda: metric(counter, "spool_bytes") > sizes[-1])
    counter.application.drain.record = record
    counter.usage(4)
    until(lambda: metric(counter, "spool_bytes") == 0)
