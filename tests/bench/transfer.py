"""Copies all rows of a SQLite database of this version into the PostgreSQL that Django is set up with.

What SQLite keeps as text (times of UTC, JSON) and as 0 and 1 is what PostgreSQL reads for these types. SQLite makes the
lines for COPY: half a million of them in Python would take longer than all else.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from django.apps import apps
from django.core.management.color import no_style
from django.db import connection, transaction
from django.db.models import Field

TEXTS = ("varchar", "text", "jsonb")
TOGETHER = 5000  # lines
# In PostgreSQL's text format a backslash begins an escape, so it is replaced first.
ESCAPES = (("'\\'", "'\\\\'"), ("char(9)", "'\\t'"), ("char(10)", "'\\n'"), ("char(13)", "'\\r'"))


def copy_into_postgresql(source: Path) -> None:
    """Replace every row of every table. The tables are there."""
    models = [model for model in apps.get_models(include_auto_created=True) if model._meta.managed]
    with closing(sqlite3.connect(source)) as sqlite, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL TIME ZONE 'UTC'")
        cursor.execute("SET LOCAL session_replication_role = replica")  # whole tables: no row is checked by itself
        cursor.execute(f"TRUNCATE {', '.join(model._meta.db_table for model in models)}")
        for model in models:
            table, fields = model._meta.db_table, model._meta.local_concrete_fields
            lines = sqlite.execute(f"SELECT {' || char(9) || '.join(map(_text, fields))} FROM {table}")
            columns = ", ".join(f'"{field.column}"' for field in fields)
            with cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as rows:
                while some := lines.fetchmany(TOGETHER):
                    rows.write("".join(f"{line}\n" for (line,) in some))
        for statement in connection.ops.sequence_reset_sql(no_style(), models):
            cursor.execute(statement)


def _text(field: "Field[Any, Any]") -> str:
    """Return SQL of SQLite for a column's text in PostgreSQL's text format."""
    text = f'"{field.column}"'
    if (field.db_type(connection) or "").startswith(TEXTS):
        for plain, escaped in ESCAPES:
            text = f"replace({text}, {plain}, {escaped})"
    return f"coalesce({text}, '\\N')"
