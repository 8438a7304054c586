"""The status in the API says what its page says, of the models that a person may call."""

from datetime import timedelta

import pytest
from django.utils import timezone

from portal.keys.models import ModelAccess
from portal.status.models import StatusInterval, StatusWatch
from tests.pages import serve

pytestmark = pytest.mark.django_db


@pytest.fixture
def models(sales):
    """Make one that failed an hour ago for an hour, and one that only another tenant may call, which fails."""
    now = timezone.now()
    StatusWatch.objects.create(since=now - timedelta(days=3), last_at=now)
    qwen, secret = serve("qwen"), serve("secret")
    ModelAccess.objects.create(model=secret, tenant=sales)
    StatusInterval.objects.update(began_at=now - timedelta(days=3), ended_at=now - timedelta(days=3))  # first answers
    hour = timedelta(hours=1)
    down = {"kind": StatusInterval.Kind.DOWN, "reason": "failed"}
    StatusInterval.objects.create(model=qwen, began_at=now - 2 * hour, ended_at=now - hour, **down)
    StatusInterval.objects.create(model=secret, began_at=now - hour, **down)


def test_a_person_reads_of_the_models_that_they_may_call(call, alice, models):
    found = call(alice).get("status/")
    [qwen] = found["models"]
    assert (qwen["name"], qwen["state"], len(qwen["days"])) == ("qwen", "up", 30)
    assert 0.98 < qwen["share"] < 0.99
    assert [day["share"] for day in qwen["days"][:20]] == [None] * 20  # before anything was watched
    [incident] = found["incidents"]
    assert (incident["model"], incident["seconds"]) == ("qwen", 3600)


def test_operators_read_of_all_of_them(call, olivia, models):
    found = call(olivia).get("status/")
    assert [model["name"] for model in found["models"]] == ["qwen", "secret"]
    assert [one["ended_at"] is None for one in found["incidents"]] == [True, False]
