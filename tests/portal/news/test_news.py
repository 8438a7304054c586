"""Announcements: who sees which when, in which language; the operators' form; and what is new in this version."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone, translation

from modelregistry.version import VERSION
from portal.audit.models import AuditEvent
from portal.news import announcements, changelog
from portal.news.models import Announcement, ClosedBanner
from tests.html import all_of, has, one_of, texts
from tests.news import HOUR, announce
from tests.portal.browsing import client_of, read, send

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 12, 1, 9, 0, tzinfo=ZoneInfo("Asia/Tokyo"))


def shown(client) -> list[int]:
    return [int(one["data-banner"]) for one in all_of(client.get("/keys/"), "[data-banner]")]


class TestBanners:
    def test_it_is_shown_from_its_beginning_to_its_end(self, alice, time_machine):
        time_machine.move_to(NOW, tick=False)
        as_alice = client_of(alice)
        row = announce(begins=HOUR, ends=2 * HOUR)
        for moment, is_shown in ((NOW, False), (NOW + HOUR, True), (NOW + 2 * HOUR, False)):
            time_machine.move_to(moment, tick=False)
            assert shown(as_alice) == [row.pk] * is_shown

    def test_maintenance_is_announced_days_ahead_with_its_times(self, as_alice):
        row = announce(level="maintenance", begins=2 * 24 * HOUR, ends=3 * 24 * HOUR, days_ahead=2)
        announce(level="maintenance", begins=4 * 24 * HOUR, ends=5 * 24 * HOUR, days_ahead=3)
        assert shown(as_alice) == [row.pk]
        assert len(all_of(as_alice.get("/keys/"), "[data-banner] time")) == 2

    def test_a_time_that_the_zone_of_the_reader_does_not_have_breaks_no_page(self, as_alice):
        row = announce(level="maintenance")
        Announcement.objects.update(ends_at=datetime(9999, 12, 31, 23, 59, tzinfo=UTC))
        assert shown(as_alice) == [row.pk]

    def test_people_of_other_tenants_see_nothing_of_it(self, alice, charlie, olivia, sales, research):
        row = announce(sales)
        assert [shown(client_of(who)) for who in (alice, charlie, olivia)] == [[], [row.pk], [row.pk]]
        assert not has(client_of(alice).get("/news/"), "article")
        assert client_of(alice).post(f"/news/{row.pk}/close/").status_code == 404

    def test_who_closed_news_sees_it_in_the_list_alone(self, as_alice, as_bob):
        row = announce()
        response = as_alice.post(f"/news/{row.pk}/close/", {"next": "/keys/?q=1"})
        assert response.url == "/keys/?q=1"
        as_alice.post(f"/news/{row.pk}/close/", {"next": "/keys/"})
        assert ClosedBanner.objects.count() == 1
        assert shown(as_alice) == []
        assert has(as_alice.get("/news/"), f"#news-{row.pk}")
        assert shown(as_bob) == [row.pk]

    def test_maintenance_cannot_be_closed(self, as_alice):
        row = announce(level="maintenance")
        assert not has(as_alice.get("/keys/"), "[data-banner] form")
        assert as_alice.post(f"/news/{row.pk}/close/").status_code == 404
        assert shown(as_alice) == [row.pk]

    def test_closing_leads_to_no_other_site(self, as_alice):
        assert as_alice.post(f"/news/{announce().pk}/close/", {"next": "https://evil.example/"}).url == "/"

    def test_there_are_few_of_them_and_maintenance_is_first(self, as_alice):
        for _ in range(4):
            announce()
        urgent = announce(level="maintenance")
        found = shown(as_alice)
        assert (len(found), found[0]) == (announcements.MOST_BANNERS, urgent.pk)

    def test_the_next_maintenance_and_the_newest_news_are_first_and_the_others_are_a_link_away(self, as_alice):
        old, new, newest = (announce(begins=-days * 24 * HOUR) for days in (9, 2, 1))
        later, soon = (announce(level="maintenance", begins=n * HOUR, ends=9 * HOUR, days_ahead=1) for n in (5, 3))
        page = as_alice.get("/keys/")
        assert shown(as_alice) == [soon.pk, later.pk, newest.pk]
        assert [one_of(page, name).text.split()[0] for name in (".after-first", ".after-all")] == ["4", "2"]
        for row in (new, newest):
            as_alice.post(f"/news/{row.pk}/close/", {"next": "/keys/"})
        assert shown(as_alice) == [soon.pk, later.pk, old.pk]
        assert not has(as_alice.get("/keys/"), ".after-all")

    def test_who_is_not_signed_in_sees_none(self, client):
        announce()
        assert not has(client.get("/sign-in/"), "[data-banner]")

    def test_many_cost_one_query(self, alice, django_assert_num_queries):
        for _ in range(9):
            announce()
        with django_assert_num_queries(1):
            announcements.banners(alice, timezone.now())


class TestList:
    def test_a_reader_gets_their_language_or_else_the_other(self, as_alice):
        announce(title_ja="停止", title_en="Outage", text_ja="**本文**")
        for language, title in (("ja", "停止"), ("en", "Outage")):
            page = as_alice.get("/news/", headers={"accept-language": language})
            assert title in one_of(page, "article h2").text
            assert texts(page, "article .prose strong") == ["本文"]

    def test_what_is_over_is_marked_so_whatever_it_was(self, as_alice):
        over = [announce(level=level, begins=-3 * HOUR, ends=-HOUR) for level in ("info", "maintenance")]
        announce(level="maintenance")
        page = as_alice.get("/news/")
        assert {one["id"] for one in all_of(page, "[data-over]")} == {f"news-{row.pk}" for row in over}
        assert len(texts(page, "[data-over] h2 .off")) == 3  # "Maintenance" is grey as well then

    def test_what_is_planned_is_for_operators_until_it_is_shown(self, as_alice, as_olivia):
        announce(begins=HOUR, ends=2 * HOUR)
        assert not has(as_alice.get("/news/"), "article")
        assert has(as_olivia.get("/news/"), "article")

    def test_nothing_in_a_text_runs_in_a_reader_s_browser(self, as_alice):
        announce(title_ja="<script>alert(1)</script>", text_ja="<img src=x onerror=alert(1)> [x](javascript:alert(1))")
        for path in ("/news/", "/keys/"):
            page = as_alice.get(path)
            assert not any(has(page, f"main {what}") for what in ("script", "img", "[href^=javascript]"))

    def test_more_of_them_cost_no_more_queries(self, as_olivia, research, django_assert_max_num_queries):
        for _ in range(15):
            announce(research)
        with django_assert_max_num_queries(9):
            as_olivia.get("/news/")


class TestForm:
    FORM = {
        **{"level": "maintenance", "title_ja": "停止", "title_en": "", "text_ja": "", "text_en": ""},
        **{"begins_at": "2026-12-05T09:00", "ends_at": "2026-12-05T12:00", "days_ahead": "3"},
    }

    def test_times_are_those_of_the_operator_s_zone(self, as_olivia):
        send(as_olivia, "/news/new/", **self.FORM)
        row = Announcement.objects.get()
        assert row.begins_at == datetime(2026, 12, 5, 9, tzinfo=ZoneInfo("Asia/Tokyo"))
        assert row.shown_from == row.begins_at - timedelta(days=3)
        assert row.for_everyone
        page = as_olivia.get(f"/news/{row.pk}/")
        assert one_of(page, "[name=ends_at]")["value"] == "2026-12-05T12:00"

    @pytest.mark.parametrize(
        ("field", "code", "change"),
        [
            ("ends_at", "ends-before-it-begins", {"ends_at": "2026-12-05T09:00"}),
            ("ends_at", "ends-before-it-begins", {"ends_at": "2026-12-04T09:00"}),
            ("ends_at", "invalid", {"ends_at": "tomorrow"}),
            ("begins_at", "required", {"begins_at": ""}),
            ("begins_at", "year", {"begins_at": "0001-01-01T00:00"}),
            ("ends_at", "year", {"ends_at": "9999-12-31T23:59"}),
            ("title_ja", "no-title", {"title_ja": ""}),
            ("title_ja", "max_length", {"title_ja": "あ" * 121}),
            ("days_ahead", "max_value", {"days_ahead": "31"}),
            ("level", "invalid_choice", {"level": "party"}),
            ("tenants", "invalid_pk_value", {"tenants": "x"}),
        ],
    )
    def test_what_cannot_be_is_named_and_what_was_typed_is_kept(self, as_olivia, field, code, change):
        response = as_olivia.post("/news/new/", {**self.FORM, "text_ja": "私の文章", **change})
        assert response.status_code == 400
        assert response.context["form"].has_error(field, code)
        assert one_of(response, "[name=text_ja]").text == "私の文章"
        assert not Announcement.objects.exists()

    def test_maintenance_at_the_same_time_is_refused_by_name(self, as_olivia, research, sales):
        send(as_olivia, "/news/new/", **self.FORM, tenants=research.pk)
        row = Announcement.objects.get()
        clash = {**self.FORM, "begins_at": "2026-12-05T11:59", "ends_at": "2026-12-05T13:00"}
        for tenants in ({}, {"tenants": research.pk}):
            response = as_olivia.post("/news/new/", {**clash, **tenants})
            [error] = response.context["form"].errors.as_data()["begins_at"]
            assert (error.code, error.params["title"]) == ("overlaps", str(row))
        send(as_olivia, "/news/new/", **clash, tenants=sales.pk)
        send(as_olivia, "/news/new/", **{**clash, "level": "info"})
        send(as_olivia, f"/news/{row.pk}/", **self.FORM | {"days_ahead": "4"}, tenants=research.pk)
        assert Announcement.objects.count() == 3

    def test_the_audit_log_has_it_and_for_whom(self, as_olivia, research):
        send(as_olivia, "/news/new/", **self.FORM, tenants=research.pk)
        row = Announcement.objects.get()
        send(as_olivia, f"/news/{row.pk}/remove/")
        actions = list(AuditEvent.objects.order_by("pk").values_list("action", flat=True))
        assert actions[-3:] == ["announcement.add", "announcement.tenants", "announcement.remove"]
        assert AuditEvent.objects.get(action="announcement.tenants").after == {"tenants": [research.slug]}
        read(as_olivia, "/audit/")


def test_what_is_new_is_on_a_page(as_alice):
    page = as_alice.get("/news/changes/")
    assert all_of(page, "[data-release]")[0]["data-release"] == VERSION
    assert len(all_of(page, "[data-release] .prose li")) > 10


def test_a_missing_list_of_changes_is_said(as_alice, monkeypatch, tmp_path):
    monkeypatch.setattr(changelog, "FILE", tmp_path / "none.md")
    changelog.read_releases.cache_clear()
    page = as_alice.get("/news/changes/")
    changelog.read_releases.cache_clear()
    assert has(page, "main .empty")


def test_an_announcement_is_named_in_either_language():
    with translation.override("ja"):
        assert str(Announcement(title_en="Outage")) == "Outage"
