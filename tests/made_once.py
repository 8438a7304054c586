"""What takes seconds to make and is the same for all processes of a test run: one makes it, others wait and copy."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from modelregistry.install.build_cache import build_once

RUN = "MADOGUCHI_TEST_RUN"


def directory() -> Path:
    """Return a directory that all processes of this run share. The process that asks first removes it when it ends."""
    if RUN not in os.environ:
        os.environ[RUN] = tempfile.mkdtemp(prefix="madoguchi-test-run-")
        atexit.register(shutil.rmtree, os.environ[RUN], ignore_errors=True)
    return Path(os.environ[RUN])


def made(name: str, make: Callable[[Path], Path]) -> Path:
    """Return what `make(workspace)` returns, kept under this name: made by the first process that needs it."""
    return build_once(directory() / name, make, lambda waiting: None)
