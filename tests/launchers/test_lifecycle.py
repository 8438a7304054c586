"""All three launchers of llama.cpp through everything that can happen to an engine (tests/lifecycle.py)."""

import pytest

from tests import engines
from tests.lifecycle import *  # noqa: F403 - its tests are ours
from tests.lifecycle import LAUNCHERS, register
from tests.waiting import until


@pytest.fixture(params=LAUNCHERS, ids=lambda each: each.name)
def launcher(request):
    return request.param


def test_an_unknown_argument_is_told(real):
    real.supervise()
    register(real, "smol", engines.chat_model(), "--arg=--no-such-thing")
    down = until(lambda: (row := real.replica("smol")) and row.pid is None and row.detail and row, 60)
    assert "--no-such-thing" in down.detail.splitlines()[0]
