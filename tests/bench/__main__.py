"""python -m tests.bench [--only comparison,refused,…] [--rounds 3] [--write]: everything in RESULTS.md.

Prints the tables, last the one beside the goals; `--write` puts them into RESULTS.md. What a run of `--only` does not
measure stays there as it was. Exit status 1 if an answer was not metered exactly once.
"""

import argparse
import subprocess
import sys
from time import monotonic

from tests.bench import (
    clicks,
    compare,
    curve,
    footprint,
    guard,
    large,
    loops,
    memory,
    pages,
    prefixes,
    profiling,
    real_loops,
    real_queue,
    real_turns,
    refused,
    report,
    scheduler,
    searching,
    sizing,
    workers,
)
from tests.bench.measuring import default_settings

PARTS = {
    "comparison": compare.part,
    "refused": refused.part,
    "streams": memory.streams,
    "million": memory.million,
    "large": large.part,
    "workers": workers.part,
    "scheduler": scheduler.part,
    "sizing": sizing.part,
    "real-queue": real_queue.part,
    "real-turns": real_turns.part,
    "prefixes": prefixes.part,
    "clicks": clicks.part,
    "curve": curve.part,
    "profile": profiling.part,
    "loops": loops.part,
    "guard": guard.part,
    "real-loops": real_loops.part,
    "memory": footprint.part,
    "pages": pages.part,
    "search": searching.part,
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", default=",".join(PARTS), help="with commas")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--write", action="store_true")
    options = arguments.parse_args()
    default_settings()
    parts, failed = [], []
    for name in options.only.split(","):
        begun = monotonic()
        try:
            part = PARTS[name](options.rounds)
        except (SystemExit, subprocess.SubprocessError) as error:  # the others are worth having all the same
            print(f"{name}: {error}", file=sys.stderr)
            failed.append(name)
            continue
        parts.append(part)
        print(f"\n## {name}\n\n{part.markdown}", flush=True)
        print(f"→ {name} took {monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        if options.write:
            report.write({name: part.markdown, "goals": report.merged(parts)})
    print(f"\n## goals\n\n{report.goals(parts)}")
    if failed:
        raise SystemExit(f"Not measured, see above: {', '.join(failed)}")
    if not report.exactness(parts).met:
        raise SystemExit("Usage is not exact.")


if __name__ == "__main__":
    main()
