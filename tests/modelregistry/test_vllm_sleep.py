"""A real vLLM (its build for CPUs) with its development routes behind the guard, and how that build refuses to sleep.

On a CPU those routes answer as on a GPU, and nothing sleeps: so the order of the calls can be tried, not their effect.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from modelregistry import failure_advice
from modelregistry.engines.base import EngineEndpoint, MemoryGrant, Spec
from modelregistry.engines.registry import launched_by
from modelregistry.engines.vllm import VLLM_MODULE
from modelregistry.hostside.sleep_record import SleepRecord
from modelregistry.process import probe
from modelregistry.process.probe import Target
from modelregistry.supervisor import sleeping
from tests import engines, ports
from tests.waiting import until

# A start takes a minute on an idle machine, and CI's is not.
pytestmark = pytest.mark.timeout(900)

START = 400.0  # seconds
KEY = {"authorization": "Bearer k"}


def start(directory: Path, *without: str) -> tuple[subprocess.Popen[bytes], Target]:
    """Start it as a model that may sleep would be on a GPU, without some of its options."""
    model = engines.tiny_llama()
    spec = Spec(engine="vllm", name="tiny", path=str(model), sleep="level2", context=1024, args=("--enforce-eager",))
    program = (str(engines.vllm_python()), *VLLM_MODULE)
    endpoint = EngineEndpoint(address="127.0.0.1", port=ports.unused_port(), api_key="k", grace=1)
    made = launched_by("vllm").build_command(spec, program, endpoint, os.environ, MemoryGrant(cache=2**27))
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [word for word in made.argv if word not in without],
            env=made.env | engines.VLLM_ON_CPU,
            stdout=log,
            stderr=log,
        )
    return process, Target(launcher="vllm", url=endpoint.url, api_key="k", model="tiny", task="chat")


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("vllm")
    process, target = start(directory, "--enable-sleep-mode")

    def answers() -> bool:
        assert process.poll() is None, (directory / "log").read_text()[-2000:]
        try:
            return httpx2.get(f"{target.url}/health", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    until(answers, START)
    yield target
    process.terminate()
    process.wait(60)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/server_info"), ("POST", "/reset_prefix_cache"), ("POST", "/reset_mm_cache"), ("POST", "/pause")),
        *(("POST", "/resume"), ("GET", "/weight_info"), ("POST", "/update_weights"), ("GET", "/get_world_size")),
        *(("POST", "/release_kv_cache_memory"), ("POST", "/tokenize"), ("POST", "/invocations"), ("GET", "/load")),
    ],
)
def test_the_guard_closes_what_development_mode_opens(engine, method, path):
    assert httpx2.request(method, engine.url + path, headers=KEY, timeout=10).status_code == 404
    assert httpx2.request(method, engine.url + path, timeout=10).status_code == 401


def test_no_method_of_the_workers_can_be_called_but_the_reload(engine):
    url = f"{engine.url}/collective_rpc"
    assert httpx2.post(url, json={"method": "reload_weights"}, headers=KEY, timeout=60).status_code == 200
    assert httpx2.post(url, json={"method": "get_model"}, headers=KEY, timeout=60).status_code == 404
    assert httpx2.post(url, json={"method": "reload_weights"}, timeout=60).status_code == 401


@pytest.mark.parametrize("level", ["level1", "level2"])
async def test_it_takes_the_calls_of_sleep_in_our_order_and_gives_the_same_answer_after_them(engine, level):
    async with httpx2.AsyncClient() as client:
        await probe.ask_question(client, engine)
        answer = await probe.ask_sample(client, engine)
        assert await sleeping.ask_whether_asleep(client, engine) is False
        await sleeping.fall_asleep(client, engine, level)
        assert await sleeping.ask_whether_asleep(client, engine) is True
        with pytest.raises(probe.ProbeFailed):
            await probe.ask_question(client, engine, within=1)
        assert (await probe.check_health(client, engine)).healthy  # which proves nothing
        await sleeping.wake_up(client, engine, SleepRecord(answer=answer, level=level), within=120)
        assert await sleeping.ask_whether_asleep(client, engine) is False


def test_the_build_for_cpus_does_not_start_with_a_sleep_mode_and_its_log_is_understood(tmp_path):
    process, _target = start(tmp_path)
    assert process.wait(START) != 0
    assert failure_advice.cause((tmp_path / "log").read_text()) == "sleep-unsupported"


def test_a_model_of_the_build_for_cpus_serves_and_is_stopped_when_it_is_idle(site):
    site.environment |= engines.VLLM_ON_CPU
    site.supervise()
    model = {"engine": "vllm", "path": str(engines.tiny_llama()), "context": 1024, "args": ["--enforce-eager"]}
    site.model("tiny", **model, idle_after=1, sleep_mode="level1")
    until(lambda: site.replica("tiny"), 20)
    ready = site.reaches("ready", "tiny", seconds=START)
    assert (ready.cause, ready.restarts) == ("sleep-cpu", 0)
    asleep = site.reaches("asleep", "tiny", seconds=60)
    assert (asleep.cause, asleep.pid) == ("sleep-cpu", None)
