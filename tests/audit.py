"""Look for known vulnerabilities in every lock file of Python packages: `make audit`. Needs a network.

pip-audit runs in an environment of its own, from `tests/audit.lock`, and asks PyPI about what the locks pin; it
installs nothing of that. Exit status 1: something is vulnerable. 2: not everything could be asked about.
"""

import json
import subprocess
import sys
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "tests" / "audit.lock"
ENVIRONMENT = ROOT / ".venv" / "audit"
SECONDS = 900  # that one lock file may take
VULNERABLE, INCOMPLETE = 1, 2


@dataclass(frozen=True)
class Audit:
    """What is known of one lock file. `failure`: why nothing is known; "": something is."""

    name: str
    packages: int = 0
    vulnerable: tuple[str, ...] = ()  # "name version: ids"
    unknown: tuple[str, ...] = ()  # names
    failure: str = ""

    def lines(self) -> Iterable[str]:
        if self.failure:
            yield f"{self.name}: NOT AUDITED: {self.failure}"
            return
        if len(self.unknown) == self.packages:
            yield f"{self.name}: NOT AUDITED: PyPI gave no answer about its {self.packages} packages"
            return
        yield f"{self.name}: {self.packages} packages, {len(self.vulnerable)} vulnerable"
        yield from (f"  VULNERABLE {text}" for text in self.vulnerable)
        if self.unknown:
            yield f"  not audited: {', '.join(self.unknown)}"


def read_report(name: str, report: dict[str, Any]) -> Audit:
    """Return what pip-audit's report in JSON says."""
    rows = report["dependencies"]
    return Audit(
        name,
        len(rows),
        tuple(
            f"{row['name']} {row['version']}: {', '.join(one['id'] for one in row['vulns'])}"
            for row in rows
            if row.get("vulns")
        ),
        tuple(row["name"] for row in rows if "skip_reason" in row),
    )


def exit_status(audits: Iterable[Audit]) -> int:
    found = list(audits)
    if any(one.vulnerable for one in found):
        return VULNERABLE
    return INCOMPLETE if any(one.failure or one.unknown for one in found) else 0


def lock_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", "*.lock"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in sorted(filter(None, listed.stdout.split("\0")))]


def prepare() -> Path:
    """Return pip-audit, installed by its checksums."""
    program, stamp = ENVIRONMENT / "bin" / "pip-audit", ENVIRONMENT / "installed.lock"
    if not (stamp.exists() and stamp.read_bytes() == LOCK.read_bytes()):
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        pip: list[str | Path] = [
            ENVIRONMENT / "bin" / "python",
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
        ]
        subprocess.run([*pip, "--require-hashes", "--requirement", LOCK], check=True)
        stamp.write_bytes(LOCK.read_bytes())
    return program


def audit(program: Path, lock: Path) -> Audit:
    name = str(lock.relative_to(ROOT))
    command: list[str | Path] = [
        program,
        "--requirement",
        lock,
        "--no-deps",
        "--disable-pip",
        "--progress-spinner=off",
        "--format=json",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        return read_report(name, json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        return Audit(name, failure=f"no answer within {SECONDS} s")
    except ValueError:
        return Audit(name, failure=(done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1])


def main() -> int:
    try:
        program = prepare()
    except subprocess.CalledProcessError:
        print("NOTHING WAS AUDITED: pip-audit cannot be installed. Is the package index reachable?", file=sys.stderr)
        return INCOMPLETE
    audits = []
    for lock in lock_files():
        audits.append(audit(program, lock))
        print("\n".join(audits[-1].lines()), flush=True)
    status = exit_status(audits)
    if status == INCOMPLETE:
        print("NOT EVERYTHING WAS AUDITED: PyPI could not be asked, or does not have these packages.", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
