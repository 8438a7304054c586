"""The page of one's own usage, and what is under it: periods, chart, allowances."""

import csv
import io
import json
import re
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from apiproxy.dataplane import errors
from portal.accounts.models import Membership
from portal.audit.models import AuditEvent
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey
from portal.quotas.models import Quota
from portal.quotas.status import allowances
from portal.quotas.units import TOKENS
from portal.usage import failure_reasons, periods, report, views
from portal.usage.chart import line_chart, token_chart
from portal.usage.models import RejectionHour, UsageRecord
from portal.usage.scopes import SERVICE
from tests.conftest import person
from tests.html import has, one_of, texts
from tests.pages import key_of, serve, service_key_of, use

TOKYO = ZoneInfo("Asia/Tokyo")
NO_LOOPS = {"looped": 0, "looped_tokens": 0, "saved_tokens": 0}


@pytest.fixture
def key(alice, research):
    return key_of(alice, research)


@pytest.mark.django_db
class TestPage:
    def test_it_shows_exactly_what_was_recorded(self, as_alice, key):
        use(key, tokens=(1_234, 56), model="qwen")
        use(key, tokens=(1, 1), model="qwen")
        use(key, tokens=(700, 0), model="e5")
        context = as_alice.get("/usage/").context
        rows = {
            row["model"]: (row["requests"], row["prompt_tokens"], row["completion_tokens"]) for row in context["rows"]
        }
        assert rows == {"qwen": (2, 1_235, 57), "e5": (1, 700, 0)}
        assert context["sums"] == {
            "requests": 3,
            "prompt_tokens": 1_935,
            "completion_tokens": 57,
            "total_tokens": 1_992,
            "estimated": 0,
            **NO_LOOPS,
        }

    def test_numbers_are_grouped(self, as_alice, key):
        use(key, tokens=(1_234_567, 0))
        page = as_alice.get("/usage/").content.decode()
        assert ">1,234,567<" in page
        assert ">1.2M<" in re.sub(r"\s", "", page)
        japanese_page = as_alice.get("/usage/", headers={"accept-language": "ja"}).content.decode()
        assert ">123.4万<" in re.sub(r"\s", "", japanese_page)

    def test_estimated_rows_are_marked(self, as_alice, key):
        use(key)
        assert not has(as_alice.get("/usage/"), ".tag[title]")
        use(key, estimated=True)
        assert has(as_alice.get("/usage/"), "td .tag[title^='1 ']")

    def test_only_one_s_own_is_shown_even_to_operators(self, client, alice, bob, olivia, key):
        use(key)
        for other in (bob, olivia):
            client.force_login(other)
            assert has(client.get("/usage/"), ".empty")

    def test_an_empty_period_says_what_to_do(self, as_alice):
        assert has(as_alice.get("/usage/"), ".empty a[href='/']")

    def test_days_are_those_of_the_tenant(self, as_alice, alice, key, time_machine):
        time_machine.move_to("2026-11-20T15:30:00Z")  # half past midnight of the 21st in Tokyo
        as_alice.force_login(alice)
        use(key, at=timezone.now() - timedelta(hours=1))
        use(key)
        days = [row["slot"] for row in as_alice.get("/usage/").context["rows"]]
        assert days == [date(2026, 11, 21), date(2026, 11, 20)]

    @pytest.mark.parametrize(
        ("period", "requests"),
        [("this-month", 2), ("last-month", 1), ("14", 1), ("30", 3), ("90", 4), ("nonsense", 2), ("", 2)],
    )
    def test_the_period_can_be_chosen(self, as_alice, alice, key, time_machine, period, requests):
        time_machine.move_to("2026-11-20T03:00:00Z")
        as_alice.force_login(alice)
        for days in (0, 15, 25, 70):
            use(key, at=timezone.now() - timedelta(days=days))
        context = as_alice.get(f"/usage/?period={period}").context
        assert context["sums"]["requests"] == requests
        assert len(context["rows"]) + context["older"] == requests

    def test_any_days_can_be_chosen_in_either_order(self, as_alice, alice, key, time_machine):
        time_machine.move_to("2026-11-20T03:00:00Z")
        as_alice.force_login(alice)
        for days in (1, 5, 9):
            use(key, at=timezone.now() - timedelta(days=days))
        for first, last in (("2026-11-12", "2026-11-16"), ("2026-11-16", "2026-11-12")):
            response = as_alice.get("/usage/", {"from": first, "to": last, "by": "key"}, follow=True)
            assert response.context["period"].name == "2026-11-12..2026-11-16"
            assert (response.context["sums"]["requests"], response.context["group"]) == (1, "key")
        assert as_alice.get("/usage/?from=&to=x", follow=True).status_code == 200

    @pytest.mark.parametrize("by", ["model", "key"])
    def test_groups_can_be_sorted(self, as_alice, alice, research, by):
        for name, tokens in (("many-in", (90, 1)), ("many-out", (1, 50))):
            use(key_of(alice, research, name), tokens=tokens, model=name)
        for sort, first in (("", "many-in"), ("completion_tokens", "many-out"), ("nonsense", "many-in")):
            page = as_alice.get("/usage/", {"by": by, "sort": sort})
            assert first in page.context["groups"][0]["name"], sort
            assert has(page, "th[aria-sort=descending] a.sort")
        page = as_alice.get("/usage/", {"by": by, "sort": "-total_tokens"})
        assert "many-out" in page.context["groups"][0]["name"]
        assert has(page, "th[aria-sort=ascending] a.sort")

    def test_whole_days_are_shown_until_they_are_many(self, as_alice, alice, key, time_machine):
        time_machine.move_to("2026-11-20T03:00:00Z")
        as_alice.force_login(alice)
        for days, models in ((0, 2), (1, 27), (2, 2)):
            for n in range(models):
                use(key, model=f"m{n}", at=timezone.now() - timedelta(days=days))
        context = as_alice.get("/usage/?period=30").context
        assert {row["slot"].day for row in context["rows"]} == {20, 19}
        assert context["older"] == 2
        chart = context["charts"]["tokens"]
        assert [slot.day for slot, used in zip(chart.slots, chart.sums, strict=True) if used] == [18, 19, 20]

    def test_a_day_with_more_models_than_are_shown_at_once_is_shown(self, as_alice, key):
        for n in range(40):
            use(key, model=f"m{n}")
        context = as_alice.get("/usage/?period=30").context
        assert (len(context["rows"]), context["older"]) == (40, 0)

    def test_it_can_be_had_as_csv(self, as_alice, key):
        use(key, tokens=(10, 5), model="a,b")
        [row] = exported(as_alice, "?period=30")
        assert row["day"] == str(timezone.now().astimezone(TOKYO).date())
        assert (row["model"], row["prompt_tokens"], row["completion_tokens"]) == ("a,b", "10", "5")

    def test_more_usage_costs_no_more_queries(self, as_alice, alice, research, key, django_assert_num_queries):
        use(key)
        # session, user, the bar on top, zone, series, totals, those before, prices, tenants to choose from
        with django_assert_num_queries(9):
            as_alice.get("/usage/?period=90")
        for n in range(40):
            use(key_of(alice, research, f"k{n}"), model=f"m{n}", at=timezone.now() - timedelta(days=n))
        with django_assert_num_queries(9):
            as_alice.get("/usage/?period=90")


def exported(client, query: str = "") -> list[dict[str, str]]:
    text = client.get(f"/usage/export/{query}").getvalue().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.django_db
@pytest.mark.parametrize("by", ["", "&by=model", "&by=user", "&by=key", "&by=detail"])
def test_a_file_without_rows_has_the_same_head(by, as_bob, alice, research):
    def head() -> str:
        address = f"/usage/export/?of=tenant:research&period=90{by}"
        return as_bob.get(address).getvalue().decode("utf-8-sig").splitlines()[0]

    empty = head()
    use(key_of(alice, research))
    assert head() == empty


@pytest.mark.django_db
class TestScopes:
    """Bob administers Alice's tenant, Charlie is of another one, Olivia operates."""

    @pytest.fixture(autouse=True)
    def used(self, alice, bob, charlie, olivia, research, sales):
        use(key_of(alice, research), tokens=(100, 0), end_user="u1")
        use(key_of(bob, research), tokens=(30, 0))
        service, _ = issue_key(tenant=research, service="Dify", name="Dify")
        use(service, tokens=(7, 0), end_user="=1+1")
        use(key_of(charlie, sales), tokens=(1000, 0))

    @pytest.mark.parametrize(
        ("who", "of", "tokens"),
        [
            ("alice", "me", 100),
            ("alice", "tenant:research", None),
            ("alice", "all", None),
            ("bob", "me", 30),
            ("bob", "tenant:research", 137),
            ("bob", "tenant:sales", None),
            ("bob", "all", None),
            ("charlie", "tenant:research", None),
            ("olivia", "tenant:sales", 1000),
            ("olivia", "all", 1137),
            ("olivia", "tenant:nowhere", None),
            ("olivia", "nonsense", None),
        ],
    )
    @pytest.mark.parametrize("path", ["/usage/", "/usage/export/"])
    def test_each_sees_what_is_theirs_and_no_more(self, client, request, who, of, tokens, path):
        client.force_login(request.getfixturevalue(who))
        response = client.get(path, {"of": of})
        assert response.status_code == (404 if tokens is None else 200)
        if tokens is not None:
            assert sum(int(row["total_tokens"]) for row in exported(client, f"?of={of}")) == tokens

    @pytest.mark.parametrize("period", ["nonsense", "2026-13", "9999-12"])
    def test_a_file_of_a_period_that_does_not_exist_is_refused(self, client, bob, period):
        """A page shows its period; a file of another one would be taken for this."""
        client.force_login(bob)
        assert client.get("/usage/export/", {"period": period}).status_code == 400
        assert client.get("/usage/", {"period": period}).status_code == 200

    def test_only_scopes_that_work_are_offered(self, client, alice, bob, olivia):
        offered = {}
        for reader in (alice, bob, olivia):
            client.force_login(reader)
            offered[reader.username] = [name for name, _ in client.get("/usage/").context["scopes"]]
        assert offered == {
            "alice": ["me"],
            "bob": ["me", "tenant:research"],
            "olivia": ["me", "all", "tenant:sales", "tenant:research"],
        }

    @pytest.mark.parametrize(
        ("group", "expected"),
        [
            ("user", [("{alice}", 100), ("{bob}", 30), (SERVICE, 7)]),
            ("end_user", [("u1", 100), ("", 30), ("=1+1", 7)]),
            ("model", [("qwen", 137)]),
            ("tenant", [("qwen", 137)]),
        ],
    )
    def test_it_is_told_apart(self, client, alice, bob, group, expected):
        """By a thing that the scope does not have it is shown by model."""
        client.force_login(bob)
        groups = client.get("/usage/", {"of": "tenant:research", "by": group}).context["groups"]
        assert [(row["id"], row["total_tokens"]) for row in groups] == [
            (number.format(alice=alice.pk, bob=bob.pk), tokens) for number, tokens in expected
        ]
        assert all(row["name"] for row in groups)  # also of services, and of what clients did not name

    def test_keys_are_named_also_when_they_are_gone(self, client, olivia, charlie):
        client.force_login(olivia)
        key = ApiKey.objects.get(user=charlie)
        number = key.pk
        key.delete()
        groups = client.get("/usage/", {"of": "all", "by": "key"}).context["groups"]
        assert groups[0]["id"] == str(number)
        assert str(number) in groups[0]["name"]

    def test_a_spreadsheet_is_given_no_formula(self, client, bob):
        client.force_login(bob)
        rows = exported(client, "?of=tenant:research&by=end_user")
        groups = client.get("/usage/?of=tenant:research&by=end_user").context["groups"]
        assert [row["end_user"] for row in rows] == ["u1", groups[1]["name"], "'=1+1"]

    def test_the_same_as_json(self, client, bob):
        client.force_login(bob)
        rows = json.loads(client.get("/usage/export/?of=tenant:research&by=end_user&format=json").getvalue())
        assert rows[2] == {
            **{"end_user": "=1+1", "requests": 1, "estimated": 0},
            **{"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7},
            **NO_LOOPS,
        }

    def test_active_people_and_troubles_are_counted(self, client, bob, alice, research):
        use(key_of(alice, research, "other"), status="failed")
        use(key_of(alice, research, "third"), status="aborted")
        client.force_login(bob)
        context = client.get("/usage/?of=tenant:research").context
        assert context["people"] == 2
        assert context["totals"].failures == {"failed": 1, "aborted": 1}

    def test_first_tokens_and_speed_are_told_of_a_tenant(self, client, bob, alice, research):
        use(key_of(alice, research, "other"), tokens=(0, 50), first_token_ms=400, duration_ms=1400)
        client.force_login(bob)
        context = client.get("/usage/?of=tenant:research").context
        assert 0.3 <= context["totals"].first_tokens[0] <= 0.5
        assert context["totals"].speed == 50

    def test_a_day_is_told_by_the_hour(self, client, bob, alice, research, time_machine):
        time_machine.move_to("2026-11-20T03:20:00Z")
        client.force_login(bob)
        use(key_of(alice, research, "other"), tokens=(5, 0), at=timezone.now() - timedelta(hours=2))
        context = client.get("/usage/?of=tenant:research&period=today").context
        assert context["unit"] == "hour"
        assert len(context["charts"]["tokens"].slots) == 24
        assert [(row["slot"].hour, row["total_tokens"]) for row in context["rows"]] == [(10, 5)]

    def test_a_year_is_told_by_the_month(self, client, olivia, alice, research, time_machine):
        time_machine.move_to("2026-11-20T03:20:00Z")
        client.force_login(olivia)
        use(key_of(alice, research, "other"), tokens=(5, 0), at=datetime(2026, 4, 2, tzinfo=UTC))
        context = client.get("/usage/?of=all&period=fiscal-year").context
        assert context["unit"] == "month"
        assert len(context["charts"]["tokens"].slots) == 8
        assert [(row["slot"], row["total_tokens"]) for row in context["rows"]] == [(date(2026, 4, 1), 5)]

    def test_it_is_compared_with_the_period_before(self, client, olivia, alice, research, time_machine):
        time_machine.move_to("2026-10-20T03:20:00Z")
        client.force_login(olivia)
        key = key_of(alice, research, "other")
        use(key, tokens=(150, 0))
        use(key, tokens=(100, 0), at=datetime(2026, 9, 20, tzinfo=UTC))
        use(key, tokens=(999, 0), at=datetime(2026, 9, 21, tzinfo=UTC))
        assert client.get("/usage/?of=all").context["change"] == 50

    def test_what_does_not_fit_on_a_page_is_in_the_file(self, client, olivia, monkeypatch):
        monkeypatch.setattr(views, "MAX_GROUPS", 2)
        client.force_login(olivia)
        page = client.get("/usage/?of=all&by=key")
        assert page.context["left_out"] == 2
        assert "2" in one_of(page, "tfoot td[colspan]").text
        assert len(exported(client, "?of=all&by=key")) == 4


@pytest.mark.django_db
class TestParts:
    """From a page to a part of it: only of what is the reader's."""

    @pytest.fixture(autouse=True)
    def used(self, alice, bob, charlie, research, sales, time_machine):
        time_machine.move_to("2026-11-20T03:20:00Z")
        self.laptop, self.other = key_of(alice, research), key_of(alice, research, "other")
        use(self.laptop, tokens=(100, 0), end_user="u1", at=timezone.now() - timedelta(hours=2))
        use(self.laptop, tokens=(20, 0), model="e5")
        use(self.other, tokens=(3, 0), at=timezone.now() - timedelta(days=25))
        use(key_of(bob, research), tokens=(4000, 0))
        service, _ = issue_key(tenant=research, service="Dify", name="Dify")
        use(service, tokens=(50_000, 0))
        self.foreign = key_of(charlie, sales)
        use(self.foreign, tokens=(600_000, 0))

    @pytest.mark.parametrize(
        ("part", "tokens"),
        [
            ({"model": "qwen"}, 54_103),
            ({"user": "{alice}"}, 123),
            ({"user": "service"}, 50_000),
            ({"key": "{laptop}"}, 120),
            ({"key": "{laptop}", "model": "e5"}, 20),
            ({"end_user": "u1"}, 100),
            ({"model": "unheard-of"}, 0),
        ],
    )
    @pytest.mark.parametrize("period", ["30", "fiscal-year"])
    def test_a_part_is_what_is_left(self, client, bob, alice, part, tokens, period):
        client.force_login(bob)
        named = {"alice": alice.pk, "laptop": self.laptop.pk}
        query = {name: value.format(**named) for name, value in part.items()}
        context = client.get("/usage/", {"of": "tenant:research", "period": period, **query}).context
        assert context["sums"]["total_tokens"] == tokens
        assert {name for name, _ in context["focus"]} == query.keys()
        assert not set(query) & set(context["scope"].groups)

    @pytest.mark.parametrize(
        "part",
        [{"key": "{foreign}"}, {"user": "{charlie}"}, {"key": "nonsense"}, {"user": "-1"}, {"key": "9" * 30}],
    )
    @pytest.mark.parametrize("path", ["/usage/", "/usage/export/"])
    def test_what_is_of_others_is_not_even_named(self, client, bob, charlie, part, path):
        client.force_login(bob)
        query = {name: value.format(foreign=self.foreign.pk, charlie=charlie.pk) for name, value in part.items()}
        assert client.get(path, {"of": "tenant:research", "period": "30", **query}).status_code == 404
        assert client.get(path, {"period": "30", **query}).status_code == 404

    @pytest.mark.parametrize(("group", "part"), [("user", "user"), ("key", "key"), ("model", "model")])
    def test_every_row_leads_to_its_part(self, client, bob, group, part):
        client.force_login(bob)
        address = f"/usage/?of=tenant:research&period=30&by={group}"
        page = client.get(address)
        for row in page.context["groups"]:
            query = f"of=tenant%3Aresearch&amp;period=30&amp;{part}={row['id']}"
            assert query in page.content.decode()
            there = client.get(f"/usage/?{query.replace('&amp;', '&')}").context
            assert there["sums"]["total_tokens"] == row["total_tokens"]

    def test_a_tenants_row_leads_to_the_tenant(self, client, olivia):
        client.force_login(olivia)
        page = client.get("/usage/?of=all&by=tenant")
        assert [row["id"] for row in page.context["groups"]] == ["sales", "research"]
        assert "?of=tenant%3Asales" in page.content.decode()

    def test_each_day_leads_to_its_hours_and_each_month_to_its_days(self, client, bob):
        client.force_login(bob)
        days = client.get("/usage/?of=tenant:research").context["charts"]["tokens"]
        assert days.links[-1] == "?of=tenant%3Aresearch&period=2026-11-20"
        hours = client.get(f"/usage/{days.links[-1]}").context
        assert (hours["unit"], hours["sums"]["total_tokens"]) == ("hour", 54_120)
        months = client.get("/usage/?of=tenant:research&period=fiscal-year").context["charts"]["tokens"]
        assert months.links[-1] == "?of=tenant%3Aresearch&period=2026-11"
        years = client.get("/usage/?of=tenant:research&period=years").context
        assert (years["unit"], years["charts"]["tokens"].links[-1]) == ("year", "?of=tenant%3Aresearch&period=FY2026")
        assert years["sums"]["total_tokens"] == 54_123
        assert len(years["charts"]["people"].slots) == periods.YEARS

    def test_one_s_own_day_is_told_by_the_hour(self, client, alice):
        client.force_login(alice)
        context = client.get("/usage/?period=today").context
        assert context["unit"] == "hour"
        assert [(row["slot"].hour, row["model"], row["total_tokens"]) for row in context["rows"]] == [
            (12, "e5", 20),
            (10, "qwen", 100),
        ]

    def test_hours_out_of_records_are_those_that_are_summed(self, client, alice, bob):
        for n, status in enumerate(["finished", "failed", "aborted"]):
            use(self.laptop, tokens=(n, 7 * n), status=status, first_token_ms=40 * n, duration_ms=90 + 100 * n)
        client.force_login(bob)
        summed = client.get("/usage/?of=tenant:research&period=today&by=user").context
        parts = [
            client.get(f"/usage/?of=tenant:research&period=today&user={row['id']}").context for row in summed["groups"]
        ]
        together = sum((part["totals"] for part in parts), report.UsageSums())
        assert together == summed["totals"]
        assert together["generated_tokens"] == 21

    def test_a_day_whose_records_are_pruned_is_told_as_a_whole(self, client, alice, time_machine):
        time_machine.move_to("2027-02-20T03:20:00Z")
        client.force_login(alice)
        UsageRecord.objects.all().delete()
        context = client.get("/usage/?period=2026-11-20").context
        assert (context["unit"], context["sums"]["total_tokens"]) == ("day", 120)
        assert len(context["charts"]["tokens"].slots) == 1

    def test_each_row_is_compared_with_the_period_before(self, client, bob, alice):
        use(self.laptop, tokens=(60, 0), at=datetime(2026, 10, 20, tzinfo=UTC))
        use(self.laptop, tokens=(1, 0), at=datetime(2026, 10, 21, tzinfo=UTC))
        client.force_login(bob)
        for group, name in (("user", str(alice)), ("key", str(self.laptop))):
            rows = client.get(f"/usage/?of=tenant:research&by={group}").context["groups"]
            changes = {row["name"].partition(" (")[0]: row["change"] for row in rows}
            assert changes[name.partition(" (")[0]] == 100
            assert None in changes.values()

    def test_people_are_counted_once_over_months_and_the_days_around(self, client, bob, alice):
        for month in (8, 9, 10):
            use(self.laptop, at=datetime(2026, month, 15, tzinfo=UTC))
        client.force_login(bob)
        context = client.get("/usage/?of=tenant:research&period=90").context
        assert context["people"] == 2
        assert sum(context["charts"]["people"].sums) == 5
        assert client.get("/usage/?of=tenant:research&period=fiscal-year").context["people"] == 2

    def test_in_full_it_is_a_row_for_each_sum_with_what_is_gone_as_well(self, client, bob):
        service = ApiKey.objects.get(name="Dify")
        service.delete()
        client.force_login(bob)
        response = client.get("/usage/export/?of=tenant:research&by=detail&period=30")
        assert response.streaming
        rows = list(csv.DictReader(io.StringIO(response.getvalue().decode("utf-8-sig"))))
        assert sum(int(row["total_tokens"]) for row in rows) == 54_123
        assert {(row["user"], row["model"], row["end_user"]) for row in rows} == {
            ("alice", "qwen", "u1"),
            ("alice", "qwen", ""),
            ("alice", "e5", ""),
            ("bob", "qwen", ""),
            ("", "qwen", ""),
        }
        assert {row["tenant"] for row in rows} == {"research"}

    @pytest.mark.parametrize("group", ["model", "tenant", "user", "key", "end_user"])
    def test_more_usage_costs_no_more_queries(self, client, olivia, alice, research, group, django_assert_num_queries):
        client.force_login(olivia)
        address = f"/usage/?of=all&period=90&by={group}"
        with CaptureQueriesContext(connection) as few:
            client.get(address)
        for n in range(30):
            use(key_of(alice, research, f"k{n}"), model=f"m{n}", end_user=f"u{n}")
        with django_assert_num_queries(len(few)):
            client.get(address)
        assert len(few) <= 22


@pytest.mark.django_db
class TestReasons:
    def refuse(self, key: ApiKey, code: str, requests: int = 1, at: datetime | None = None) -> None:
        hour = (at or timezone.now()).replace(minute=0, second=0, microsecond=0)
        RejectionHour.objects.create(
            hour=hour, tenant=key.tenant, user=key.user, key=key, model="qwen", code=code, requests=requests
        )

    def test_refusals_and_failures_are_told_in_words_with_what_helps(self, as_alice, key):
        use(key)
        use(key, status="failed")
        self.refuse(key, "insufficient_quota", 3)
        response = as_alice.get("/usage/", headers={"accept-language": "en"})
        assert [(reason.title, reason.requests) for reason in response.context["reasons"]] == [
            (str(failure_reasons.REASONS[code][0]), requests)
            for code, requests in (("insufficient_quota", 3), ("failed", 1))
        ]
        assert len(set(texts(response, ".reasons td.soft"))) == 2  # what helps

    def test_who_was_only_refused_sees_why(self, as_alice, key):
        self.refuse(key, "model_not_found")
        response = as_alice.get("/usage/", headers={"accept-language": "en"})
        assert [reason.requests for reason in response.context["reasons"]] == [1]
        assert has(response, "#unanswered")
        assert not has(response, ".empty")

    def test_only_refusals_that_are_the_readers_count(self, client, alice, bob, charlie, research, sales):
        for person_, tenant in ((alice, research), (bob, research), (charlie, sales)):
            self.refuse(key_of(person_, tenant), "insufficient_quota")
        client.force_login(bob)
        assert client.get("/usage/").context["failed_requests"] == 1
        assert client.get("/usage/?of=tenant:research").context["failed_requests"] == 2

    @pytest.mark.parametrize("period", ["today", "30", "fiscal-year", "years"])
    def test_each_stands_in_its_slot_of_the_readers_zone(self, as_alice, alice, key, time_machine, period):
        time_machine.move_to("2026-11-20T03:20:00Z")
        as_alice.force_login(alice)
        use(key)
        self.refuse(key, "insufficient_quota", 5, at=datetime(2026, 11, 19, 15, tzinfo=UTC))  # midnight in Tokyo
        charts = as_alice.get(f"/usage/?period={period}").context["charts"]
        slot = {"today": 0, "30": -1, "fiscal-year": -1, "years": -1}[period]
        assert charts["failures"].sums[slot] == 5
        assert sum(charts["failures"].sums) == 5

    def test_the_language_is_the_readers(self, as_alice, key):
        self.refuse(key, "insufficient_quota")
        with translation.override("ja"):
            words = str(failure_reasons.REASONS["insufficient_quota"][0])
        page = as_alice.get("/usage/", headers={"accept-language": "ja"})
        assert texts(page, ".reasons th[scope=row]") == [words]

    def test_every_code_of_the_gateway_has_words(self):
        codes = set(re.findall(r"\d{3}  ([a-z_, ]+?)(?:  |$)", errors.__doc__, re.MULTILINE))
        codes = {code for line in codes for code in line.split(", ")}
        assert len(codes) > 15
        assert codes - failure_reasons.REASONS.keys() == set()
        assert {
            status for status in UsageRecord.Status if status not in ("finished", "looped")
        } <= failure_reasons.REASONS.keys()

    def test_a_code_that_is_not_known_here_stands_for_itself(self, as_alice, key):
        self.refuse(key, "of_a_newer_gateway")
        assert "of_a_newer_gateway" in as_alice.get("/usage/").content.decode()


class TestPeriods:
    @pytest.mark.parametrize(
        ("name", "first", "last"),
        [
            ("this-month", date(2026, 3, 1), date(2026, 3, 1)),
            ("last-month", date(2026, 2, 1), date(2026, 2, 28)),
            ("14", date(2026, 2, 16), date(2026, 3, 1)),
            ("today", date(2026, 3, 1), date(2026, 3, 1)),
            ("fiscal-year", date(2025, 4, 1), date(2026, 3, 1)),
            ("last-fiscal-year", date(2024, 4, 1), date(2025, 3, 31)),
            ("yesterday", date(2026, 2, 28), date(2026, 2, 28)),
            ("years", date(2021, 4, 1), date(2026, 3, 1)),
            ("2026-02-03", date(2026, 2, 3), date(2026, 2, 3)),
            ("2026-02", date(2026, 2, 1), date(2026, 2, 28)),
            ("2026-03", date(2026, 3, 1), date(2026, 3, 1)),
            ("FY2024", date(2024, 4, 1), date(2025, 3, 31)),
            ("FY2025", date(2025, 4, 1), date(2026, 3, 1)),
        ],
    )
    def test_they_are_whole_days_of_the_zone(self, name, first, last):
        now = datetime(2026, 2, 28, 15, 30, tzinfo=UTC)  # 1 March in Tokyo
        period = periods.parse_period(name, now, TOKYO)
        assert (period.first, period.last) == (first, last)
        assert (period.days[0], period.days[-1]) == (first, last)

    @pytest.mark.parametrize(
        ("name", "today", "first", "last"),
        [
            ("this-month", date(2026, 3, 31), date(2026, 2, 1), date(2026, 2, 28)),
            ("this-month", date(2026, 3, 5), date(2026, 2, 1), date(2026, 2, 5)),
            ("last-month", date(2026, 3, 5), date(2026, 1, 1), date(2026, 1, 31)),
            ("14", date(2026, 3, 14), date(2026, 2, 15), date(2026, 2, 28)),
            ("today", date(2026, 3, 1), date(2026, 2, 28), date(2026, 2, 28)),
            ("fiscal-year", date(2028, 2, 29), date(2026, 4, 1), date(2027, 2, 28)),
            ("2026-03-01", date(2026, 3, 14), date(2026, 2, 28), date(2026, 2, 28)),
            ("2026-02", date(2026, 3, 14), date(2026, 1, 1), date(2026, 1, 31)),
            ("2026-03", date(2026, 3, 14), date(2026, 2, 1), date(2026, 2, 14)),
            ("FY2025", date(2026, 3, 14), date(2024, 4, 1), date(2025, 3, 14)),
        ],
    )
    def test_each_is_compared_with_what_was_before(self, name, today, first, last):
        period = periods.parse_period(name, datetime.combine(today, time(12), TOKYO), TOKYO)
        before = periods.period_before(period)
        assert (before.first, before.last) == (first, last)

    @pytest.mark.parametrize(
        "name",
        [
            *("15", "", "2026-13", "2026-02-30", "FY0000", "FY9999", "9999-12", "2026-11-21", "2026-12", "FY2027"),
            *("2026-11-09..2026-11-08", "2026-11-09..", "2001-01-01..2026-11-08", "2026-11-21..2026-11-22"),
        ],
    )
    def test_an_unknown_name_and_what_has_not_begun_is_refused(self, name):
        with pytest.raises(KeyError):
            periods.parse_period(name, datetime(2026, 11, 20, 3, tzinfo=UTC), TOKYO)

    @pytest.mark.parametrize(
        ("first", "last", "months"),
        [
            (date(2026, 11, 1), date(2026, 11, 20), 0),
            (date(2026, 11, 1), date(2026, 11, 30), 1),
            (date(2026, 10, 31), date(2026, 12, 1), 1),
            (date(2026, 8, 23), date(2026, 11, 20), 2),
            (date(2025, 4, 1), date(2026, 3, 31), 12),
            (date(2026, 2, 10), date(2026, 3, 20), 0),
        ],
    )
    def test_whole_months_and_the_days_around_are_all_of_it_once(self, first, last, months):
        period = periods.Period(name="", first=first, last=last)
        whole, around = period.split_months()
        days = [periods.Period(name="", first=begin, last=end).days for begin, end in around]
        days += [
            periods.Period(name="", first=month, last=periods.next_month(month) - timedelta(1)).days for month in whole
        ]
        assert sorted(day for some in days for day in some) == period.days
        assert len(whole) == months


def row(day: date, model: str, tokens: int) -> dict:
    return {"slot": day, "model": model, "requests": 1, "total_tokens": tokens}


class TestChart:
    DAYS = [date(2026, 11, n) for n in range(1, 15)]

    def test_days_without_usage_are_there(self):
        drawn = token_chart([row(self.DAYS[3], "a", 10)], self.DAYS)
        assert drawn.slots == tuple(self.DAYS)
        assert drawn.series[0].values == (0, 0, 0, 10, *[0] * 10)
        assert drawn.peak == (self.DAYS[3], 10)

    def test_the_model_used_most_stands_at_the_bottom_and_keeps_its_colour(self):
        drawn = token_chart(
            [row(self.DAYS[0], "a", 10), row(self.DAYS[1], "b", 30), row(self.DAYS[2], "a", 1)], self.DAYS
        )
        assert [(series.label, series.total) for series in drawn.series] == [("b", 30), ("a", 11)]
        alone = token_chart([row(self.DAYS[0], "a", 10)], self.DAYS)
        assert alone.series[0].shade == drawn.series[1].shade != drawn.series[0].shade

    def test_rare_models_share_the_last_colour_and_none_is_lost(self):
        rows = [row(self.DAYS[n], f"m{n}", 100 - n) for n in range(9)]
        drawn = token_chart(rows, self.DAYS)
        assert [(series.label, series.total) for series in drawn.series[:5]] == [(f"m{n}", 100 - n) for n in range(5)]
        [others] = drawn.series[5:]
        assert others.total == sum(100 - n for n in range(5, 9))
        assert sum(drawn.sums) == sum(one["total_tokens"] for one in rows)
        assert len(token_chart(rows[:6], self.DAYS).series) == 6

    def test_the_table_has_the_latest_first_with_a_sum_where_there_is_more_than_one(self):
        with translation.override("en"):
            drawn = token_chart([row(self.DAYS[0], "a", 1200), row(self.DAYS[0], "b", 30)], self.DAYS)
            assert drawn.table[-1] == ("Sun 1 Nov", "", ["1,200", "30", "1,230"])
            assert drawn.table[0][0] == "Sat 14 Nov"
            assert token_chart([row(self.DAYS[0], "a", 1200)], self.DAYS).table[-1][2] == ["1,200"]

    def test_a_line_has_gaps_where_nothing_is_known(self):
        with translation.override("en"):
            drawn = line_chart({"half": {self.DAYS[0]: 0.5}}, self.DAYS[:2], "day", name="first", measure="seconds")
            assert drawn.series[0].values == (0.5, None)
            assert [texts for _, _, texts in drawn.table] == [["–"], ["0.50"]]
            assert not drawn.has_total

    def test_what_the_script_reads_is_in_the_language_of_the_page(self):
        with translation.override("ja"):
            figures = token_chart([row(self.DAYS[0], "a", 1)], self.DAYS).script_data
            assert figures["measure"] == str(TOKENS.label)
        assert figures["marks"][0] == "11/1"
        assert figures["titles"][0] == "11月1日(日)"
        assert figures["slots"][0] == "2026-11-01"


@pytest.mark.django_db
class TestAllowances:
    NOW = datetime(2026, 11, 20, 3, 0, tzinfo=UTC)

    def left(self, alice) -> dict[str, tuple[int | None, int]]:
        return {one.of: (one.spent, one.left) for one in allowances(alice, TOKYO, self.NOW)}

    def test_what_counts_is_what_the_scope_used_in_its_window(self, alice, bob, research, key):
        other = key_of(alice, research, "other")
        use(key, tokens=(10, 1), at=self.NOW)
        use(other, tokens=(100, 0), at=self.NOW)
        use(key_of(bob, research), tokens=(1000, 0), at=self.NOW)
        use(key, tokens=(10_000, 0), at=self.NOW - timedelta(days=1))
        for of in ({"key": key}, {"user": alice}, {"tenant": research}):
            Quota.objects.create(**of, unit="tokens", window="day", amount=5000)
        assert self.left(alice) == {"key": (11, 4989), "user": (111, 4889), "tenant": (1111, 3889)}

    def test_a_month_is_longer_than_a_day(self, alice, key):
        use(key, tokens=(10, 0), at=self.NOW - timedelta(days=3))
        use(key, tokens=(10, 0), at=self.NOW - timedelta(days=30))
        Quota.objects.create(user=alice, unit="requests", window="month", amount=10)
        assert self.left(alice) == {"user": (1, 9)}

    def test_a_quota_of_one_model_counts_that_model(self, alice, key):
        model = serve("qwen")
        use(key, tokens=(10, 0), model="qwen", at=self.NOW)
        use(key, tokens=(99, 0), model="other", at=self.NOW)
        Quota.objects.create(user=alice, model=model, unit="tokens", window="day", amount=100)
        assert self.left(alice) == {"user": (10, 90)}

    def test_what_renews_is_said_with_its_time(self, alice, key):
        Quota.objects.create(user=alice, unit="tokens", window="day", amount=100)
        [one] = allowances(alice, TOKYO, self.NOW)
        assert one.renews_at == datetime(2026, 11, 21, tzinfo=TOKYO)

    def test_rates_have_nothing_spent_and_come_last(self, alice, key):
        Quota.objects.create(user=alice, unit="concurrent", window="", amount=2)
        Quota.objects.create(user=alice, unit="requests", window="minute", amount=60)
        Quota.objects.create(user=alice, unit="tokens", window="day", amount=100)
        assert [one.spent for one in allowances(alice, TOKYO, self.NOW)] == [0, None, None]

    @pytest.mark.parametrize(
        ("spent", "level"), [(0, "fine"), (79, "fine"), (80, "watch"), (99, "watch"), (101, "broken")]
    )
    def test_near_the_end_it_warns(self, alice, key, spent, level):
        use(key, tokens=(spent, 0), at=self.NOW)
        Quota.objects.create(user=alice, unit="tokens", window="day", amount=100)
        [one] = allowances(alice, TOKYO, self.NOW)
        assert one.level == level
        assert one.left == max(0, 100 - spent)

    def test_quotas_of_others_are_not_shown(self, alice, bob, charlie, sales, research):
        Quota.objects.create(user=bob, unit="tokens", window="day", amount=1)
        Quota.objects.create(tenant=sales, unit="tokens", window="day", amount=1)
        Quota.objects.create(key=key_of(bob, research), unit="tokens", window="day", amount=1)
        assert allowances(alice, TOKYO, self.NOW) == []

    def test_home_tells_them_in_words(self, as_alice, alice, key):
        Quota.objects.create(user=alice, unit="tokens", window="day", amount=1_000_000)
        Quota.objects.create(user=alice, unit="concurrent", window="", amount=2)
        use(key, tokens=(1000, 0))
        for language in ("en", "ja"):
            page = as_alice.get("/", headers={"accept-language": language})
            (left,) = texts(page, "#left [data-left='999000'][data-amount='1000000']")
            assert "999,000" in left
            assert "1,000,000" in left
            assert "2" in one_of(page, "#left [data-amount='2']").text

    def test_a_quota_of_nothing_is_called_blocked(self, as_alice, alice, key):
        Quota.objects.create(user=alice, unit="tokens", window="day", amount=0)
        assert has(as_alice.get("/"), "#left [data-amount='0'] .state.broken")


@pytest.mark.django_db
@pytest.mark.parametrize("of", ["me", "tenant:research"])
def test_t6_a_day_by_the_hour_ends_at_midnight(client, bob, research, of, time_machine):
    """Out of records and out of sums alike: 23:59 is the day's, 0:00 the next one's, which its own page has."""
    midnight = datetime(2026, 11, 21, 0, 0, tzinfo=TOKYO)
    time_machine.move_to(midnight + timedelta(hours=12), tick=False)
    key = key_of(bob, research)
    use(key, tokens=(1, 0), at=midnight - timedelta(days=1))
    use(key, tokens=(2, 0), at=midnight - timedelta(minutes=1))
    use(key, tokens=(4, 0), at=midnight)
    client.force_login(bob)
    days = {day: client.get("/usage/", {"of": of, "period": day}).context for day in ("2026-11-20", "2026-11-21")}
    assert {context["unit"] for context in days.values()} == {"hour"}
    told = {day: [(row["slot"].hour, row["total_tokens"]) for row in page["rows"]] for day, page in days.items()}
    assert told == {"2026-11-20": [(23, 2), (0, 1)], "2026-11-21": [(0, 4)]}


@pytest.mark.django_db
class TestWhatIsLeft:
    def test_t6_what_is_blocked_is_used_up(self, alice, research):
        Quota.objects.create(tenant=research, user=alice, unit="tokens", window="day", amount=0)
        [blocked] = allowances(alice, TOKYO, timezone.now())
        assert (blocked.percent, blocked.left, blocked.level, blocked.near) == (100, 0, "broken", True)

    def test_t6_quotas_of_what_works_no_more_are_not_shown(self, alice, research, sales):
        Membership.objects.create(user=alice, tenant=sales)
        revoked, expired, works = (key_of(alice, research, name) for name in ("revoked", "expired", "works"))
        of_sales = key_of(alice, sales)
        for owner in (
            {"tenant": sales},
            {"tenant": sales, "user": alice},
            *({"key": key} for key in (revoked, expired, works, of_sales)),
        ):
            Quota.objects.create(**owner, unit="tokens", window="day", amount=100)
        ApiKey.objects.filter(pk=revoked.pk).update(revoked_at=timezone.now())
        ApiKey.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - timedelta(hours=1))
        sales.is_active = False
        sales.save()
        assert [one.to for one in allowances(alice, TOKYO, timezone.now())] == [f"key:{works.prefix}"]


@pytest.mark.django_db
class TestFiles:
    def test_p5_a_file_by_people_tells_two_of_the_same_name_apart(self, client, bob, research):
        for name in ("sato1", "sato2"):
            use(key_of(person(name, research, first_name="Ken", last_name="Sato"), research))
        use(service_key_of(research))
        client.force_login(bob)
        rows = exported(client, "?of=tenant:research&by=user")
        assert sorted((row["username"], row["user"]) for row in rows)[1:] == [
            ("sato1", "Ken Sato"),
            ("sato2", "Ken Sato"),
        ]
        assert sorted(row["username"] for row in rows) == ["", "sato1", "sato2"]  # the first: of service keys
        told = json.loads(client.get("/usage/export/?of=tenant:research&by=user&format=json").getvalue())
        assert {row["username"] for row in told} == {"sato1", "sato2", ""}

    def test_p5_files_of_different_kinds_have_different_names(self, client, bob, research):
        use(key_of(bob, research))
        client.force_login(bob)
        queries = [
            f"of={of}{by}" for of in ("me", "tenant:research") for by in ("", "&by=model", "&by=key", "&by=detail")
        ]
        names = {client.get(f"/usage/export/?{query}")["content-disposition"] for query in queries}
        assert len(names) == len(queries)

    @pytest.mark.parametrize("sign", ["=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n"])
    def test_p8_a_text_that_spreadsheets_take_for_a_formula_is_marked(self, client, alice, bob, research, sign):
        """In both kinds of files."""
        attack = f"{sign}1+HYPERLINK()"
        use(key_of(alice, research), end_user=attack)
        AuditEvent.objects.create(action="key.add", object_kind="key", object_name=attack, tenant=research, via="page")
        client.force_login(bob)
        [row] = exported(client, "?of=tenant:research&by=end_user")
        assert row["end_user"] == f"'{attack}"
        text = client.get("/audit/export/").getvalue().decode("utf-8-sig")
        cells = [cell for line in csv.reader(io.StringIO(text, newline="")) for cell in line]
        assert [cell for cell in cells if "HYPERLINK" in cell] == [f"'{attack}"]
