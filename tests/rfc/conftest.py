"""A whole Madoguchi in front of a fake engine, and a real nginx with the shipped configuration in front of that."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import engine
from tests.installation import Installation, installed
from tests.nginx import Nginx, nginx


@dataclass(frozen=True)
class Site:
    installation: Installation
    nginx: Nginx
    engine: engine.Running
    key: str

    def connect(self, way: str, timeout: float = 20) -> socket.socket:
        """Connect by this `way`: "straight", or through "nginx"."""
        if way == "nginx":
            return self.nginx.connect(timeout)
        return socket.create_connection(("127.0.0.1", self.installation.port), timeout=timeout)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Iterator[Site]:
    with engine.running() as fake, installed(tmp_path_factory.mktemp("http"), TRUSTED_PROXIES="1") as installation:
        key = installation.furnish(fake.url)
        installation.start()
        with nginx(f"127.0.0.1:{installation.port}") as proxy:
            yield Site(installation, proxy, fake, key)


@pytest.fixture(params=["straight", "nginx"])
def way(request) -> str:
    return request.param
