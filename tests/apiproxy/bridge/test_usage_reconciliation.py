"""`manage.py reconcile`: the ledger beside a real llama.cpp's counters."""

import json

import httpx2
import pytest
from django.conf import settings

from apiproxy.bridge.usage_reconciliation import CounterReading, compare_by_model, read_counters
from modelregistry.engines.registry import launched_by
from modelregistry.install.demo_models import SMOLLM2
from modelregistry.process.probe import SAMPLE_TOKENS
from tests import engine
from tests.installation import Installation, installed
from tests.waiting import until


def compare(installation: Installation, model: str) -> dict:
    (row,) = [row for row in json.loads(installation.manage("reconcile", "--json")) if row["model"] == model]
    return row


def differences(row: dict) -> tuple[int, int]:
    return row["prompt_tokens"]["difference"], row["completion_tokens"]["difference"]


@pytest.mark.timeout(400)
def test_the_ledger_agrees_with_a_real_engine_but_for_the_supervisors_questions(tmp_path):
    with engine.running() as fake, installed(tmp_path / "var") as installation:
        # One thread: several wait for each other by spinning, and on a busy machine a token may take a second.
        shape = ("--context", "1024", "--slots", "2", "--arg=--threads=1")
        path = str(SMOLLM2.path(settings.CACHE))
        installation.manage("registermodel", "smollm2", "--engine", "llama.cpp", "--path", path, *shape)
        installation.manage("registermodel", "bought", "--engine", "external", "--url", fake.url)
        key = installation.start_for("smollm2", "bought")
        before = compare(installation, "smollm2")
        assert before["completion_tokens"]["ledger"] == 0
        # Asked whether it is ready, and for a sample of what its version says.
        assert 0 < before["completion_tokens"]["engine"] < SAMPLE_TOKENS + 5

        http = httpx2.Client(base_url=installation.url, headers={"authorization": f"Bearer {key}"}, timeout=60)
        ids = set()
        for number in range(6):
            question = {"role": "user", "content": f"Say {number // 2}."}  # every other one is in the engine's cache
            body = {"model": "smollm2", "messages": [question], "max_tokens": 20, "stream": number % 2 == 0}
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200
            ids.add(answer.headers["x-request-id"])
        until(lambda: ids <= set(installation.usage()))
        after = compare(installation, "smollm2")
        assert after["completion_tokens"]["ledger"] > 20
        # Exactly, but for a question or two that the supervisor may have asked in between (about 30 tokens each).
        prompt, completion = (now - then for now, then in zip(differences(after), differences(before), strict=True))
        assert 0 <= completion <= 2
        assert 0 <= prompt <= 40 * completion
        assert after["engines"] == 1

        (left_out,) = compare(installation, "bought")["not_compared"]
        assert left_out["code"] == "no-counters"
        table = installation.manage("reconcile")
        assert f"{after['prompt_tokens']['engine']:,}" in table
        [line] = [line for line in table.splitlines() if line.startswith("bought: ")]
        assert left_out["replica"] in line
        assert left_out["why"] in line
        assert installation.stop() == 0


def test_replicas_of_a_model_are_added_up_and_those_that_cannot_be_asked_are_named():
    numbers = {"engine_prompt": 10, "engine_completion": 6, "ledger_prompt": 9, "ledger_completion": 7}
    rows = compare_by_model(
        [
            CounterReading(model="m", replica="#0", **numbers),
            CounterReading(model="m", replica="#1", **numbers),
            CounterReading(model="m", replica="#2", why_not="it sleeps", code="asleep"),
        ]
    )
    assert rows == [
        {
            "model": "m",
            "engines": 2,
            "prompt_tokens": {"engine": 20, "ledger": 18, "difference": 2},
            "completion_tokens": {"engine": 12, "ledger": 14, "difference": -2},
            "not_compared": [{"replica": "#2", "code": "asleep", "why": "it sleeps"}],
        }
    ]


def test_vllms_counters_are_read():
    assert read_counters(
        launched_by("vllm").monitoring, {"vllm:prompt_tokens_total": 12.0, "vllm:generation_tokens_total": 5.0}
    ) == (
        12,
        5,
    )
