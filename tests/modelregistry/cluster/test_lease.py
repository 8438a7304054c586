"""The lease of a host: who holds it, for how long, and that no clock but the kernel's counts."""

import os
import subprocess
import sys
import time

import pytest
from django.conf import settings

from modelregistry.cluster.lease import (
    FILE,
    SLOT,
    SLOTS,
    FencingLease,
    HostClock,
    NewerController,
    NotRenewed,
    StaleRenewal,
    seconds_since_boot,
)


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


def renew(lease: FencingLease, term: int = 1, holder: str = "one", seconds: float = 30) -> float:
    """Renew it as a controller does that has just heard the host."""
    return lease.renew(term=term, holder=holder, seconds=seconds, since=lease.show_clock())


def test_a_host_that_no_controller_ever_renewed_obeys_none(lease):
    with pytest.raises(NotRenewed):
        lease.check(1, "one")


def test_a_lease_is_good_until_its_time_is_over(lease, clock):
    renew(lease)
    clock.now += 29
    lease.check(1, "one")
    assert lease.remaining(lease.read()) == pytest.approx(1.0)
    clock.now += 1.5
    with pytest.raises(NotRenewed):
        lease.check(1, "one")


def test_renewing_brings_back_a_lease_that_was_over(lease, clock):
    renew(lease)
    clock.now += 60
    renew(lease)
    lease.check(1, "one")


# --- From when it counts


def test_a_renewal_that_waited_prolongs_only_from_when_the_host_was_heard(lease, clock):
    heard = lease.show_clock()
    clock.now += 20  # in a queue
    assert lease.renew(term=1, holder="one", seconds=30, since=heard) == pytest.approx(10)
    assert lease.remaining(lease.read()) == pytest.approx(10)


@pytest.mark.parametrize("late", [30, 31, 3000])
def test_a_renewal_that_is_older_than_its_lease_is_refused(lease, clock, late):
    heard = lease.show_clock()
    clock.now += late
    with pytest.raises(StaleRenewal):
        lease.renew(term=1, holder="one", seconds=30, since=heard)
    assert lease.read() is None


def test_a_renewal_of_before_a_reboot_or_from_the_future_is_refused(lease):
    shown = lease.show_clock()
    for since in (HostClock("another", shown.seconds), HostClock(shown.boot, shown.seconds + 5)):
        with pytest.raises(StaleRenewal):
            lease.renew(term=1, holder="one", seconds=30, since=since)


def test_a_renewal_that_was_overtaken_takes_nothing_back(lease, clock):
    first = lease.show_clock()
    clock.now += 10
    renew(lease)
    assert lease.renew(term=1, holder="one", seconds=30, since=first) == pytest.approx(30)
    assert lease.remaining(lease.read()) == pytest.approx(30)


def test_a_later_renewal_may_be_for_less(lease):
    renew(lease, seconds=60)
    renew(lease, seconds=10)
    assert lease.remaining(lease.read()) == pytest.approx(10)


# --- Terms


def test_a_controller_that_was_replaced_is_refused_everything(lease):
    renew(lease)
    renew(lease, 2, "two")
    with pytest.raises(NewerController):
        renew(lease)
    with pytest.raises(NewerController):
        lease.check(1, "one")
    lease.check(2, "two")
    with pytest.raises(NotRenewed):
        lease.check(3, "three")  # elected, and has not renewed it yet


def test_two_controllers_with_the_same_term_do_not_both_act(lease):
    renew(lease, 4, "one")
    with pytest.raises(NewerController):
        renew(lease, 4, "two")
    with pytest.raises(NewerController):
        lease.check(4, "two")
    renew(lease, 4, "one")
    renew(lease, 5, "two")  # which it takes, as it has seen term 4
    lease.check(5, "two")


def test_a_term_is_remembered_after_its_lease_is_over(lease, clock):
    renew(lease, 7, "two")
    clock.now += 3600
    with pytest.raises(NewerController):
        renew(lease, 6)
    with pytest.raises(NewerController):
        renew(lease, 7, "one")


def test_two_processes_of_one_host_see_the_same_lease(lease, tmp_path, clock):
    renew(lease, 3)
    FencingLease(tmp_path, clock=clock).check(3, "one")


def test_a_lease_of_before_a_reboot_is_over_but_its_term_counts(lease, tmp_path, monkeypatch):
    renew(lease, 3)
    monkeypatch.setattr("modelregistry.process.shim.boot_id", lambda: "another")
    with pytest.raises(NotRenewed):
        lease.check(3, "one")
    with pytest.raises(NewerController):
        renew(lease, 2, "old")
    renew(lease, 3)


# --- The disk


def overwrite(path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"x" * SLOT * SLOTS, b"0" * 64 + b' {"term": 1}'])
def test_a_damaged_lease_is_none(lease, tmp_path, damage):
    (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(NotRenewed):
        lease.check(1, "one")
    renew(lease)
    lease.check(1, "one")


def test_a_write_that_was_cut_short_leaves_what_was_before(lease, tmp_path, clock):
    renew(lease)
    before = (tmp_path / FILE).read_bytes()
    clock.now += 5
    renew(lease)
    [changed] = [at for at in range(0, SLOT * SLOTS, SLOT) if (tmp_path / FILE).read_bytes()[at] != before[at]]
    overwrite(tmp_path / FILE, changed + 40, b"torn")
    assert lease.remaining(lease.read()) == pytest.approx(25)
    renew(lease)
    assert lease.remaining(lease.read()) == pytest.approx(30)


FULL = """
import errno, sys, time
from pathlib import Path
from modelregistry.cluster import fence
from modelregistry.cluster.lease import FencingLease
lease = FencingLease(Path(sys.argv[1], "lease"))
fence.prepare(lease.directory)
lease.prepare()
try:
    Path(sys.argv[1], "filler").write_bytes(b"x" * 10_000_000)
except OSError as error:
    print(errno.errorcode[error.errno])
for number in range(3):
    lease.renew(term=number, holder="one", seconds=30, since=lease.show_clock())
fence.start(lease.directory, Path(sys.argv[1], "runs"))
lease.check(2, "one")
print(fence.is_running(lease.directory), round(lease.remaining(lease.read())))
"""


def test_a_full_disk_keeps_no_lease_from_being_renewed_and_no_fence_from_starting(tmp_path):
    """A disk of its own, of 256 KB; all that is started on it ends with the namespace."""
    command = f'mount -t tmpfs -o size=256k none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *(() if os.geteuid() == 0 else ("--user", "--map-root-user")),
            *("sh", "-c", command, FULL),
        ],
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["ENOSPC", "True", "30"], done.stderr


@pytest.mark.parametrize("seconds", [0, -1, 3601, float("nan"), float("inf")])
def test_a_lease_of_an_absurd_length_is_refused(lease, seconds):
    with pytest.raises(ValueError, match="lease"):
        renew(lease, seconds=seconds)


@pytest.mark.parametrize("holder", ["", "x" * 10_000])
def test_a_holder_without_a_usable_name_is_refused(lease, holder):
    with pytest.raises(ValueError, match="holder"):
        renew(lease, holder=holder)


def test_setting_the_clock_moves_no_lease(tmp_path, monkeypatch):
    lease = FencingLease(tmp_path)
    renew(lease)
    for jump in (300, -300):
        monkeypatch.setattr(time, "time", lambda jump=jump: 1_800_000_000.0 + jump)
        assert 29 < lease.remaining(lease.read()) <= 30
    assert seconds_since_boot() > 0
