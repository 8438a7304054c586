"""What a host has, out of recorded answers of NVIDIA's library and written /proc and cgroup files."""

import os

import pynvml
import pytest

from modelregistry.process import gpus
from modelregistry.process.gpus import RAM, GpuProcess
from tests.modelregistry.nvml import Card, Nvml, desktop_4090, divided_a100, two_a100


def cards(nvml, before=()):
    found = gpus.list_devices(before, nvml=nvml)
    assert found[-1].kind == "ram"
    assert found[-1].index == RAM
    return found[:-1]


def test_cards_are_listed_in_the_drivers_order_with_their_memory():
    nvml = two_a100(processes={31: 20_000_000_000, 32: 1_000_000_000}, used=21_700_000_000)
    first, second = cards(nvml)
    assert (first.index, first.uuid, first.kind) == (0, "GPU-aaaaaaaa-1b2c", "gpu")
    assert (first.total, first.used, first.free) == (85_899_345_920, 21_700_000_000, 64_199_345_920)
    assert first.processes == (GpuProcess(pid=31, bytes=20_000_000_000), GpuProcess(pid=32, bytes=1_000_000_000))
    assert (second.index, second.processes, second.fault) == (1, (), "")
    assert nvml.open == 0


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_a_host_without_a_driver_has_its_ram(error):
    assert cards(Nvml(error=error)) == []


def test_this_machine_can_be_read_with_the_real_library():
    assert gpus.list_devices()[-1].total > 1_000_000_000


def test_a_card_that_got_lost_keeps_what_was_known_and_the_others_are_read():
    nvml = two_a100()
    before = cards(nvml)
    nvml.cards[0].error = pynvml.NVML_ERROR_GPU_IS_LOST
    nvml.cards[1].used += 1_000_000_000
    lost, well = cards(nvml, before)
    assert (lost.uuid, lost.total, lost.used) == (before[0].uuid, before[0].total, before[0].used)
    assert "lost" in lost.fault.lower()
    assert (well.index, well.used, well.fault) == (1, before[1].used + 1_000_000_000, "")


def test_a_card_that_was_never_read_has_no_memory_to_give():
    lost, _ = cards(two_a100(error=pynvml.NVML_ERROR_UNKNOWN))
    assert (lost.index, lost.total, lost.free) == (0, 0, 0)
    assert lost.fault


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_a_driver_that_went_away_leaves_what_was_known(error):
    nvml = two_a100()
    before = cards(nvml)
    nvml.error = error
    after = cards(nvml, before)
    assert [device.uuid for device in after] == [device.uuid for device in before]
    assert all(device.fault for device in after)


def test_a_process_that_computes_and_draws_is_counted_once():
    [card] = cards(desktop_4090())
    assert card.processes == (GpuProcess(pid=4242, bytes=5_872_025_600), GpuProcess(pid=2101, bytes=402_653_184))


def test_a_divided_card_is_its_instances_by_their_uuid():
    found = cards(divided_a100())
    assert [(device.index, device.uuid[:7]) for device in found] == [(0, "MIG-111"), (1, "MIG-222"), (2, "GPU-bbb")]
    assert found[0].processes == (GpuProcess(pid=777, bytes=None),)
    assert gpus.cuda_names(found, [1]) == ("MIG-222-4c60",)


def test_whole_cards_are_called_by_number():
    found = cards(two_a100())
    assert gpus.cuda_names(found, [0, 1]) == ("0", "1")
    assert gpus.cuda_names(found, [1]) == ("1",)
    assert gpus.cuda_names(found, []) == ()


def test_our_processes_are_distinguished_from_strangers():
    found = [*cards(desktop_4090()), gpus.read_ram()]
    assert gpus.memory_held(found, {2101, 99}) == {0: 402_653_184}
    assert [(who.pid, who.bytes) for who in gpus.find_strangers(found, {2101})] == [(4242, 5_872_025_600)]


def test_a_strangers_name_is_read():
    nvml = two_a100(processes={os.getpid(): 5})
    [stranger] = gpus.find_strangers(cards(nvml), set())
    assert stranger.name
    assert stranger.device == 0


def test_nothing_is_known_of_who_holds_what_where_the_driver_does_not_report_it():
    assert gpus.memory_held(cards(divided_a100()), {777}) == {}


@pytest.mark.parametrize(
    ("variable", "left"),
    [
        (None, [0, 1, RAM]),
        ("1", [1, RAM]),
        ("1,0", [1, 0, RAM]),
        ("", [RAM]),
        ("GPU-bbbb", [1, RAM]),
        ("0,nonsense,1", [0, RAM]),
        ("-1", [RAM]),
    ],
)
def test_an_operator_can_leave_us_some_cards_only(variable, left):
    found = gpus.list_devices(nvml=two_a100())
    assert [device.index for device in gpus.visible_devices(found, variable)] == left


# --- RAM


@pytest.fixture
def machine(tmp_path):
    """Return a /proc and a cgroup tree below `tmp_path`, of a machine with 64 GB of which 40 can be had."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 64000000 kB\nMemFree: 1000 kB\nMemAvailable: 40000000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/box/service\n")
    (tmp_path / "cgroup" / "box" / "service").mkdir(parents=True)
    return tmp_path


def limit(machine, where, maximum, current, inactive=0, active=0):
    directory = machine / "cgroup" / where
    (directory / "memory.max").write_text(f"{maximum}\n")
    (directory / "memory.current").write_text(f"{current}\n")
    (directory / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file {active}\n")


def ram(machine):
    device = gpus.read_ram(machine / "proc", machine / "cgroup")
    return device.total, device.free


def test_ram_is_what_can_be_had_without_swapping(machine):
    assert ram(machine) == (64_000_000 * 1024, 40_000_000 * 1024)


def test_in_a_container_ram_is_what_it_may_have(machine):
    limit(machine, "box", maximum=8_000_000_000, current=6_000_000_000, inactive=500_000_000, active=1_000_000_000)
    limit(machine, "box/service", maximum="max", current=100)
    assert ram(machine) == (8_000_000_000, 3_500_000_000)


def test_the_narrowest_limit_counts_but_not_one_above_the_machines_memory(machine):
    limit(machine, "box", maximum=8_000_000_000, current=7_000_000_000)
    limit(machine, "box/service", maximum=4_000_000_000, current=1_000_000_000)
    assert ram(machine) == (4_000_000_000, 1_000_000_000)
    limit(machine, "box", maximum=10**15, current=0)
    limit(machine, "box/service", maximum=10**15, current=0)
    assert ram(machine) == (64_000_000 * 1024, 40_000_000 * 1024)


def test_a_card_is_described_for_the_log():
    [card] = cards(Nvml(Card(uuid="GPU-1", name="L4", total=24 * 10**9, used=4 * 10**9)))
    assert all(word in str(card) for word in ("L4", "24 GB", "20 GB"))


def test_sensors_are_read_where_a_card_has_them():
    first, second = cards(two_a100(busy=87, heat=63))
    assert (first.utilisation, first.temperature, second.utilisation) == (87, 63, 0)
    instance = cards(divided_a100())[0]
    assert (instance.utilisation, instance.temperature, instance.fault) == (None, None, "")


def test_power_and_memory_errors_are_read_where_a_card_reports_them():
    first, second = cards(two_a100(milliwatts=412_900, ecc_errors=3))
    assert (first.power, first.ecc_errors, second.ecc_errors) == (412, 3, 0)
    [plain] = cards(two_a100(ecc_errors=None))[:1]
    assert (plain.power, plain.ecc_errors, plain.fault) == (61, None, "")
    instance = cards(divided_a100())[0]
    assert (instance.power, instance.ecc_errors, instance.fault) == (None, None, "")
