"""What the pages of the made-up company cost: how many queries, and that more people and calls cost no more of them."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from portal.demo import company
from tests import walk

NOW = datetime(2026, 11, 19, 15, 20, tzinfo=ZoneInfo("Asia/Tokyo"))
SMALL = company.Size(people=60, days=30, amount=0.02)
LARGER = company.Size(people=300, days=45, amount=0.03)
# Session, person and the top bar are 5 of them; home shows keys, models, use, quotas and requests.
MOST = 26
# … for an operator who is also the admin and a member of a tenant: the sections of three roles.
MOST_OF_HOME = 25


def pages() -> list[walk.Page]:
    """Return all but those that differ from another one only in how long a period they show.

    Or in the kind of file.
    """
    alike = ("period=this-month", "period=30", "period=fiscal-year", "format=json")
    return [page for page in walk.pages() if not any(part in page.address for part in alike)]


class Undone(Exception):
    """Rolls the database back."""


def queries(size: company.Size) -> dict[tuple[str, str], int]:
    """Count the queries of each page, by (who, name), with a company of this size, then remove it."""
    counted = {}
    try:
        with transaction.atomic():
            company.fill_database(size, NOW, 5, directory=False)
            clients = {who: walk.client_of(who) for who in walk.WHO}
            for page in pages():
                with CaptureQueriesContext(connection) as asked:
                    status = walk.read(clients[page.who], page.address)
                assert status < 500, page
                if status == 200:
                    counted[page.who, page.pattern] = len(asked)
            raise Undone
    except Undone:
        return counted


@pytest.mark.django_db
@pytest.mark.timeout(600)
def test_a_page_asks_few_questions_however_much_there_is():
    with time_machine.travel(NOW, tick=False):
        small, larger = queries(SMALL), queries(LARGER)
    assert len(larger) > 100
    assert {who for who, _ in larger} == set(walk.WHO)
    assert {page: count for page, count in larger.items() if count > (MOST_OF_HOME if page[1] == "/" else MOST)} == {}
    # What a small company has none of is looked up with one query more: names of people and of keys.
    grown = {page: (small[page], count) for page, count in larger.items() if count > small.get(page, count) + 2}
    assert grown == {}
