"""After how long `up` restarts what ended."""

from itertools import accumulate

import pytest

from apiproxy.bridge.management.commands.up import LIVED_WELL, MAX_PAUSE, next_pause


@pytest.mark.parametrize(
    ("lives", "pauses"),
    [
        ([0.1] * 7, [1, 2, 4, 8, 16, MAX_PAUSE, MAX_PAUSE]),
        ([15.0] * 4, [1, 1, 1, 1]),
        ([0.1, 0.1, 0.1, LIVED_WELL + 1, 0.1], [1, 2, 4, 1, 2]),
    ],
)
def test_only_what_ends_soon_waits_longer_each_time(lives, pauses):
    assert list(accumulate(lives, next_pause, initial=0.0))[1:] == pauses
