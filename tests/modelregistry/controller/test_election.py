"""Who is a site's controller: decided from rows as they are read, and by two real ones in two state directories."""

import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from apiproxy.bridge.models import ControllerMachine
from modelregistry.controller import election, repository
from modelregistry.controller.election import Claim, Election
from modelregistry.models import ControllerClaim, Host
from modelregistry.version import VERSION
from tests.clock import Clock
from tests.modelregistry.site import Site
from tests.waiting import until

AT = datetime(2026, 4, 1, tzinfo=UTC)
THEIRS = Claim("theirs", "other-machine, process 7", AT)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ours(tmp_path, clock):
    return Election(tmp_path / "claim", clock)


def watch(ours: Election, clock: Clock, seconds: float, found: Claim = THEIRS) -> bool:
    """Look at a claim once a second for so long; return whether it may be taken then."""
    for _ in range(int(seconds)):
        assert not ours.may_take(found)
        clock.now += 1
    return ours.may_take(found)


def test_a_site_without_a_controller_may_be_taken(ours):
    assert ours.may_take(Claim("", "", None))


def test_the_claim_of_a_killed_controller_in_the_same_directory_is_ours(ours, tmp_path, clock):
    ours.keep_claim()
    assert Election(tmp_path / "claim", clock).may_take(Claim(ours.number, "whoever", AT))


def test_a_holder_that_renews_its_claim_is_left_alone(ours, clock):
    for beat in range(20):
        assert not watch(ours, clock, election.STALE_AFTER - 1, replace(THEIRS, seen_at=AT + timedelta(seconds=beat)))


def test_a_claim_that_is_not_renewed_is_taken_over(ours, clock):
    assert watch(ours, clock, election.STALE_AFTER)


def test_time_in_which_the_database_was_away_does_not_count(ours, clock):
    assert not watch(ours, clock, election.STALE_AFTER - 1)
    clock.now += 60
    assert not ours.may_take(THEIRS)
    assert watch(ours, clock, election.STALE_AFTER)


def test_a_holder_whose_clock_was_set_back_is_alive_all_the_same(ours, clock):
    assert not watch(ours, clock, election.STALE_AFTER - 1)
    clock.now += 1
    assert not ours.may_take(replace(THEIRS, seen_at=AT - timedelta(days=400)))


def test_a_claim_that_changes_hands_is_watched_again(ours, clock):
    assert not watch(ours, clock, election.STALE_AFTER - 1)
    clock.now += 1
    assert watch(ours, clock, election.STALE_AFTER, Claim("third", "a third machine", AT))


def test_a_full_disk_keeps_no_controller_from_its_office(ours, tmp_path):
    (tmp_path / "claim").symlink_to("/dev/full")
    ours.keep_claim()
    assert ours.may_take(Claim("", "", None))


def test_a_claim_may_be_expected_once_two_renewals_were_missed(ours, clock):
    assert not ours.is_expected()
    watch(ours, clock, election.EXPECTED_AFTER - 1)
    assert not ours.is_expected()
    clock.now += 1
    ours.may_take(THEIRS)
    assert ours.is_expected()
    ours.may_take(replace(THEIRS, seen_at=AT + timedelta(seconds=1)))
    assert not ours.is_expected()


# --- the row


@pytest.mark.django_db
def test_of_two_who_take_at_once_one_gets_it():
    first, second = repository.read_claim(), repository.read_claim()
    assert repository.take_claim(first, "a", "the first")
    assert repository.take_claim(second, "b", "the second") is None
    assert repository.renew_claim("a")
    assert not repository.renew_claim("b")


@pytest.mark.django_db
def test_each_election_has_a_later_term_also_than_those_that_hosts_have_seen():
    terms = [repository.take_claim(repository.read_claim(), number, "holder").term for number in "aba"]
    assert terms == [1, 2, 3]
    assert repository.take_claim(repository.read_claim(), "c", "holder", above=41).term == 42
    assert repository.take_claim(repository.read_claim(), "d", "holder", above=7).term == 43


# --- One that cannot reach the hosts


def test_a_process_without_a_way_into_the_cluster_controls_nothing_while_there_are_hosts(site):
    Host.objects.create(name="gpu1", clustered=True)
    waiting = site.supervise()
    until(lambda: "gpu1" in site.log.read_text())
    assert waiting.poll() is None
    assert not ControllerClaim.objects.exclude(number="").exists()
    Host.objects.update(clustered=False)
    until(lambda: is_controlled_by(waiting))


# --- Two real controllers


@pytest.fixture
def elsewhere(site, tmp_path):
    """Be another machine, as far as the database knows: another state directory, and another host."""
    other = Site(tmp_path / "elsewhere")
    other.var.mkdir()
    other.environment["MADOGUCHI_HOST"] = "there"
    yield other
    other.close()


def is_controlled_by(process) -> bool:
    return ControllerClaim.objects.exclude(number="").filter(holder__contains=f"process {process.pid},").exists()


def test_the_second_controller_of_a_site_waits_and_takes_over_when_the_first_is_dead(site, elsewhere):
    first = site.supervise()
    until(lambda: is_controlled_by(first))
    site.model()
    ready = site.reaches("ready")
    second = elsewhere.supervise()
    until(lambda: str(first.pid) in elsewhere.log.read_text())
    assert (second.poll(), elsewhere.runs.all()) == (None, [])
    assert not Host.objects.filter(name="there").exists()

    first.kill()
    until(lambda: is_controlled_by(second), election.STALE_AFTER + 5)
    until(lambda: Host.objects.filter(name="there", seen_at__isnull=False).exists())
    assert ready.pid in site.living()


def test_a_site_that_was_left_has_its_next_controller_at_once(site, elsewhere):
    first = site.supervise()
    until(lambda: is_controlled_by(first))
    second = elsewhere.supervise()
    until(lambda: str(first.pid) in elsewhere.log.read_text())
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 0
    until(lambda: is_controlled_by(second), election.STALE_AFTER / 2)


def test_each_controller_reports_its_machine_also_one_that_waits(site, elsewhere):
    first = site.supervise()
    until(lambda: is_controlled_by(first))
    elsewhere.supervise()
    until(lambda: str(first.pid) in elsewhere.log.read_text())
    until(lambda: ControllerMachine.objects.count() == 2)
    assert ControllerMachine.objects.get(name="there").version == VERSION


def test_a_controller_that_was_replaced_leaves_its_engines_and_waits(site):
    first = site.supervise()
    site.model()
    ready = site.reaches("ready")
    ControllerClaim.objects.update(number="another", holder="another machine")
    until(lambda: "another machine" in site.log.read_text())
    assert first.poll() is None
    assert "Traceback" not in site.log.read_text()
    assert ready.pid in site.living()
    assert site.replica().state == "ready"

    ControllerClaim.objects.update(number="")
    until(lambda: is_controlled_by(first))
    site.model("second")
    site.reaches("ready", "second")
    assert (site.replica().pid, site.replica().state) == (ready.pid, "ready")
