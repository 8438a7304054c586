"""What is deleted when it is old enough, and the page that shows how long each kind of data is kept."""

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from modelregistry.models import TaskRun
from portal.audit.models import AuditEvent
from portal.notifications.models import Notice
from tests.html import has, texts

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


@pytest.fixture
def page(olivia):
    client = Client(headers={"accept-language": "en"})
    client.force_login(olivia, backend="portal.accounts.backends.LocalBackend")
    return lambda: client.get("/operations/data/").content.decode()


def event(days_ago: int) -> AuditEvent:
    return AuditEvent.objects.create(
        at=timezone.now() - days_ago * DAY, action="x", object_kind="x", object_id="1", object_name="x", via="page"
    )


def test_old_events_of_the_audit_log_are_deleted_only_if_a_setting_says_so(settings):
    old, recent = event(100), event(98)
    settings.AUDIT_KEPT_DAYS = None
    with pytest.raises(CommandError):
        call_command("pruneaudit")
    assert AuditEvent.objects.filter(pk__in=[old.pk, recent.pk]).count() == 2
    settings.AUDIT_KEPT_DAYS = 99
    call_command("pruneaudit")
    assert list(AuditEvent.objects.filter(action="x")) == [recent]


def test_usage_is_deleted_by_the_setting_where_the_command_names_no_days(settings):
    settings.USAGE_KEPT_DAYS = None
    with pytest.raises(CommandError):
        call_command("pruneusage")
    settings.USAGE_KEPT_DAYS = 40
    call_command("pruneusage")


def test_notices_are_deleted_by_their_setting(olivia, settings):
    settings.NOTICES_KEPT_DAYS = 30
    for days in (29, 31):
        Notice.objects.create(user=olivia, kind="canary-passed", ref=str(days), at=timezone.now() - days * DAY)
    call_command("sendnotices")
    assert list(Notice.objects.filter(kind="canary-passed").values_list("ref", flat=True)) == ["29"]


def test_the_page_shows_rows_the_oldest_and_the_next_deletion(page, settings):
    settings.AUDIT_KEPT_DAYS = 200
    oldest = event(150)
    run_at = timezone.now() - timedelta(minutes=30)
    TaskRun.objects.create(name="prunerefusals", claimed_at=run_at, ended_at=run_at, succeeded=True)
    shown = page()
    audit = texts(shown, "[data-kept='audit'] td")
    assert f"{timezone.localtime(oldest.at):%Y-%m-%d}" in audit
    assert str(AuditEvent.objects.count()) in audit
    assert "200" in audit[0]
    assert "MB" in audit[3]
    assert has(shown, "[data-kept='refusals'] time")  # when it is due again
    assert not has(shown, "[data-kept='audit'] time")
    assert texts(shown, "[data-kept='usage'] code") == ["USAGE_KEPT_DAYS"]
