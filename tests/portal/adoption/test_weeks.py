"""Who keeps the pages of many weeks and subtracts what they show finds no number of people from one to four."""

import math
import random
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import pytest

from portal.accounts.models import Tenant, User
from portal.adoption import channels, summary
from portal.adoption.models import COMPANY, AdoptionJourney

pytestmark = pytest.mark.django_db
START = date(2026, 1, 5)  # a Monday
PAGES = 12  # Mondays on which the pages are read
WEEKS = summary.WEEKS + summary.RECENT + PAGES


def arrive(chance: random.Random, tenants: list[Tenant]) -> None:
    """Let a few people arrive in each week and tenant; some go on."""
    rows = []
    for week in range(WEEKS):
        for tenant in tenants:
            for _ in range(chance.choice([0, 1, 2, 3, 6, 9, 17])):
                came = START + timedelta(weeks=week, days=chance.randrange(7))
                days = chance.getrandbits(28) & chance.getrandbits(28) if chance.random() < 0.7 else 0
                user = User.objects.create(username=f"p{len(rows)}")
                begun = came + timedelta(days=(days & -days).bit_length() - 1) if days else None
                facts: dict[str, Any] = {
                    "user": user,
                    "arrived_on": came,
                    "key_on": begun,
                    "answered_on": begun,
                    "channel": chance.choice(list(channels.ORDER)) if days else "",
                    "days": f"{days:x}",
                }
                rows += [AdoptionJourney(scope=scope, **facts) for scope in (tenant.pk, COMPANY)]
    AdoptionJourney.objects.bulk_create(rows)


def numbers_in(stored: Any) -> Iterator[int]:
    """Yield each number of people in what a summary stores."""
    if isinstance(stored, dict | list):
        for one in stored.values() if isinstance(stored, dict) else stored:
            yield from numbers_in(one)
    elif isinstance(stored, int):
        yield stored


@pytest.mark.parametrize("seed", range(3))
def test_no_sum_or_difference_of_what_pages_show_is_one_to_four_people(seed):
    tenants = [Tenant.objects.create(slug=f"t{n}", name=f"T{n}") for n in range(2)]
    arrive(random.Random(seed), tenants)
    shown: set[int] = set()
    totals = []
    for page in range(PAGES):
        summary.update_summaries(START + timedelta(weeks=summary.WEEKS + summary.RECENT + page))
        for scope in (COMPANY, *(tenant.pk for tenant in tenants)):
            counts = summary.read_summary(scope).counts
            shown.update(numbers_in(counts))
            totals.append((scope, counts["weeks"]["total"]["arrived"]))
    assert len(set(totals)) > PAGES  # they change from week to week
    assert len(shown) > 10
    # What integers can be added and subtracted to are the multiples of their greatest common divisor.
    assert math.gcd(*shown) >= 5
