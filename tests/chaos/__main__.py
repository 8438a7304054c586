"""python -m tests.chaos [--minutes 20] [--seed N] [--short] [--postgres] [--write]: see `field`.

Prints each trouble as it happens, at last the table; `--write` puts it into tests/bench/RESULTS.md. Exit status 1 if
anything was not as it must be; then the installation's directory stays, to be looked at.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from datetime import date
from pathlib import Path

import django

from tests.bench import report as page


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--minutes", type=float, default=20.0)
    arguments.add_argument("--seed", type=int, default=int(time.time()))
    arguments.add_argument("--short", action="store_true", help="as in the tests: without vLLM")
    arguments.add_argument("--postgres", action="store_true", help="a PostgreSQL of its own instead of SQLite")
    arguments.add_argument("--write", action="store_true")
    options = arguments.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()

    from tests.chaos import field, report, storm
    from tests.postgres import postgres

    print(f"SEED={options.seed}", flush=True)
    var = Path(tempfile.mkdtemp(prefix="madoguchi-chaos-"))
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(postgres()).url if options.postgres else ""
        weather = field.Weather(
            seed=options.seed, seconds=options.minutes * 60, vllm=not options.short, database=database
        )
        result = field.storm(weather, var, lambda line: print(line, flush=True))
    told = report.markdown(result)
    print(f"\n{told}\n")
    if options.write:
        page.write({"chaos": f"{date.today():%d %B %Y}, commit {commit()}.\n\n{told}"})
    if result.faults:
        print(storm.logs(var))
        raise SystemExit("\n".join(["", *result.faults, f"{len(result.faults)} faults; everything is in {var}"]))
    shutil.rmtree(var)


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
