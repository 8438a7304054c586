"""python -m tests.bench [--only comparison,refused,…] [--rounds 3] [--write]: everything that RESULTS.md tells.

Prints the tables, last the one beside the goals; `--write` puts them into RESULTS.md. What a run of `--only` does not
measure stays there as it was. Exit status 1 if an answer was not metered exactly once.
"""

import argparse
import sys
from time import monotonic

from tests.bench import compare, large, memory, refused, report
from tests.bench.measuring import default_settings

PARTS = {
    "comparison": compare.part,
    "refused": refused.part,
    "streams": memory.streams,
    "million": memory.million,
    "large": large.part,
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", default=",".join(PARTS), help="with commas")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--write", action="store_true")
    options = arguments.parse_args()
    default_settings()
    parts = []
    for name in options.only.split(","):
        begun = monotonic()
        parts.append(PARTS[name](options.rounds))
        print(f"\n## {name}\n\n{parts[-1].markdown}", flush=True)
        print(f"→ {name} took {monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        if options.write:
            report.write({name: parts[-1].markdown})
    print(f"\n## goals\n\n{report.goals(parts)}")
    if options.write:
        report.write({"goals": report.merged(parts)})
    if not report.exactness(parts).met:
        raise SystemExit("Usage is not exact.")


if __name__ == "__main__":
    main()
