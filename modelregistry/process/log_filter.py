"""Keep callers' words out of an engine's log.

llama.cpp writes a `grammar` that it cannot read, and parts of a JSON schema, to its standard error, at every verbosity;
operators read that log. So from the moment at which an engine answers, only lines of its own shapes are kept: those of
its logger, and what a dying process writes. Before that everything is kept, as there was no request yet.

The engine's shim runs it, which imports no module of ours; neither does this one.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator

LONGEST = 8192  # bytes of a line; what comes after them is left out
LEFT_OUT = b"(left out: what may be a caller's words)\n"

ANSWERS = re.compile(rb"listening on|Uvicorn running on|all slots are idle")
# The logger of llama.cpp: "0.03.190.307 I slot launch_slot_: …"; its older form without time and letter.
STAMPED = re.compile(rb"\d+\.\d\d\.\d{3}\.\d{3} [DIWE] ")
LETTERED = re.compile(rb"[DIWE] ")
LOGGED = re.compile(
    rb"(?:srv|slot|que|main|build|system_info|print_info|load|(?:load|set|common|llama|ggml|clip)_\w+) *[:\w]"
)
# What a dying process writes: assertions, faults of CUDA, addresses, tracebacks without their message.
DYING = re.compile(
    rb"\S+\.(?:c|cc|cpp|cu|cuh|h|hpp|m):\d+: |GGML_ASSERT|CUDA error|ROCm error|  (?:current device|in function)|"
    rb"terminate called|Fatal Python error|Segmentation|free\(\)|malloc|munmap|corrupted|double free|std::bad_alloc|"
    rb"Traceback \(|  File \"|Current thread|Thread 0x|#\d+ +0x|\[New LWP|\S+\(\+?[\w+]*\) ?\[0x|"
    rb"INFO: +(?:Started|Waiting|Application|Uvicorn|Shutting|Finished)|listening on |error: failed to (?:bind|listen)"
)
# The part of a line to keep, before what a logger or a traceback quotes.
QUOTES = (
    re.compile(rb"^(.*?got exception: )(.*?(\"code\":\s*\d+))?.*$"),
    re.compile(rb"^(.*?(?:request|response|body|prompt|grammar|schema|params|text|generated)(?: ?\w{1,20})?: ).*$"),
    re.compile(rb"^((?:\w+\.)*\w*(?:Error|Exception): ).*$"),
)


def filter_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines to write, with one note in place of consecutive lines that are left out."""
    answers = noted = stamped = False
    for line in lines:
        if not answers:
            answers = ANSWERS.search(line) is not None
            stamped = stamped or STAMPED.match(line) is not None
            yield line
            continue
        mine = redact_line(line, stamped=stamped)
        if mine is not None:
            yield mine
        elif not noted:
            yield LEFT_OUT
        noted = mine is None


def redact_line(line: bytes, *, stamped: bool = False) -> bytes | None:
    """Return the line without what it quotes; None if it may hold a caller's words.

    `stamped`: this engine's logger begins with the time, so that "I think …" can only be a caller's.
    """
    raised = QUOTES[2].match(line)
    logged = STAMPED.match(line) or LOGGED.match(line) or (not stamped and LETTERED.match(line))
    if not (raised or logged or DYING.match(line)):
        return None
    for quote in QUOTES:
        if found := quote.match(line):
            code = found[3] if quote.groups == 3 and found[3] else b""
            return found[1] + code + b" \xe2\x80\xa6\n"
    return line


def read_lines(descriptor: int) -> Iterator[bytes]:
    """Yield the lines of a pipe until its last writer is gone, each as soon as it is complete."""
    with os.fdopen(descriptor, "rb") as file:
        while line := file.readline(LONGEST):
            yield line if line.endswith(b"\n") else line + b"\n"
            while not line.endswith(b"\n") and (line := file.readline(LONGEST)):
                pass


def copy_filtered(source: int, target: int) -> None:
    """Write what may be kept to `target` until the last writer of `source` is gone.

    A full disk loses lines; an engine never waits for us.
    """
    for line in filter_lines(read_lines(source)):
        with contextlib.suppress(OSError):
            os.write(target, line)
