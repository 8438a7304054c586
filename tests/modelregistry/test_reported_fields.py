"""What hosts and engines report is stored, whatever characters and numbers it holds."""

import json

import pytest
from django.utils import timezone

from modelregistry import models
from modelregistry.models import FileReport, Host, HostReport, LogTail, ModelCopy, Replica, ServedModel
from modelregistry.reported_fields import (
    MOST_STORED,
    ReportedCharField,
    ReportedJSONField,
    ReportedTextField,
    make_storable,
)

# As an engine wrote it, and what is stored of it.
ODD, STORED = "a\0b\ud800c", "a?b?c"

# Fields that hosts or engines fill; the others of these classes are the site's own, or chosen from what it knows.
REPORTED = {
    "HostReport": {"devices", "strangers", "engines", "installed", "stamps", "default_versions", "problems"}
    | {"disks"},
    "FileReport": {"facts", "fault", "stamp"},
    "Replica": {"url", "api_key", "launcher", "run_id", "version", "devices", "predicted", "memory_by_device", "live"}
    | {"detail", "cause"},
    "EngineTrial": {"launcher", "version", "stamp", "answer", "cause", "detail"},
    "ModelCopy": {"cause", "detail"},
    "LogTail": {"text"},
    "Measurement": {"fingerprint", "launcher", "version", "device"},
    "Host": {"agent", "bookings"},
}


def test_what_cannot_be_stored_is_replaced_wherever_it_is():
    found = make_storable({ODD: [ODD, float("nan"), float("inf"), 1.5, None, True, 3, (ODD,)]})
    assert found == {STORED: [STORED, None, None, 1.5, None, True, 3, [STORED]]}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", REPORTED)
def test_each_field_that_a_host_fills_takes_what_it_gives(name):
    kinds = ReportedTextField | ReportedCharField | ReportedJSONField
    found = {field.name for field in getattr(models, name)._meta.fields if isinstance(field, kinds)}
    assert found == REPORTED[name]


@pytest.mark.django_db
def test_odd_reports_are_stored_and_cut_to_their_room():
    host = Host.objects.create(name="gpu-1", agent={"version": ODD})
    model = ServedModel.objects.create(name="m", engine="vllm", path="/m")
    row = Replica.objects.create(model=model, host=host, detail=ODD, version="9" * 100)
    Replica.objects.filter(pk=row.pk).update(live={"cache_used": float("nan"), "at": ODD}, cause="x" * 90)
    HostReport.objects.update_or_create(host=host, defaults={"strangers": [{"name": ODD}], "at": timezone.now()})
    FileReport.objects.update_or_create(model=model, defaults={"facts": {"name": ODD}, "at": timezone.now()})
    LogTail.objects.update_or_create(replica=row, defaults={"text": ODD, "at": timezone.now()})
    ModelCopy.objects.create(model=model, host=host, number="c", detail=ODD, requested_at=timezone.now())
    row.refresh_from_db()
    host.refresh_from_db()
    assert (row.detail, row.version, row.cause) == (STORED, "9" * 60, "x" * 40)
    assert row.live == {"cache_used": None, "at": STORED}
    assert host.agent == {"version": STORED}
    assert host.report.strangers == [{"name": STORED}]
    assert row.log_tail.text == model.copies.get().detail == STORED


@pytest.mark.django_db
def test_a_text_that_a_host_makes_too_long_for_a_page_is_cut():
    host = Host.objects.create(name="gpu-1")
    model = ServedModel.objects.create(name="m", engine="vllm", path="/m")
    row = Replica.objects.create(model=model, host=host, detail="x" * MOST_STORED)
    row.refresh_from_db()
    assert row.detail == "x" * MOST_STORED
    Replica.objects.filter(pk=row.pk).update(detail="y" * 20_000_000)
    row.refresh_from_db()
    assert row.detail == "y" * (MOST_STORED - 1) + "…"
    for kind, name in ((models.EngineTrial, "detail"), (ModelCopy, "detail"), (FileReport, "fault")):
        assert len(kind._meta.get_field(name).get_prep_value("z" * 20_000)) == MOST_STORED
