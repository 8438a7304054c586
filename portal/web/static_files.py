"""The site's own files (scripts, styles), in pieces as their readers take them."""

from collections.abc import AsyncIterator
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.http import FileResponse, HttpRequest
from whitenoise.middleware import WhiteNoiseMiddleware  # type: ignore[import-untyped]

PIECE = 64 * 1024


class Files(WhiteNoiseMiddleware):  # type: ignore[misc]
    """As whitenoise's. Django under ASGI would hold a whole file (1.5 MB) for each reader who takes nothing of it."""

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> FileResponse:
        answer: FileResponse = WhiteNoiseMiddleware.serve(static_file, request)
        file = answer.file_to_stream
        if file is not None and isinstance(request, ASGIRequest):
            answer.streaming_content = read_pieces(file)
        return answer


async def read_pieces(file: Any) -> AsyncIterator[bytes]:
    """Yield all of it; it is closed also when its reader has left."""
    with file:
        while piece := file.read(PIECE):
            yield piece
