"""Keeps callers' words out of an engine's log: `log_filter.py PROGRAM ARGUMENT…` executes the program behind a filter.

llama.cpp writes a `grammar` that it cannot read, and parts of a JSON schema, to its standard error, at every verbosity;
operators read that log. So from the moment at which an engine answers, a line must have the shape of one of its own to
be kept: its logger's, or what a dying process leaves. Until then everything is kept, for no caller has spoken yet.

The program takes this process's place, so that signals and exit codes are its own. The filter is a process beside it,
which outlives it: the last words of an engine that aborts are written as well. It imports nothing of ours.
"""

import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator

LONGEST = 8192  # bytes of a line; what comes after them is left out
LEFT_OUT = b"(left out: what may be a caller's words)\n"

ANSWERS = re.compile(rb"listening on|Uvicorn running on|all slots are idle")
# The logger of llama.cpp: "0.03.190.307 I slot launch_slot_: …"; its older form without time and letter.
LOGGED = re.compile(
    rb"(?:\d+\.\d\d\.\d{3}\.\d{3} )?[DIWE] |"
    rb"(?:srv|slot|que|main|build|system_info|print_info|load|(?:load|set|common|llama|ggml|clip)_\w+) *[:\w]"
)
# What is left of a process that dies: assertions, faults of CUDA, addresses, tracebacks without their message.
DYING = re.compile(
    rb"\S+\.(?:c|cc|cpp|cu|cuh|h|hpp|m):\d+: |GGML_ASSERT|CUDA error|ROCm error|  (?:current device|in function)|"
    rb"terminate called|Fatal Python error|Segmentation|free\(\)|malloc|munmap|corrupted|double free|std::bad_alloc|"
    rb"Traceback \(|  File \"|Current thread|Thread 0x|#\d+ +0x|\[New LWP|\S+\(\+?[\w+]*\) ?\[0x|"
    rb"INFO: +(?:Started|Waiting|Application|Uvicorn|Shutting|Finished)|listening on |error: failed to (?:bind|listen)"
)
# Of what a logger or a traceback quotes, this much is ours to keep.
QUOTES = (
    re.compile(rb"^(.*?got exception: )(.*?(\"code\":\s*\d+))?.*$"),
    re.compile(rb"^(.*?(?:request|response|body|prompt|grammar|schema|params|text|generated)(?: ?\w+)?: ).*$"),
    re.compile(rb"^((?:\w+\.)*\w*(?:Error|Exception): ).*$"),
)


def kept(lines: Iterable[bytes]) -> Iterator[bytes]:
    """What of these lines is written, one note in place of some that are left out."""
    answers = noted = False
    for line in lines:
        if not answers:
            answers = ANSWERS.search(line) is not None
            yield line
            continue
        mine = harmless(line)
        if mine is not None:
            yield mine
        elif not noted:
            yield LEFT_OUT
        noted = mine is None


def harmless(line: bytes) -> bytes | None:
    """The line without what it quotes; None if it may be anybody's."""
    raised = QUOTES[2].match(line)
    if not (raised or LOGGED.match(line) or DYING.match(line)):
        return None
    for quote in QUOTES:
        if found := quote.match(line):
            code = found[3] if quote.groups == 3 and found[3] else b""
            return found[1] + code + b" \xe2\x80\xa6\n"
    return line


def read(descriptor: int) -> Iterator[bytes]:
    """Its lines until the last writer is gone, each as soon as it is whole."""
    with os.fdopen(descriptor, "rb") as file:
        while line := file.readline(LONGEST):
            yield line if line.endswith(b"\n") else line + b"\n"
            while not line.endswith(b"\n") and (line := file.readline(LONGEST)):
                pass


def run(descriptor: int) -> None:
    """Writes to standard output until the engine is gone. A full disk loses lines; an engine never waits for us."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for line in kept(read(descriptor)):
        try:
            os.write(1, line)
        except OSError:
            continue


def main(argv: list[str]) -> None:
    reader, writer = os.pipe()
    first = os.fork()
    if not first:
        # Twice, so that the filter is no child of the engine's, which knows nothing of it.
        if os.fork():
            os._exit(0)
        os.close(writer)
        try:
            run(reader)
        finally:
            os._exit(0)
    os.waitpid(first, 0)
    os.close(reader)
    out = os.dup(1)
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)
    try:
        os.execvpe(argv[0], argv, os.environ)  # noqa: S606
    except OSError as error:
        os.write(out, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
