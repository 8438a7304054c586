"""News in the API: what each person reads, and what operators write; as its description says."""

import pytest

from portal.audit.models import AuditEvent
from portal.news import announcements
from portal.news.models import Announcement
from tests.news import HOUR, announce

pytestmark = pytest.mark.django_db

BODY = {
    **{"title_en": "A new model", "text_en": "**Try** it."},
    **{"begins_at": "2026-12-01T09:00:00+09:00", "ends_at": "2026-12-02T09:00:00+09:00"},
}


def listed(caller, query: str = "") -> list[int]:
    return [row["id"] for row in caller.get(f"news/{query}")["results"]]


def test_each_person_reads_what_is_for_them(call, alice, charlie, olivia, sales):
    everyones, of_sales, later = announce(), announce(sales), announce(begins=HOUR, ends=2 * HOUR)
    assert listed(call(alice)) == [everyones.pk]
    assert listed(call(charlie)) == [of_sales.pk, everyones.pk]
    assert listed(call(olivia)) == [later.pk, of_sales.pk, everyones.pk]
    assert listed(call(olivia), "?current=true") == [of_sales.pk, everyones.pk]
    assert call(alice)("GET", f"news/{of_sales.pk}/").status_code == 404
    # For which tenants it is, only operators read, as on the page.
    assert call(charlie).get(f"news/{of_sales.pk}/")["tenants"] is None
    assert call(olivia).get(f"news/{of_sales.pk}/")["tenants"] == ["sales"]


def test_kinds_and_what_is_over_are_chosen_from(call, alice):
    work, over = announce(level="maintenance"), announce(begins=-3 * HOUR, ends=-2 * HOUR)
    assert listed(call(alice), "?level=maintenance") == [work.pk]
    assert listed(call(alice), "?current=false") == [over.pk]
    assert call(alice)("GET", "news/?level=other").status_code == 400


def test_an_operator_announces_changes_and_deletes(call, olivia, sales):
    made = call(olivia)("POST", "news/", {**BODY, "tenants": ["sales"]}).json()
    row = Announcement.objects.get(pk=made["id"])
    assert (row.title_en, row.for_everyone, made["tenants"]) == ("A new model", False, ["sales"])
    changed = call(olivia)("PATCH", f"news/{row.pk}/", {"days_ahead": 3}).json()
    assert (changed["days_ahead"], changed["tenants"], changed["text_en"]) == (3, ["sales"], "**Try** it.")
    call(olivia)("PATCH", f"news/{row.pk}/", {"tenants": []})
    row.refresh_from_db()
    assert (row.for_everyone, (row.begins_at - row.shown_from).days) == (True, 3)
    assert call(olivia)("DELETE", f"news/{row.pk}/").status_code == 204
    assert set(AuditEvent.objects.filter(object_kind="announcement").values_list("action", flat=True)) >= {
        "announcement.add",
        "announcement.change",
        "announcement.remove",
    }


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"title_en": ""}, "title_ja"),
        ({"ends_at": BODY["begins_at"]}, "ends_at"),
        ({"begins_at": "0001-01-01T00:00:00+14:00"}, "begins_at"),
        ({"ends_at": "9999-12-31T23:59:59-12:00"}, "ends_at"),
        ({"begins_at": "yesterday"}, "begins_at"),
        ({"begins_at": "2026-12-01T09:00:00"}, "begins_at"),
        ({"ends_at": "2026-12-02T09:00"}, "ends_at"),
        ({"days_ahead": 31}, "days_ahead"),
        ({"tenants": ["nowhere"]}, "tenants"),
        ({"text_en": "x" * 10_001}, "text_en"),
        ({"level": "urgent"}, "level"),
        ({"shown_from": BODY["begins_at"]}, "shown_from"),
        ({"title_en": "\ud800"}, "title_en"),
    ],
)
def test_what_cannot_be_announced_is_refused_at_its_field(call, olivia, more, field):
    answer = call(olivia)("POST", "news/", {**BODY, **more})
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["pointer"].split("/")[1] == field
    assert not Announcement.objects.exists()


def test_maintenance_at_the_same_time_is_refused(call, olivia):
    call(olivia)("POST", "news/", {**BODY, "level": "maintenance"})
    answer = call(olivia)("POST", "news/", {**BODY, "level": "maintenance"})
    assert (answer.status_code, Announcement.objects.count()) == (400, 1)
    row = Announcement.objects.get()
    assert call(olivia)("PATCH", f"news/{row.pk}/", {"title_ja": "工事"}).status_code == 200


def test_two_operators_who_write_at_once_lose_nothing(call, olivia, monkeypatch):
    """What another one has written while this one waited for the lock is read after it."""
    row = announce()
    lock = announcements.lock_announcements

    def wait_for_another() -> None:
        Announcement.objects.filter(pk=row.pk).update(title_en="Theirs")
        lock()

    monkeypatch.setattr(announcements, "lock_announcements", wait_for_another)
    assert call(olivia)("PATCH", f"news/{row.pk}/", {"title_ja": "工事"}).status_code == 200
    row.refresh_from_db()
    assert (row.title_ja, row.title_en) == ("工事", "Theirs")


def test_the_queries_of_a_list_do_not_grow(call, olivia, sales, django_assert_max_num_queries):
    caller = call(olivia)
    for _ in range(12):
        announce(sales)
    with django_assert_max_num_queries(6):
        assert len(listed(caller)) == 12
