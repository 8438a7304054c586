"""Calls whose engine has died before it took them: they wait until it is started again, and are answered once."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from apiproxy.dataplane import gateway
from modelregistry.models import Replica
from portal.quotas.models import Quota
from portal.usage.models import RefusedRequest, UsageRecord
from tests.apiproxy.conftest import Counter
from tests.apiproxy.errors import code
from tests.ports import unused_port
from tests.waiting import until


def move(counter: Counter, url: str) -> None:
    """Let the catalogue say that the engine is at another address, as after it was started again."""
    replica = Replica.objects.get()
    replica.url = url
    replica.save()
    counter.wait_for_catalogue()


@pytest.fixture
def dead(llama) -> Counter:
    """Return a gateway whose only engine listens no longer, which nothing but calls notice."""
    move(llama, f"http://127.0.0.1:{unused_port()}")
    return llama


def open_calls(counter: Counter) -> int:
    return len(counter.server.server_state.tasks)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_answered_metered_and_counted_once(dead, stream, caplog):
    Quota.objects.create(tenant=dead.key_row.tenant, unit="requests", window="day", amount=1)
    dead.wait_for_catalogue()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(dead.chat, stream=stream)
        until(lambda: any(one.name == "madoguchi.gateway" for one in caplog.records))  # it was not taken
        move(dead, dead.engine.url)
        answer = call.result(20)
    assert answer.status_code == 200
    assert "x-madoguchi-waited" in answer.headers
    assert len(dead.engine.seen()["requests"]) == 1
    assert [row.status for row in dead.usage()] == ["finished"]
    assert code(dead.chat()) == "insufficient_quota"


def test_a_client_that_leaves_meanwhile_is_noticed_at_once(dead, monkeypatch):
    monkeypatch.setattr(gateway, "RESTART_SEEN", 60.0)
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {dead.key}\r\n"
    with socket.create_connection(("127.0.0.1", int(dead.url.rpartition(":")[2]))) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: open_calls(dead) == 1)
    until(lambda: open_calls(dead) == 0)
    move(dead, dead.engine.url)
    assert dead.chat().status_code == 200
    assert len(dead.engine.seen()["requests"]) == len(dead.usage()) == 1


def test_a_call_whose_engine_stays_away_is_refused_in_time(dead, monkeypatch):
    monkeypatch.setattr(gateway, "RESTART_SEEN", 0.2)
    began = time.monotonic()
    assert code(dead.chat()) == "model_unavailable"
    assert time.monotonic() - began < 10
    until(lambda: RefusedRequest.objects.count() == 1)
    assert not UsageRecord.objects.exists()


def test_a_stopping_server_refuses_the_calls_that_wait_for_an_engine(dead, monkeypatch):
    monkeypatch.setattr(gateway, "RESTART_SEEN", 60.0)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(dead.chat)
        until(lambda: open_calls(dead) == 1)
        dead.server.should_exit = True
        assert code(call.result(20)) == "shutting_down"
