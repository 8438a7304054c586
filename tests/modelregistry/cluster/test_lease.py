"""The lease of a host: who holds it, for how long, and that no clock but the kernel's counts."""

import json
import time

import pytest

from modelregistry.cluster.lease import FILE, FencingLease, NewerController, NotRenewed, seconds_since_boot


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lease(tmp_path, clock):
    return FencingLease(tmp_path, clock=clock)


def test_a_host_that_no_controller_ever_renewed_obeys_none(lease):
    with pytest.raises(NotRenewed):
        lease.check(1)


def test_a_lease_is_good_until_its_time_is_over(lease, clock):
    lease.renew(term=1, holder="one", seconds=30)
    clock.now += 29
    lease.check(1)
    assert lease.remaining(lease.read()) == pytest.approx(1.0)
    clock.now += 1.5
    with pytest.raises(NotRenewed):
        lease.check(1)


def test_renewing_brings_back_a_lease_that_was_over(lease, clock):
    lease.renew(term=1, holder="one", seconds=30)
    clock.now += 60
    lease.renew(term=1, holder="one", seconds=30)
    lease.check(1)


def test_a_controller_that_was_replaced_is_refused_everything(lease):
    lease.renew(term=1, holder="one", seconds=30)
    lease.renew(term=2, holder="two", seconds=30)
    with pytest.raises(NewerController):
        lease.renew(term=1, holder="one", seconds=30)
    with pytest.raises(NewerController):
        lease.check(1)
    lease.check(2)
    with pytest.raises(NotRenewed):
        lease.check(3)  # elected, and has not renewed it yet


def test_a_term_is_remembered_after_its_lease_is_over(lease, clock):
    lease.renew(term=7, holder="two", seconds=30)
    clock.now += 3600
    with pytest.raises(NewerController):
        lease.renew(term=6, holder="one", seconds=30)


def test_two_processes_of_one_host_see_the_same_lease(lease, tmp_path, clock):
    lease.renew(term=3, holder="one", seconds=30)
    FencingLease(tmp_path, clock=clock).check(3)


def test_a_lease_of_before_a_reboot_is_over_but_its_term_counts(lease, tmp_path):
    lease.renew(term=3, holder="one", seconds=30)
    written = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(written | {"boot": "another"}))
    with pytest.raises(NotRenewed):
        lease.check(3)
    with pytest.raises(NewerController):
        lease.renew(term=2, holder="old", seconds=30)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"term": 1}', '{"term": "x", "holder": 1, "boot": 2, "until": 0}'])
def test_a_damaged_lease_is_none(lease, tmp_path, damage):
    (tmp_path / FILE).write_text(damage)
    with pytest.raises(NotRenewed):
        lease.check(1)


@pytest.mark.parametrize("seconds", [0, -1, 3601, float("nan"), float("inf")])
def test_a_lease_of_an_absurd_length_is_refused(lease, seconds):
    with pytest.raises(ValueError, match="lease"):
        lease.renew(term=1, holder="one", seconds=seconds)


def test_setting_the_clock_moves_no_lease(tmp_path, monkeypatch):
    lease = FencingLease(tmp_path)
    lease.renew(term=1, holder="one", seconds=30)
    for jump in (300, -300):
        monkeypatch.setattr(time, "time", lambda jump=jump: 1_800_000_000.0 + jump)
        assert 29 < lease.remaining(lease.read()) <= 30
    assert seconds_since_boot() > 0
