"""Calls that are slow, cut short or refused for a known cause, through the gateway: each is explained by that cause."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from django.utils import timezone

from apiproxy.dataplane import scheduler
from apiproxy.server import asgi
from modelregistry.models import Host, Replica, ServedModel
from portal.keys.lifecycle import issue_key, revoke_key
from portal.keys.models import ApiKey
from portal.quotas.models import Quota
from portal.usage.calls import explain_call, find_call
from portal.usage.causes import CODES, FEW
from portal.usage.models import RefusedRequest
from tests.apiproxy.errors import code
from tests.engine import DONE, FINISH, SSE, chunk, event, unary, usage_event
from tests.looping import HANG, LOOP, play, words
from tests.waiting import until

WAIT = 0.8  # seconds: more than people notice
END = [{"send": chunk(FINISH + usage_event(7, 3) + DONE) + "0\r\n\r\n"}]
BUSY = [{"send": SSE}, {"events": 1}, {"wait": WAIT}, *END]
FOREVER = [{"send": SSE}, {"events": 1}, {"hang": True}]


@pytest.fixture
def quick_refusals(monkeypatch) -> None:
    monkeypatch.setattr(asgi, "RECORD_REJECTIONS", 0.05)


def change(counter, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(counter.model, name, value)
    counter.model.save()
    counter.wait_for_catalogue()


@contextmanager
def calling(counter, key: str = "", script: Any = BUSY) -> Iterator[None]:
    """Have another call run meanwhile."""
    body = {"model": "fake", "messages": [], "stream": True, "script": script}
    headers = {"authorization": f"Bearer {key or counter.key}"}
    running = counter.application.gateway.in_flight
    leaves = threading.Event()

    def call() -> None:
        with httpx2.stream("POST", f"{counter.url}/v1/chat/completions", json=body, headers=headers) as response:
            for _ in response.iter_raw():
                if leaves.is_set() and script is FOREVER:
                    return

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    until(lambda: counter.application.gateway.in_flight == running + 1)
    try:
        yield
    finally:
        leaves.set()
        if script is not FOREVER:
            thread.join(20)


def ask(counter, script: Any = (), key: str = "", **fields: Any) -> str:
    """Make a call, and return its id."""
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": True, **fields}
    body |= {"script": script} if script else {}
    headers = {"authorization": f"Bearer {key or counter.key}"}
    answer = counter.client.post("/v1/chat/completions", json=body, headers=headers)
    return answer.headers["x-request-id"]


def answer_with(prompt: int, completion: int, *, first: float = 0.0, lasts: float = 0.0) -> list[dict[str, Any]]:
    end = chunk(FINISH + usage_event(prompt, completion) + DONE) + "0\r\n\r\n"
    return [{"wait": first}, {"send": SSE}, {"events": 2}, {"wait": lasts}, {"send": end}]


def refuse(status: int, message: str) -> list[dict[str, Any]]:
    return [{"send": unary(status, {"error": {"message": message}})}]


def finish(reason: str) -> list[dict[str, Any]]:
    end = event([{"index": 0, "delta": {}, "finish_reason": reason}])
    return [{"send": SSE}, {"events": 3}, {"send": chunk(end + DONE) + "0\r\n\r\n"}]


def key_of_class(counter, key_class: str) -> str:
    _, text = issue_key(tenant=counter.key_row.tenant, user=counter.key_row.user, name="night", key_class=key_class)
    counter.wait_for_catalogue()
    return text


def behind_own(counter) -> str:
    change(counter, slots=1)
    with calling(counter):
        return ask(counter)


def behind_others(counter) -> str:
    change(counter, slots=1)
    _, text = issue_key(tenant=counter.key_row.tenant, user=None, service="dify", name="dify")
    counter.wait_for_catalogue()
    with calling(counter, key=text):
        return ask(counter)


def batch_behind_people(counter) -> str:
    change(counter, slots=1)
    key = key_of_class(counter, "batch")
    with calling(counter):
        return ask(counter, key=key)


def asleep(counter) -> str:
    Replica.objects.update(state=Replica.State.ASLEEP)
    change(counter)
    waking = threading.Timer(WAIT, wake, [counter])
    waking.start()
    try:
        return ask(counter)
    finally:
        waking.join()


def asleep_beside_others(counter) -> str:
    Replica.objects.update(state=Replica.State.ASLEEP)
    change(counter)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scheduler, "MAX_LOADING", 0)
        return ask(counter)


def wake(counter) -> None:
    Replica.objects.update(state=Replica.State.READY)
    ServedModel.objects.get().save()


def after_usual_ones(counter, script: Any) -> str:
    for _ in range(FEW):
        ask(counter, answer_with(20, 30, lasts=0.05))
    counter.usage(FEW)
    return ask(counter, script)


def died(counter) -> str:
    return ask(counter, [{"send": SSE}, {"events": 2}, {"close": True}])


def moved(counter) -> str:
    dead = {"host": Host.objects.get(), "index": 1, "state": "ready", "url": "http://127.0.0.1:1"}
    Replica.objects.create(model=counter.model, **dead)
    change(counter)
    with calling(counter):
        return ask(counter)


def late(counter) -> str:
    change(counter, total_timeout=WAIT)
    return ask(counter, FOREVER)


def leaving(counter) -> str:
    with counter.stream(script=FOREVER) as answer:
        next(answer.iter_raw())
        return answer.headers["x-request-id"]


def looping(counter) -> str:
    change(counter, loops="stop")
    return ask(counter, play(words(LOOP), HANG))


def within_quota(counter, calls: int = 1, **quota: Any) -> str:
    Quota.objects.create(tenant=counter.key_row.tenant, **quota)
    counter.wait_for_catalogue()
    return [ask(counter) for _ in range(calls)][-1]


def at_once(counter) -> str:
    Quota.objects.create(tenant=counter.key_row.tenant, unit="concurrent", window="", amount=1)
    counter.wait_for_catalogue()
    with calling(counter):
        return ask(counter)


def revoked(counter) -> str:
    ask(counter)
    revoke_key(counter.key_row, because="lost")
    counter.wait_for_catalogue()
    return ask(counter)


def expired(counter) -> str:
    ApiKey.objects.update(expires_at=timezone.now() - timedelta(hours=1))
    ApiKey.objects.get().save()
    counter.wait_for_catalogue()
    return ask(counter)


def elsewhere(counter) -> str:
    row = counter.key_row
    row.networks = ["10.9.9.0/24"]
    row.save()
    counter.wait_for_catalogue()
    return ask(counter)


def too_many_waiting(counter, key: str = "") -> str:
    """Have one run and one wait, and return the id of the third, which is one too many."""
    change(counter, slots=1)
    with calling(counter):
        waiting = threading.Thread(target=ask, args=(counter,), kwargs={"key": key})
        waiting.start()
        until(lambda: counter.application.gateway.queued == 1)
        found = ask(counter, key=key)
        waiting.join(20)
        return found


def batch_too_many(counter) -> str:
    return too_many_waiting(counter, key_of_class(counter, "batch"))


def not_running(counter) -> str:
    Replica.objects.update(state=Replica.State.FAILED)
    change(counter)
    return ask(counter)


def killed(counter) -> str:
    """Leave what a gateway that is killed during the stream would."""
    directory = counter.application.gateway.services.spool.directory
    with counter.stream(script=FOREVER) as answer:
        parts = answer.iter_raw()
        next(parts)
        [segment] = directory.glob("*.jsonl")
        draft = directory / "000000000000-000000.draft"
        draft.write_bytes(segment.read_bytes())
        draft.rename(draft.with_suffix(".jsonl"))
        counter.chat()  # the drain looks again when there is something new
        request_id = answer.headers["x-request-id"]
        until(lambda: find_call(request_id))
        return request_id


def stopped_while_waiting(counter) -> str:
    change(counter, slots=1)
    found: list[str] = []
    with calling(counter, script=FOREVER):
        waiting = threading.Thread(target=lambda: found.append(ask(counter, stream=False)))
        waiting.start()
        until(lambda: counter.application.gateway.queued == 1)
        counter.server.should_exit = True
        waiting.join(30)
    return found[0]


INDUCED: dict[str, tuple[Callable[[Any], str], str]] = {
    "own calls": (behind_own, "waited_behind_own"),
    "calls of others": (behind_others, "waited_behind_others"),
    "batch": (batch_behind_people, "batch_waited"),
    "asleep": (asleep, "model_was_asleep"),
    "too many asleep": (asleep_beside_others, "too_many_loading"),
    "long prompt": (lambda counter: ask(counter, answer_with(9000, 20, first=1.1)), "long_prompt"),
    "slow to begin": (lambda counter: ask(counter, answer_with(20, 20, first=1.1)), "slow_start"),
    "slow engine": (lambda counter: after_usual_ones(counter, answer_with(20, 30, lasts=1.2)), "slow_engine"),
    "long answer": (lambda counter: ask(counter, answer_with(20, 2000, lasts=2.1)), "long_answer"),
    "word loop": (looping, "loop_stopped"),
    "cut": (lambda counter: ask(counter, finish("length")), "cut_at_limit"),
    "filtered": (lambda counter: ask(counter, finish("content_filter")), "content_filtered"),
    "client left": (leaving, "client_left"),
    "engine died": (died, "engine_died"),
    "other replica": (moved, "moved_to_other_replica"),
    "time-out": (late, "timed_out"),
    "refused by engine": (lambda counter: ask(counter, refuse(400, "no such role")), "engine_refused"),
    "engine full": (lambda counter: ask(counter, refuse(429, "full")), "engine_busy"),
    "context": (lambda counter: ask(counter, refuse(400, "maximum context length is 9 tokens")), "context_too_long"),
    "gateway killed": (killed, "gateway_restarted"),
    "gateway stopped": (stopped_while_waiting, "gateway_stopped"),
    "quota": (lambda counter: within_quota(counter, 2, unit="requests", window="day", amount=1), "quota_used_up"),
    "no quota": (lambda counter: within_quota(counter, unit="requests", window="day", amount=0), "quota_is_zero"),
    "rate": (lambda counter: within_quota(counter, 2, unit="requests", window="minute", amount=1), "rate_limited"),
    "at once": (at_once, "too_many_at_once"),
    "revoked": (revoked, "key_revoked"),
    "expired": (expired, "key_expired"),
    "network": (elsewhere, "network_not_allowed"),
    "model": (lambda counter: ask(counter, model="another"), "model_not_allowed"),
    "model busy": (too_many_waiting, "model_busy"),
    "batch held back": (batch_too_many, "batch_held_back"),
    "not running": (not_running, "model_not_running"),
    "quick": (ask, "nothing_unusual"),
}


@pytest.mark.parametrize("name", INDUCED)
def test_a_call_is_explained_by_its_cause(quick_refusals, counter, monkeypatch, name):
    monkeypatch.setattr(scheduler, "MAX_QUEUED", 1)
    induce, cause = INDUCED[name]
    request_id = induce(counter)
    until(lambda: find_call(request_id))
    call = find_call(request_id)
    assert call is not None
    assert call.tenant == counter.key_row.tenant_id
    assert [found.code for found in explain_call(call).causes] == [cause]


def test_every_cause_that_is_induced_has_its_code():
    assert {cause for _, cause in INDUCED.values()} <= CODES


def test_a_refused_call_reserves_and_stores_nothing_of_what_it_asked(quick_refusals, counter):
    request_id = ask(counter, model="another", user="someone@example.com")
    until(lambda: find_call(request_id))
    [row] = RefusedRequest.objects.values()
    assert "someone" not in str(row)
    assert (row["model"], row["code"], row["endpoint"]) == ("", "model_not_found", "/v1/chat/completions")


def test_what_is_refused_while_the_database_is_away_is_written_when_it_is_back(quick_refusals, counter, monkeypatch):
    record, away = asgi.catalogue_loader.record_refused_calls, threading.Event()

    def refuse_rows(calls) -> None:
        away.set()
        raise asgi.DatabaseUnavailable("gone")

    monkeypatch.setattr(asgi.catalogue_loader, "record_refused_calls", refuse_rows)
    request_id = ask(counter, model="another")
    assert away.wait(10)
    assert find_call(request_id) is None
    monkeypatch.setattr(asgi.catalogue_loader, "record_refused_calls", record)
    until(lambda: find_call(request_id))


def test_a_flood_of_refusals_becomes_no_flood_of_rows(quick_refusals, counter):
    for _ in range(30):
        answer = counter.chat(model="another")
    assert code(answer) == "model_not_found"
    until(RefusedRequest.objects.exists)
    last = ask(counter, model="fake", max_tokens="many")  # for another reason
    until(lambda: find_call(last))
    assert RefusedRequest.objects.filter(code="model_not_found").count() == 10


def test_keys_that_never_were_leave_no_rows(quick_refusals, counter):
    _, text = issue_key(tenant=counter.key_row.tenant, user=counter.key_row.user, name="gone")
    ApiKey.objects.get(name="gone").delete()
    counter.wait_for_catalogue()
    ask(counter, key=text)
    last = ask(counter, model="another")
    until(lambda: find_call(last))
    assert RefusedRequest.objects.count() == 1
