"""A supervisor plans the memory of its host: RAM here, and the cards of a recorded host."""

import json
import re
import signal
from pathlib import Path

import pynvml
import pytest

from modelregistry.models import HostReport, Measurement, Replica
from tests.modelregistry import paper_models
from tests.waiting import until

RECORDED = Path(__file__).with_name("recorded_nvml")
GIB = 2**30


def sized(path, gib):
    """Return a GGUF file with a header, and so many GiB of nothing behind it."""
    rows = gib * GIB // (2 * 4096)
    return str(paper_models.gguf(path, tensors={"token_embd.weight": ("F16", (rows, 4096))}))


def environment(replica):
    entries = Path(f"/proc/{replica.pid}/environ").read_bytes().split(b"\0")
    return dict(entry.decode().partition("=")[::2] for entry in entries if entry)


def test_a_model_that_does_not_fit_is_refused_with_the_sum_and_can_be_forced(site):
    site.supervise()
    model = site.model("m", path=sized(site.var / "large.gguf", 4096))
    refused = site.reaches("failed")
    first, ram, would = refused.detail.splitlines()
    total, weights = map(float, re.findall(r"[0-9]+\.[0-9]", first)[:2])
    assert 4399 > total > weights == 4398.0  # GB
    assert ram.startswith("RAM: ")
    assert would
    assert (refused.cause, refused.pid, refused.restarts) == ("does-not-fit", None, 0)
    until(lambda: site.replica().predicted)
    assert site.replica().predicted["weights"] == 4096 * GIB
    assert site.runs.all() == []

    model.overcommit = True
    model.save()
    ready = site.reaches("ready")
    assert (ready.detail, ready.cause, ready.devices) == ("", "", [])
    assert environment(ready)["CUDA_VISIBLE_DEVICES"] == ""


def test_what_a_model_takes_is_kept_beside_the_prediction_and_believed_at_the_next_start(site):
    first = site.supervise("--stop-engines")
    site.model()
    site.reaches("ready")
    measured = until(lambda: Measurement.objects.first())
    replica = until(lambda: (row := site.replica()).memory_bytes and row)
    assert replica.predicted["basis"] == "formula"
    assert replica.predicted["total"] == measured.weights + measured.cache + measured.overhead
    assert (measured.launcher, measured.device) == ("llama-server", "RAM")
    assert measured.measured == replica.memory_bytes > 1_000_000
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 0

    # A stand-in takes less than any engine: as if it had taken something sensible.
    total = replica.predicted["total"] + 5_000_000
    Measurement.objects.update(measured=total)
    site.supervise()
    again = until(lambda: (row := site.replica()).pid not in (None, replica.pid) and row, 40)
    # Nothing is predicted while the files are read.
    until(lambda: (site.replica().predicted or {}).get("basis") == "measured")
    assert site.replica().predicted["total"] == total
    assert again.pk == replica.pk


def test_an_adopted_engine_keeps_its_part_of_the_memory(site):
    first = site.supervise()
    site.model()
    ready = site.reaches("ready")
    before = until(lambda: site.replica().predicted)
    first.kill()
    first.wait()
    Replica.objects.update(predicted=None, memory_bytes=None)
    site.supervise()
    assert until(lambda: site.replica().predicted) == before
    until(lambda: site.replica().memory_bytes)
    assert site.replica().pid == ready.pid


class Cards:
    """Two cards of 80 GB, as a supervisor sees them."""

    def __init__(self, path):
        self.path = path
        self.error = 0
        self.cards = [
            {"uuid": f"GPU-{letter}", "name": "NVIDIA A100", "total": 80 * GIB, "used": GIB // 2}
            | {"processes": {}, "error": 0}
            for letter in "ab"
        ]
        self.write()

    def write(self):
        self.path.write_text(json.dumps({"error": self.error, "cards": self.cards}))


@pytest.fixture
def cards(tmp_path):
    return Cards(tmp_path / "nvml.json")


def supervise(site, cards):
    return site.supervise(PYTHONPATH=str(RECORDED), RECORDED_NVML=str(cards.path))


def test_each_replica_gets_a_card_with_room_and_the_third_is_refused(site, cards):
    supervise(site, cards)
    site.model("m", replicas=3, path=sized(site.var / "large.gguf", 50), context=2048)
    until(lambda: sorted(Replica.objects.values_list("state", flat=True)) == ["failed", "ready", "ready"])
    until(lambda: Replica.objects.filter(state="ready", predicted=None).count() == 0)
    placed, refused = Replica.objects.filter(state="ready"), Replica.objects.get(state="failed")
    assert sorted(row.devices for row in placed) == [[0], [1]]
    for row in placed:
        assert environment(row)["CUDA_VISIBLE_DEVICES"] == str(row.devices[0])
        assert environment(row)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert b"--n-gpu-layers" in Path(f"/proc/{row.pid}/cmdline").read_bytes()
    lines = refused.detail.splitlines()
    for card, running in ((0, placed.get(devices=[0])), (1, placed.get(devices=[1]))):
        [line] = [line for line in lines if line.startswith(f"GPU {card} (NVIDIA A100): ")]
        assert f"m #{running.index}" in line


def test_memory_is_measured_by_card_and_strangers_are_not_ours(site, cards):
    supervise(site, cards)
    site.model("m", path=sized(site.var / "large.gguf", 10), context=2048)
    ready = site.reaches("ready")
    cards.cards[0] |= {"used": 14 * GIB, "processes": {ready.pid: 11 * GIB, 1: 2 * GIB}}
    cards.write()
    # The first measurement after its start was before the card reported: it is measured again every 30 s.
    until(lambda: site.replica().memory_by_device == {"0": 11 * GIB}, 60)
    assert site.replica().memory_bytes == 11 * GIB

    def strangers():
        """Return those on this card; engines of other installations are listed as well, by their RAM."""
        report = HostReport.objects.first()
        return report and [(who["pid"], who["bytes"]) for who in report.strangers if who["device"] == 0]

    assert until(strangers, 30) == [(1, 2 * GIB)]
    assert until(lambda: site.replica().memory_fixed) > 0
    assert until(lambda: Measurement.objects.first()).measured == 11 * GIB


def test_a_driver_that_fails_harms_no_engine_and_is_reported(site, cards):
    supervise(site, cards)
    site.model("m", path=sized(site.var / "large.gguf", 10), context=2048)
    ready = site.reaches("ready")
    until(lambda: HostReport.objects.first())
    cards.error = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    cards.write()
    report = until(
        lambda: (found := HostReport.objects.first()) and any(card["fault"] for card in found.devices) and found, 30
    )
    assert [card["total"] for card in report.devices[:2]] == [80 * GIB] * 2
    site.model("n", path=sized(site.var / "other.gguf", 10), context=2048)
    refused = site.reaches("failed", "n")
    assert report.devices[0]["fault"] in refused.detail
    assert (Replica.objects.get(model__name="m").pid, site.replica().state) == (ready.pid, "ready")
