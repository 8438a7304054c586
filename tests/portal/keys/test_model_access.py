"""What a model offers to callers, from the states of its replicas and their hosts."""

from datetime import timedelta

import pytest
from django.utils import timezone

from modelregistry.models import Host, Replica
from portal.keys.model_access import Liveness, liveness

ONLINE, SILENT, UNWATCHED = "online", "silent", "unwatched"


def host_that_is(reach: str) -> Host:
    now = timezone.now()
    if reach == ONLINE:
        return Host(name=reach, seen_at=now, watched_at=now)
    past = now - timedelta(minutes=9)
    return Host(name=reach, seen_at=past, silent_since=past, watched_at=now if reach == SILENT else past)


@pytest.mark.parametrize(
    ("replicas", "offered"),
    [
        ([("ready", ONLINE)], Liveness.UP),
        ([("ready", SILENT)], Liveness.UP),  # the controller asks its engine
        ([("ready", UNWATCHED)], Liveness.UNSURE),
        ([("ready", UNWATCHED), ("ready", SILENT)], Liveness.UP),
        ([("asleep", ONLINE)], Liveness.ASLEEP),
        ([("asleep", SILENT)], Liveness.DOWN),  # nothing can wake it
        ([("starting", SILENT)], Liveness.DOWN),
        ([("unhealthy", SILENT), ("starting", ONLINE)], Liveness.STARTING),
        ([], Liveness.DOWN),
    ],
)
def test_what_a_model_offers(replicas, offered):
    rows = [Replica(state=state, host=host_that_is(reach)) for state, reach in replicas]
    assert liveness(rows, timezone.now()) is offered
