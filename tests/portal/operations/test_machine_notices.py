"""What operators are notified of when a disk of a host is nearly full, or a certificate of the cluster ends."""

from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from modelregistry.controller.watching import hosts_watched
from modelregistry.models import Host, HostReport
from portal.notifications.models import Notice
from portal.operations import machine_notices
from portal.operations.machine_notices import CERTIFICATE, DISK, LEAST, REPORTED, SPOOL, STEADY, XID
from portal.operations.models import MachineTrouble
from portal.usage.models import UsageBacklog
from portal.usage.records import report_backlog

pytestmark = pytest.mark.django_db

FULL = {"path": "/models", "total": 10**12, "free": 12_300_000_000}
EMPTY = {"path": "/models", "total": 10**12, "free": 9 * 10**11}


@pytest.fixture
def host() -> Host:
    host = Host.objects.create(name="gpu-01", clustered=True, seen_at=timezone.now())
    HostReport.objects.create(host=host, disks=[EMPTY], at=timezone.now())
    return host


def report(host: Host, *disks: object) -> None:
    HostReport.objects.filter(host=host).update(disks=list(disks))


def look(*, after: timedelta = timedelta()) -> None:
    """Have the controller look when so much time has passed."""
    for row in MachineTrouble.objects.all():
        row.began_at -= after
        row.notified_at = row.notified_at and row.notified_at - after
        row.ended_at = row.ended_at and row.ended_at - after
        row.save()
    hosts_watched.send(sender=None)


def notices(user, kind: str) -> list[Notice]:
    return list(Notice.objects.filter(user=user, kind=kind).order_by("pk"))


def test_operators_are_notified_once_of_a_disk_that_has_been_nearly_full_for_minutes(host, olivia, alice):
    report(host, FULL)
    look()
    look(after=LEAST / 2)
    assert notices(olivia, DISK) == []
    look(after=LEAST)
    look(after=10 * LEAST)
    [notice] = notices(olivia, DISK)
    assert (notice.facts["host"], notice.facts["directory"], notice.facts["free_gb"]) == ("gpu-01", "/models", 12.3)
    assert notice.path.endswith("#host-gpu-01")
    assert notices(alice, DISK) == []


def test_each_disk_of_each_host_is_one_trouble(host, olivia):
    other = Host.objects.create(name="gpu-02", seen_at=timezone.now())
    HostReport.objects.create(host=other, disks=[FULL], at=timezone.now())
    report(host, FULL, {**FULL, "path": "/var"})
    look()
    look(after=LEAST)
    found = {(one.facts["host"], one.facts["directory"]) for one in notices(olivia, DISK)}
    assert found == {("gpu-01", "/models"), ("gpu-01", "/var"), ("gpu-02", "/models")}


def test_what_passes_within_minutes_is_not_notified(host, olivia):
    report(host, FULL)
    look()
    report(host, EMPTY)
    look(after=LEAST)
    report(host, FULL)
    look()
    assert notices(olivia, DISK) == []


def test_a_disk_is_notified_again_only_when_it_has_been_well_for_long(host, olivia):
    def fill_and_empty(well: timedelta) -> None:
        report(host, FULL)
        look()
        look(after=LEAST)
        report(host, EMPTY)
        look()
        look(after=well)

    fill_and_empty(STEADY / 2)
    fill_and_empty(STEADY)
    assert len(notices(olivia, DISK)) == 1
    fill_and_empty(STEADY)
    assert len(notices(olivia, DISK)) == 2


def test_of_a_silent_host_nothing_begins_and_nothing_ends(host, olivia):
    report(host, FULL)
    look()
    Host.objects.filter(pk=host.pk).update(seen_at=timezone.now() - timedelta(hours=1))
    report(host, EMPTY)
    look(after=LEAST)
    assert (MachineTrouble.objects.count(), notices(olivia, DISK)) == (1, [])


def test_a_certificate_is_notified_a_month_and_a_week_before_it_ends(host, olivia):
    def look_at(days: float) -> list[datetime]:
        ends = (timezone.now() + timedelta(days=days)).timestamp()
        Host.objects.filter(pk=host.pk).update(agent={"certificate_ends": ends})
        look()
        look(after=LEAST)
        return [datetime.fromisoformat(one.facts["ends_at"]) for one in notices(olivia, CERTIFICATE)]

    assert look_at(31) == []
    [first] = look_at(29)
    assert (first - timezone.now()).days in (28, 29)
    assert len(look_at(29)) == 1
    assert len(look_at(6)) == 2


@pytest.mark.parametrize("said", [None, [], {}, {"certificate_ends": "soon"}, {"certificate_ends": 1e300}])
def test_an_agent_that_says_nothing_of_its_certificate_is_none_that_ends(host, olivia, said):
    Host.objects.filter(pk=host.pk).update(agent=said)
    look()
    look(after=LEAST)
    assert notices(olivia, CERTIFICATE) == []


def test_usage_that_waits_on_the_disk_of_a_gateway_is_notified_once_for_each_machine(olivia):
    for worker, size in (("site/7", 3_000_000), ("site/8", 4_000_000), ("other/7", 9_000_000)):
        report_backlog(worker, size=size, seconds=600)
    look()
    look(after=LEAST)
    look(after=LEAST)
    found = {one.facts["host"]: one.facts["megabytes"] for one in notices(olivia, SPOOL)}
    assert found == {"site": 7, "other": 9}


@pytest.mark.parametrize("is_reported", [True, False])
def test_usage_that_waits_no_longer_is_not_notified(olivia, is_reported):
    """The worker reports the end; or it has ended itself, and another one records what it left."""
    report_backlog("site/7", size=3_000_000, seconds=600)
    look()
    if is_reported:
        report_backlog("site/7", size=0, seconds=0)
    else:
        UsageBacklog.objects.update(reported_at=timezone.now() - REPORTED)
    look(after=LEAST)
    assert (notices(olivia, SPOOL), MachineTrouble.objects.count()) == ([], 0)


def test_it_asks_three_questions_when_there_is_nothing_to_do(host, django_assert_num_queries):
    with django_assert_num_queries(3):
        machine_notices.look()


def report_xids(host: Host, **found: int) -> None:
    gpu = {"index": 3, "kind": "gpu", "name": "H100", "total": 80, "used": 60, "fault": "", **found}
    HostReport.objects.filter(host=host).update(devices=[gpu])


def test_operators_are_notified_of_faults_of_a_gpu_at_once_and_not_of_other_errors(host, olivia):
    for xids in ({}, {"xid_errors": 9, "xid_faults": 0, "last_xid": 31}):
        report_xids(host, **xids)
        look()
        look(after=LEAST)
    assert notices(olivia, XID) == []
    report_xids(host, xid_errors=10, xid_faults=1, last_xid=79)
    look()
    [notice] = notices(olivia, XID)
    assert {name: notice.facts[name] for name in ("host", "device", "code", "count")} == {
        **{"host": "gpu-01", "device": "3"},
        **{"code": 79, "count": 1},
    }
    look(after=10 * STEADY)
    assert len(notices(olivia, XID)) == 1


def test_more_faults_of_a_gpu_are_notified_together_after_a_quiet_time_whatever_their_codes(host, olivia):
    for count, code in enumerate((79, 94, 79, 94), 1):
        report_xids(host, xid_faults=count, last_xid=code)
        look(after=STEADY / 10)
    assert [one.facts["code"] for one in notices(olivia, XID)] == [79]
    look(after=STEADY)
    look(after=STEADY)
    found = [(one.facts["code"], one.facts["count"]) for one in notices(olivia, XID)]
    assert found == [(79, 1), (94, 4)]


def test_a_fault_after_a_restart_of_the_host_is_notified_though_its_count_is_the_same(host, olivia):
    for count in (1, 0, 1):
        report_xids(host, xid_faults=count, last_xid=79)
        look(after=LEAST)
    assert len(notices(olivia, XID)) == 1
    look(after=STEADY)
    assert len(notices(olivia, XID)) == 2


@pytest.mark.parametrize("count", [-1, 10**17])
def test_a_count_of_faults_that_no_gpu_has_keeps_nothing_else_from_being_notified(host, olivia, count):
    report_backlog("site/7", size=3_000_000, seconds=600)
    report_xids(host, xid_faults=count, last_xid=count)
    look()
    look(after=LEAST)
    assert len(notices(olivia, SPOOL)) == 1
    assert len(notices(olivia, XID)) == (count > 0)
