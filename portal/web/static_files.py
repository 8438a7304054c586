"""The site's own files (scripts, styles), sent in parts as fast as clients read them."""

from collections.abc import AsyncIterator
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.http import FileResponse, HttpRequest
from whitenoise.middleware import WhiteNoiseMiddleware  # type: ignore[import-untyped]

PIECE = 64 * 1024


class Files(WhiteNoiseMiddleware):  # type: ignore[misc]
    """Like whitenoise's. Django under ASGI would hold a whole file (1.5 MB) for each client that does not read it."""

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> FileResponse:
        answer: FileResponse = WhiteNoiseMiddleware.serve(static_file, request)
        file = answer.file_to_stream
        if file is not None and isinstance(request, ASGIRequest):
            answer.streaming_content = read_pieces(file)
        return answer


async def read_pieces(file: Any) -> AsyncIterator[bytes]:
    """Yield the whole file, and close it even if the client has left."""
    with file:
        while piece := file.read(PIECE):
            yield piece
