"""What `deploy/monitoring` goes by is what a gateway really shows."""

import re
from datetime import timedelta

import httpx2
import pytest
from django.utils import timezone

from modelregistry.models import ControllerClaim, Host, HostReport, Replica, ReplicaShortage, ServedModel, TaskRun
from portal.backups.models import BackupRun
from tests.apiproxy.exposition import samples
from tests.installation import ROOT

MONITORING = ROOT / "deploy" / "monitoring"
GPU = {
    **{"index": 0, "kind": "gpu", "name": "H100", "total": 80, "used": 60, "fault": ""},
    **{"utilisation": 93, "temperature": 71, "power": 412, "ecc_errors": 2},
    **{"xid_errors": 3, "xid_faults": 1, "last_xid": 79},
}
RAM = {"index": -1, "kind": "ram", "name": "RAM", "total": 512, "used": 100, "fault": ""}
LIVE = {"running": 3, "waiting": 2, "tokens_per_second": 41.5, "cache_used": 0.25}


def furnish() -> None:
    """Create a site of which everything is known."""
    now = timezone.now()
    host = Host.objects.create(name="gpu-1", seen_at=now, watched_at=now)
    disks = [{"path": "/models", "total": 10**12, "free": 3 * 10**10}]
    HostReport.objects.create(host=host, devices=[GPU, RAM], disks=disks, at=now)
    ControllerClaim.objects.create(number="n", term=7, holder="site", seen_at=now, moves=3)
    model = ServedModel.objects.create(name="qwen", engine="vllm", path="/m", replicas_max=2)
    Replica.objects.create(
        model=model, host=host, state="ready", live=LIVE, memory_bytes=40_000_000_000, restarts=5, devices=[0]
    )
    ReplicaShortage.objects.create(model=model, wanted=2, since=now, cause="no-room")
    BackupRun.objects.create(began_at=now, ended_at=now, host="site", path="/backup", size=7)
    TaskRun.objects.create(name="sendnotices", claimed_at=now, ended_at=now, succeeded=False)


def names_in(text: str) -> set[str]:
    """Return the names of metrics in a text, a histogram's without the part that says which of its series it is."""
    found = re.findall(r"\bmadoguchi_[a-z0-9_]*[a-z0-9](?![a-z0-9_])", text)
    return {re.sub(r"_seconds_(bucket|sum|count)$", "_seconds", name) for name in found}


def test_every_metric_of_rules_dashboards_and_documents_is_one_that_a_gateway_shows(counter, settings):
    settings.BACKUP_MAX_AGE = timedelta(hours=26)
    furnish()
    shown = set(re.findall(r"^# TYPE (\w+) ", httpx2.get(f"{counter.url}/metrics").text, re.MULTILINE))
    files = [*MONITORING.glob("*.yml"), *MONITORING.glob("**/*.json"), ROOT / "deploy" / "OPERATIONS.md"]
    named = {name for file in files for name in names_in(file.read_text())}
    assert len(named) > 20
    assert named <= shown


def test_metrics_have_the_figures_of_devices_replicas_and_tasks(counter):
    furnish()
    found = samples(httpx2.get(f"{counter.url}/metrics").text)
    assert found["madoguchi_device_memory_used_bytes[device=0, host=gpu-1]"] == 60
    assert found["madoguchi_device_memory_bytes[device=ram, host=gpu-1]"] == 512
    assert found["madoguchi_disk_free_bytes[host=gpu-1, path=/models]"] == 3 * 10**10
    of_gpu = {
        **{"readable": 1, "utilisation_ratio": 0.93, "temperature_celsius": 71},
        **{"power_watts": 412, "ecc_errors_total": 2},
        **{"xid_errors_total": 3, "xid_faults_total": 1, "last_xid": 79},
    }
    for name, value in of_gpu.items():
        assert found[f"madoguchi_gpu_{name}[device=0, host=gpu-1]"] == value
        assert f"madoguchi_gpu_{name}[device=ram, host=gpu-1]" not in found
    of_replica = {"memory_bytes": 40e9, "restarts_total": 5, "running": 3, "waiting": 2, "cache_used_ratio": 0.25}
    for name, value in of_replica.items():
        assert found[f"madoguchi_replica_{name}[host=gpu-1, model=qwen, rank=0, replica=0]"] == value
    assert found["madoguchi_model_replicas[model=qwen, state=ready]"] == 1
    assert found["madoguchi_model_replicas[model=qwen, state=failed]"] == 0
    assert found["madoguchi_periodic_task_failing[task=sendnotices]"] == 1
    assert found["madoguchi_periodic_task_failing[task=adoption]"] == 0


def test_the_age_of_backups_is_that_of_the_last_one_that_succeeded(counter):
    now = timezone.now()
    for hours, error in ((5, ""), (3, ""), (1, "no room")):
        began = now - timedelta(hours=hours)
        BackupRun.objects.create(began_at=began, ended_at=began, host="site", path="/backup", error=error)
    found = samples(httpx2.get(f"{counter.url}/metrics").text)
    assert found["madoguchi_backup_timestamp_seconds[]"] == pytest.approx(now.timestamp() - 3 * 3600, abs=1)
    assert "madoguchi_backup_max_age_seconds[]" not in found


def test_no_label_of_metrics_is_about_a_person_a_key_or_a_call(counter):
    furnish()
    assert counter.chat().status_code == 200
    text = httpx2.get(f"{counter.url}/metrics").text
    labels = set(re.findall(r'[{,](\w+)="', text))
    allowed = {"endpoint", "model", "ending", "kind", "code", "verdict", "reason", "task", "le", "version"}
    assert labels <= allowed | {"host", "state", "device", "replica", "rank", "path"}
