"""The short storm: kill -9 under load until each part had it, with real llama.cpp and a tree of processes like vLLM's.

`make chaos` has the long one. `CHAOS_SEED` gives other troubles in another order.
"""

import os

import pytest

from tests.chaos import field, report, storm

SEED = 4


@pytest.mark.timeout(1200)  # each recovery has a bound of its own; this is for a machine that runs all other tests too
def test_whatever_is_killed_all_is_well_again_and_every_answer_is_metered_once(tmp_path):
    seed = int(os.environ.get("CHAOS_SEED") or SEED)
    print(f"CHAOS_SEED={seed}")
    weather = field.Weather(seed=seed, seconds=60)
    result = field.storm(weather, tmp_path / "var", print)
    print(report.markdown(result))
    if result.faults:
        print(storm.logs(tmp_path / "var"))
    assert result.faults == []
    # Enough happened for the rest to mean something.
    assert {(trouble.kind, trouble.model) for batch in result.troubles for trouble in batch} >= {
        (f"kill -9 {part}", model) for part, model in weather.kinds
    }
    for target in weather.targets:
        finished = [call for call in result.calls if call.model == target.model and call.outcome == "finished"]
        assert len(finished) > 10, target
    assert {call.outcome for call in result.calls} >= {"finished", "refused"}
