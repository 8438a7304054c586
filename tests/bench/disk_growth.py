"""python -m tests.bench.disk_growth [--calls 1000000]: what a million calls take on the disk, and in a backup.

Into an empty SQLite file and into an empty PostgreSQL, both temporary, as gateways write them (`record_usage`, with its
sums): calls of two months on working days from 8 to 20 o'clock, by 1,000 keys of 20 tenants, each of which uses three
of eight models. Prints bytes by table with indexes, from the page that operators see, and what a backup of it takes.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

from tests.postgres import postgres

ROOT = Path(__file__).resolve().parent.parent.parent
SEED = 7
KEYS, TENANTS, MODELS, DAYS = 1000, 20, 8, 60
BATCH = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--fill", action="store_true", help="in this process, into the database of the environment")
    options = parser.parse_args()
    if options.fill:
        fill(options.calls)
        return
    with tempfile.TemporaryDirectory(prefix="madoguchi-growth-") as directory, postgres() as cluster:
        for name, more in (("SQLite", {}), ("PostgreSQL", {"DATABASE_URL": cluster.url})):
            env = {**os.environ, "MADOGUCHI_VAR": f"{directory}/{name}", **more}
            print(f"{name}, {options.calls} calls", flush=True)
            manage = [sys.executable, str(ROOT / "manage.py")]
            subprocess.run([*manage, "migrate", "--verbosity", "0"], env=env, check=True)
            fill_here = [sys.executable, "-m", "tests.bench.disk_growth", "--fill", "--calls", str(options.calls)]
            subprocess.run(fill_here, env=env, cwd=ROOT, check=True)
            begun = perf_counter()
            subprocess.run([*manage, "backup", f"{directory}/backups {name}"], env=env, check=True)
            print(f"  backup: {perf_counter() - begun:.1f} s", flush=True)


def fill(calls: int) -> None:
    """Record so many calls, and print what they take."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
    django.setup()

    from django.db import connection

    from portal.accounts.models import Tenant
    from portal.keys.lifecycle import issue_key
    from portal.operations import kept_data
    from portal.usage.records import record_usage

    tenants = [Tenant.objects.create(slug=f"tenant-{number}", name=f"部門 {number}") for number in range(TENANTS)]
    keys = []
    for number in range(KEYS):
        tenant = tenants[number % TENANTS]
        key, _ = issue_key(tenant=tenant, service=f"service {number}", name=f"key {number}")
        keys.append((key.pk, tenant.pk))
    with connection.cursor() as cursor:
        before = kept_data.database_size()
        begun, batch = perf_counter(), []
        for row in made_up(calls, keys):
            batch.append(row)
            if len(batch) == BATCH:
                record_usage(batch)
                batch = []
        record_usage(batch) if batch else None
        print(f"  recorded in {perf_counter() - begun:.0f} s")
        if connection.vendor == "postgresql":
            cursor.execute("VACUUM ANALYZE")
        else:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    kept_data.COUNTED = 1 << 40  # count the pages of a file of any size
    for table, size in sorted(kept_data.read_sizes().items(), key=lambda pair: -pair[1])[:6]:
        print(f"  {table}: {size / 1e6:.0f} MB")
    print(f"  in all: {(kept_data.database_size() - before) / 1e6:.0f} MB more than without them", flush=True)


def made_up(calls: int, keys: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Yield rows of calls, the oldest first."""
    chance = random.Random(SEED)
    last = datetime.fromisoformat("2026-11-30T20:00:00+09:00")
    days = [day for day in (last - timedelta(days=DAYS - n) for n in range(DAYS)) if day.weekday() < 5]
    for number in range(calls):
        key, tenant = keys[min(int(chance.expovariate(8 / KEYS)), KEYS - 1)]  # a few keys make most calls
        day = days[number * len(days) // calls]
        prompt, completion = int(chance.lognormvariate(6, 1)), int(chance.lognormvariate(5, 1))
        yield {
            "request_id": f"req_{chance.getrandbits(128):032x}",
            "key_id": key,
            "user_id": None,
            "tenant_id": tenant,
            "model": f"model-{(key + chance.randrange(3)) % MODELS}",
            "replica_id": None,
            "endpoint": "/v1/chat/completions",
            "started_at": day - timedelta(seconds=chance.randrange(12 * 3600)),
            "first_token_ms": chance.randrange(50, 900),
            "duration_ms": chance.randrange(500, 30_000),
            "prompt_tokens": prompt,
            "cached_tokens": prompt // 3,
            "completion_tokens": completion,
            "reasoning_tokens": 0,
            "status": "finished",
            "estimated": False,
            "end_user": "",
            "address": "",
            "client": "",
            "looped_tokens": 0,
            "saved_tokens": 0,
            "temperature": 70,
            "watched": True,
        }


if __name__ == "__main__":
    main()
