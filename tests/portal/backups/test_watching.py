"""Operators learn that the newest backup is too old, on pages and by a notice a day."""

from datetime import timedelta

import pytest
import time_machine
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from portal.accounts.models import User
from portal.backups.models import BackupRun
from tests.html import has, one_of
from tests.portal.recorded import notice_facts, notified

pytestmark = pytest.mark.django_db

PAGE = "/operations/data/"


@pytest.fixture
def desk(olivia) -> Client:
    client = Client(headers={"accept-language": "en"})
    client.force_login(olivia, backend="portal.accounts.backends.LocalBackend")
    return client


def backed_up(hours_ago: float, error: str = "") -> BackupRun:
    at = timezone.now() - timedelta(hours=hours_ago)
    return BackupRun.objects.create(began_at=at, ended_at=at, host="here", path="/b", size=5 * 10**6, error=error)


def test_an_old_backup_is_shown_and_notified_once_a_day(desk, settings):
    settings.BACKUP_MAX_AGE = timedelta(hours=26)
    now = timezone.now()
    backed_up(27)
    backed_up(1, error="no room")
    for later in (0, 0, 24):
        with time_machine.travel(now + timedelta(hours=later), tick=False):
            call_command("watchbackups")
    assert notified("backup-overdue") == ["olivia", "olivia"]
    assert {facts["error"] for facts in notice_facts("backup-overdue")} == {"no room"}
    assert one_of(desk.get(PAGE).content.decode(), "[data-backups]")["data-backups"] == "overdue"
    assert has(desk.get("/operations/").content.decode(), "#attention [data-old-backup]")


def test_a_recent_backup_is_no_trouble(desk, settings):
    settings.BACKUP_MAX_AGE = timedelta(hours=26)
    run = backed_up(25)
    call_command("watchbackups")
    assert notified("backup-overdue") == []
    page = desk.get(PAGE).content.decode()
    assert one_of(page, "[data-backups]")["data-backups"] == "fine"
    assert has(page, f"[data-run='{run.pk}'] .fine")
    overview = desk.get("/operations/").content.decode()
    assert not has(overview, "[data-old-backup]")
    assert not has(overview, "[data-no-backup]")


def test_an_installation_has_as_long_for_its_first_backup(desk, settings):
    settings.BACKUP_MAX_AGE = timedelta(hours=26)
    call_command("watchbackups")
    assert notified("backup-overdue") == []
    User.objects.update(date_joined=timezone.now() - timedelta(hours=27))
    call_command("watchbackups")
    assert [facts["at"] for facts in notice_facts("backup-overdue")] == [None]


def test_backups_that_are_not_set_up_are_named_as_such_and_notify_no_one(desk, settings):
    settings.BACKUP_MAX_AGE = None
    call_command("watchbackups")
    assert notified("backup-overdue") == []
    assert one_of(desk.get(PAGE).content.decode(), "[data-backups]")["data-backups"] == "unwatched"
    assert has(desk.get("/operations/").content.decode(), f"[data-no-backup] a[href='{PAGE}']")
