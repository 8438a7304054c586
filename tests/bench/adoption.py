"""python -m tests.bench.adoption [ROWS]: how long the spread of use and yen take with 10 million records on PostgreSQL.

A company of 2,000 people in 20 tenants over 18 months. The goals: a page within 0.3 s; the nightly run within minutes.
Six minutes to fill, 6 GB of disk. On two busy cores of a virtual machine, November 2026, the median of nine:

the first run over all days 4.7 s, each later one 0.7 s, the counts of all tenants 0.9 s; /adoption/ 87 ms, of one
tenant 62 ms, its file 9 ms; the usage page of everyone with yen by tenant 175 ms (this month) and 176 ms (fiscal year),
the file of amounts 96 ms, the page of prices 28 ms.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from tests.bench.processes import ROOT
from tests.postgres import postgres

ROWS = 10_000_000
PEOPLE, TENANTS, DAYS = 2000, 20, 540
ROUNDS = 9


def main(rows: int = ROWS) -> None:
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as var, postgres() as cluster:
        env = {
            **os.environ,
            "MADOGUCHI_VAR": var,
            "DATABASE_URL": cluster.url,
            "DJANGO_SETTINGS_MODULE": "portal.settings",
        }
        command = [sys.executable, "-c", f"from tests.bench import adoption; adoption.measure({rows})"]
        done = subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE)
    for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
        print(f"{name:45} {1000 * seconds:10.0f} ms")


def measure(rows: int) -> None:
    """Fill the database of this process and print seconds by name, as JSON."""
    import django

    django.setup()
    from django.conf import settings
    from django.core.management import call_command
    from django.test import Client
    from django.utils import timezone

    from portal.accounts.models import User
    from portal.adoption import journeys, summary

    call_command("migrate", verbosity=0)
    fill(rows)
    now = timezone.now()
    found = {
        "first run: all days": timed(lambda: journeys.update_journeys(now)),
        "nightly run: the latest days": timed(lambda: journeys.update_journeys(now + timedelta(hours=1))),
        "counts of all tenants": timed(lambda: summary.update_summaries(timezone.localdate(now))),
    }
    # Pages without `collectstatic`.
    plain = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.STORAGES = {**settings.STORAGES, "staticfiles": plain}
    client = Client(SERVER_NAME="localhost")
    client.force_login(User.objects.get(username="operator"), "portal.accounts.backends.LocalBackend")
    for address in (
        *("/adoption/", "/adoption/?of=tenant:t3", "/adoption/export/?table=weeks"),
        *("/usage/?of=all&period=this-month&by=tenant", "/usage/?of=all&period=fiscal-year&by=tenant"),
        *("/usage/costs/export/?of=all&period=fiscal-year", "/prices/"),
    ):
        found[address] = statistics.median(timed(partial(read, client, address)) for _ in range(ROUNDS))
    print(json.dumps(found))


def read(client: Any, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 200, (address, answer.status_code)
    if answer.streaming:
        list(answer)


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def fill(rows: int) -> None:
    """Make people, keys, usage and its sums, prices of eight models that change twice."""
    from django.db import connection

    from portal.accounts.models import Tenant, User
    from portal.prices.models import TokenPrice
    from portal.usage.models import UsageRecord
    from tests.bench import usage_rows

    zones = ["Europe/Berlin", *["Asia/Tokyo"] * (TENANTS - 1)]
    tenants = Tenant.objects.bulk_create(
        Tenant(slug=f"t{n}", name=f"Tenant {n}", time_zone=zone) for n, zone in enumerate(zones)
    )
    User.objects.create(username="operator", is_staff=True)
    for n in range(8):
        for month in ("2025-01-01", "2026-04-01", "2026-10-15"):
            TokenPrice.objects.create(model=f"model-{n}", first_day=month, input_price=n + 1, output_price=2 * n + 1)
    indexes = list(UsageRecord._meta.indexes)
    with connection.schema_editor() as editor:
        for index in indexes:
            editor.remove_index(UsageRecord, index)
    base = tenants[0].pk
    with connection.cursor() as cursor:
        cursor.execute(PEOPLE_SQL)
        cursor.execute(MEMBERS_SQL, [base])
        cursor.execute(KEYS_SQL, [base])
        cursor.execute(USAGE_SQL, [rows])
        usage_rows.sum_records(cursor)
    with connection.schema_editor() as editor:
        for index in indexes:
            editor.add_index(UsageRecord, index)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE)")


# People arrive over the whole time, and use it the less the longer they are there.
PEOPLE_SQL = f"""
INSERT INTO accounts_user (password, is_superuser, username, first_name, last_name, email, is_staff, is_active,
  date_joined, language, is_break_glass, wants_mail, last_login)
SELECT '', false, 'p' || n, '', '', '', false, true, now() - interval '1 day' * ({DAYS} * random() * random()), '',
  false, true, now() - interval '1 day' FROM generate_series(1, {PEOPLE}) n
"""
MEMBERS_SQL = f"""
INSERT INTO accounts_membership (user_id, tenant_id, role, source, since)
SELECT id, %s + id %% {TENANTS}, 'member', 'manual', date_joined FROM accounts_user WHERE username LIKE 'p%%'
"""
KEYS_SQL = f"""
INSERT INTO keys_apikey (name, prefix, digest, created_at, tenant_id, user_id, service, purpose, key_class, networks,
  takes_user_headers, separates_users, is_playground, every_model, revoked_because, last_used_with, loop_guard)
SELECT 'laptop', 'p' || id, 'd' || id, date_joined, %s + id %% {TENANTS}, id, '', '', 'interactive', '[]', false, false,
  id %% 3 = 0, true, '', '', true FROM accounts_user WHERE username LIKE 'p%%'
"""
USAGE_SQL = """
INSERT INTO usage_usagerecord (request_id, key_id, user_id, tenant_id, model, endpoint, started_at, first_token_ms,
  duration_ms, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, status, estimated, end_user,
  client_class)
SELECT 'r' || n, k.id, k.user_id, k.tenant_id, 'model-' || n %% 8, 'chat/completions',
  k.created_at + (now() - k.created_at) * power(random(), 1.5), 200, 900, 800, 100, 300, 0, 'finished', false, '',
  (ARRAY['openai', 'other', 'claude-code', ''])[1 + k.id %% 4]
FROM generate_series(1, %s) n JOIN LATERAL (SELECT 1) x ON true
JOIN (SELECT *, row_number() OVER () AS place FROM keys_apikey) k
  ON k.place = 1 + mod((n::bigint * 7919), (SELECT count(*) FROM keys_apikey))
"""

if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
