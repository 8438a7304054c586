"""Odd things said to a whole Madoguchi for 20 s: see tests/fuzz. `make fuzz` says them for ten minutes."""

import random

import pytest

from tests.fuzz.run import run

SECONDS = 20.0


@pytest.mark.timeout(600)
def test_whatever_is_said_nothing_of_it_is_left(tmp_path):
    """Memory, calls, reservations and records are looked at after each run. A failure names its seed."""
    runs, _ = run(tmp_path / "var", SECONDS, random.randrange(10**6))
    assert runs > 1
