"""Yen of usage: equal to SQL over raw records, by each tenant's own days, and shown only where prices are set."""

import csv
import io
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.db import connection
from django.utils import timezone

from portal.accounts.models import Tenant
from portal.notifications import budget_alerts
from portal.prices import price_list
from portal.prices.models import TenantBudget, TokenPrice
from portal.usage import costs, records, scopes
from portal.usage.periods import Period, parse_period
from tests.html import all_of
from tests.pages import call, key_of, service_key_of
from tests.portal.browsing import read
from tests.portal.recorded import notice_facts, notified

pytestmark = pytest.mark.django_db
NOON = datetime(2026, 11, 20, 3, tzinfo=UTC)
# The yen of each tenant and month, by hand: each record by the price of its day where its tenant is.
BY_HAND = """
WITH used AS (
  SELECT r.*, t.slug, local_day(r.started_at, t.time_zone) AS day
  FROM usage_usagerecord r JOIN accounts_tenant t ON t.id = r.tenant_id
)
SELECT slug, substr(day, 1, 7), sum(
  (prompt_tokens - cached_tokens) * micro(p.input_price)
  + cached_tokens * micro(coalesce(p.cached_price, p.input_price)) + completion_tokens * micro(p.output_price))
FROM used JOIN prices_tokenprice p ON p.kind = 'internal' AND p.model = used.model AND p.first_day = (
  SELECT max(first_day) FROM prices_tokenprice q
  WHERE q.kind = 'internal' AND q.model = used.model AND first_day <= day)
WHERE p.last_day IS NULL OR day <= p.last_day
GROUP BY 1, 2
"""


def query(sql: str) -> list[tuple]:
    def local_day(moment: str, zone: str) -> str:
        return datetime.fromisoformat(moment).replace(tzinfo=UTC).astimezone(ZoneInfo(zone)).date().isoformat()

    connection.ensure_connection()
    connection.connection.create_function("local_day", 2, local_day)
    connection.connection.create_function("micro", 1, lambda text: round(Decimal(str(text)) * 10**6))
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def price(first: str, amount: str = "1", **more: object) -> TokenPrice:
    values = {"model": "qwen", "input_price": Decimal(amount), "output_price": Decimal(amount), **more}
    return TokenPrice.objects.create(first_day=date.fromisoformat(first), **values)


def everything(first: date, last: date) -> costs.UsageCosts:
    scope = scopes.UsageScope(
        name="all", label="", owner=None, **{name: queryset for name, queryset in _all_rows().items()}, groups=()
    )
    found = costs.read_costs(scope, Period(name="", first=first, last=last))
    assert found is not None
    return found


def _all_rows() -> dict[str, object]:
    models = scopes
    return {
        **{"days": models.UsageDay.objects.all(), "months": models.UsageMonth.objects.all()},
        **{"sums": models.UsageTenantDay.objects.all(), "hours": None, "records": models.UsageRecord.objects.all()},
        **{"rejections": models.RejectionHour.objects.all(), "refused": models.RefusedRequest.objects.all()},
        "people": models.UsageClientDay.objects.all(),
    }


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_amounts_are_those_of_sql_over_raw_records(seed):
    chance = random.Random(seed)
    zones = ("Asia/Tokyo", "America/Los_Angeles", "Europe/Berlin")
    keys = [
        service_key_of(Tenant.objects.create(slug=f"t{n}", name=f"T{n}", time_zone=zone))
        for n, zone in enumerate(zones)
    ]
    for model in ("qwen", "e5", "free"):
        for n in range(0 if model == "free" else chance.randint(1, 4)):
            first = date(2026, 8, 20) + timedelta(days=30 * n + chance.randint(0, 20))
            cached = chance.choice([None, Decimal("0.01")])
            price(first.isoformat(), f"{chance.uniform(0.001, 9):.6f}", model=model, cached_price=cached)
    rows = []
    for _ in range(300):
        at = datetime(2026, 8, 1, tzinfo=UTC) + timedelta(hours=chance.uniform(0, 24 * 110))
        prompt = chance.randint(0, 5000)
        more = {"cached_tokens": chance.randint(0, prompt), "model": chance.choice(["qwen", "e5", "free"])}
        rows.append(call(chance.choice(keys), tokens=(prompt, chance.randint(0, 900)), at=at, **more))
    records.record_usage(rows)
    found = everything(date(2026, 7, 1), date(2026, 12, 31))
    exact: dict[tuple[str, str], Decimal] = {}
    for row in found.rows:
        if row.internal is not None:
            place = Tenant.objects.get(pk=row.tenant).slug, f"{row.month:%Y-%m}"
            exact[place] = exact.get(place, Decimal(0)) + row.internal
    assert exact == {(slug, month): Decimal(micro) / 10**9 for slug, month, micro in query(BY_HAND)}
    assert found.total == price_list.round_yen(sum(exact.values(), Decimal(0)))


@pytest.mark.parametrize(("zone", "yen"), [("Asia/Tokyo", 20), ("America/Los_Angeles", 10), ("Europe/Berlin", 10)])
def test_a_new_price_begins_at_midnight_of_the_tenant(zone, yen):
    key = service_key_of(Tenant.objects.create(slug="t", name="T", time_zone=zone))
    price("2026-11-01", "10")
    price("2026-11-16", "20")
    at = datetime(2026, 11, 16, 0, 0, tzinfo=ZoneInfo("Asia/Tokyo"))
    records.record_usage([call(key, tokens=(1000, 0), at=at)])
    assert everything(date(2026, 11, 1), date(2026, 11, 30)).total == yen
    records.record_usage([call(key, tokens=(1000, 0), at=at - timedelta(seconds=1))])
    assert everything(date(2026, 11, 1), date(2026, 11, 30)).total == yen + 10


def test_a_deleted_model_keeps_its_prices_by_its_name(research):
    price("2026-11-01", "10", model="gone")
    records.record_usage([call(service_key_of(research), tokens=(1000, 0), at=NOON, model="gone")])
    assert everything(date(2026, 11, 1), date(2026, 11, 30)).total == 10


class TestPages:
    @pytest.fixture(autouse=True)
    def _now(self):
        with time_machine.travel(NOON + timedelta(hours=1), tick=False):
            yield

    @pytest.fixture
    def used(self, alice, research):
        records.record_usage([call(key_of(alice, research), tokens=(10_000, 5_000), at=NOON)])

    @pytest.mark.parametrize("of", ["me", "tenant:research", "all"])
    def test_without_prices_nothing_is_shown(self, used, as_olivia, of):
        page = read(as_olivia, f"/usage/?of={of}&period=2026-11")
        assert "¥" not in page
        assert 'id="costs"' not in page
        assert as_olivia.get(f"/usage/costs/export/?of={of}").status_code == 404

    def test_a_tenant_admin_sees_the_tenants_amounts(self, used, as_bob):
        price("2026-11-01", "2")
        context = as_bob.get("/usage/?of=tenant:research&period=2026-11").context
        assert context["costs"].total == 30
        assert context["yen"] == {"qwen": 30}
        assert [(row["tenant"], row["yen"]) for row in context["cost_rows"]] == [("研究部", 30)]

    def test_people_see_theirs_only_if_operators_allow_it(self, used, as_alice):
        price("2026-11-01", "2")
        assert as_alice.get("/usage/?period=2026-11").context["costs"] is None
        assert as_alice.get("/usage/costs/export/?period=2026-11").status_code == 404
        price_list.set_shown_to_people(True, by=None)
        assert as_alice.get("/usage/?period=2026-11").context["costs"].total == 30

    def test_prices_elsewhere_are_beside_and_name_their_service(self, used, as_olivia):
        price("2026-11-01", "4", kind="outside", reference="Service X")
        context = as_olivia.get("/usage/?of=all&period=2026-11&by=tenant").context
        assert (context["costs"].outside, context["costs"].has_internal) == (60, False)
        assert context["costs"].references == ["Service X"]
        assert context["yen"] == {}

    def test_the_file_has_exact_amounts(self, used, as_olivia):
        price("2026-11-01", "0.0333")
        answer = as_olivia.get("/usage/costs/export/?of=all&period=2026-11")
        [row] = csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode("utf-8-sig")))
        assert (row["month"], row["tenant"], row["model"], row["yen"]) == ("2026-11", "研究部", "qwen", "0.4995")

    def test_a_file_without_rows_has_the_same_head(self, used, as_olivia):
        price("2026-11-01", "2")
        heads = []
        for month in ("2026-11", "2026-10"):
            answer = as_olivia.get(f"/usage/costs/export/?of=all&period={month}")
            lines = list(csv.reader(io.StringIO(b"".join(answer.streaming_content).decode("utf-8-sig"))))
            assert (len(lines) > 1) == (month == "2026-11")
            heads.append(lines[0])
        assert heads[0] == heads[1]

    def test_tenants_of_one_name_remain_two(self, used, as_olivia, research):
        twin = Tenant.objects.create(slug="twin", name=research.name)
        records.record_usage([call(service_key_of(twin), tokens=(1_000, 0), at=NOON)])
        price("2026-11-01", "2")
        answer = as_olivia.get("/usage/costs/export/?of=all&period=2026-11")
        rows = csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode("utf-8-sig")))
        assert [(row["slug"], row["yen"]) for row in rows] == [("research", "30"), ("twin", "2")]
        context = as_olivia.get("/usage/?of=all&period=2026-11&by=tenant").context
        assert context["yen"] == {research.pk: 30, twin.pk: 2}
        assert len({row["tenant"] for row in context["cost_rows"]}) == 2

    def test_amounts_of_a_tenant_that_is_gone_or_called_as_another_with_its_short_name_are_its_own(
        self, used, as_olivia, research
    ):
        twin = Tenant.objects.create(slug="twin", name=research.name)
        # Called as the page calls `twin`, to distinguish it from `research`.
        other = Tenant.objects.create(slug="other", name=f"{twin.name} ({twin.slug})")
        for tenant, tokens in ((twin, 1_000), (other, 2_000)):
            records.record_usage([call(service_key_of(tenant), tokens=(tokens, 0), at=NOON)])
        records.record_usage([call(service_key_of(twin), tokens=(3_000, 0), at=NOON, tenant_id=other.pk + 1)])
        price("2026-11-01", "1")
        answer = as_olivia.get("/usage/?of=all&period=2026-11&by=tenant")
        assert [one.text for one in all_of(answer, ".groups tbody [data-label=¥]")] == ["15", "3", "2", "1"]

    def test_tokens_without_a_price_are_named(self, used, as_olivia):
        price("2026-11-01", "1", model="another")
        assert as_olivia.get("/usage/?of=all&period=2026-11").context["costs"].priceless == 15_000


class TestBudgets:
    def spend(self, tenant: Tenant, yen: int) -> None:
        if not TokenPrice.objects.exists():
            price("2026-01-01", "1")
        records.record_usage([call(service_key_of(tenant), tokens=(1000 * yen, 0), at=NOON)])

    def test_admins_are_notified_once_at_four_fifths_and_once_at_the_end(self, research, bob):
        TenantBudget.objects.create(tenant=research, yen=100)
        self.spend(research, 79)
        assert budget_alerts.notify_near_budgets(NOON) == 0
        self.spend(research, 1)
        assert [budget_alerts.notify_near_budgets(NOON) for _ in range(2)] == [1, 0]
        self.spend(research, 20)
        assert [budget_alerts.notify_near_budgets(NOON) for _ in range(2)] == [1, 0]
        assert notified("budget-near") == notified("budget-reached") == ["bob"]
        assert notice_facts("budget-near")[0]["percent"] == 80

    def test_the_next_month_begins_at_nothing(self, research, bob):
        TenantBudget.objects.create(tenant=research, yen=100)
        self.spend(research, 150)
        midnight = datetime(2026, 12, 1, tzinfo=ZoneInfo("Asia/Tokyo"))
        assert budget_alerts.notify_near_budgets(midnight) == 0
        assert budget_alerts.notify_near_budgets(midnight - timedelta(seconds=1)) == 1

    def test_operators_are_notified_where_a_tenant_has_no_admin(self, olivia):
        tenant = Tenant.objects.create(slug="alone", name="Alone")
        TenantBudget.objects.create(tenant=tenant, yen=10)
        self.spend(tenant, 10)
        assert budget_alerts.notify_near_budgets(NOON) == 1
        assert notified("budget-reached") == ["olivia"]

    def test_without_prices_nothing_is_sent(self, research, bob):
        TenantBudget.objects.create(tenant=research, yen=1)
        records.record_usage([call(service_key_of(research), tokens=(10**6, 0), at=NOON)])
        assert budget_alerts.notify_near_budgets(NOON) == 0


def test_a_period_of_years_takes_as_many_queries_as_one_of_days(research, django_assert_num_queries):
    for month in range(1, 11):
        price(f"2026-{month:02}-15", str(month))
    records.record_usage([call(service_key_of(research), at=NOON)])
    for name in ("2026-11", "years"):
        period = parse_period(name, NOON, ZoneInfo("Asia/Tokyo"))
        with django_assert_num_queries(3):
            everything(period.first, period.last)
    assert timezone.is_aware(NOON)
