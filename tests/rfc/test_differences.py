"""The same odd requests straight and through nginx: both understand the same, and no bytes of a body become a request.

Each is followed on its connection by a last, good request. Whatever the odd one gets, the last gets its own answer or
none, and a request inside a body gets none.
"""

import contextlib
from collections.abc import Iterator

from tests.rfc.conftest import Site
from tests.rfc.corpus import KINDS, corpus, name_target
from tests.rfc.talking import Answer, Cut, Reader, request

# Where the two may answer in different ways, and why.
DIFFER: dict[str, list[str]] = {
    "nginx lets nothing but GET to the sockets": [
        *(f"{method} /ws/" for method in ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "PROPFIND")),
        "POST /ws/ with a body",
        "/ws/ after 100",
        *(f"{verb} /ws/operations/ as {kind}" for verb in ("POST", "chunks") for kind in KINDS),
    ],
    "straight, something behind a handshake makes it a plain request; nginx keeps it back": [
        "GET /ws/operations/ as websocket"
    ],
    "refused by both; one of them ends the connection or finds another status": [
        "method TRACE", "method FOO", "method PRI", "CONNECT to a host", "version 'HTTP/2.0'", "version 'HTTP/3.0'",
        "version ''", "field: control", "field: delete", "field: 500 fields", "coding: unknown last", "coding: empty",
        "coding: tab", "coding: vertical tab", "chunk: bare extension", "chunk: trailer with length",
        "chunk: space behind", "chunk: bare lf", name_target("/v1/\xe3\x83\xa2"), name_target("/v1/%zz"),
        name_target("/v1/%"), name_target("*"), name_target("/v1/models%00"), name_target("/%2e%2e/v1/models"),
    ],
    "nginx mends it, or leaves it out, before it passes it on": [
        "version 'HTTP/1.2'", "version 'HTTP/1.10'", "version 'HTTP/1.1 '", "field: no colon", "field: name in latin",
        "field: bare lf", "lf for crlf",
    ],
    "nginx keeps connections of HTTP/1.0": ["1.0 kept"],
    "nginx takes lines of 16 KB, and names of hosts only": ["field: 40 kB", "empty host", "strange host"],
}  # fmt: skip


def exchange(site: Site, way: str, sent: bytes, method: str) -> list[Answer]:
    last = request("GET", "/v1/models/last", f"authorization: Bearer {site.key}", "connection: close")
    with site.connect(way, 4) as connection:
        connection.sendall(sent + last)
        answers = []
        with contextlib.suppress(Cut, TimeoutError):
            for answer in Reader(connection).answers(method):
                answers.append(answer)
            return answers
        return [*answers, Answer(-1, {}, b"")]  # cut within an answer, or nothing came


def is_last(answer: Answer) -> bool:
    return answer.code == "model_not_found" and b"last" in answer.body


def kind(answers: list[Answer]) -> tuple[int, ...]:
    return tuple(answer.status for answer in answers)


def find_faults(answers: list[Answer]) -> Iterator[str]:
    """Yield what is wrong with the answers to an odd request and to the last one, which follows it."""
    if any(b"smuggled" in answer.body for answer in answers):
        yield "ran what was a body"
    if any(answer.status < 0 for answer in answers):
        yield "said nothing, or no whole answer"
    if not answers or len(answers) > 2 or any(is_last(answer) for answer in answers[:1]):
        yield f"gave {kind(answers)}"
    if len(answers) == 2 and not is_last(answers[1]):
        yield f"took the last for another: {answers[1]}"
    if any(answer.status >= 500 and answer.status not in (501, 505) for answer in answers):
        yield f"failed: {kind(answers)}"


def test_g1_odd_requests_mean_the_same_straight_and_through_nginx(site):
    names, wrong, differ = set(), [], set()
    asked = len(site.engine.seen()["requests"])
    ours = {name for names in DIFFER.values() for name in names}
    for name, method, sent in corpus(site.key):
        assert name not in names
        names.add(name)
        straight, proxied = exchange(site, "straight", sent, method), exchange(site, "nginx", sent, method)
        for way, answers in (("straight", straight), ("nginx", proxied)):
            wrong += [f"{name}: {way} {fault}" for fault in find_faults(answers)]
        if kind(straight) != kind(proxied):
            differ.add(name)
            if name not in ours:
                wrong.append(f"{name}: {kind(straight)} straight, {kind(proxied)} through nginx")
    assert len(names) >= 200
    assert not wrong, "\n".join(wrong)
    assert ours == differ  # nothing is excused that need not be
    assert len(site.engine.seen()["requests"]) == asked
