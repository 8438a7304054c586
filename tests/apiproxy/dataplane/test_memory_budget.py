"""What callers may make the gateway hold: bounds for one and for all, and everything comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiproxy.bridge import checks
from apiproxy.dataplane.errors import OverMemory, ServerBusy, TooManyAtOnce
from apiproxy.dataplane.memory_budget import MB, SMALL, MemoryBudget


def test_g4_one_owner_holds_no_more_than_its_own_bound():
    budget = MemoryBudget(total=64 * MB, per_owner=8 * MB)
    first, second = budget.share(1), budget.share(1)
    first.take(5 * MB)
    with pytest.raises(TooManyAtOnce) as refused:
        second.take(4 * MB)
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert (second.held, budget.held_by(1), budget.held) == (0, 5 * MB, 5 * MB)
    budget.share(2).take(4 * MB)  # another owner
    first.close()
    second.take(4 * MB)
    assert budget.held == 8 * MB


def test_g4_all_owners_together_leave_room_for_the_small_calls_of_others():
    budget = MemoryBudget(total=16 * MB, per_owner=8 * MB)
    budget.share(1).take(8 * MB)
    budget.share(2).take(6 * MB)
    with pytest.raises(ServerBusy) as refused:
        budget.share(3).take(SMALL + 1)
    assert (refused.value.status, refused.value.code) == (503, "server_busy")
    budget.share(3).take(SMALL)
    for number in range(4, 4 + 2 * MB // SMALL - 1):
        budget.share(number).take(SMALL)
    assert budget.held == budget.total
    with pytest.raises(ServerBusy):
        budget.share(3).take(1)


def test_g4_a_share_gives_back_what_it_took_and_only_once():
    budget = MemoryBudget(total=16 * MB, per_owner=8 * MB)
    with budget.share("a") as share:
        share.take(3 * MB)
        share.give_back(MB)
        assert (share.held, budget.held) == (2 * MB, 2 * MB)
    share.close()
    assert (budget.held, budget.held_by("a")) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3 * MB), st.booleans()), max_size=60))
def test_g4_whatever_is_taken_and_given_back_the_sums_are_right(steps):
    budget = MemoryBudget(total=8 * MB, per_owner=4 * MB)
    shares: dict[int, list] = {}
    for owner, size, closes in steps:
        held = shares.setdefault(owner, [])
        if closes and held:
            held.pop().close()
            continue
        share = budget.share(owner)
        try:
            share.take(size)
        except OverMemory:
            share.close()
        else:
            held.append(share)
        assert budget.held == sum(share.held for held in shares.values() for share in held) <= budget.total
        assert budget.held_by(owner) == sum(share.held for share in held) <= budget.per_owner
    for held in shares.values():
        for share in held:
            share.close()
    assert budget.held == 0


def test_g4_a_budget_in_which_the_largest_request_finds_no_room_is_reported_at_the_start():
    assert checks.check_memory(total=384 * MB, per_key=128 * MB, largest=32 * MB) == []
    for total, per_key in ((384, 31), (36, 36)):
        (problem,) = checks.check_memory(total=total * MB, per_key=per_key * MB, largest=32 * MB)
        assert problem.id == "apiproxy.E003"
