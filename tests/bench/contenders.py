"""What is compared: no gateway, nginx, a Rust router without keys or metering, this gateway with all of it on."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
class Contender:
    """`command` is empty for the engine itself, which runs anyway. `state` is where a gateway keeps its database."""

    name: str
    port: int
    path: str = "/health"  # answers as soon as it is there
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    key: str = "none"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"


NAMES = ("nginx", "vllm-router", "vllm-router-rr", "madoguchi")


def contenders(directory: Path, names: Sequence[str]) -> list[Contender]:
    """Those of these names, prepared in a directory and with ports that nobody else uses; first the engine itself."""
    engine, nginx, madoguchi = _free_ports(3)
    found = [Contender(name="direct", port=engine)]
    if "nginx" in names:
        found.append(_nginx(directory / "nginx", nginx, engine))
    if "vllm-router" in names:
        found.append(_vllm_router("vllm-router", "cache_aware", engine))
    if "vllm-router-rr" in names:
        found.append(_vllm_router("vllm-router-rr", "round_robin", engine))
    if "madoguchi" in names:
        found.append(_madoguchi(directory / "madoguchi", madoguchi, engine))
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()


def _nginx(directory: Path, port: int, engine: int) -> Contender:
    directory.mkdir()
    config = directory / "nginx.conf"
    config.write_text(NGINX % {"port": port, "engine": engine})
    return Contender(name="nginx", port=port, command=("/usr/sbin/nginx", "-p", str(directory), "-c", str(config)))


def _vllm_router(name: str, policy: str, engine: int) -> Contender:
    """Without its log. Its own default, `cache_aware`, takes two to three times the CPU of `round_robin` per request.

    That is what people run who leave it as it comes; the other has nothing to decide, so it is the one that is hard to
    reach. Both are shown.
    """
    port, metrics = _free_ports(2)
    options = {
        "worker-urls": f"http://127.0.0.1:{engine}",
        "host": "127.0.0.1",
        "port": port,
        "policy": policy,
        "log-level": "error",
        "prometheus-port": metrics,
    }
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    command = (str(tools.python()), "-m", "vllm_router.launch_router", *words)
    return Contender(name=name, port=port, command=command)


def _madoguchi(directory: Path, port: int, engine: int) -> Contender:
    directory.mkdir()
    env = {"MADOGUCHI_VAR": str(directory), "LOG_LEVEL": "WARNING"}
    prepare = [sys.executable, "-m", "tests.bench.prepare", f"http://127.0.0.1:{engine}"]
    key = subprocess.run(
        prepare, cwd=ROOT, env={**os.environ, **env}, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return Contender(
        name="madoguchi",
        port=port,
        path="/readyz",
        command=(sys.executable, "manage.py", "up", "--port", str(port), "--no-supervisor"),
        env=env,
        key=key.strip(),
    )
