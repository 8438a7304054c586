"""What is kept with a run whose engine can sleep."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from modelregistry.process import shim
from modelregistry.process.process import Run
from modelregistry.wire_bounds import AtMost, Name


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepRecord:
    """What is kept with a run that can sleep, for the supervisor that adopts it.

    `answer`: to the fixed question, as `probe.ask_sample` gives it; None: it has none that can be compared. `level`: at
    which it last slept, "": it never did. `ram`: bytes of RAM that it has for its weights since it slept at level 1.
    """

    answer: Annotated[Mapping[str, Any], AtMost(100)] | None = None
    level: Name = ""
    ram: int = 0


NEVER_SLEPT = SleepRecord()


def load_record(run: Run) -> SleepRecord:
    """Return what is kept with this run; of one that is not readable, as little as of a new one."""
    try:
        stored = json.loads((run.directory / "sleep.json").read_text())
        return SleepRecord(answer=stored["answer"], level=str(stored["level"]), ram=int(stored["ram"]))
    except (OSError, ValueError, TypeError, LookupError):
        return NEVER_SLEPT


def store_record(run: Run, record: SleepRecord) -> None:
    """Keep it with the run. Raises OSError."""
    shim.write_atomically(run.directory / "sleep.json", asdict(record))
