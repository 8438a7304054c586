"""Takes this machine out of its cluster: `python -m modelregistry.cluster.leave DIRECTORY`, once its keeper is stopped.

Engines are stopped with their grace, in which they finish what they answer. Then the token and the certificates are
deleted; logs stay.
"""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modelregistry.cluster import host_home
from modelregistry.cluster.host_home import HostHome
from modelregistry.process import process
from modelregistry.process.process import Life, Run, Runs

GRACE = 120.0  # seconds for streams that are open


def leave(home: HostHome, *, grace: float = GRACE) -> list[str]:
    """Stop all engines and forget the cluster; return what could not be stopped: then nothing is forgotten."""
    living = [run for run in Runs(home.runs).all() if process.life_of(run) in (Life.RUNNING, Life.ENDING)]

    def stop(run: Run) -> bool:
        return process.stop(run, grace=grace)

    with ThreadPoolExecutor(max(1, len(living))) as pool:
        left = [run.run_id for run, gone in zip(living, pool.map(stop, living), strict=True) if not gone]
    # Engines whose shims were killed.
    process.kill(Runs(home.runs).find_strays())
    if not left:
        shutil.rmtree(home.secrets, ignore_errors=True)
        (home.directory / host_home.FILE).unlink(missing_ok=True)
        shutil.rmtree(home.lease, ignore_errors=True)  # which ends the fence
    return left


def main(directory: Path) -> int:
    try:
        home = host_home.load(directory.absolute())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if left := leave(home):
        print(f"These runs cannot be stopped: {', '.join(left)}", file=sys.stderr)
        return 1
    print(f"{home.name} has left.")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
