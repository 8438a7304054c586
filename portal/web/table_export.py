"""Tables as files: written while they are read, so that a large one needs no memory."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from itertools import chain
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.http import HttpRequest, StreamingHttpResponse

from portal.web.streaming import stream_file

Row = dict[str, Any]
ROWS = 500  # written together: a chunk of some 50 kB
# What a cell begins with that spreadsheets take for a formula; they skip the white space before one.
FORMULA = frozenset("=+-@\uff1d\uff0b\uff0d\uff20\t\r\n")

PLAIN = frozenset({int, float, bool, type(None), date, datetime, Decimal})  # written as they are, and most of all cells


def export_response(
    request: HttpRequest, name: str, rows: Iterable[Row], columns: Sequence[str] = ()
) -> StreamingHttpResponse:
    """Return all rows as CSV, or as JSON where the address says `format=json`; `name` without its ending.

    `columns`: the head of a CSV file without any rows.
    """
    if request.GET.get("format") == "json":
        return stream_file(request, write_json(rows), f"{name}.json", "application/json")
    return stream_file(request, write_csv(iter(rows), columns), f"{name}.csv", "text/csv; charset=utf-8")


def write_csv(rows: Iterator[Row], columns: Sequence[str] = ()) -> Iterator[str]:
    first = next(rows, None)
    head = columns if first is None else list(first)
    text = io.StringIO()
    text.write("\ufeff")  # without it Excel takes Japanese for another encoding
    writer = csv.writer(text, lineterminator="\r\n")
    if head:
        writer.writerow(head)
    for number, row in enumerate(rows if first is None else chain([first], rows), 1):
        # Most cells are plain or harmless texts: a call for each takes as long as all else.
        writer.writerow(
            [
                cell
                if (kind := type(cell)) in PLAIN or (kind is str and cell[:1] not in FORMULA)
                else format_cell(cell)
                for cell in map(row.__getitem__, head)
            ]
        )
        if number % ROWS == 0:
            yield text.getvalue()
            text.seek(0)
            text.truncate()
    yield text.getvalue()


def format_cell(value: object) -> object:
    """Return the value as a cell of a CSV file, so that no spreadsheet takes a text for a formula.

    People name their keys themselves, and names of end users come from clients. Excel in Japanese takes full-width
    signs as well.
    """
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, cls=DjangoJSONEncoder)
    return f"'{value}" if isinstance(value, str) and value[:1] in FORMULA else value


def write_json(rows: Iterable[Row]) -> Iterator[str]:
    """Yield a list of objects."""
    yield "["
    for number, row in enumerate(rows):
        yield (",\n" if number else "\n") + json.dumps(row, ensure_ascii=False, cls=DjangoJSONEncoder)
    yield "\n]\n"
