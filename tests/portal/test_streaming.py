"""Files under the server's own way of calling views: sent while they are written."""

from collections.abc import Iterator

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncRequestFactory, RequestFactory

from portal.console.streaming import AT_ONCE, streamed


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
    response = streamed(AsyncRequestFactory().get("/"), pieces, "a.csv", "text/csv")

    @async_to_sync
    async def first() -> bytes:
        return await anext(aiter(response))

    assert first().startswith(b"0\n1\n2\n")
    assert len(made) == AT_ONCE


def test_nothing_is_lost_or_sent_twice(pieces):
    response = streamed(AsyncRequestFactory().get("/"), pieces, "a.csv", "text/csv")

    @async_to_sync
    async def everything() -> bytes:
        return b"".join([part async for part in response])

    assert everything().decode().split() == [str(number) for number in range(10 * AT_ONCE)]
    assert response["content-disposition"] == 'attachment; filename="a.csv"'


def test_it_is_the_same_where_views_are_called_without_an_event_loop(pieces):
    response = streamed(RequestFactory().get("/"), pieces, "a.csv", "text/csv")
    assert response.getvalue().decode().split() == [str(number) for number in range(10 * AT_ONCE)]
