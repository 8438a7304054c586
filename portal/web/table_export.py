"""Tables as files: written while they are read, so that a large one needs no memory."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from django.http import HttpRequest, StreamingHttpResponse

from portal.web.streaming import escape_formula, streamed

Row = dict[str, Any]
ROWS = 500  # written together: a chunk of some 50 kB


def export_response(request: HttpRequest, name: str, rows: Iterable[Row]) -> StreamingHttpResponse:
    """Return all rows as CSV, or as JSON where the address says `format=json`; `name` without its ending."""
    kind = "json" if request.GET.get("format") == "json" else "csv"
    types = {"json": "application/json", "csv": "text/csv; charset=utf-8"}
    written = {"json": as_json, "csv": as_csv}[kind](iter(rows))
    return streamed(request, written, f"{name}.{kind}", types[kind])


def as_csv(rows: Iterator[Row]) -> Iterator[str]:
    first = next(rows, None)
    if first is None:
        yield "\ufeff"
        return
    text = io.StringIO()
    text.write("\ufeff")  # without it Excel takes Japanese for another encoding
    writer = csv.DictWriter(text, list(first), lineterminator="\r\n")
    writer.writeheader()
    for number, row in enumerate(chain([first], rows), 1):
        writer.writerow({column: escape_formula(value) for column, value in row.items()})
        if number % ROWS == 0:
            yield text.getvalue()
            text.seek(0)
            text.truncate()
    yield text.getvalue()


def as_json(rows: Iterator[Row]) -> Iterator[str]:
    """Yield a list of objects."""
    yield "["
    for number, row in enumerate(rows):
        yield (",\n" if number else "\n") + json.dumps(row, ensure_ascii=False)
    yield "\n]\n"
