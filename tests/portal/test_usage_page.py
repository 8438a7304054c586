"""The page of one's own usage, and what is under it: periods, chart, allowances."""

import csv
import io
import re
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone, translation

from portal.keys.issuing import issue
from portal.keys.models import ApiKey
from portal.metering import periods, views
from portal.metering.allowance import allowances
from portal.metering.chart import chart, lines
from portal.metering.models import Quota
from tests.pages import key_of, serve, use
from tests.translations import japanese  # noqa: F401

TOKYO = ZoneInfo("Asia/Tokyo")


@pytest.fixture
def as_alice(client, alice):
    client.force_login(alice)
    return client


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
        assert context["totals"].sums == {
            "requests": 3,
            "prompt_tokens": 1_935,
            "completion_tokens": 57,
            "total_tokens": 1_992,
            "estimated": 0,
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
        assert "(estimated)" not in as_alice.get("/usage/").content.decode()
        use(key, estimated=True)
        page = as_alice.get("/usage/").content.decode()
        assert "(estimated)" in page
        assert "1 request was cut off before the engine could count" in page

    def test_only_one_s_own_is_shown_even_to_operators(self, client, alice, bob, olivia, key):
        use(key)
        for other in (bob, olivia):
            client.force_login(other)
            assert "Nothing was used in this period" in client.get("/usage/").content.decode()

    def test_an_empty_period_says_what_to_do(self, as_alice):
        assert "How to call a model" in as_alice.get("/usage/").content.decode()

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
        assert context["totals"].sums["requests"] == requests
        assert len(context["rows"]) + len(context["older"]) == requests

    def test_older_days_are_folded_but_there(self, as_alice, alice, key, time_machine):
        time_machine.move_to("2026-11-20T03:00:00Z")
        as_alice.force_login(alice)
        for days in (13, 14):
            use(key, at=timezone.now() - timedelta(days=days))
        context = as_alice.get("/usage/?period=30").context
        assert [row["slot"].day for row in context["rows"]] == [7]
        assert [row["slot"].day for row in context["older"]] == [6]

    def test_it_can_be_had_as_csv(self, as_alice, key):
        use(key, tokens=(10, 5), model="a,b")
        [row] = exported(as_alice)
        assert row["day"] == str(timezone.now().astimezone(TOKYO).date())
        assert (row["model"], row["prompt_tokens"], row["completion_tokens"]) == ("a,b", "10", "5")

    def test_more_usage_costs_no_more_queries(self, as_alice, alice, research, key, django_assert_num_queries):
        use(key)
        # session, user, the bar on top, zone, series, totals, those before, tenants to choose from
        with django_assert_num_queries(8):
            as_alice.get("/usage/?period=90")
        for n in range(40):
            use(key_of(alice, research, f"k{n}"), model=f"m{n}", at=timezone.now() - timedelta(days=n))
        with django_assert_num_queries(8):
            as_alice.get("/usage/?period=90")


def exported(client, query: str = "") -> list[dict[str, str]]:
    text = client.get(f"/usage/export/{query}").content.decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.django_db
class TestScopes:
    """Bob administers Alice's tenant, Charlie is of another one, Olivia operates."""

    @pytest.fixture(autouse=True)
    def used(self, alice, bob, charlie, olivia, research, sales):
        use(key_of(alice, research), tokens=(100, 0), end_user="u1")
        use(key_of(bob, research), tokens=(30, 0))
        service, _ = issue(tenant=research, service="Dify", name="Dify")
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

    def test_only_scopes_that_work_are_offered(self, client, alice, bob, olivia):
        offered = {}
        for person in (alice, bob, olivia):
            client.force_login(person)
            offered[person.username] = [name for name, _ in client.get("/usage/").context["scopes"]]
        assert offered == {
            "alice": ["me"],
            "bob": ["me", "tenant:research"],
            "olivia": ["me", "all", "tenant:sales", "tenant:research"],
        }

    @pytest.mark.parametrize(
        ("group", "expected"),
        [
            ("user", [("Alice", 100), ("Bob", 30), ("service keys", 7)]),
            ("end_user", [("u1", 100), ("not told by the client", 30), ("=1+1", 7)]),
            ("model", [("qwen", 137)]),
            ("tenant", [("qwen", 137)]),
        ],
    )
    def test_it_is_told_apart(self, client, bob, group, expected):
        """By a thing that the scope does not have it is told by model."""
        client.force_login(bob)
        groups = client.get("/usage/", {"of": "tenant:research", "by": group}).context["groups"]
        assert [
            (
                row["name"].partition(" ")[0] if group == "user" and "keys" not in row["name"] else row["name"],
                row["total_tokens"],
            )
            for row in groups
        ] == expected

    def test_keys_are_named_also_when_they_are_gone(self, client, olivia, charlie):
        client.force_login(olivia)
        key = ApiKey.objects.get(user=charlie)
        number = key.pk
        key.delete()
        groups = client.get("/usage/", {"of": "all", "by": "key"}).context["groups"]
        assert groups[0]["name"] == f"deleted ({number})"

    def test_a_spreadsheet_is_given_no_formula(self, client, bob):
        client.force_login(bob)
        rows = exported(client, "?of=tenant:research&by=end_user")
        assert [row["end_user"] for row in rows] == ["u1", "not told by the client", "'=1+1"]

    def test_the_same_as_json(self, client, bob):
        client.force_login(bob)
        rows = client.get("/usage/export/?of=tenant:research&by=end_user&format=json").json()
        assert rows[2] == {
            **{"end_user": "=1+1", "requests": 1, "estimated": 0},
            **{"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7},
        }

    def test_active_people_and_troubles_are_counted(self, client, bob, alice, research):
        use(key_of(alice, research, "other"), status="failed")
        use(key_of(alice, research, "third"), status="aborted")
        client.force_login(bob)
        totals = client.get("/usage/?of=tenant:research").context["totals"]
        assert totals.people == 2
        assert totals.troubles == {"failed": 1, "aborted": 1}

    def test_first_tokens_and_speed_are_told_of_a_tenant(self, client, bob, alice, research):
        use(key_of(alice, research, "other"), tokens=(0, 50), first_token_ms=400, duration_ms=1400)
        client.force_login(bob)
        context = client.get("/usage/?of=tenant:research").context
        assert 0.3 <= context["first_tokens"][0] <= 0.5
        assert context["totals"].speed == 50

    def test_a_day_is_told_by_the_hour(self, client, bob, alice, research, time_machine):
        time_machine.move_to("2026-11-20T03:20:00Z")
        client.force_login(bob)
        use(key_of(alice, research, "other"), tokens=(5, 0), at=timezone.now() - timedelta(hours=2))
        context = client.get("/usage/?of=tenant:research&period=today").context
        assert context["unit"] == "hour"
        assert len(context["chart"].slots) == 24
        assert [(row["slot"].hour, row["total_tokens"]) for row in context["rows"]] == [(10, 5)]

    def test_a_year_is_told_by_the_month(self, client, olivia, alice, research, time_machine):
        time_machine.move_to("2026-11-20T03:20:00Z")
        client.force_login(olivia)
        use(key_of(alice, research, "other"), tokens=(5, 0), at=datetime(2026, 4, 2, tzinfo=UTC))
        context = client.get("/usage/?of=all&period=fiscal-year").context
        assert context["unit"] == "month"
        assert len(context["chart"].slots) == 8
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
        monkeypatch.setattr(views, "MOST", 2)
        client.force_login(olivia)
        page = client.get("/usage/?of=all&by=key")
        assert "2 more in the exports" in page.content.decode()
        assert len(exported(client, "?of=all&by=key")) == 4


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
        ],
    )
    def test_they_are_whole_days_of_the_zone(self, name, first, last):
        now = datetime(2026, 2, 28, 15, 30, tzinfo=UTC)  # 1 March in Tokyo
        period = periods.period(name, now, TOKYO)
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
        ],
    )
    def test_each_is_compared_with_what_was_before(self, name, today, first, last):
        period = periods.period(name, datetime.combine(today, time(12), TOKYO), TOKYO)
        before = periods.before(period)
        assert (before.first, before.last) == (first, last)

    def test_an_unknown_name_is_refused(self):
        with pytest.raises(KeyError):
            periods.period("15", timezone.now(), TOKYO)


def row(day: date, model: str, tokens: int) -> dict:
    return {"slot": day, "model": model, "requests": 1, "total_tokens": tokens}


class TestChart:
    DAYS = [date(2026, 11, n) for n in range(1, 15)]

    def test_days_without_usage_are_there(self):
        drawn = chart([row(self.DAYS[3], "a", 10)], self.DAYS)
        assert drawn.slots == tuple(self.DAYS)
        assert drawn.series[0].values == (0, 0, 0, 10, *[0] * 10)
        assert drawn.peak == (self.DAYS[3], 10)

    def test_the_model_used_most_stands_at_the_bottom_and_keeps_its_colour(self):
        drawn = chart([row(self.DAYS[0], "a", 10), row(self.DAYS[1], "b", 30), row(self.DAYS[2], "a", 1)], self.DAYS)
        assert [(series.label, series.shade, series.total) for series in drawn.series] == [("b", 1, 30), ("a", 2, 11)]

    def test_rare_models_share_the_last_colour_and_none_is_lost(self):
        rows = [row(self.DAYS[n], f"m{n}", 100 - n) for n in range(9)]
        with translation.override("en"):
            drawn = chart(rows, self.DAYS)
        assert [series.label for series in drawn.series] == ["m0", "m1", "m2", "m3", "m4", "other models"]
        assert sum(drawn.sums) == sum(one["total_tokens"] for one in rows)
        assert len(chart(rows[:6], self.DAYS).series) == 6

    def test_the_table_has_the_latest_first_with_a_sum_where_there_is_more_than_one(self):
        with translation.override("en"):
            drawn = chart([row(self.DAYS[0], "a", 1200), row(self.DAYS[0], "b", 30)], self.DAYS)
            assert drawn.table[-1] == ("Sun 1 Nov", "", ["1,200", "30", "1,230"])
            assert drawn.table[0][0] == "Sat 14 Nov"
            assert chart([row(self.DAYS[0], "a", 1200)], self.DAYS).table[-1][2] == ["1,200"]

    def test_a_line_has_gaps_where_nothing_is_known(self):
        with translation.override("en"):
            drawn = lines({"half": {self.DAYS[0]: 0.5}}, self.DAYS[:2], "day", name="first", measure="seconds")
            assert drawn.series[0].values == (0.5, None)
            assert [texts for _, _, texts in drawn.table] == [["–"], ["0.50"]]
            assert not drawn.together

    def test_what_the_script_reads_is_in_the_language_of_the_page(self):
        with translation.override("ja"):
            figures = chart([row(self.DAYS[0], "a", 1)], self.DAYS).figures
        assert figures["marks"][0] == "11/1"
        assert figures["titles"][0] == "11月1日(日)"
        assert figures["slots"][0] == "2026-11-01"
        assert figures["measured"] == "トークン"


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
        page = as_alice.get("/").content.decode()
        assert "999,000 of 1,000,000 tokens left today" in page
        assert "2 requests at a time" in page
        with translation.override("ja"):
            page = as_alice.get("/", headers={"accept-language": "ja"}).content.decode()
        assert "今日の残り 999,000 / 1,000,000 トークン" in page

    def test_a_quota_of_nothing_is_called_blocked(self, as_alice, alice, key):
        Quota.objects.create(user=alice, unit="tokens", window="day", amount=0)
        assert "blocked" in as_alice.get("/").content.decode()
