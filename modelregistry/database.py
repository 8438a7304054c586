"""Connections to PostgreSQL of processes that live long: from a bounded pool, and with time-outs for every wait.

Under ASGI each request has a thread of its own, and Django keeps a connection for each thread: kept between requests
they outlive their threads, and three browsers took all of a server's 100. A pool of psycopg's instead of none
(CONN_MAX_AGE 0) saves each page 10 to 18 ms (home 92 → 68, usage 45 → 28, keys 47 → 27, /api/v1/me/ 23 → 10): a new
connection has a backend process to start and its caches to fill. The controller has a few threads that ask; its pool is
there for the time-outs.
"""

from typing import Any, TypeVar

import psycopg
from django.conf import settings
from psycopg import errors
from psycopg.abc import PQGen

T = TypeVar("T")

# Pages add up 100,000 rows of a few weeks. PostgreSQL's defaults are for disks that turn (it would read a table of two
# years from end to end: 1.7 s instead of 0.1), and compile such queries for up to 100 ms.
TUNING = "-c random_page_cost=1.1 -c jit=off -c work_mem=16MB"
CONNECT_SECONDS = 5
# How long a page waits for a connection when all are in use or none can be made. 50 people who click at the same time
# on one process are served in 4 s.
POOL_SECONDS = 10.0
WAITING = 100  # pages that may wait like this; more are refused at once
# Seconds beyond DATABASE_TIMEOUT: a server that works cancels the statement itself and says why.
SILENCE = 2.0


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that gives up on a silent server: a frozen host, or one that disappeared without closing it."""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait like psycopg, but close and raise OperationalError after the longest time that a statement may take."""
        longest = settings.DATABASE_TIMEOUT + SILENCE
        try:
            return super().wait(gen, interval, timeout=min(longest, timeout or longest))
        except errors._WaitTimeout as error:
            self.pgconn.finish()  # what it would still say is no answer to the next question
            raise psycopg.OperationalError("the database has not answered in time") from error


def use_pool(database: dict[str, Any], *, most: int) -> None:
    """Change the settings of a database, before its first connection, for a process that may wait for none too long.

    `most`: connections at a time.

    Not for commands: a migration may take long. SQLite stays as it is.
    """
    if not database["ENGINE"].endswith("postgresql"):
        return
    options = database["OPTIONS"]
    if options["options"] == TUNING:
        options["options"] += f" -c statement_timeout={round(settings.DATABASE_TIMEOUT * 1000)}"
    options["pool"] = {
        "connection_class": BoundedConnection,
        "min_size": 1,
        "max_size": most,
        "max_waiting": WAITING,
        "timeout": POOL_SECONDS,
        # After so long the pool stops connecting until a page asks again: with psycopg's 300 s it may find a database
        # that is back up to a minute late.
        "reconnect_timeout": CONNECT_SECONDS,
        "num_workers": 1,
    }
    database["CONN_MAX_AGE"] = 0  # at the end of a request the connection goes back to the pool
    database["CONN_HEALTH_CHECKS"] = (
        True  # a connection that broke in the pool is replaced before a page gets it; 0.1 ms
    )
