"""The engines' side of the gateway: what a fault in a receiver does to its call."""

import asyncio
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiproxy.dataplane.upstream import Address, Broken, Connection, Pool, Unreachable, UpstreamError

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nok"


class Receiver:
    """Receives an answer; raises in the callback with this name."""

    def __init__(self, faulty: str = "") -> None:
        self.faulty = faulty
        self.heard: list[str] = []
        self.ending: asyncio.Future[UpstreamError | None] = asyncio.get_running_loop().create_future()

    def _hear(self, callback: str) -> None:
        self.heard.append(callback)
        if callback == self.faulty:
            raise ZeroDivisionError

    def head(self, status, headers) -> None:
        self._hear("head")

    def data(self, piece) -> None:
        self._hear("data")

    def chunk(self, framed, start) -> None:
        self.data(framed[start:-2])

    def end(self) -> None:
        self._hear("end")
        self.ending.set_result(None)

    def failed(self, error) -> None:
        self.ending.set_result(error)


async def ask(answer: bytes, receiver: Receiver) -> tuple[UpstreamError | None, Pool]:
    over = asyncio.Event()

    async def engine(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if answer is not UNTIL_CLOSE:
            await reader.read()
        writer.close()
        over.set()

    async with await asyncio.start_server(engine, "127.0.0.1", 0) as server:
        pool = Pool(Address.parse(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), lambda: 0.0)
        connection = await pool.connect(1)
        connection.request(b"GET / HTTP/1.1\r\n\r\n", receiver)
        ending = await asyncio.wait_for(receiver.ending, 5)
        connection.abort()
        await asyncio.wait_for(over.wait(), 5)
        await asyncio.sleep(0.01)  # the transports' last callbacks
    return ending, pool


@pytest.mark.parametrize("faulty", ["head", "data", "end"])
@pytest.mark.parametrize("answer", [ANSWER, UNTIL_CLOSE])
async def test_a_receiver_that_raises_learns_that_its_call_has_failed(faulty, answer, caplog):
    receiver = Receiver(faulty)
    ending, pool = await ask(answer, receiver)
    assert isinstance(ending, Broken)
    assert "ZeroDivisionError" in caplog.text
    assert pool.take_idle(0.0) is None  # the state of that connection is not known


async def test_an_answer_is_received_in_order():
    receiver = Receiver()
    assert (await ask(ANSWER, receiver))[0] is None
    assert receiver.heard == ["head", "data", "end"]


@pytest.mark.parametrize("status", [b"000 X", b"099 X", b"101 X\r\nupgrade: foo\r\nconnection: upgrade"])
@pytest.mark.parametrize("more", [b"", b"no HTTP", ANSWER])
async def test_a_status_that_no_answer_follows_fails_the_call(status, more, caplog):
    receiver = Receiver()
    error, _ = await ask(b"HTTP/1.1 %b\r\n\r\n%b" % (status, more), receiver)
    assert isinstance(error, Broken)
    assert receiver.heard == []
    assert not caplog.records


async def test_informational_answers_come_before_the_answer():
    receiver = Receiver()
    informational = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nlink: y\r\n\r\n"
    error, _ = await ask(informational + ANSWER, receiver)
    assert error is None
    assert receiver.heard == ["head", "data", "end"]


async def test_an_engine_that_is_not_there_is_unreachable():
    with pytest.raises(Unreachable):
        await Pool(Address.parse("http://127.0.0.1:1"), lambda: 0.0).connect(1)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://10.0.0.1:8000", Address("10.0.0.1", 8000, False, "", "10.0.0.1:8000")),
        ("https://llm.example/api/", Address("llm.example", 443, True, "/api", "llm.example")),
        ("http://[::1]:80", Address("::1", 80, False, "", "[::1]:80")),
    ],
)
def test_addresses_are_read_from_urls(url, address):
    assert Address.parse(url) == address


class Written:
    """A transport that keeps nothing."""

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None: ...


class Body:
    """A receiver that keeps what it hears."""

    def __init__(self) -> None:
        self.bytes = b""
        self.pieces = 0
        self.ended = 0
        self.error: UpstreamError | None = None

    def head(self, status, headers) -> None: ...

    def data(self, piece) -> None:
        self.bytes += piece
        self.pieces += 1

    def chunk(self, framed, start) -> None:
        self.data(framed[start:-2])

    def end(self) -> None:
        self.ended += 1

    def failed(self, error) -> None:
        self.error = error


def receive_body(pieces: list[bytes]) -> Body:
    connection = Connection(Pool(Address.parse("http://127.0.0.1:1"), lambda: 0.0))
    connection.connection_made(Written())  # type: ignore[arg-type]
    body = Body()
    connection.request(b"GET / HTTP/1.1\r\n\r\n", body)
    for piece in pieces:
        connection.data_received(piece)
        if body.ended or body.error:
            break
    return body


# Line ends, chunk heads and whole chunks within the bytes that a chunk carries.
ODD = st.lists(
    st.sampled_from([b"a", b"\r\n", b"\r", b"\n", b"5\r\n", b"1\r\nx\r\n", b"0\r\n\r\n"]), min_size=1, max_size=5
)
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@given(st.lists(ODD.map(b"".join), max_size=6), st.data())
def test_a_chunked_answer_is_the_same_however_it_is_cut(bodies, data):
    chunks = [HEAD, *(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies), b"0\r\n\r\n"]
    whole = b"".join(chunks)
    edges = list(accumulate(map(len, chunks)))  # pieces that are one chunk are the common case
    near = st.sampled_from(edges).flatmap(lambda edge: st.integers(max(0, edge - 3), edge + 3))
    cuts = sorted(cut for cut in data.draw(st.sets(st.one_of(st.sampled_from(edges), near))) if cut < len(whole))
    pieces = [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)]) if end > start]
    answer = receive_body(pieces)
    assert (answer.bytes, answer.ended, answer.error) == (b"".join(bodies), 1, None)


@pytest.mark.parametrize(
    "bad", [b"+2\r\nab\r\n", b"-2\r\nab\r\n", b"0x2\r\nab\r\n", b" 2\r\nab\r\n", b"2_\r\nab\r\n", b"zz\r\nab\r\n"]
)
def test_what_is_no_chunk_is_no_answer(bad):
    answer = receive_body([HEAD, b"1\r\nx\r\n", bad, b"0\r\n\r\n"])
    assert not answer.ended
    assert isinstance(answer.error, Broken)


def test_what_comes_in_one_read_goes_on_in_one_piece():
    answer = receive_body([HEAD + b"1\r\na\r\n", b"1\r\nb\r\n1\r\nc\r\n", b"1\r\nd\r\n0\r\n\r\n"])
    assert (answer.bytes, answer.pieces, answer.ended) == (b"abcd", 3, 1)


def test_what_came_before_nonsense_is_received():
    answer = receive_body([HEAD + b"1\r\na\r\nnonsense\r\n"])
    assert (answer.bytes, answer.ended) == (b"a", 0)
    assert isinstance(answer.error, Broken)
