"""How long the search takes in a company of 2,000 people with 10,000 keys, on PostgreSQL and SQLite.

The goal is of the time of processors, the database's included, which other work on the machine cannot lengthen.

`python -m tests.bench.searching fill`, then `time ROUNDS`: what the part does in a process with a database of its own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from time import perf_counter
from typing import Any

from tests.bench import report
from tests.bench.processes import ROOT
from tests.bench.report import Goal, Part
from tests.postgres import postgres

PEOPLE, KEYS, REQUESTS = 2000, 10_000, 2000
WANTED = 0.2  # seconds, of 95 searches in 100
LEAST = 20  # times that each text is looked for
SEED = 5
URGENT = -15  # keeps strangers' work on this machine out of the times, as far as that is in our hands
# A family name, the beginning of a user name, names of many keys and of few, a word of use cases, what nothing has.
TEXTS = ("佐藤", "sa", "ノート", "bench key 77", "議事録", "qwen", "no such thing")


def part(rounds: int) -> Part:
    """Measure both databases. Four minutes."""
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as var:
        found = {"SQLite": measured({"MADOGUCHI_VAR": var}, rounds)}
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as var, postgres() as cluster:
        found["PostgreSQL"] = measured({"MADOGUCHI_VAR": var, "DATABASE_URL": cluster.url}, rounds)
    lines = [
        [database, who, *(f"{1000 * row[what]:.0f}" for what in ("median", "p95", "worked")), f"“{row['slowest']}”"]
        for database, rows in sorted(found.items())
        for who, row in rows.items()
    ]
    return Part(
        name="search",
        markdown=report.table(
            ["database", "who", "median, ms", "p95, ms", "p95 of processors, ms", "slowest text"], lines
        ),
        goals=tuple(goal(database, rows) for database, rows in sorted(found.items())),
    )


def measured(env: dict[str, str], rounds: int) -> dict[str, Any]:
    work(env, "fill")
    found: dict[str, Any] = work(env, "time", max(rounds, LEAST))
    return found


def work(env: dict[str, str], *words: object) -> Any:
    command = [sys.executable, "-m", "tests.bench.searching", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def goal(database: str, rows: dict[str, Any]) -> Goal:
    who, worst = max(rows.items(), key=lambda item: item[1]["worked"])
    return Goal(
        text=f"search of {PEOPLE:,} people and {KEYS:,} keys, p95 of processors: {database}",
        wanted=f"≤ {1000 * WANTED:.0f} ms",
        reached=f"{1000 * worst['worked']:.0f} ms ({who})",
        met=worst["worked"] <= WANTED,
    )


def fill() -> int:
    """Make up a company, and as many more keys and requests as are missing; return the number of keys."""
    from django.core.management import call_command
    from django.db import connection
    from django.utils import timezone

    from portal.accounts.models import Membership
    from portal.demo import company
    from portal.keys.models import ApiKey
    from portal.quotas.models import QuotaRequest

    call_command("migrate", verbosity=0)
    company.fill_database(company.Size(people=PEOPLE, days=3, amount=0.01), timezone.now(), SEED, directory=False)
    members = list(Membership.objects.select_related("user", "tenant"))
    count = ApiKey.objects.count()
    ApiKey.objects.bulk_create(
        ApiKey(
            tenant=member.tenant,
            user=member.user if number % 10 else None,
            service="" if number % 10 else f"service {number}",
            name=f"bench key {number}",
            prefix=f"mdg_b{number:06}x",
            digest=f"bench {number}",
        )
        for number, member in ((number, members[number % len(members)]) for number in range(KEYS - count))
    )
    QuotaRequest.objects.bulk_create(
        QuotaRequest(
            **{"tenant": member.tenant, "user": member.user, "asked_by": member.user, "unit": "tokens"},
            **{"window": "day", "amount": 200 + number, "previous_amount": 100, "state": "granted"},
            reason=f"report {number}",
        )
        for number, member in enumerate(members[:REQUESTS])
    )
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("VACUUM (ANALYZE)")
    return ApiKey.objects.count()


def time(rounds: int) -> dict[str, Any]:
    """Return by role how long a search takes, in all and of processors, and the text that takes most of these."""
    from django.conf import settings

    from tests import walk
    from tests.bench import paging

    # Pages without `collectstatic`; the hash in an address costs nothing.
    plain = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.STORAGES = {**settings.STORAGES, "staticfiles": plain}
    settings.DATABASES["default"]["CONN_MAX_AGE"] = None  # one backend, whose work can be measured
    backend = paging.backend_process()
    if os.geteuid() == 0:
        for process in filter(None, (os.getpid(), backend)):
            os.setpriority(os.PRIO_PROCESS, process, URGENT)
    found = {}
    for who in walk.WHO:
        client = walk.client_of(who)
        for text in TEXTS:
            _search(client, text)  # what is read and compiled once
        taken: dict[str, list[tuple[float, float]]] = {text: [] for text in TEXTS}
        for text in TEXTS * rounds:
            begun, worked = perf_counter(), paging.worked_until_now(backend)
            _search(client, text)
            taken[text].append((perf_counter() - begun, paging.worked_until_now(backend) - worked))
        every = [pair for some in taken.values() for pair in some]
        found[who] = {
            "median": statistics.median(seconds for seconds, _ in every),
            "p95": statistics.quantiles((seconds for seconds, _ in every), n=20)[18],
            "worked": statistics.quantiles((worked for _, worked in every), n=20)[18],
            "slowest": max(taken, key=lambda text: statistics.median(worked for _, worked in taken[text])),
        }
    return found


def _search(client: Any, text: str) -> None:
    response = client.get("/search/", {"q": text})
    assert response.status_code == 200, response.status_code


def main(what: str, *words: str) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
    import django

    django.setup()
    print(json.dumps(fill() if what == "fill" else time(*map(int, words))))


if __name__ == "__main__":
    main(*sys.argv[1:])
