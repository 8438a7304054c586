"""Engines that die under a call: it goes to no other, its sender is known, and calls that came along are served."""

import concurrent.futures
import contextlib
from collections.abc import Iterator

import pytest

from apiproxy.dataplane.crash_suspects import MEMORY, PROOF, CrashSuspects
from modelregistry.models import Host, Replica
from portal.audit.models import AuditEvent
from tests import engine
from tests.apiproxy.errors import code
from tests.clock import Clock
from tests.engine import ANSWER, SSE, unary
from tests.waiting import until

DEADLY = [{"die": True}]
SLOW = [{"wait": 20}, {"send": unary(200, ANSWER)}]


@pytest.fixture
def engines(counter) -> Iterator[list[engine.Running]]:
    """Provide three engines of one model, the first of them the counter's."""
    host = Replica.objects.get().host
    with contextlib.ExitStack() as stack:
        found = [counter.engine, *(stack.enter_context(engine.running()) for _ in range(2))]
        for index, running in enumerate(found[1:], 1):
            Replica.objects.create(model=counter.model, host=host, index=index, state="ready", url=running.url)
        counter.wait_for_catalogue()
        yield found


def count_alive(engines: list[engine.Running]) -> int:
    return sum(running.process.poll() is None for running in engines)


@pytest.mark.parametrize(
    ("script", "stream", "warm"),
    [(DEADLY, False, False), (DEADLY, True, True), ([{"send": SSE}, {"events": 3}, *DEADLY], True, False)],
)
def test_g14_a_call_under_which_an_engine_died_goes_to_no_other_engine(counter, engines, script, stream, warm):
    """`warm`: on kept connections, where the end of one may also mean that the engine had closed it before."""
    for _ in range(3 if warm else 0):
        assert counter.chat().status_code == 200
    first = counter.chat(script=script, stream=stream)
    if first.status_code == 200:
        assert '"engine_error"' in first.text
    else:
        assert (first.status_code, code(first), first.headers["x-should-retry"]) == (502, "engine_error", "false")
    until(lambda: 'verdict="guilty"} 1\n' in counter.client.get("/metrics").text)
    assert count_alive(engines) == 2
    for _ in range(4):
        again = counter.chat(script=script, stream=stream)
        assert (again.status_code, code(again)) == (400, "suspected_poison")
        assert again.headers["x-should-retry"] == "false"
    assert count_alive(engines) == 2
    assert counter.chat().status_code == 200
    text = counter.client.get("/metrics").text
    assert 'madoguchi_engine_deaths_total{model="fake",verdict="guilty"} 1\n' in text
    assert 'madoguchi_refusals_total{code="suspected_poison"} 4\n' in text


def test_g14_operators_see_who_and_never_what(counter, engines, client, olivia):
    response = counter.chat(script=DEADLY, messages=[{"role": "user", "content": "a secret"}])
    until(lambda: AuditEvent.objects.filter(action="model.crash").exists())
    (event,) = AuditEvent.objects.filter(action="model.crash")
    assert (event.object_id, event.tenant, event.actor) == (
        str(counter.model.pk),
        counter.key_row.tenant,
        counter.key_row.user,
    )
    assert event.after == {
        "api_key": counter.key_row.prefix,
        "request_id": response.headers["x-request-id"],
        "endpoint": "/v1/chat/completions",
        "replica": Replica.objects.get(index=0).pk,
        "open_calls": 1,
        "verdict": "guilty",
    }
    client.force_login(olivia)
    page = client.get("/audit/").text
    assert response.headers["x-request-id"] in page
    assert "a secret" not in page


def test_g14_who_was_open_at_an_engine_that_was_killed_may_ask_again(counter, engines):
    """Killed from outside: no call is to blame, and all are answered by another engine."""
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(counter.chat, script=SLOW, user=str(number)) for number in range(12)]
        until(lambda: sum(running.seen()["running"] for running in engines) == 12)
        engines[0].process.kill()
        until(lambda: sum(one.done() for one in waiting) == 4)
        died = [one.result() for one in waiting if one.done()]
        assert {(answer.status_code, code(answer)) for answer in died} == {(502, "engine_error")}
        assert not any("x-should-retry" in answer.headers for answer in died)
        again = [pool.submit(counter.chat, user=str(number)) for number in range(12)]
        assert {answer.result().status_code for answer in again} == {200}
        for running in engines[1:]:
            running.process.kill()


def test_g14_of_several_that_were_open_the_one_that_kills_again_is_found(counter, engines):
    """Everybody sends again what was broken off, as SDKs do; the second engine dies of the one, and no third."""

    def retry(script: list[dict], user: str) -> list[int]:
        statuses = []
        while len(statuses) < 6 and (not statuses or statuses[-1] in (502, 503)):
            statuses.append(counter.chat(script=script, user=user).status_code)
        return statuses

    innocent = [{"wait": 0.4}, {"send": unary(200, ANSWER)}]
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        others = [pool.submit(retry, innocent, str(number)) for number in range(8)]
        until(lambda: sum(running.seen()["running"] for running in engines) == 8)
        poison = pool.submit(retry, DEADLY, "poison")
        assert poison.result()[-1] == 400
        assert [one.result()[-1] for one in others] == [200] * 8
    assert count_alive(engines) == 1
    assert counter.chat(script=DEADLY, user="poison").status_code == 400
    assert counter.chat(script=innocent, user="3").status_code == 200


def test_g14_an_engine_that_only_breaks_off_is_not_taken_for_dead(counter, engines):
    for _ in range(4):
        assert code(counter.chat(script=[{"reset": True}])) == "engine_error"
    assert sum(len(running.seen()["requests"]) for running in engines) == 4  # each went to one engine
    assert "x-should-retry" not in counter.chat(script=[{"reset": True}]).headers


def test_g14_what_an_engine_failed_at_goes_to_no_other(counter, engines):
    for status in (500, 502, 504):
        assert counter.chat(script=[{"send": unary(status, {"error": {"message": "CUDA error"}})}]).status_code == 502
    assert sum(len(running.seen()["requests"]) for running in engines) == 3


CORE = {"error": {"message": "EngineCore encountered an issue. See stack trace", "type": "InternalServerError"}}


def test_g14_vllms_front_that_reports_its_dead_core_counts_as_dead(counter, engines):
    script = [{"send": unary(500, CORE)}]
    assert counter.chat(script=script).headers["x-should-retry"] == "false"
    assert code(counter.chat(script=script)) == "suspected_poison"


@pytest.mark.parametrize("script", [DEADLY, [{"send": unary(500, CORE)}]])
def test_g14_no_call_is_to_blame_for_the_death_of_a_model_over_several_hosts(counter, engines, script):
    """A rank on another host may have died before it, of which rank 0 fails with the next call."""
    counter.model.nodes = 2
    counter.model.save()
    counter.wait_for_catalogue()
    for _ in range(3):
        answer = counter.chat(script=script)
        assert (answer.status_code, code(answer)) == (502, "engine_error")
        assert "x-should-retry" not in answer.headers
    assert "madoguchi_engine_deaths_total{" not in counter.client.get("/metrics").text


def test_g14_an_engine_that_takes_no_more_is_passed_by_and_another_tried(counter, engines):
    """It says that it has not begun, so there is no danger."""
    full = "HTTP/1.1 503 X\r\ncontent-type: application/json\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\n{}"
    answer = counter.chat(script=[{"send": full}])
    assert sum(len(running.seen()["requests"]) for running in engines) == 3
    assert (answer.status_code, code(answer), answer.headers["retry-after"]) == (503, "engine_busy", "7")


# --- what is remembered


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def suspects(tmp_path, clock) -> CrashSuspects:
    return CrashSuspects(tmp_path / "suspects", b"k", only_gateway=True, wall=clock)


def judge(suspects, body=b"body", *, key=1, replica=1, calls=1, on_trial=False) -> str:
    suspects.record_death(replica, calls)
    return suspects.judge(replica, key, body, calls=calls, on_trial=on_trial).verdict


def test_g14_gateways_of_one_host_learn_from_each_other(suspects, tmp_path, clock):
    other = CrashSuspects(tmp_path / "suspects", b"k", only_gateway=True, wall=clock)
    assert judge(suspects) == "guilty"
    assert other.deaths(1, b"body") == 0
    other.sweep()
    assert other.deaths(1, b"body") >= PROOF
    assert other.deaths(1, b"another") == 0
    assert b"body" not in b"".join(path.read_bytes() for path in (tmp_path / "suspects").iterdir())


def test_g14_what_was_remembered_is_forgotten_after_minutes_or_by_an_answer(suspects, clock):
    judge(suspects, b"one")
    judge(suspects, b"two", replica=2, calls=5)
    suspects.clear(1, b"two")
    suspects.sweep()
    assert (suspects.deaths(1, b"one"), suspects.deaths(1, b"two")) == (PROOF, 0)
    clock.now += MEMORY + 1
    suspects.sweep()
    assert suspects.deaths(1, b"one") == 0


def test_g14_with_several_gateways_a_single_call_is_only_suspected_at_first(tmp_path, clock):
    suspects = CrashSuspects(tmp_path, b"k", only_gateway=False, wall=clock)
    assert judge(suspects) == "suspect"
    assert judge(suspects, replica=2, calls=7, on_trial=True) == "guilty"


def test_g14_calls_of_one_death_count_as_open_together(suspects, clock):
    """The last of them to learn of it is the only one left, and was not the only one."""
    assert [suspects.record_death(1, calls) for calls in (3, 2, 1)] == [3, 3, 3]
    assert suspects.record_death(2, 1) == 1
    clock.now += 60
    assert suspects.record_death(1, 1) == 1


def test_g14_a_call_that_was_open_many_times_died_once_with_its_engine(suspects, clock):
    assert [judge(suspects, calls=9) for _ in range(9)] == ["suspect"] * 9
    assert suspects.deaths(1, b"body") == 1
    clock.now += 60
    assert judge(suspects, calls=9) == "suspect"
    clock.now += 60
    assert judge(suspects, calls=9) == "guilty"


def test_g14_one_death_says_nothing_of_the_same_body_from_another_key(suspects, clock):
    assert judge(suspects) == "guilty"
    assert suspects.deaths(2, b"body") == 0
    clock.now += 60
    assert judge(suspects, key=3) == "guilty"
    assert 0 < suspects.deaths(2, b"body") < PROOF
    clock.now += 60
    assert judge(suspects, key=4, calls=2) == "guilty"
    assert suspects.deaths(2, b"body") >= PROOF


def test_g14_one_death_counts_once_however_many_gateways_and_keys_had_the_body_open(tmp_path, clock):
    gateways = [CrashSuspects(tmp_path, b"k", only_gateway=False, wall=clock) for _ in range(4)]
    for key, gateway in enumerate(gateways):
        judge(gateway, key=key, calls=2)
    for gateway in gateways:
        gateway.sweep()
        assert [gateway.deaths(key, b"body") for key in (0, 3, 9)] == [1, 1, 0]


def test_g14_no_flood_of_deaths_fills_the_directory(suspects, tmp_path, monkeypatch):
    monkeypatch.setattr("apiproxy.dataplane.crash_suspects.MAX_SUSPECTS", 10)
    for number in range(50):
        judge(suspects, b"%d" % number, replica=number, calls=2)
    assert len(list((tmp_path / "suspects").iterdir())) == 10


def test_t3_an_answer_that_fails_after_tokens_were_made_is_not_made_again_elsewhere(counter):
    """Also not of a call whose answer would have been put together: no client has seen any of it, but it was made."""
    counter.model.engine, counter.model.path = "llama.cpp", "/m.gguf"
    counter.model.save()
    with engine.running() as other:
        Replica.objects.create(model=counter.model, host=Host.objects.get(), index=1, state="ready", url=other.url)
        counter.wait_for_catalogue()
        for stream in (True, False):
            counter.chat(stream=stream, script=[{"send": SSE}, {"events": 3}, {"close": True}])
        asked = [*counter.engine.seen()["requests"], *other.seen()["requests"]]
    assert len(asked) == 2
    assert [row.completion_tokens > 0 for row in counter.usage(2)] == [True, True]
