"""Whose host it is: decided from rows as they are read, and by two real supervisors in two state directories."""

import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from modelregistry.models import Host
from modelregistry.supervisor import lease, repository
from modelregistry.supervisor.lease import Claim, HeldElsewhere, HostLease
from tests.clock import Clock
from tests.modelregistry.site import Site
from tests.waiting import until

AT = datetime(2026, 4, 1, tzinfo=UTC)
THEIRS = Claim("theirs", "other-machine, process 7", AT)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lease_of_host(tmp_path, clock):
    return HostLease(tmp_path / "claim", clock)


def test_a_host_without_a_holder_may_be_taken(lease_of_host):
    assert lease_of_host.may_take(Claim("", "", None))


def test_the_claim_of_a_killed_supervisor_in_the_same_directory_is_ours(lease_of_host, tmp_path, clock):
    lease_of_host.keep_claim()
    assert HostLease(tmp_path / "claim", clock).may_take(Claim(lease_of_host.number, "whoever", AT))


def test_a_holder_that_renews_its_claim_is_left_alone(lease_of_host):
    assert not lease_of_host.may_take(THEIRS)
    with pytest.raises(HeldElsewhere, match="other-machine, process 7"):
        lease_of_host.may_take(replace(THEIRS, seen_at=AT + timedelta(seconds=5)))


def test_a_claim_that_is_not_renewed_is_taken_over(lease_of_host, clock):
    assert not lease_of_host.may_take(THEIRS)
    clock.now += lease.STALE_AFTER - 1
    assert not lease_of_host.may_take(THEIRS)
    clock.now += 1
    assert lease_of_host.may_take(THEIRS)


def test_a_holder_whose_clock_was_set_back_is_alive_all_the_same(lease_of_host):
    assert not lease_of_host.may_take(THEIRS)
    with pytest.raises(HeldElsewhere):
        lease_of_host.may_take(replace(THEIRS, seen_at=AT - timedelta(days=400)))


def test_a_claim_that_changes_hands_is_watched_again(lease_of_host, clock):
    lease_of_host.may_take(THEIRS)
    clock.now += lease.STALE_AFTER
    third = Claim("third", "a third machine", AT)
    assert not lease_of_host.may_take(third)
    clock.now += lease.STALE_AFTER
    assert lease_of_host.may_take(third)


@pytest.mark.django_db
def test_of_two_who_take_at_once_one_gets_it():
    first, second = repository.get_or_create_host("here"), repository.get_or_create_host("here")
    assert repository.claim_host(first, "a", "the first")
    assert not repository.claim_host(second, "b", "the second")
    assert repository.renew_claim(first.id, "a")
    assert not repository.renew_claim(first.id, "b")


def test_a_full_disk_does_not_keep_anybody_from_supervising(lease_of_host, tmp_path):
    (tmp_path / "claim").symlink_to("/dev/full")
    lease_of_host.keep_claim()
    assert lease_of_host.may_take(Claim("", "", None))


# --- Two real supervisors


@pytest.fixture
def elsewhere(site, tmp_path):
    """Be another machine, as far as the database knows: the same host name, another state directory."""
    other = Site(tmp_path / "elsewhere")
    other.var.mkdir()
    yield other
    other.close()


def test_the_second_supervisor_of_a_host_says_so_and_stops(site, elsewhere):
    first = site.supervise()
    until(lambda: Host.objects.filter(name="here", seen_at__isnull=False).exists())
    site.model()
    ready = site.reaches("ready")

    second = elsewhere.supervise()
    assert second.wait(40) == 1
    assert Host.objects.get().holder in elsewhere.log.read_text().splitlines()[-1]
    assert str(first.pid) in Host.objects.get().holder
    assert elsewhere.runs.all() == []
    assert (site.replica().pid, site.replica().state) == (ready.pid, "ready")


def test_a_host_that_was_left_is_free_at_once(site, elsewhere):
    first = site.supervise()
    until(lambda: Host.objects.filter(name="here", seen_at__isnull=False).exists())
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 0
    second = elsewhere.supervise()
    until(lambda: str(second.pid) in Host.objects.get().holder, 60)


def test_a_supervisor_that_was_followed_by_another_stops_and_leaves_its_engines(site):
    first = site.supervise()
    site.model()
    ready = site.reaches("ready")
    Host.objects.update(claim="another", holder="another machine")
    assert first.wait(20) == 1
    assert "Traceback" not in site.log.read_text()
    assert ready.pid in site.living()
    assert site.replica().state == "ready"
