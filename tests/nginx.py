"""A real nginx of the tests' own with the shipped configuration, of which only names, ports and paths are changed."""

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.ports import unused_port
from tests.waiting import until

SHIPPED = Path(__file__).resolve().parent.parent / "deploy" / "nginx.conf"
NAME = "localhost"

MAIN = """
{user}
daemon off;
worker_processes 1;
pid {place}/nginx.pid;
error_log {place}/main-error.log;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    access_log off;
    include {place}/madoguchi.conf;
}}
"""


@dataclass(frozen=True)
class Nginx:
    """`place` has its logs and what it put to the disk; `port` speaks TLS, `plain` redirects there."""

    place: Path
    port: int
    plain: int

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.port}"

    @property
    def certificate(self) -> Path:
        return self.place / "certificate.pem"

    def connect(self, timeout: float = 20) -> ssl.SSLSocket:
        """Return a client of HTTP/1.1 over TLS."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        return self.trust().wrap_socket(connection, server_hostname=NAME)

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


def adapted(place: Path, ports: tuple[int, int], servers: list[str], pages: str) -> str:
    """Return the shipped configuration for this machine. Every change must find its place."""
    text = SHIPPED.read_text()
    plain, port = ports
    upstream = " ".join(f"server {server};" for server in servers)
    for old, new in {
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
        "llm.example.co.jp;\n": f"{NAME};\n",
        "/etc/ssl/certs/llm.example.co.jp.pem": str(place / "certificate.pem"),
        "/etc/ssl/private/llm.example.co.jp.key": str(place / "key.pem"),
        "server 127.0.0.1:8000;": upstream,
        "server 127.0.0.1:8001;": " ".join(f"server {one};" for one in pages.split()) or upstream,
        "/var/log/nginx/": f"{place}/",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def nginx(*servers: str, pages: str = "") -> Iterator[Nginx]:
    """Provide nginx before these gateways (host:port).

    `pages`: the portals' own ports, with spaces between them; "": gateways hand pages on.
    """
    place = Path(tempfile.mkdtemp(prefix="madoguchi-nginx-"))
    running = Nginx(place, unused_port(), unused_port())
    certify(place)
    user = "user root;" if os.geteuid() == 0 else ""  # it could not enter a directory of ours as anybody else
    (place / "nginx.conf").write_text(MAIN.format(place=place, user=user))
    (place / "madoguchi.conf").write_text(adapted(place, (running.plain, running.port), list(servers), pages))
    command = [
        "/usr/sbin/nginx",
        "-p",
        str(place),
        "-c",
        str(place / "nginx.conf"),
        "-e",
        str(place / "main-error.log"),
    ]
    with (place / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until(lambda: listens(running.port) or process.poll() is not None)
        assert process.poll() is None, (place / "output").read_text()
        yield running
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(place, ignore_errors=True)


def certify(place: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}",
         "-keyout", place / "key.pem", "-out", place / "certificate.pem"],
        check=True,
        capture_output=True,
    )  # fmt: skip


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
