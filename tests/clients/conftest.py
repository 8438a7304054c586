"""A gateway for real clients.

Behind it are llama.cpp with a chat, an embedding and a ranking model, and two fake engines for what these cannot be
made to do.
"""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from modelregistry.models import Host, Replica, ServedModel
from portal.keys.lifecycle import issue_key
from tests import engine, engines
from tests.apiproxy.conftest import serve_gateway
from tests.clients import agent_engine, environment
from tests.clients.office import HERE, Driver, Jdk, Lines, Office


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    made = Driver(environment.python(), HERE / "driver.py")
    yield made
    made.close()


@pytest.fixture(scope="module")
def node() -> Iterator[Driver]:
    made = Driver(environment.node(), HERE / "driver.mjs", environment.packages())
    yield made
    made.close()


@pytest.fixture(scope="module")
def java() -> Iterator[Lines]:
    """Return the output of JdkClient.java, which the launcher compiles as it starts."""
    program = shutil.which("java")
    assert program, "a JDK is missing: `make test-setup` installs openjdk-17-jdk-headless"
    made = Lines(program, HERE / "JdkClient.java")
    yield made
    made.close()


@pytest.fixture(scope="module")
def urls(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Provide the engine of each model."""
    batch = ("--ctx-size=512", "--batch-size=512", "--ubatch-size=512")
    shapes = {
        "chat": (engines.chat_model(), "--parallel=2", "--ctx-size=2048"),
        "embedding": (engines.embedding_model(), "--embeddings", *batch),
        # A model that was not made to rank; llama.cpp takes the first number of its vector for the score.
        "rerank": (engines.embedding_model(), "--reranking", *batch),
    }
    with engine.running() as fake:
        started = {}
        try:
            for task, shape in shapes.items():
                started[task] = engines.launch(tmp_path_factory.mktemp(task), *shape, f"--alias={task}")
            yield {"fake": fake.url, **{task: url for task, (_, url) in started.items()}}
        finally:
            for process, _ in started.values():
                process.kill()
                process.wait()


@pytest.fixture
def model_fields() -> dict[str, Any]:
    """Return what all models of `office` have; tests override it."""
    return {}


@pytest.fixture
def office(transactional_db, settings, tmp_path, alice, research, urls, model_fields) -> Iterator[Office]:
    settings.SPOOL, settings.RUN = tmp_path / "spool", tmp_path / "run"
    host = Host.objects.create(name="here")
    with agent_engine.running() as agent:
        for name, url in {**urls, "agent": agent.url}.items():
            kind = (
                {"engine": "external", "url": url}
                if name in ("fake", "agent")
                else {"engine": "llama.cpp", "task": name, "path": "/m.gguf"}
            )
            model = ServedModel.objects.create(name=name, **kind, **model_fields)
            Replica.objects.create(model=model, host=host, state=Replica.State.READY, url=url, api_key="k")
        _, key = issue_key(tenant=research, user=alice, name="test")
        with serve_gateway() as (url, _, _):
            yield Office(url, key, agent)


@pytest.fixture
def jdk(office, java) -> Jdk:
    return Jdk(office, java)
