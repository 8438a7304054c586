"""Runs the machine for a time."""

import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fuzz.machine import Talk
from tests.fuzz.site import Site, site

EXAMPLES, STEPS = 5, 40  # of one run


def run(var: Path, seconds: float, first_seed: int) -> tuple[int, int]:
    """Return how many runs and steps there were. Raise what a run found, with the steps that lead there."""
    with site(var) as running:
        _talk(running, first_seed)  # until memory is what it will be
        running.resident = running.memory()
        deadline = time.monotonic() + seconds
        runs = 1
        while time.monotonic() < deadline:
            _talk(running, first_seed + runs)
            runs += 1
        return runs, runs * EXAMPLES * STEPS


def _talk(running: Site, number: int) -> None:
    more: dict[str, Any] = {} if running.resident else {"teardown": lambda self: running.settled()}
    machine = type("Talk", (Talk,), {"site": running, **more})
    how = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),  # what is wrong shows after a wait, so that shrinking takes hours,
        print_blob=False,
    )
    try:
        run_state_machine_as_test(seed(number)(machine), settings=how)
    except BaseException as error:
        error.add_note(f"seed {number}")
        raise
