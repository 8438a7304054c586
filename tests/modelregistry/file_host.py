"""python -m tests.modelregistry.file_host PORT DIRECTORY FILE_PORT MODELS: a host's files, reached by TCP as by Ray.

DIRECTORY has its `secrets`, and what it keeps. It saves every 100 KB how far a copy is, and keeps 1 MB of
the disk free.
"""

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from modelregistry.cluster.access import tls_context
from modelregistry.hostside.launching import HostConfig
from modelregistry.hostside.local import LocalHost
from modelregistry.hostside.remote import HostServer
from modelregistry.install import copying
from modelregistry.transfer.local import FileConfig, LocalFiles
from modelregistry.transfer.remote import FILE_METHODS, RemoteFiles
from tests.modelregistry.tcp_channel import TcpChannel
from tests.ports import unused_port

ROOT = Path(__file__).resolve().parent.parent.parent
SAVED_EVERY = 100_000
SPARE = 1_000_000
MEGABYTE = 1_000_000
SLOWLY = 2 * MEGABYTE  # bytes in a second, at which a test can step in
SIZE = 4 * MEGABYTE


class FileHost:
    """Such a host. `disk`: the bytes of the disk that its models get for themselves; 0: they are on its directory's.

    `models`: the path at which the host itself sees them, which may be the same on all hosts, as in production.
    """

    def __init__(self, directory: Path, *, disk: int = 0, models: Path | None = None) -> None:
        self.directory = directory
        self.disk = disk
        self.port, self.file_port = unused_port(), unused_port()
        self.files = RemoteFiles(TcpChannel(self.port))
        self.process: subprocess.Popen[str] | None = None
        self.path = models or directory / "models"
        for folder in (self.path, directory / "models"):
            folder.mkdir(exist_ok=True)

    @property
    def models(self) -> Path:
        """Its models, as this process sees them."""
        if self.disk and self.process:
            return Path(f"/proc/{self.process.pid}/root{self.path}")
        return self.directory / "models"

    def start(self) -> None:
        argv = [sys.executable, "-m", "tests.modelregistry.file_host", str(self.port), str(self.directory)]
        self.process = subprocess.Popen(
            [*self._mounting(), *argv, str(self.file_port), str(self.path)],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "listening\n"

    def _mounting(self) -> Sequence[str]:
        inside = self.directory / "models"
        if not self.disk and self.path == inside:
            return ()
        what = f"-t tmpfs -o size={self.disk} none" if self.disk else f"--bind {inside}"
        return ("unshare", "--mount", "sh", "-c", f'mount {what} "$0" && exec "$@"', str(self.path))

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout
            self.process.stdout.close()
            self.process = None


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, without their checksums."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != copying.SUMS]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fill(path: Path, size: int = SIZE) -> None:
    """Write a file that no other one is like."""
    path.write_bytes(random.Random(str(path)).randbytes(size))


def give_llama(host: FileHost, size: int = SIZE) -> Path:
    """Let a host have a model."""
    from tests.modelregistry import paper_models  # hosts have no numpy

    llama = paper_models.small_llama(host.models / "llama")
    fill(llama / "model.safetensors", size)
    (llama / "1_Pooling").mkdir()
    (llama / "1_Pooling" / "config.json").write_text("{}")
    return llama


def config_of(directory: Path, models: Path, ports: Sequence[int]) -> FileConfig:
    return FileConfig(
        models=models,
        state=directory,
        address="127.0.0.1",
        make_server=partial(tls_context, directory / "secrets", server=True),
        make_client=partial(tls_context, directory / "secrets", server=False),
        ports=ports,
        spare=SPARE,
    )


async def serve(port: int, directory: Path, file_port: int, models: Path) -> None:
    copying.SAVED_EVERY = SAVED_EVERY
    host = LocalHost(HostConfig(runs=directory / "runs", cache=directory / "cache", commands={}, ports=range(1, 2)))
    server = HostServer(host, (LocalFiles(config_of(directory, models, [file_port])), FILE_METHODS))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await server.answer(await reader.read()))
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", port)
    print("listening", flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
