"""Pages and files of how use spreads: each sees its own scope, and no number below five."""

import csv
import io
import re
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.utils import timezone

from portal.accounts.models import Membership, Tenant, User
from portal.adoption import summary, views
from portal.adoption.models import COMPANY
from portal.feedback.models import Feedback
from portal.keys.models import ApiKey
from portal.usage import records
from portal.use_cases import publishing
from portal.use_cases.models import HelpedMark
from tests.html import texts
from tests.pages import call, key_of
from tests.portal.browsing import client_of, read
from tests.use_cases import text_content, use_case

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 11, 30, 3, tzinfo=UTC)
ARRIVAL = datetime(2026, 9, 8, 3, tzinfo=UTC)  # a Tuesday
WEEK = "2026-09-07"


def arrive(tenant: Tenant, number: int, days: list[int], name: str, came: datetime = ARRIVAL) -> None:
    """Make so many people who arrived then and were active on these days after it."""
    rows = []
    for n in range(number):
        person = User.objects.create(username=f"{name}{n}")
        Membership.objects.create(user=person, tenant=tenant, since=came)
        key = key_of(person, tenant)
        ApiKey.objects.filter(pk=key.pk).update(created_at=came)
        rows += [call(key, at=came + timedelta(days=day), client_class="openai") for day in days]
    records.record_usage(rows)


@pytest.fixture
def counted(research: Tenant) -> Tenant:
    arrive(research, 6, [0, 1, 2, 22], "keen")
    arrive(research, 5, [0], "brief")
    other = Tenant.objects.create(slug="other", name="Other")
    arrive(other, 12, [0], "many")
    arrive(other, 9, [0, 3, 5, 8, 23], "steady")
    with time_machine.travel(NOW, tick=False):
        summary.update_if_due(timezone.now())
    return research


def test_steps_are_shown_with_the_length_of_their_bars(counted, as_bob):
    read(as_bob, "/adoption/")
    cells = {cell.step: (cell.people, cell.width) for cell in as_bob.get("/adoption/").context["funnel"]}
    assert cells["arrived"] == (10, 100)  # 11 people, to the nearest five
    assert cells["answered"] == (10, 100)
    assert cells["regular"] == (5, 50)  # 6
    assert cells["week4"] == (5, 50)
    assert cells["week2"] == (None, None)  # no one: fewer than five


def test_no_share_of_a_few_people_is_shown(counted, as_bob, as_olivia):
    """Of 11 people and of all 32, "50%" could be anything from 30 to 80: both numbers are rounded."""
    for client, kept in ((as_bob, (5, 10)), (as_olivia, (15, 30))):
        answer = client.get("/adoption/")
        shown = [answer.context["funnel"], *(cells for _name, cells in answer.context["tenants"])]
        assert {cell.percent for cells in shown for cell in cells} == {None}
        assert (answer.context["kept"]["people"], answer.context["kept"]["of"]) == kept


def test_a_share_of_many_people_is_shown():
    assert views.StepCell(step="week4", people=25, of=50).percent == 50
    assert views.StepCell(step="week4", people=25, of=45).percent is None


def test_an_operator_sees_all_tenants_and_an_admin_the_own_one(counted, as_olivia, as_bob):
    assert [scope.name for scope in as_olivia.get("/adoption/").context["scopes"]] == [
        "all",
        "tenant:other",
        "tenant:research",
    ]
    assert len(as_olivia.get("/adoption/").context["tenants"]) == 2
    assert [scope.name for scope in as_bob.get("/adoption/").context["scopes"]] == ["tenant:research"]
    assert as_bob.get("/adoption/?of=all").status_code == 404
    assert as_bob.get("/adoption/?of=tenant:other").status_code == 404
    assert as_bob.get("/adoption/export/?of=all").status_code == 404


@pytest.mark.parametrize("path", ["/adoption/", "/adoption/export/"])
def test_an_employee_is_refused(counted, as_alice, path):
    assert as_alice.get(path).status_code == 403


@pytest.mark.parametrize("table", views.TABLES)
@pytest.mark.parametrize("of", ["all", "tenant:research"])
def test_no_file_and_no_page_has_a_number_of_people_below_five(counted, as_olivia, table, of):
    page = read(as_olivia, f"/adoption/?of={of}")
    assert all(int(number) >= 5 for number in re.findall(r'data-people="(\d+)"', page))
    answer = as_olivia.get(f"/adoption/export/?of={of}&table={table}")
    rows = list(csv.reader(io.StringIO(b"".join(answer.streaming_content).decode("utf-8-sig"))))
    numbers = [int(cell) for row in rows[1:] for cell in row[2 if rows[0][1] == "slug" else 1 :] if cell]
    assert all(number >= 5 for number in numbers)
    if table in ("weeks", "active"):
        assert numbers


def test_what_is_stored_has_no_number_below_five_either(counted):
    stored = repr([summary.read_summary(scope).counts for scope in (COMPANY, counted.pk)])
    assert not re.findall(r": [0-4][,}\]]", stored)


def test_the_total_less_the_weeks_that_any_table_shows_is_no_hidden_number(research):
    """Of three weeks one has too few, and another is hidden with it: also where the same people are counted again."""
    for place, number in enumerate((3, 7, 9)):
        arrive(research, number, [0, 8, 22], f"week{place}", ARRIVAL + timedelta(weeks=place))
    with time_machine.travel(NOW, tick=False):
        summary.update_if_due(timezone.now())
    for scope in (research.pk, COMPANY):
        counts = summary.read_summary(scope).counts
        for step, number in (("week2", "2"), ("week4", "4")):
            weeks = [name for name, steps in counts["weeks"].items() if name != "total" and steps.get(step)]
            curves = [week for week, numbers in counts["retention"].items() if numbers.get(number)]
            known = {*weeks, *curves}
            assert counts["weeks"]["total"][step] == 20  # 19 people
            shown = [counts["weeks"][week][step] or counts["retention"][week][number] for week in known]
            assert 20 - sum(shown) >= 5
            assert len(known) == 1


def test_use_cases_are_shown_with_the_people_who_said_that_they_used_them(research, alice, bob, as_bob, as_olivia):
    """Six gave a thumb or were helped, one of them both; four others said so of a case, which is too few to show."""
    known, rare = (use_case(alice, research, text_content(title=title), publisher=bob) for title in ("Known", "Rare"))
    people = [User.objects.create(username=f"p{n}") for n in range(6)]
    Membership.objects.bulk_create(Membership(user=person, tenant=research) for person in people)
    said = NOW - timedelta(days=10)
    for n, person in enumerate(people[:4]):
        for case in (known, rare):
            version = {"use_case": case, "use_case_version": 1}
            about = {"request_id": f"r{case.pk}-{n}", "user": person, "tenant": research, "model": "qwen", "score": 1}
            Feedback.objects.create(at=said, **about, **version)
    HelpedMark.objects.bulk_create(HelpedMark(use_case=known, user=person, at=said) for person in people[3:])
    HelpedMark.objects.create(use_case=rare, user=people[5], at=NOW - timedelta(days=60))  # too long ago
    with time_machine.travel(NOW, tick=False):
        summary.update_if_due(timezone.now())
    for client in (as_bob, as_olivia):
        page = client.get("/adoption/")
        assert [(case.pk, number) for case, number in page.context["use_cases"]] == [(known.pk, 5)]
    file = b"".join(as_bob.get("/adoption/export/?table=use_cases").streaming_content).decode("utf-8-sig")
    assert list(csv.reader(io.StringIO(file)))[1:] == [["Known", "5"]]
    publishing.hide(bob, known)
    assert as_bob.get("/adoption/").context["use_cases"] == []


def test_charts_have_a_table_beneath(counted, as_olivia):
    answer = as_olivia.get("/adoption/")
    assert set(answer.context["charts"]) == {"active", "retention"}
    retention = answer.context["charts"]["retention"]
    assert [slot for slot, _, _ in retention.table][-1] == "week 1"
    assert len(texts(answer, "figure.chart table")) == 2


def test_tenants_of_one_name_are_listed_apart(counted, as_olivia):
    Tenant.objects.filter(slug="other").update(name=counted.name)
    with time_machine.travel(NOW, tick=False):
        summary.update_if_due(timezone.now(), rebuild=True)
    assert len({name for name, _cells in as_olivia.get("/adoption/").context["tenants"]}) == 2
    file = b"".join(as_olivia.get("/adoption/export/?of=all&table=tenants").streaming_content).decode("utf-8-sig")
    assert {row["slug"]: row["arrived"] for row in csv.DictReader(io.StringIO(file))} == {
        "research": "10",
        "other": "20",
    }


def test_before_the_first_night_the_page_says_so(research, as_bob):
    assert as_bob.get("/adoption/").context["summary"] is None
    assert b"".join(as_bob.get("/adoption/export/").streaming_content)


@pytest.mark.parametrize("query", ["table=people", "table=%00"])
def test_an_unknown_table_is_a_wrong_request(counted, as_olivia, query):
    assert as_olivia.get(f"/adoption/export/?{query}").status_code == 400


def test_the_page_takes_few_queries_however_many_people_there_are(counted, olivia, django_assert_max_num_queries):
    client = client_of(olivia)
    with django_assert_max_num_queries(6):
        client.get("/adoption/")
