"""Logging of all processes: one line per record, as text or JSON, to stderr, without ever waiting for it.

A record may carry facts, `extra={"facts": {"request_id": …}}`: members of the JSON object, `name=value` in text.
"""

import json
import logging
import os
import threading
import time
from collections import deque
from typing import Any

import orjson
from django.db.utils import InterfaceError, OperationalError

# Lines are gathered for so many seconds and written together: waking a thread for each line costs 20 µs a line.
GATHER = 0.1
# Lines that may wait for a reader of stderr that has stopped, or for a full disk; more are dropped, and counted.
MAX_WAITING = 10_000
FLUSH_SECONDS = 2.0  # that the last lines may take when a process stops


class Formatter(logging.Formatter):
    """Formats the time of records, and caches it for a second, in which there may be many."""

    def __init__(self) -> None:
        super().__init__()
        self._second = (0, "", "")

    def time(self, created: float) -> str:
        """Format a time as 2026-11-22T18:35:58.123+09:00, in the time zone of the settings."""
        second, date, zone = self._second
        if second != int(created):
            second = int(created)
            local = time.localtime(second)
            date, zone = time.strftime("%Y-%m-%dT%H:%M:%S.", local), time.strftime("%z", local)
            zone = f"{zone[:3]}:{zone[3:]}"
            self._second = (second, date, zone)
        return f"{date}{int((created - second) * 1000):03d}{zone}"


class Text(Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {name}={value}" for name, value in facts_of(record).items())
        line = f"{self.time(record.created)} {record.levelname} {record.name} {message_of(record)}{facts}"
        if record.exc_info and not is_self_explanatory(record):
            line += "\n" + self.formatException(record.exc_info)
        return line.replace("\n", "\n    ")  # text from a client cannot pass for a line of its own


class JsonFormatter(Formatter):
    def format(self, record: logging.LogRecord) -> str:
        whole = {
            "time": self.time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": message_of(record),
            **facts_of(record),
        }
        if record.exc_info and not is_self_explanatory(record):
            whole["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(whole, default=str).decode()
        except TypeError:  # half of a surrogate pair, a number beyond 64 bits
            return json.dumps(whole, default=str)


def is_self_explanatory(record: logging.LogRecord) -> bool:
    """Return whether the message is enough without a traceback of 45 lines.

    It is for what strangers send (a foreign Host), and for a database that is down, which every request reports.
    """
    error = record.exc_info[1] if record.exc_info else None
    return record.name.startswith("django.security") or isinstance(error, OperationalError | InterfaceError)


def message_of(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.exc_info and is_self_explanatory(record) and (cause := str(record.exc_info[1])) not in message:
        message += f": {cause.strip()}"
    return message


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    facts: dict[str, Any] = getattr(record, "facts", {})
    return facts


class Stderr(logging.Handler):
    """Takes a line and returns at once; a thread writes it. An unread pipe or a full disk blocks no caller."""

    def __init__(self, descriptor: int = 2) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._pid = 0
        self._reset()

    def emit(self, record: logging.LogRecord) -> None:
        if self._pid != os.getpid():
            self._reset()
            self._pid = os.getpid()
            threading.Thread(target=self._write, name="log", daemon=True).start()
        if len(self._lines) >= MAX_WAITING:
            self._drop(1)
            return
        try:
            self._lines.append(self.format(record))
        except Exception:  # noqa: BLE001 - a record that cannot be formatted must not break its caller
            self.handleError(record)
        if len(self._lines) == 1:
            self._some.set()

    @property
    def waiting(self) -> int:
        """How many lines are to be written."""
        return len(self._lines)

    @property
    def dropped(self) -> int:
        """How many lines were lost since the last one that was written."""
        return self._dropped

    def flush(self) -> None:
        """Wait up to FLUSH_SECONDS until the lines so far are written."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while (self._lines or self._writing) and self._pid == os.getpid() and time.monotonic() < deadline:
            time.sleep(0.005)

    def _reset(self) -> None:
        """Start without lines, also after a fork: it copies no thread, and the parent writes the lines so far."""
        self._lines: deque[str] = deque()
        self._some = threading.Event()
        self._counting = threading.Lock()
        self._dropped = 0
        self._writing = False

    def _write(self) -> None:
        while self._some.wait():
            self._some.clear()
            time.sleep(GATHER)
            self._writing = True
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            dropped = -self._dropped
            if dropped:
                self._drop(dropped)
                lines.append(self.format(make_loss_record(-dropped)))
            self._write_out(("\n".join(lines) + "\n").encode(errors="backslashreplace"), len(lines))
            self._writing = False
            if self._lines:
                self._some.set()

    def _write_out(self, data: bytes, lines: int) -> None:
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            self._drop(lines)

    def _drop(self, lines: int) -> None:
        with self._counting:
            self._dropped += lines


def make_loss_record(lines: int) -> logging.LogRecord:
    return logging.LogRecord("madoguchi.log", logging.ERROR, "", 0, "%d lines could not be written", (lines,), None)
