"""The page, the gateway and an engine that follows a script, all for real."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page

from apiproxy.server import single_process
from apiproxy.server.asgi import Application
from modelregistry.models import Host, Replica, ServedModel
from modelregistry.overview import MADE_UP
from tests import engine
from tests.browser.pages import sign_in
from tests.browser.server import Site
from tests.ports import unused_port


@pytest.fixture(scope="module")
def engine_() -> Iterator[engine.Running]:
    with engine.running() as process:
        yield process


@pytest.fixture
def site(transactional_db, monkeypatch, settings, tmp_path) -> Iterator[str]:
    settings.SPOOL, settings.RUN = tmp_path / "spool", tmp_path / "run"
    gateway = Application()  # of this test's event loop
    monkeypatch.setattr(single_process, "gateway", gateway)
    monkeypatch.setitem(single_process.application.application_mapping, "lifespan", gateway)
    portal = Site(unused_port(), lifespan="on")
    portal.start()
    yield portal.url
    portal.stop()


@pytest.fixture
def serve(transactional_db, engine_) -> Callable[..., ServedModel]:
    """Make a model that the engine answers for, or one in another state."""

    def serve(name: str = "qwen", state: str = "ready", **more) -> ServedModel:
        more = {"engine": "external", "url": engine_.url, **more}
        model = ServedModel.objects.create(name=name, **more)
        # Its supervisor is never taken for quiet, as none runs.
        host, _ = Host.objects.update_or_create(name="gpu-01", defaults={"seen_at": MADE_UP})
        Replica.objects.create(model=model, host=host, state=state, url=engine_.url)
        return model

    return serve


@pytest.fixture
def page(open_page, alice) -> Callable[..., Page]:
    """Return the playground, as Alice."""

    def open_(language: str = "en", path: str = "/try/", **more) -> Page:
        page = open_page(language, **more)
        sign_in(page)
        page.goto(path)
        return page

    return open_
