"""Parts of a cluster die for minutes while its models are called: each answer is recorded once, and nothing runs twice.

`make test-ray-storm`; RAY_STORM_MINUTES is how long.
"""

import os
import random

import pytest

from tests.ray.measurements import note
from tests.ray.storm import storm

MINUTES = float(os.environ.get("RAY_STORM_MINUTES", "10"))
pytestmark = pytest.mark.timeout(600 + 60 * MINUTES)  # network namespaces need root


def test_a_storm_over_three_hosts_ends_with_every_answer_recorded_once_and_nothing_twice(tmp_path):
    seed = random.randrange(10_000)
    note(f"storm of {MINUTES:g} minutes, seed {seed}")
    report = storm(tmp_path / "var", 60 * MINUTES, seed, note)
    assert report.wrong == []
    assert report.outcomes["finished"] > 50 * MINUTES
