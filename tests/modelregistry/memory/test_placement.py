"""Where models fit, on recorded hosts."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelregistry.files import bounds
from modelregistry.memory import estimate, placement
from modelregistry.memory import vllm as vllm_memory
from modelregistry.memory.estimate import GIB, MIB, Demand
from modelregistry.memory.placement import (
    GPU_MARGIN,
    Candidate,
    Commitment,
    NoRoom,
    NoSuchDevice,
    find_place,
    find_spaces,
    fits_beside,
    fits_together,
    free_room,
    kind_of,
    left_after,
    spare_bytes,
    with_reserved,
    without_ours,
)
from modelregistry.process import gpus
from modelregistry.process.gpus import RAM
from tests.modelregistry.nvml import desktop_4090, two_a100
from tests.modelregistry.planning import LLAMA_8B, card

VLLM = Demand(launcher="vllm", task="chat", context=8192, slots=4)


def predicted(gib, cache=2, least=None):
    cache_bytes = int(cache * GIB)
    return estimate.make_prediction(
        weights=int((gib - cache) * GIB) - GIB,
        cache=cache_bytes,
        cache_least=cache_bytes if least is None else int(least * GIB),
        overhead=GIB,
        devices=1,
        context=8192,
        sequences=4,
    )


def on(devices, gib, shares=(), demand=VLLM, **how):
    need = replace(predicted(gib, how.pop("cache", 2), how.pop("least", None)), devices=how.pop("split", 1))
    return find_place(need, demand, devices, shares, **how)


def test_a_small_model_goes_to_the_fullest_card_that_has_room():
    devices = [card(0, used=10), card(1, used=50), card(2, used=75)]
    assert on(devices, 20).devices == (1,)
    assert on(devices, 40).devices == (0,)


@given(
    used=st.lists(st.integers(0, 80), min_size=1, max_size=4),
    promised=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 20)), max_size=4),
    gib=st.integers(6, 78),
    least=st.integers(1, 4),
    split=st.integers(1, 3),
    gpus=st.lists(st.integers(0, 3), max_size=3, unique=True),
)
def test_there_is_a_space_that_lacks_nothing_exactly_where_a_model_fits(used, promised, gib, least, split, gpus):
    devices = [card(number, used=size) for number, size in enumerate(used)]
    shares = [
        Commitment(name=str(number), device=device, predicted=size * GIB, held=held * GIB)
        for number, (device, size, held) in enumerate(promised)
    ]
    need = replace(predicted(gib, cache=4, least=least), devices=split)
    try:
        found = find_place(need, VLLM, devices, shares, gpus=gpus)
    except (NoRoom, NoSuchDevice):
        found = None
    free = {device.index: spare_bytes(device, shares) for device in devices}
    enough = [
        one
        for one in find_spaces(need, "gpu", devices, gpus=gpus)
        if all(size <= free[device] for device, size in one.needs.items())
    ]
    if found is None:
        missing = set(gpus) - free.keys()  # such a model is refused whatever its others could do
        assert missing or not enough
    else:
        assert found.devices in [tuple(sorted(one.needs)) for one in enough]


def test_a_split_model_gets_the_cards_with_most_room():
    devices = [card(0, used=30), card(1, used=5), card(2, used=10)]
    assert on(devices, 40, split=2).devices == (1, 2)


def test_it_is_given_what_weights_and_cache_take_of_the_card_and_never_nothing():
    assert on([card(total=80)], 21).fraction == 20 / 80  # one is the engine's own
    assert on([card(total=80)], 20.999).fraction == 0.2499
    assert on([card(total=80)], 1.001, cache=0.001).fraction == 0.0001


def test_e1_a_plan_of_a_full_card_leaves_free_what_vllm_wants_to_see_free():
    """It compares its fraction with what is left after its own context and the links between cards."""
    need = estimate.predict(LLAMA_8B, replace(VLLM, context=32_768, slots=12, tensor_parallel=2))
    device = replace(card(), total=need.total + GPU_MARGIN, free=need.total + GPU_MARGIN)
    found = find_place(need, VLLM, [device, replace(device, index=1)])
    free_at_its_start = device.total - vllm_memory.CUDA_CONTEXT - vllm_memory.LINKS
    assert found.fraction * device.total <= free_at_its_start - GPU_MARGIN
    assert found.fraction * device.total == pytest.approx(need.weights + need.cache, rel=1e-3)


def test_the_operators_choice_is_kept_even_when_another_card_is_freer():
    devices = [card(0, used=40), card(1)]
    assert on(devices, 20, gpus=[0]).devices == (0,)
    with pytest.raises(NoRoom) as refusal:
        on(devices, 50, gpus=[0])
    assert [one.device for one in refusal.value.rooms] == [0]


@pytest.mark.parametrize(("chosen", "split"), [([7], 1), ([0, 7], 2), ([0], 2), ([], 3)])
def test_a_choice_that_the_host_does_not_have_is_refused(chosen, split):
    with pytest.raises(NoSuchDevice):
        on([card(0), card(1)], 10, gpus=chosen, split=split)


def test_what_was_promised_and_is_not_taken_yet_is_not_free():
    starting = Commitment(name="a #0", device=0, predicted=50 * GIB, held=10 * GIB)
    found = free_room(card(0, used=10), [starting])
    assert found.free == 30 * GIB - GPU_MARGIN
    assert found.ours == (("a #0", 50 * GIB),)
    assert found.strangers == 0
    with pytest.raises(NoRoom):
        on([card(0, used=10)], 40, [starting])


def test_one_that_took_more_than_it_was_promised_has_no_pledge_left():
    greedy = Commitment(name="a #0", device=0, predicted=5 * GIB, held=10 * GIB)
    assert free_room(card(0, used=10), [greedy]).free == 70 * GIB - GPU_MARGIN


def test_strangers_are_seen_in_the_sum():
    devices = gpus.list_devices(nvml=desktop_4090())
    with pytest.raises(NoRoom) as refusal:
        on(devices, 20)
    [seen] = refusal.value.rooms
    assert seen.strangers == 7_025_459_200
    assert seen.free == 25_757_220_864 - 7_025_459_200 - GPU_MARGIN
    assert refusal.value.need.total == 20 * GIB


def test_a_card_that_cannot_be_read_gets_nothing():
    assert on([card(0, fault="GPU is lost"), card(1, used=60)], 10).devices == (1,)
    with pytest.raises(NoRoom):
        on([card(0, fault="GPU is lost")], 10)


def test_a_forced_model_goes_where_most_is_free():
    found = on([card(0, total=24, used=10), card(1, total=24, used=4)], 60, overcommit=True)
    assert (found.devices, found.forced) == ((1,), True)
    assert found.fraction <= 0.99
    assert not on([card(0)], 20, overcommit=True).forced


def test_an_engine_that_can_do_with_less_cache_gets_what_there_is():
    found = on([card(0, total=24)], 30, cache=16, least=2)
    assert found.prediction.total <= 24 * GIB - GPU_MARGIN
    assert 9 * GIB < found.prediction.cache < 10 * GIB
    assert found.prediction.cache % MIB == 0
    with pytest.raises(NoRoom):
        on([card(0, total=24)], 30, cache=16, least=14)


def test_a_card_with_room_for_the_whole_cache_comes_before_a_fuller_one():
    assert on([card(0, total=24), card(1, total=80)], 30, cache=16, least=2).devices == (1,)


def test_ram_keeps_a_twentieth_for_the_system():
    demand = replace(VLLM, kind="ram")
    ram = card(RAM, total=64, used=20, kind="ram")
    found = on([ram], 40, demand=demand)
    assert (found.devices, found.fraction) == ((), 0.0)
    with pytest.raises(NoRoom):
        on([ram], 41, demand=demand)


def test_what_the_kernel_can_take_back_is_not_asked_for():
    need = replace(predicted(60), droppable=30 * GIB)
    ram = card(RAM, total=64, used=20, kind="ram")
    assert find_place(need, replace(VLLM, kind="ram"), [ram]).prediction.total == 60 * GIB


def test_a_refusal_says_what_would_fit():
    demand = replace(VLLM, context=32_768, slots=8)
    model = replace(LLAMA_8B, weight_bytes=15_000_000_000)
    devices = gpus.list_devices(nvml=desktop_4090())  # 18.7 GB free of 24
    need = estimate.predict(model, demand)
    with pytest.raises(NoRoom) as refusal:
        find_place(need, demand, devices, facts=model)
    fits, sequences = refusal.value.fits, refusal.value.sequences
    assert fits > 0
    assert sequences == 0
    short = replace(demand, context=fits)
    assert find_place(estimate.predict(model, short), short, devices).devices == (0,)
    longer = replace(demand, context=fits + 1024)
    with pytest.raises(NoRoom):
        find_place(estimate.predict(model, longer), longer, devices)


def test_the_longest_context_that_fits_is_found_in_a_few_questions(monkeypatch):
    """One by one they would be 10,240 for Llama 4 Scout, and took 3 s."""
    asked = []

    def counted(facts, demand):
        asked.append(demand)
        return estimate.predict(facts, demand)

    monkeypatch.setattr(placement, "predict", counted)
    demand = replace(VLLM, context=10 * 2**20, slots=None)
    model = replace(LLAMA_8B, context=10 * 2**20)
    with pytest.raises(NoRoom) as refusal:
        find_place(estimate.predict(model, demand), demand, [card(0, total=80)], facts=model)
    fits = refusal.value.fits
    assert len(asked) < 30

    def would(context: int) -> bool:
        found = estimate.predict(model, replace(demand, context=context))
        return found.weights + found.overhead + found.cache_least <= 80 * GIB - GPU_MARGIN

    assert would(fits)
    assert not would(fits + 1024)


@pytest.mark.parametrize("tokens", [2**40, 2**61])
def test_no_context_is_longer_than_any_model_reads(tokens):
    assert estimate.predict(LLAMA_8B, replace(VLLM, context=tokens)).context == bounds.CONTEXT
    said = replace(VLLM, context=None, args=(f"--max-model-len={tokens}",))
    assert estimate.predict(LLAMA_8B, said).context == bounds.CONTEXT


def test_a_model_that_is_split_is_refused_where_its_engine_has_no_gpu():
    demand = replace(VLLM, kind="ram", tensor_parallel=2)
    ram = card(RAM, total=64, kind="ram")
    with pytest.raises(NoSuchDevice) as refusal:
        find_place(estimate.predict(LLAMA_8B, demand), demand, [ram], facts=LLAMA_8B)
    assert (refusal.value.wanted, refusal.value.usable) == (2, 0)


def test_engines_for_cpus_live_in_ram_whatever_the_host_has():
    devices = gpus.list_devices(nvml=two_a100())
    assert kind_of(devices, on_cpu=False) == "gpu"
    assert kind_of(devices, on_cpu=True) == "ram"
    assert kind_of(devices[-1:], on_cpu=False) == "ram"


# --- What fits beside what


def wanted(name, gib, **how):
    return Candidate(name=name, prediction=predicted(gib), demand=VLLM, **how)


def test_what_fits_beside_what():
    devices = [card(0, total=80), card(1, total=24)]
    large, middle, small = wanted("large", 70), wanted("middle", 30), wanted("small", 20)
    assert fits_together([large, small], devices)
    assert not fits_together([large, middle], devices)
    assert fits_beside(middle, [large, small], devices) == {"large": False, "small": True}
    # 20 GiB on the small card, 30 on the large one.
    assert left_after([middle, small], devices) == {0: 50 * GIB - GPU_MARGIN, 1: 4 * GIB - GPU_MARGIN}
    assert left_after([large, middle], devices) is None


def test_every_replica_counts():
    devices = [card(0, total=80)]
    assert fits_together([wanted("a", 30, replicas=2)], devices)
    assert not fits_together([wanted("a", 30, replicas=3)], devices)


def test_bound_models_stay_where_they_are_bound():
    devices = [card(0, total=80), card(1, total=80)]
    assert not fits_together([wanted("a", 50, gpus=(0,)), wanted("b", 50, gpus=(0,))], devices)
    assert fits_together([wanted("a", 50, gpus=(0,)), wanted("b", 50)], devices)


def test_a_host_without_ours_has_what_we_hold_as_well():
    [freed] = without_ours([card(0, used=50)], {0: 40 * GIB})
    assert (freed.used, freed.free) == (10 * GIB, 70 * GIB)


def test_t7_the_large_ones_are_placed_first():
    """Or small ones take the last place that is large enough."""
    devices = [card(0, total=31), card(1, total=31)]
    models = [wanted("a", 10), wanted("b", 10), wanted("c", 20), wanted("d", 20)]
    assert fits_together(models, devices)
    assert fits_together(models[::-1], devices)


def test_t7_what_was_placed_before_takes_its_room_on_each_of_its_cards():
    devices = [card(0, total=40), card(1, total=40)]
    split = Candidate(name="split", prediction=replace(predicted(30), devices=2), demand=VLLM)
    assert fits_together([split], devices)
    assert not fits_together([split, wanted("other", 20)], devices)
    assert left_after([split], devices) == {0: 10 * GIB - GPU_MARGIN, 1: 10 * GIB - GPU_MARGIN}


def test_t7_a_refusal_names_the_most_requests_that_fit():
    demand = replace(VLLM, context=8192, slots=64)
    devices = [card(0, total=24)]
    with pytest.raises(NoRoom) as refusal:
        find_place(estimate.predict(LLAMA_8B, demand), demand, devices, facts=LLAMA_8B)
    most = refusal.value.sequences
    assert 1 <= most < 64

    def least(slots: int) -> int:
        found = estimate.predict(LLAMA_8B, replace(demand, slots=slots))
        return found.weights + found.overhead + found.cache_least

    free = 24 * GIB - GPU_MARGIN
    assert least(most) <= free < least(most + 1)


def test_t7_of_several_cards_the_fullest_that_is_needed_decides_what_fits():
    demand = replace(VLLM, context=131_072, slots=8, tensor_parallel=2)
    need = estimate.predict(LLAMA_8B, demand)
    devices = [card(0, total=24), card(1, total=16), card(2, total=12)]
    with pytest.raises(NoRoom) as refusal:
        find_place(need, demand, devices, facts=LLAMA_8B)
    fits = refusal.value.fits
    assert 0 < fits < 131_072

    def would(context: int) -> bool:
        shorter = replace(demand, context=context)
        found = estimate.predict(LLAMA_8B, shorter)
        return found.weights + found.overhead + found.cache_least <= 16 * GIB - GPU_MARGIN

    assert would(fits)
    assert not would(fits + 1024)


def test_what_others_have_reserved_is_taken_also_before_they_hold_it():
    [device] = with_reserved([card(0, used=30)], [], {0: 50 * GIB})
    assert (device.used, device.free) == (50 * GIB, card(0, used=50).free)


def test_what_others_hold_already_is_not_taken_twice():
    ours = Commitment(name="m #0", device=0, predicted=20 * GIB, held=20 * GIB)
    assert with_reserved([card(0, used=60)], [ours], {0: 40 * GIB}) == [card(0, used=60)]
    assert with_reserved([card(0, used=60)], [ours], {0: 45 * GIB})[0].free == card(0, used=65).free


def test_where_more_is_reserved_than_there_is_nothing_is_free():
    [device] = with_reserved([card(0, used=30)], [], {0: 500 * GIB})
    assert (device.used, device.free) == (device.total, 0)
