"""SHA-256 of files, computed in a thread and kept, so that 140 GB are not read a second time for the next host."""

import json
import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from modelregistry.install import copying

log = logging.getLogger(__name__)

MOST = 20_000  # files of which a sum is kept


def stamp_of(path: Path) -> str:
    """Return what changes with a file's content. Raises OSError."""
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


class Checksums:
    """`path`: where they are kept; losing it costs time only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.thread = ThreadPoolExecutor(1, "checksums")  # one: they wait for one disk
        self.running: dict[str, Future[str]] = {}  # by stamp
        self.kept = self._read()

    def known(self, path: Path) -> str:
        """Return the sum of a file if it was computed before; else "". Raises OSError."""
        return self.kept.get(stamp_of(path), "")

    def compute(self, path: Path) -> str:
        """Return the sum of a file if it is there; else "", and have it computed. Raises OSError."""
        stamp = stamp_of(path)
        with self.lock:
            if found := self.kept.get(stamp):
                return found
            running = self.running.get(stamp)
            if running is None:
                running = self.running[stamp] = self.thread.submit(copying.digest_of, path)
            if not running.done():
                return ""
            del self.running[stamp]
        digest = running.result()
        if stamp_of(path) != stamp:
            return ""
        self._keep(stamp, digest)
        return digest

    def close(self) -> None:
        """Compute nothing more; what runs ends by itself."""
        self.thread.shutdown(wait=False, cancel_futures=True)

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self.path.read_text())
            return {str(stamp): str(digest) for stamp, digest in found.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _keep(self, stamp: str, digest: str) -> None:
        with self.lock:
            self.kept[stamp] = digest
            for oldest in list(self.kept)[: len(self.kept) - MOST]:
                del self.kept[oldest]
            draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            try:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                draft.write_text(json.dumps(self.kept))
                draft.replace(self.path)
            except OSError as error:  # a full disk
                log.warning("checksums cannot be kept: %s", error)
