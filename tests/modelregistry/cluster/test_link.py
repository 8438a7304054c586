"""A controller's link: what it reckons with of a host's lease, whatever becomes of renewals. Its driver is no Ray's."""

import sys
import time
from pathlib import Path

import pytest

from modelregistry.cluster import limits
from modelregistry.cluster.access import ClusterAccess
from modelregistry.cluster.head import list_nodes
from modelregistry.cluster.link import ClusterLink, ClusterSilent, HostRefused, Renewal

# A host with a frozen clock; an exchange sets it, and whether the host answers renewals from then on.
DRIVER = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
clock, deaf = 100.0, False
for line in sys.stdin:
    asked = json.loads(line)
    answer = {"id": asked["id"], "result": True}
    if asked["do"] == "exchange":
        clock, deaf = json.loads(asked["message"])
        answer["result"] = ""
    elif asked["do"] == "describe":
        answer |= {"result": {"name": asked["host"]}, "shown": ["boot", clock]}
    elif asked["do"] == "nodes":
        answer["result"] = []
    elif asked["do"] == "renew":
        answer["shown"] = ["boot", clock]
        left = asked["since"] + asked["seconds"] - clock
        answer |= {"result": left} if left > 0 else {"fault": "late", "kind": "StaleRenewal", "term": 3}
        if asked["term"] < 3:
            answer |= {"fault": "another has it", "kind": "NewerController", "term": 3}
    if not deaf or asked["do"] in ("ping", "exchange"):
        print(json.dumps(answer), flush=True)
"""
RENEWAL = Renewal(term=3, holder="one", seconds=30.0)


@pytest.fixture
async def link(issue):
    access = ClusterAccess(address="127.0.0.1:6377", secrets=issue("head"))
    made = ClusterLink(Path(sys.executable), access=access, server="")
    made.argv = (sys.executable, "-c", DRIVER)
    await made.open()
    await made.wait_until_ready(30)
    yield made
    await made.close()


async def show(link: ClusterLink, clock: float, *, deaf: bool = False) -> None:
    """Have the host's clock show this, without the link hearing of it."""
    await link.exchange("a", 3, "one", f"[{clock}, {str(deaf).lower()}]", within=10)


async def test_a_machine_that_joins_just_after_the_heads_start_is_waited_with(issue):
    access = ClusterAccess(address="127.0.0.1:6377", secrets=issue("head"))
    starting = ClusterLink(Path(sys.executable), access=access, server="")
    starting.argv = (sys.executable, "-c", DRIVER)
    await starting.open()
    try:
        assert await list_nodes(starting) == []
    finally:
        await starting.close()


async def test_a_renewal_counts_from_when_the_host_was_heard(link):
    assert link.leased_until("a") == 0.0
    began = time.monotonic()
    assert await link.renew("a", RENEWAL) == pytest.approx(30)
    assert began + 30 <= link.leased_until("a") <= time.monotonic() + 30
    await show(link, 110.0)
    assert await link.renew("a", RENEWAL) == pytest.approx(20)  # from what it showed before
    assert await link.renew("a", RENEWAL) == pytest.approx(30)


async def test_a_host_that_was_away_for_long_is_renewed_from_what_it_shows_then(link):
    await link.renew("a", RENEWAL)
    await show(link, 500.0)
    assert await link.renew("a", RENEWAL) == pytest.approx(30)


async def test_a_renewal_that_is_not_answered_is_reckoned_with_from_when_the_host_was_heard(link, monkeypatch):
    monkeypatch.setattr(limits, "DRIVER", 0.0)
    await link.renew("a", RENEWAL)
    until, heard = link.leased_until("a"), time.monotonic()
    await show(link, 110.0, deaf=True)
    with pytest.raises(ClusterSilent):
        await link.renew("a", RENEWAL, within=0.5)
    assert until < link.leased_until("a") <= heard + 30  # it may have arrived


async def test_a_refusal_says_which_term_the_host_has_seen(link):
    with pytest.raises(HostRefused) as refused:
        await link.renew("a", Renewal(term=2, holder="two", seconds=30.0))
    assert (refused.value.kind, refused.value.term) == ("NewerController", 3)


async def test_a_request_that_is_too_long_is_refused_and_hurts_no_other(link, monkeypatch):
    monkeypatch.setattr(limits, "LONGEST_LINE", 1000)
    with pytest.raises(HostRefused) as refused:
        await link.exchange("a", 3, "one", "x" * 1000, within=10)
    assert refused.value.kind == "TooLong"
    assert await link.describe("a") == {"name": "a"}
