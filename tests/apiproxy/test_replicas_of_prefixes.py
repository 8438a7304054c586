"""Two real engines of one model: the next call of a conversation goes to the one that has read what came before."""

from collections.abc import Iterator

import pytest

from modelregistry.models import Host, Replica
from portal.keys.models import ModelAccess
from tests import engines

SYSTEM = "Answer in one short sentence. " * 50  # 1.5 KB, some 300 tokens
TALKS = 3


@pytest.fixture(scope="module")
def real_engines(tmp_path_factory) -> Iterator[list[str]]:
    started = []
    try:
        for number in range(2):
            place = tmp_path_factory.mktemp(f"engine{number}")
            started.append(engines.launch(place, engines.chat_model(), "--alias=m", "--ctx-size=4096", "--parallel=4"))
        yield [url for _, url in started]
    finally:
        for process, _ in started:
            process.kill()
            process.wait()


@pytest.fixture
def talk(llama, real_engines, research):
    """Return what holds conversations in turn."""
    Replica.objects.all().delete()
    for number, url in enumerate(real_engines):
        host = Host.objects.create(name=f"gpu{number}")
        ready = {"state": Replica.State.READY, "launcher": "xllamacpp", "slots": 4}
        Replica.objects.create(model=llama.model, host=host, url=url, api_key="k", **ready)
    llama.wait_for_catalogue()

    llama.client.timeout = 120  # a busy machine reads some ten tokens a second

    def say(subject: str, turn: int) -> dict:
        said = [
            {"role": "user", "content": f"{subject}: question {number} {'and more ' * 20}"} for number in range(turn)
        ]
        messages = [{"role": "system", "content": subject * 10 + SYSTEM}, *said]
        answer = llama.chat(messages=messages, max_tokens=1, temperature=0)
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]

    def hold(subjects: list[str]) -> list[dict]:
        """Return the usage of all second turns."""
        usages = [say(subject, turn) for turn in (1, 2) for subject in subjects]
        return usages[len(subjects) :]

    return hold


def cached(usage: dict) -> float:
    return usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"]


@pytest.mark.timeout(400)
def test_turns_of_a_conversation_are_read_once(talk, llama, research):
    ModelAccess.objects.create(model=llama.model, tenant=research)  # else llama.cpp is asked to keep nothing
    llama.wait_for_catalogue()
    usages = talk([f"subject {number}" for number in range(TALKS)])
    assert len(usages) == TALKS
    assert min(map(cached, usages)) > 0.5
    replicas = {row.replica_id for row in llama.usage(2 * TALKS)}
    assert len(replicas) == 2


@pytest.mark.timeout(400)
def test_a_model_of_all_tenants_lets_its_engine_keep_nothing(talk):
    assert max(map(cached, talk(["subject"]))) == 0
