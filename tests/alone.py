"""Runs the tests that failed beside others once more, alone: `python -m tests.alone`, after pytest has failed.

Three workers share two cores with Chromium, vLLM and llama.cpp, so that an answer may come later than a test waits for
it. Which tests these were, and which of them failed alone too, is in the last lines. A test that needs this often is to
be mended: it waits for time where it could wait for an event.
"""

import json
import subprocess
import sys
from pathlib import Path

FAILED = Path(__file__).parents[1] / ".pytest_cache/v/cache/lastfailed"  # as pytest's --last-failed has it
MOST = 12  # of some 10,000: more are no accident


def main() -> int:
    tests = sorted(json.loads(FAILED.read_text())) if FAILED.exists() else []
    if not tests or len(tests) > MOST or not all("::" in test for test in tests):
        print(f"{len(tests)} tests failed, or no test: none is run again.")
        return 1
    print("Failed beside others, run again alone:", *tests, sep="\n  ", flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", "-n", "0", *tests], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
