"""A random company whose people arrive, use models, move and leave; and what SQL over the raw rows says of them."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db import connection

from portal.accounts.models import Membership, Tenant, User
from portal.audit.models import AuditEvent
from portal.keys.models import ApiKey
from portal.usage import records
from tests.pages import call, key_of, service_key_of

START = datetime(2026, 3, 1, tzinfo=UTC)
DAYS = 240
END = START + timedelta(days=DAYS)
ZONES = ("Asia/Tokyo", "America/Los_Angeles", "Europe/Berlin")
CLIENTS = ("openai", "claude-code", "other", "dify", "")
STATUSES = ("finished", "finished", "looped", "aborted", "failed")

# Each person in each tenant: what `AdoptionJourney` says, from records, events and keys alone.
OF_PEOPLE = """
WITH answer AS (
  SELECT r.user_id AS person, r.tenant_id AS tenant, local_day(r.started_at, t.time_zone) AS day
  FROM usage_usagerecord r JOIN accounts_tenant t ON t.id = r.tenant_id JOIN accounts_user u ON u.id = r.user_id
  WHERE r.status IN ('finished', 'looped')
), key AS (
  SELECT k.user_id AS person, k.tenant_id AS tenant, min(local_day(k.created_at, t.time_zone)) AS day
  FROM keys_apikey k JOIN accounts_tenant t ON t.id = k.tenant_id WHERE k.user_id IS NOT NULL GROUP BY 1, 2
), came AS (
  SELECT m.user_id AS person, m.tenant_id AS tenant,
    max(local_day(m.since, t.time_zone), local_day(min(e.at), t.time_zone)) AS day
  FROM accounts_membership m JOIN accounts_tenant t ON t.id = m.tenant_id
  JOIN audit_auditevent e ON e.actor_id = m.user_id AND e.action = 'session.begin' GROUP BY m.id
  UNION ALL SELECT * FROM key UNION ALL SELECT * FROM answer
), arrival AS (SELECT person, tenant, min(day) AS day FROM came GROUP BY 1, 2)
SELECT a.person, a.tenant, a.day,
  (SELECT min(day) FROM (SELECT day FROM key k WHERE k.person = a.person AND k.tenant = a.tenant
     UNION SELECT day FROM answer x WHERE x.person = a.person AND x.tenant = a.tenant)),
  min(x.day),
  count(DISTINCT CASE WHEN julianday(x.day) - julianday(a.day) BETWEEN 0 AND 6 THEN x.day END) >= 3,
  count(CASE WHEN julianday(x.day) - julianday(a.day) BETWEEN 7 AND 13 THEN 1 END) > 0,
  count(CASE WHEN julianday(x.day) - julianday(a.day) BETWEEN 21 AND 27 THEN 1 END) > 0
FROM arrival a LEFT JOIN answer x ON x.person = a.person AND x.tenant = a.tenant
GROUP BY 1, 2, 3
"""

# How many people had an answer in each week, by its Monday, of each tenant and (0) of the company.
OF_WEEKS = """
WITH answer AS (
  SELECT r.user_id AS person, r.tenant_id AS tenant,
    date(local_day(r.started_at, t.time_zone), 'weekday 0', '-6 days') AS week
  FROM usage_usagerecord r JOIN accounts_tenant t ON t.id = r.tenant_id JOIN accounts_user u ON u.id = r.user_id
  WHERE r.status IN ('finished', 'looped')
)
SELECT tenant, week, count(DISTINCT person) FROM answer GROUP BY 1, 2
UNION ALL SELECT 0, week, count(DISTINCT person) FROM answer GROUP BY 2
"""


def query(sql: str) -> list[tuple[Any, ...]]:
    """Return the rows; `local_day(moment, zone)` is the day of a stored moment in a zone."""
    connection.ensure_connection()
    connection.connection.create_function("local_day", 2, local_day)
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def local_day(moment: str, zone: str) -> str:
    return datetime.fromisoformat(moment).replace(tzinfo=UTC).astimezone(ZoneInfo(zone)).date().isoformat()


def build_world(seed: int, people: int = 90) -> list[dict[str, Any]]:
    """Make the company; return the rows of its usage, oldest first, which are not recorded yet."""
    chance = random.Random(seed)
    tenants = [Tenant.objects.create(slug=f"t{n}", name=f"T{n}", time_zone=zone) for n, zone in enumerate(ZONES)]
    rows = []
    for number in range(people):
        person = User.objects.create(username=f"p{number}", is_active=chance.random() > 0.1)
        came = START + timedelta(days=chance.choice([3, 40, 41, 42, 90, 200]), hours=chance.uniform(0, 24))
        for tenant in chance.sample(tenants, chance.choice([1, 1, 1, 2])):
            rows += _live(chance, person, tenant, came)
        if chance.random() > 0.1:
            _sign_in(person, came)
            _sign_in(person, came + timedelta(days=30))
    service = service_key_of(tenants[0])
    rows += [call(service, at=START + timedelta(hours=5 * n)) for n in range(200)]
    gone = {"key_id": 10**6, "user_id": 10**6, "tenant_id": tenants[0].pk}
    rows += [{**call(service, at=START + timedelta(days=n)), **gone} for n in range(20)]
    return sorted(rows, key=lambda row: row["started_at"])


def _live(chance: random.Random, person: User, tenant: Tenant, came: datetime) -> list[dict[str, Any]]:
    """Make a person's membership, perhaps a key and usage, and perhaps end the membership."""
    since = came + timedelta(days=chance.choice([-20, 0, 25]))
    member = Membership.objects.create(user=person, tenant=tenant, since=since)
    if chance.random() < 0.2:
        return []
    User.objects.filter(pk=person.pk).update(is_active=True)  # or no key is issued
    key = key_of(person, tenant, name=chance.choice(["laptop", "my Dify", "webui"]))
    begun = max(came, since) + timedelta(days=chance.choice([0, 0, 1, 9]))
    ApiKey.objects.filter(pk=key.pk).update(created_at=begun, is_playground=chance.random() < 0.3)
    keen = chance.choice([0.0, 0.1, 0.4, 0.9])
    rows = []
    for day in range(70):
        if chance.random() < keen * 0.97**day:
            at = begun + timedelta(days=day, hours=chance.uniform(0, 12))
            status = chance.choice(STATUSES)
            rows.append(call(key, at=at, status=status, client_class=chance.choice(CLIENTS)))
    if chance.random() < 0.15:
        member.delete()
    return [row for row in rows if row["started_at"] < END]


def _sign_in(person: User, at: datetime) -> None:
    AuditEvent.objects.create(actor=person, action="session.begin", object_kind="user", object_id=str(person.pk), at=at)


def record_until(rows: list[dict[str, Any]], moment: datetime) -> list[dict[str, Any]]:
    """Record the rows before the moment; return the others."""
    records.record_usage([row for row in rows if row["started_at"] < moment])
    return [row for row in rows if row["started_at"] >= moment]
