"""python -m tests.fuzz [--seconds 600] [--seed N]: odd things are said to a whole Madoguchi, for so long.

Exit status 1 and the steps that led there at the first fault; the seed says them again.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import run


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=600.0)
    arguments.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="madoguchi-fuzz-") as directory:
        runs, steps = run(Path(directory) / "var", options.seconds, options.seed)
    print(f"seed {options.seed}: {runs} runs, {steps} steps, nothing found", file=sys.stderr)


if __name__ == "__main__":
    main()
