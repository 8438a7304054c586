"""What gave its place to what, and what that cost: on the pages of models and hosts, and in the API."""

from datetime import timedelta

import pytest
from django.utils import timezone

from modelregistry.models import EvictionRecord
from tests.fleet import host, model
from tests.html import all_of, has, one_of
from tests.portal.browsing import read
from tests.portal.calling import Caller

pytestmark = pytest.mark.django_db


@pytest.fixture
def fleet():
    """Provide a host on which a model gave its place to another, and came back a minute later."""
    card, chat, summary = host("gpu-01"), model("chat"), model("summary", pinned=True)
    other = model("other")
    now = timezone.now()
    for number, (gone, come) in enumerate([(chat, summary), (summary, chat)]):
        EvictionRecord.objects.create(
            host=card,
            model=gone,
            successor=come,
            at=now + timedelta(minutes=number),
            waited_seconds=12.0,
            drain_seconds=None if number else 3.0,
            calls=4,
        )
    return card, chat, summary, other


@pytest.fixture
def operator(olivia, described) -> Caller:
    return Caller(olivia, described)


def shown(page: str) -> list[tuple[str | None, str | None]]:
    return [(row["data-eviction"], row["data-successor"]) for row in all_of(page, "[data-eviction]")]


def test_they_are_on_the_pages_of_both_models_and_of_the_host_newest_first(as_olivia, fleet):
    both = [("summary", "chat"), ("chat", "summary")]
    for path in ("models/chat/", "models/summary/", f"hosts/{fleet[0].pk}/"):
        assert shown(read(as_olivia, f"/operations/{path}")) == both
    assert not has(read(as_olivia, "/operations/models/other/"), "#evictions")


def test_they_are_in_the_api(operator, fleet):
    card, chat, _, other = fleet
    for path in (f"models/{chat.pk}", f"hosts/{card.pk}"):
        found = operator("GET", f"{path}/evictions/").json()
        assert [(one["model"], one["successor"], one["calls"]) for one in found] == [
            ("summary", "chat", 4),
            ("chat", "summary", 4),
        ]
        assert [one["drain_seconds"] for one in found] == [None, 3.0]
    assert operator("GET", f"models/{other.pk}/evictions/").json() == []


def test_a_pinned_model_is_marked_and_can_be_released(as_olivia, operator, fleet):
    summary = fleet[2]
    assert len(all_of(read(as_olivia, "/operations/"), "[data-pinned]")) == 1
    assert one_of(read(as_olivia, "/operations/models/summary/"), "#place dd")["data-pinned"] == "yes"
    changed = operator("PATCH", f"models/{summary.pk}/", {"pinned": False})
    assert (changed.status_code, changed.json()["pinned"], changed.json()["now"]["pinned"]) == (200, False, False)
    assert one_of(read(as_olivia, "/operations/models/summary/"), "#place dd")["data-pinned"] == "no"
