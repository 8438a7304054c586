"""Files under the server's own way of calling views: sent while they are written."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncRequestFactory, RequestFactory

from portal.web.static_files import PIECE, Files
from portal.web.streaming import AT_ONCE, CHARACTERS, stream_file


@pytest.fixture
def made() -> list[int]:
    return []


@pytest.fixture
def pieces(made) -> Iterator[str]:
    def pieces() -> Iterator[str]:
        for number in range(10 * AT_ONCE):
            made.append(number)
            yield f"{number}\n"

    return pieces()


def test_the_first_part_is_sent_before_the_last_is_made(pieces, made):
    response = stream_file(AsyncRequestFactory().get("/"), pieces, "a.csv", "text/csv")

    @async_to_sync
    async def first() -> bytes:
        return await anext(aiter(response))

    assert first().startswith(b"0\n1\n2\n")
    assert len(made) == AT_ONCE


def test_of_large_pieces_fewer_are_made_before_the_first_is_sent(made):
    """Twenty thousand requests in pieces of 500 were all read before the first byte of their file was sent."""

    def large() -> Iterator[str]:
        for number in range(AT_ONCE):
            made.append(number)
            yield CHARACTERS // 2 * "x"

    response = stream_file(AsyncRequestFactory().get("/"), large(), "a.csv", "text/csv")

    @async_to_sync
    async def sizes() -> list[tuple[int, int]]:
        return [(len(part), len(made)) async for part in response]

    assert sizes() == [(CHARACTERS, number) for number in range(2, AT_ONCE + 1, 2)]


def test_nothing_is_lost_or_sent_twice(pieces):
    response = stream_file(AsyncRequestFactory().get("/"), pieces, "a.csv", "text/csv")

    @async_to_sync
    async def everything() -> bytes:
        return b"".join([part async for part in response])

    assert everything().decode().split() == [str(number) for number in range(10 * AT_ONCE)]
    assert response["content-disposition"] == 'attachment; filename="a.csv"'


def test_it_is_the_same_where_views_are_called_without_an_event_loop(pieces):
    response = stream_file(RequestFactory().get("/"), pieces, "a.csv", "text/csv")
    assert response.getvalue().decode().split() == [str(number) for number in range(10 * AT_ONCE)]


def test_g19_a_file_of_the_site_is_read_as_its_reader_takes_it(tmp_path):
    """Fifteen hundred strangers who took nothing of a script of 1.5 MB had the portal hold 1.3 GB."""
    path = tmp_path / "a.js"
    path.write_bytes(bytes(range(256)) * 4000)
    file = path.open("rb")
    static = SimpleNamespace(get_response=lambda method, headers: SimpleNamespace(status=200, headers=[], file=file))
    response = Files.serve(static, AsyncRequestFactory().get("/static/a.js"))

    @async_to_sync
    async def first_and_rest() -> tuple[int, int, bytes]:
        parts = aiter(response)
        first = await anext(parts)
        return len(first), file.tell(), first + b"".join([part async for part in parts])

    length, at, whole = first_and_rest()
    assert length == at == PIECE
    assert whole == path.read_bytes()
    assert file.closed
