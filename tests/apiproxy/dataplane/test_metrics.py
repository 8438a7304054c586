import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import httpx2
import pytest

from apiproxy.dataplane import metrics as exposition
from apiproxy.dataplane.metrics import BATCH, LAYOUT, Metrics, WorkerState, escape_label, join_lines
from apiproxy.dataplane.mmap_counters import CounterFile
from modelregistry.version import VERSION
from tests.apiproxy.exposition import samples
from tests.clock import Clock
from tests.engine import DONE, FINISH, SSE, chunk
from tests.waiting import until

STATE = WorkerState(
    in_flight=2, spool_bytes=10, spool_accepting=True, database_up=True, catalogue_revision=7, catalogue_age_seconds=0.5
)


@pytest.fixture
def workers(tmp_path):
    clock = Clock()
    made = [Metrics(CounterFile(tmp_path, LAYOUT), clock) for _ in range(2)]
    yield *made, clock
    for metrics in made:
        metrics.close()


def read_samples(metrics: Metrics, *gauges, models=("m", "acme/m:1")) -> dict[str, float]:
    return samples(metrics.render(models, gauges).decode())


def test_every_line_is_of_the_exposition_format(workers):
    metrics, _, _ = workers
    metrics.count_request("/v1/chat/completions", "acme/m:1", "finished")
    metrics.count_tokens("m", 3, 4)
    metrics.observe_times("m", 0.07, 3.0)
    metrics.observe_stream("m", 11, 0.2)
    metrics.count_rejection("invalid_api_key")
    metrics.count_lost_usage(1)
    metrics.set_state(STATE)
    found = read_samples(metrics, ("g", "A gauge.", (), 1.5), ("h", "Others.", (("model", "m"),), 2))
    assert found["madoguchi_requests_total[ending=finished, endpoint=/v1/chat/completions, model=acme/m:1]"] == 1
    assert found["h[model=m]"] == 2
    assert found["madoguchi_usage_refused_total[]"] == 1
    assert found["madoguchi_in_flight[]"] == 2
    assert found["madoguchi_inter_token_seconds_bucket[le=0.02, model=m]"] == 1
    assert found["madoguchi_inter_token_seconds_bucket[le=0.015, model=m]"] == 0


def test_each_field_of_a_workers_state_is_shown_under_its_name(workers):
    metrics, _, _ = workers
    values = {field.name: float(number) for number, field in enumerate(fields(WorkerState))}
    metrics.set_state(WorkerState(**values))
    found = read_samples(metrics)
    assert {name: found[f"madoguchi_{name}[]"] for name in values} == values


def test_buckets_count_everything_below_them(workers):
    metrics, _, _ = workers
    for seconds in (0.05, 0.06, 7, 10_000):
        metrics.observe_times("m", None, seconds)
    found = read_samples(metrics)
    name = "madoguchi_request_seconds"
    assert [found[f"{name}_bucket[le={le}, model=m]"] for le in ("0.05", "0.1", "10.0", "+Inf")] == [1, 2, 3, 4]
    assert found[f"{name}_count[model=m]"] == 4
    assert found[f"{name}_sum[model=m]"] == pytest.approx(10_007.11)
    assert not any("first_byte_seconds_bucket" in line for line in found)


def test_what_is_counted_of_a_call_at_once_is_what_is_counted_apart(tmp_path):
    apart, at_once = (Metrics(CounterFile(tmp_path / name, LAYOUT)) for name in ("apart", "at-once"))
    for first, whole in ((None, 0.01), (0.2, 0.3), (7.0, 1e9)):
        apart.count_request("/v1/completions", "m", "failed")
        apart.count_tokens("m", 3, 4)
        apart.observe_times("m", first, whole)
        at_once.count_call("/v1/completions", "m", "failed", prompt=3, completion=4, first_byte=first, whole=whole)
    text = at_once.render({"m"}, [])
    assert b"madoguchi_request_seconds_count" in text
    assert sorted(text.splitlines()) == sorted(apart.render({"m"}, []).splitlines())


def test_a_text_of_any_characters_is_one_label(workers):
    label = ("host", escape_label('a "b" \\ c\nd'))
    text = workers[0].render((), [("g", "A gauge.", (label,), 1)]).decode()
    assert 'g{host="a \\"b\\" \\\\ c\\nd"} 1' in text.splitlines()


def test_one_token_has_nothing_between(workers):
    metrics, _, _ = workers
    metrics.observe_stream("m", 1, 0.0)
    assert not any("inter_token" in line for line in read_samples(metrics))


def test_large_numbers_are_written_in_full(workers):
    metrics, _, _ = workers
    for _ in range(3):
        metrics.count_tokens("m", 123_456_789, 1)
    assert read_samples(metrics)["madoguchi_tokens_total[kind=prompt, model=m]"] == 370_370_367


def test_any_worker_reports_all(workers):
    one, other, clock = workers
    for metrics, times in (one, 3), (other, 4):
        for _ in range(times):
            metrics.count_request("/v1/embeddings", "m", "finished")
            metrics.observe_times("m", 0.2, 0.3)
        metrics.set_state(replace(STATE, in_flight=times, catalogue_revision=times, spool_accepting=times == 4))
    assert read_samples(one) == read_samples(other)
    found = read_samples(one)
    assert found["madoguchi_requests_total[ending=finished, endpoint=/v1/embeddings, model=m]"] == 7
    assert found["madoguchi_first_byte_seconds_count[model=m]"] == 7
    names = ("workers", "in_flight", "spool_bytes", "spool_accepting", "catalogue_revision")
    assert [found[f"madoguchi_{name}[]"] for name in names] == [2, 7, 20, 0, 3]
    clock.now += 6  # of the other one nothing was heard any more
    one.set_state(replace(STATE, in_flight=3))
    found = read_samples(one)
    assert (found["madoguchi_workers[]"], found["madoguchi_in_flight[]"]) == (1, 3)
    assert found["madoguchi_requests_total[ending=finished, endpoint=/v1/embeddings, model=m]"] == 7


def test_a_worker_that_ends_is_no_longer_under_way_but_what_it_counted_stays(tmp_path):
    ended, living = Metrics(CounterFile(tmp_path, LAYOUT)), Metrics(CounterFile(tmp_path, LAYOUT))
    for metrics in (ended, living):
        metrics.count_rejection("x")
        metrics.set_state(STATE)
    ended.close()
    found = read_samples(living)
    assert (found["madoguchi_workers[]"], found["madoguchi_refusals_total[code=x]"]) == (1, 2)
    living.close()


def test_models_that_have_gone_leave_text_and_memory(workers):
    one, other, _ = workers
    for number in range(500):
        name = f"model-{number}"
        one.forget_others([name])
        for metrics in (one, other):
            metrics.count_request("/v1/embeddings", name, "finished")
            metrics.count_tokens(name, 1, 1)
            metrics.observe_times(name, 0.1, 0.2)
            metrics.observe_stream(name, 2, 0.2)
    one.count_rejection("x")
    found = read_samples(one, models=["model-499"])
    assert not any("model-498" in line for line in found)
    assert found["madoguchi_tokens_total[kind=prompt, model=model-499]"] == 2
    assert found["madoguchi_refusals_total[code=x]"] == 1
    assert len(one.counters.places) < 10


def test_a_text_of_many_lines_is_joined_whole_and_in_order():
    lines = [f"line_{number} 1" for number in range(2 * BATCH + 1)]
    assert join_lines(lines).decode() == "".join(f"{line}\n" for line in lines)
    assert join_lines([]) == b""


# --- of a running gateway


def test_calls_are_answered_while_the_text_is_made(counter, monkeypatch):
    begun, released, on_loops = threading.Event(), threading.Event(), []
    format_number = exposition.format_number

    def format_slowly(value: float) -> str:
        try:
            asyncio.get_running_loop()
            on_loops.append(value)
        except RuntimeError:  # no loop runs in this thread
            begun.set()
            assert released.wait(20)
        return format_number(value)

    monkeypatch.setattr(exposition, "format_number", format_slowly)
    with ThreadPoolExecutor(1) as others:
        scraped = others.submit(lambda: httpx2.get(f"{counter.url}/metrics", timeout=30))
        try:
            assert begun.wait(20)
            assert counter.chat().status_code == 200
            assert not scraped.done()
        finally:
            released.set()
    found = samples(scraped.result().text)
    assert (found["madoguchi_workers[]"], found["madoguchi_model_replicas[model=fake, state=ready]"]) == (1, 1)
    assert on_loops == []


def test_a_running_gateway_reports_what_its_calls_and_its_neighbours_do(counter):
    script = [{"send": SSE}, {"events": 3, "every": 0.05}, {"send": chunk(FINISH + DONE) + "0\r\n\r\n"}]
    with counter.stream(script=script) as response:
        response.read()
    counter.chat()
    httpx2.get(f"{counter.url}/v1/models", headers={"authorization": "Bearer x"})
    for path in ("/v1/nothing", "/v1/else"):
        counter.client.post(path, json={})
    until(lambda: samples(counter.client.get("/metrics").text)["madoguchi_spool_bytes[]"] == 0)
    found = samples(counter.client.get("/metrics").text)
    assert found["madoguchi_requests_total[ending=finished, endpoint=/v1/chat/completions, model=fake]"] == 2
    assert found["madoguchi_inter_token_seconds_count[model=fake]"] == 1
    assert 0.03 < found["madoguchi_inter_token_seconds_sum[model=fake]"] < 2
    assert found["madoguchi_refusals_total[code=unknown_url]"] == 2
    assert found["madoguchi_refusals_total[code=invalid_api_key]"] == 1
    assert found["madoguchi_replicas_ready[model=fake]"] == 1
    assert found["madoguchi_replicas_skipped[model=fake]"] == 0
    assert (found["madoguchi_workers[]"], found["madoguchi_database_up[]"]) == (1, 1)
    assert found["madoguchi_catalogue_revision[]"] == counter.application.revision
    assert found["madoguchi_catalogue_age_seconds[]"] < 3
    assert found[f"madoguchi_build_info[version={VERSION}]"] == 1
    counter.chat(script=[{"die": True}])
    assert samples(counter.client.get("/metrics").text)["madoguchi_replicas_skipped[model=fake]"] == 1


def test_a_model_that_is_unregistered_leaves_the_metrics(counter):
    counter.chat()
    assert 'model="fake"' in counter.client.get("/metrics").text
    counter.model.delete()
    counter.wait_for_catalogue()
    until(lambda: 'model="fake"' not in counter.client.get("/metrics").text)  # figures of the site are 2 s old at most
