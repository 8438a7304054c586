"""Django's SQLite backend with a private file, made at its first use: importing settings writes nothing."""

import contextlib
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.backends.sqlite3 import base

from portal.environment import make_private_database, make_private_directory


class DatabaseWrapper(base.DatabaseWrapper):
    def get_new_connection(self, conn_params: Any) -> Any:
        file = Path(conn_params["database"])
        if file.is_absolute():  # not `:memory:`, nor a URI of a database in memory
            with contextlib.suppress(OSError):  # SQLite itself will say that it cannot open the file
                if file.parent == settings.VAR:
                    make_private_directory(file.parent)
                make_private_database(file)
        return super().get_new_connection(conn_params)
