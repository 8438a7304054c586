"""A gateway on a real socket (uvicorn, as in production, in a thread) in front of a fake engine process."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
import uvicorn

from apiproxy.bridge.models import CatalogueRevision
from apiproxy.dataplane.memory_budget import MB
from apiproxy.server.asgi import Application
from modelregistry.models import Host, Replica, ServedModel
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey
from portal.usage.models import UsageRecord
from tests import engine
from tests.redis import Redis, redis_server
from tests.waiting import until

# uvicorn's protocol classes, as `up` sets them.
HTTP = "apiproxy.server.protocol:Protocol"
WS = "apiproxy.server.protocol:Socket"


@dataclass
class Counter:
    """What a test holds of the running system. `counter` is what Madoguchi means."""

    url: str
    key: str
    key_row: ApiKey
    engine: engine.Running
    model: ServedModel
    application: Application
    server: uvicorn.Server
    client: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx2.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=20)

    def chat(self, **fields: Any) -> httpx2.Response:
        body = {"model": self.model.name, "messages": [{"role": "user", "content": "hi"}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    @contextlib.contextmanager
    def stream(self, **fields: Any) -> Iterator[httpx2.Response]:
        body = {"model": self.model.name, "messages": [{"role": "user", "content": "hi"}], "stream": True, **fields}
        with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            yield response

    def wait_for_catalogue(self) -> None:
        """Wait until the gateway's catalogue holds every change made so far."""
        until(lambda: self.application.revision == CatalogueRevision.objects.get().number)

    def usage(self, count: int = 1) -> list[UsageRecord]:
        """Return the recorded usage, once there are so many rows."""
        until(lambda: UsageRecord.objects.count() >= count)
        return list(UsageRecord.objects.order_by("id"))


@contextlib.contextmanager
def serve_gateway(http: str = HTTP, **options: Any) -> Iterator[tuple[str, Application, uvicorn.Server]]:
    """Provide the gateway on a free port; `options` are uvicorn's, beside those that `up` sets."""
    application = Application()
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(application, loop="uvloop", http=http, lifespan="on", log_level="error", ws=WS, **options)
    config.proxy_headers = False
    config.timeout_graceful_shutdown = 2
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", application, server
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture
def fake_engine() -> Iterator[engine.Running]:
    with engine.running() as running:
        yield running


@pytest.fixture
def server_options() -> dict[str, Any]:
    """Return the options of `serve_gateway` for the fixture `counter`; tests override it."""
    return {}


@pytest.fixture
def counter(transactional_db, settings, tmp_path, alice, research, fake_engine, server_options) -> Iterator[Counter]:
    settings.SPOOL, settings.RUN = tmp_path / "spool", tmp_path / "run"
    host = Host.objects.create(name="here")
    model = ServedModel.objects.create(name="fake", engine="external", url=fake_engine.url)
    Replica.objects.create(model=model, host=host, state=Replica.State.READY, url=fake_engine.url)
    row, key = issue_key(tenant=research, user=alice, name="test")
    with serve_gateway(**server_options) as running:
        url, application, server = running
        yield Counter(url, key, row, fake_engine, model, application, server)


@pytest.fixture
def llama(counter) -> Counter:
    """Have llama.cpp serve the model, as far as the gateway knows: answers are put together from streams."""
    counter.model.engine, counter.model.path = "llama.cpp", "/m.gguf"
    counter.model.save()
    counter.wait_for_catalogue()
    return counter


@pytest.fixture
def small_memory(settings) -> None:
    settings.GATEWAY_MEMORY, settings.GATEWAY_MEMORY_PER_KEY = 16 * MB, 4 * MB


@pytest.fixture
def short_heartbeat(monkeypatch) -> None:
    """Send a heartbeat at each sweep, which is once a second."""
    monkeypatch.setattr("apiproxy.dataplane.forwarding.HEARTBEAT", 0.1)


@pytest.fixture(scope="module")
def redis_process() -> Iterator[Redis]:
    with redis_server() as running:
        yield running
