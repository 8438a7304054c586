"""Errors that the driver reports as events, out of recorded answers of NVIDIA's library."""

import pynvml
import pytest

from modelregistry.process import gpus
from modelregistry.process.xid_errors import MOST_EVENTS, XidCount, XidWatch, with_xid_counts
from tests.modelregistry.nvml import Nvml, divided_a100, two_a100


def test_errors_are_counted_by_card_from_the_first_look_on():
    nvml = two_a100(xids=[13])
    first, second = nvml.cards
    watch = XidWatch(nvml)
    assert dict(watch.look()) == {first.uuid: XidCount(), second.uuid: XidCount()}
    first.xids += [31, 43]
    assert watch.look()[first.uuid] == XidCount(errors=2, faults=0, last=43)
    second.xids += [94]
    assert watch.look() == {first.uuid: XidCount(errors=2, last=43), second.uuid: XidCount(errors=1, faults=1, last=94)}


def test_the_code_of_a_fault_is_not_hidden_by_what_follows_from_it():
    nvml = two_a100()
    watch = XidWatch(nvml)
    watch.look()
    nvml.cards[0].xids += [48, 45, 45]
    assert watch.look()[nvml.cards[0].uuid] == XidCount(errors=3, faults=1, last=48)
    nvml.cards[0].xids += [95]
    assert watch.look()[nvml.cards[0].uuid] == XidCount(errors=4, faults=2, last=95)


def test_a_look_takes_a_bounded_number_of_events():
    nvml = two_a100()
    watch = XidWatch(nvml)
    watch.look()
    nvml.cards[0].xids += [31] * (MOST_EVENTS + 5)
    assert watch.look()[nvml.cards[0].uuid].errors == MOST_EVENTS
    assert watch.look()[nvml.cards[0].uuid].errors == MOST_EVENTS + 5


def test_a_lost_card_keeps_its_count_and_the_others_are_read():
    nvml = two_a100()
    watch = XidWatch(nvml)
    watch.look()
    lost, well = nvml.cards
    lost.xids += [79]
    lost.error = pynvml.NVML_ERROR_GPU_IS_LOST
    well.xids += [13]
    found = watch.look()
    assert (found[lost.uuid].last, found[well.uuid].last) == (79, 13)


def test_a_driver_that_was_away_is_opened_again_and_counts_stay():
    nvml = two_a100()
    watch = XidWatch(nvml)
    watch.look()
    nvml.cards[0].xids += [119]
    watch.look()
    nvml.error = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert watch.look()[nvml.cards[0].uuid].faults == 1
    assert nvml.open == 0
    watch.look()
    nvml.error = 0
    watch.look()
    nvml.cards[0].xids += [120]
    assert watch.look()[nvml.cards[0].uuid] == XidCount(errors=2, faults=2, last=120)
    assert nvml.open == 1


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_a_host_without_a_driver_has_no_counts(error):
    assert XidWatch(Nvml(error=error)).look() == {}


def test_a_card_without_such_events_has_no_count_and_the_library_is_not_kept_open():
    nvml = two_a100(xids=None)
    assert set(XidWatch(nvml).look()) == {nvml.cards[1].uuid}
    nvml.cards[1].xids = None
    alone = Nvml(*nvml.cards)
    assert XidWatch(alone).look() == {}
    assert alone.open == 0


def test_devices_have_the_counts_of_their_cards_and_instances_none():
    nvml = divided_a100()
    watch = XidWatch(nvml)
    watch.look()
    for card in nvml.cards:
        card.xids += [74]
    *instances, whole, ram = with_xid_counts(gpus.list_devices(nvml=nvml), watch.look())
    assert (whole.xid_errors, whole.xid_faults, whole.last_xid) == (1, 1, 74)
    assert {(one.xid_errors, one.last_xid) for one in (*instances, ram)} == {(None, None)}


def test_this_machine_can_be_listened_to_with_the_real_library():
    XidWatch().look()
