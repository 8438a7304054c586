"""python -m tests.bench.paging fill|copy|multiply|time|prune …: what `pages` has done in a process of its own.

`fill`: a made-up company in an empty database. `copy SOURCE`: that of a SQLite file into an empty PostgreSQL.
`multiply ROWS AUDIT PERIODS`: until there are so many usage records. `time ROUNDS [--explain MS]`: each page, as a JSON
list; with `--again` the pages of such a list on standard input. `prune DAYS`: records older than that are deleted; [how
many, seconds]. Answers go to standard output.
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from time import perf_counter, process_time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
django.setup()

from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from portal.demo import company
from portal.usage.models import UsageRecord
from tests import walk
from tests.bench import transfer, usage_rows

SEED = 5
URGENT = -15  # keeps strangers' work on this machine out of the times, as far as that is in our hands


def say(text: str) -> None:
    print(f"→ {text}", file=sys.stderr, flush=True)


def fill() -> None:
    call_command("migrate", verbosity=0)
    begun = perf_counter()
    company.fill_database(company.Size(), timezone.now(), SEED, directory=False)
    say(f"the company took {perf_counter() - begun:.0f} s")


def copy(source: Path) -> None:
    call_command("migrate", verbosity=0)
    begun = perf_counter()
    transfer.copy_into_postgresql(source)
    say(f"copying the company took {perf_counter() - begun:.0f} s")


def multiply(rows: int, audit: int, periods: int) -> None:
    begun = perf_counter()
    usage_rows.multiply(rows, audit, periods)
    say(f"{UsageRecord.objects.count():,} records after {perf_counter() - begun:.0f} s")


def time(pages: list[walk.Page], rounds: int, explain: float) -> None:
    """Print what each page took that answers, after one look that fills caches and counts queries."""
    if os.geteuid() == 0:
        os.setpriority(os.PRIO_PROCESS, 0, URGENT)
    # Pages without `collectstatic`; the hash in an address costs nothing.
    plain = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.STORAGES = {**settings.STORAGES, "staticfiles": plain}
    settings.DATABASES["default"]["CONN_MAX_AGE"] = None  # one backend, whose work can be measured
    found, begun_all = [], perf_counter()
    backend = backend_process()
    clients = {who: walk.client_of(who) for who in walk.WHO}
    for page in pages:
        with CaptureQueriesContext(connection) as queries:
            status = walk.read(clients[page.who], page.address)
        if status != 200:
            continue
        slow = [query for query in queries.captured_queries if float(query["time"]) * 1000 >= explain]
        for query in slow if explain else []:
            say(f"{page.who} {page.address}: {float(query['time']) * 1000:.0f} ms {query['sql'][:3000]}")
        count = len(queries)  # before the next request forgets them
        begun = worked_until_now(backend)
        taken = [_once(clients[page.who], page) for _ in range(rounds)]
        worked = worked_until_now(backend) - begun
        found.append(
            {
                **asdict(page),
                "looks": rounds,
                "median": statistics.median(taken),
                "p95": statistics.quantiles(taken, n=20, method="inclusive")[18],
                "cpu": worked / rounds,
                "queries": count,
            }
        )
    say(f"{len(found)} pages took {perf_counter() - begun_all:.0f} s")
    print(json.dumps(found))


def _once(client: Client, page: walk.Page) -> float:
    """Return the seconds that one page took; of a file that is sent while it is made, until its first part."""
    begun = perf_counter()
    response = client.get(page.address)
    if response.status_code != 200:
        raise SystemExit(f"{page.address}: {response.status_code}")
    if not response.streaming:
        return perf_counter() - begun
    parts = iter(response)
    next(parts, None)
    taken = perf_counter() - begun
    for _ in parts:
        pass
    return taken


def backend_process() -> int | None:
    """Return the process of PostgreSQL that works for us; None with SQLite, which works in ours."""
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def worked_until_now(backend: int | None) -> float:
    """Return seconds of processors until now, of this process and of PostgreSQL's: what other work cannot lengthen."""
    of_backend = int(Path(f"/proc/{backend}/schedstat").read_text().split()[0]) / 1e9 if backend else 0.0
    return process_time() + of_backend


def prune(days: int) -> None:
    begun, out = perf_counter(), StringIO()
    call_command("pruneusage", older_than=days, stdout=out)
    print(json.dumps([int(out.getvalue()), perf_counter() - begun]))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = arguments.add_subparsers(dest="what", required=True)
    what.add_parser("fill")
    what.add_parser("copy").add_argument("source", type=Path)
    multiplying = what.add_parser("multiply")
    for name in ("rows", "audit", "periods"):
        multiplying.add_argument(name, type=int)
    timing = what.add_parser("time")
    timing.add_argument("rounds", type=int)
    timing.add_argument("--explain", type=float, default=0.0, metavar="MS", help="print queries that take longer")
    timing.add_argument("--only", default="", help="addresses with this in them")
    timing.add_argument("--again", action="store_true", help="pages that are given")
    what.add_parser("prune").add_argument("days", type=int)
    options = arguments.parse_args()
    if options.what == "fill":
        fill()
    elif options.what == "copy":
        copy(options.source)
    elif options.what == "multiply":
        multiply(options.rows, options.audit, options.periods)
    elif options.what == "time":
        given = json.load(sys.stdin) if options.again else None
        pages = [walk.Page(page["who"], page["pattern"], page["address"]) for page in given] if given else walk.pages()
        time([page for page in pages if options.only in page.address], options.rounds, options.explain)
    else:
        prune(options.days)


if __name__ == "__main__":
    main()
