"""Opening what somebody else put where a model's file should be."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError, also for what is none.

    A FIFO would hold up its reader until somebody writes into it, a device may have no end; neither is waited for.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return os.fdopen(descriptor, "rb")


def mistaken_for(path: Path) -> str:
    """What lies there in a file's place, by its first bytes: "git-lfs", "html", or "" for neither. Raises OSError.

    What a `git clone` without Git LFS leaves behind is a text of 130 bytes, and what a download without a sign-in
    brings is a page.
    """
    with open_file(path) as file:
        beginning = file.read(200).lstrip().lower()
    if beginning.startswith(b"version https://git-lfs"):
        return "git-lfs"
    return "html" if beginning.startswith((b"<!doctype html", b"<html")) else ""
