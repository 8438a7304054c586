"""Files that are sent while they are being written."""

from collections.abc import AsyncIterator, Iterator
from itertools import islice

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, StreamingHttpResponse

# Pieces made at each switch to the thread, or characters: a switch costs 50 µs, a row 5 to 20. A piece may be one row
# or some hundred: with 50 pieces of 500 rows, the first byte of a file came when its last row was read.
AT_ONCE = 50
CHARACTERS = 32_000


def stream_file(request: HttpRequest, pieces: Iterator[str], name: str, content_type: str) -> StreamingHttpResponse:
    """Return the pieces as a file of this name.

    Under ASGI an iterator that is not async would be read to its end before the first byte is sent.
    """
    content = iterate_in_thread(pieces) if isinstance(request, ASGIRequest) else pieces
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return StreamingHttpResponse(content, content_type=content_type, headers=headers)


async def iterate_in_thread(pieces: Iterator[str]) -> AsyncIterator[str]:
    """Yield the same text, made in the request's thread, whose connection to the database the iterator uses."""
    following = sync_to_async(lambda: take_some(pieces))
    while found := await following():
        yield found


def take_some(pieces: Iterator[str]) -> str:
    """Return the next AT_ONCE pieces, or the fewer that are CHARACTERS together; "": there are none."""
    taken, size = [], 0
    for piece in islice(pieces, AT_ONCE):
        taken.append(piece)
        size += len(piece)
        if size >= CHARACTERS:
            break
    return "".join(taken)
