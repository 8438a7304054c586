"""The engines' side of the gateway: what a fault in a receiver does to its call."""

import asyncio

import pytest

from apiproxy.upstream import Address, Broken, Pool, Unreachable, UpstreamError

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nok"


class Receiver:
    """Hears an answer; raises in the callback that it is told to."""

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
async def test_a_receiver_that_raises_is_told_that_its_call_has_failed(faulty, answer, caplog):
    receiver = Receiver(faulty)
    ending, pool = await ask(answer, receiver)
    assert isinstance(ending, Broken)
    assert "ZeroDivisionError" in caplog.text
    assert pool.idle(0.0) is None  # what state that connection is in nobody knows


async def test_an_answer_is_heard_in_order():
    receiver = Receiver()
    assert (await ask(ANSWER, receiver))[0] is None
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
