"""What is compared: no gateway, nginx, a Rust router without keys or metering, this gateway with all of it on."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.bench import tools
from tests.bench.processes import ROOT

# One process, as the gateway has one; connections to the engine are kept, and every token is passed on at once.
NGINX = """
daemon off; worker_processes 1; worker_rlimit_nofile 16384; pid nginx.pid; error_log stderr;
events { worker_connections 8192; }
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    upstream engine { server 127.0.0.1:%(engine)d; keepalive 1024; }
    server {
        listen 127.0.0.1:%(port)d backlog=4096;
        keepalive_requests 1000000;
        location / {
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }
    }
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of a catalogue."""

    keys: int
    models: int


SMALL, LARGE = Size(keys=1, models=1), Size(keys=100_000, models=1_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """`command` is empty for the engine itself, which runs anyway. `env` names where a gateway keeps its database."""

    name: str
    port: int
    path: str = "/health"  # answers with success as soon as it is there
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    key: str = "none"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"


def contenders(directory: Path, names: Sequence[str]) -> list[Contender]:
    """Return those of these names, prepared and with ports that no other program uses; first the engine itself."""
    engine = free_port()
    return [Contender(name="direct", port=engine), *(MAKERS[name](directory / name, engine) for name in names)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return opened.getsockname()[1]


def nginx(directory: Path, engine: int) -> Contender:
    directory.mkdir()
    port, config = free_port(), directory / "nginx.conf"
    config.write_text(NGINX % {"port": port, "engine": engine})
    return Contender(name="nginx", port=port, command=("/usr/sbin/nginx", "-p", str(directory), "-c", str(config)))


def vllm_router(directory: Path, engine: int, *, policy: str = "cache_aware") -> Contender:
    """Return its command, without its log.

    Its own default, `cache_aware`, takes two to three times the CPU of `round_robin` per request.

    That is what people run who leave it as it comes; the other has nothing to decide, so it is the one that is hard to
    reach. Both are shown.
    """
    port = free_port()
    options = {
        "worker-urls": f"http://127.0.0.1:{engine}",
        "host": "127.0.0.1",
        "port": port,
        "policy": policy,
        "log-level": "error",
        "prometheus-port": free_port(),
    }
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    command = (str(tools.python()), "-m", "vllm_router.launch_router", *words)
    return Contender(name=directory.name, port=port, command=command)


def madoguchi(
    directory: Path, engine: int, *, size: Size = SMALL, options: Sequence[str] = (), **more: str
) -> Contender:
    """Return the command that operators run, with a key, limits and metering. `more` is put into its environment."""
    directory.mkdir()
    port, env = free_port(), {"MADOGUCHI_VAR": str(directory), "LOG_LEVEL": "WARNING", **more}
    prepare = [sys.executable, "-m", "tests.bench.prepare", f"http://127.0.0.1:{engine}"]
    prepared = subprocess.run(
        [*prepare, "--keys", str(size.keys), "--models", str(size.models)],
        cwd=ROOT,
        env={**os.environ, **env},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Contender(
        name=directory.name,
        port=port,
        path="/readyz",
        command=(sys.executable, "manage.py", "up", "--port", str(port), "--no-supervisor", *options),
        env=env,
        key=prepared.stdout.strip(),
    )


MAKERS: Mapping[str, Callable[[Path, int], Contender]] = {
    "nginx": nginx,
    "vllm-router": vllm_router,
    "vllm-router-rr": partial(vllm_router, policy="round_robin"),
    "madoguchi": madoguchi,
    "madoguchi-large": partial(madoguchi, size=LARGE),
}
NAMES = ("nginx", "vllm-router", "vllm-router-rr", "madoguchi")  # that are compared
