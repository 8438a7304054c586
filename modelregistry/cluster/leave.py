"""Takes this machine out of its cluster: `python -m modelregistry.cluster.leave DIRECTORY`.

Its service is stopped before. Engines are stopped with their grace, in which they finish what they answer. Then the
token and the certificates are deleted; logs stay.
"""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modelregistry.cluster import node_directory
from modelregistry.cluster.node_directory import NodeDirectory
from modelregistry.process import process
from modelregistry.process.process import Life, Run, Runs

GRACE = 120.0  # seconds for streams that are open


def leave(directory: NodeDirectory, *, grace: float = GRACE) -> list[str]:
    """Stop all engines and forget the cluster; return what could not be stopped: then nothing is forgotten."""
    living = [run for run in Runs(directory.runs).all() if process.life_of(run) in (Life.RUNNING, Life.ENDING)]

    def stop(run: Run) -> bool:
        return process.stop(run, grace=grace)

    with ThreadPoolExecutor(max(1, len(living))) as pool:
        left = [run.run_id for run, gone in zip(living, pool.map(stop, living), strict=True) if not gone]
    # Engines whose shims were killed.
    process.kill(Runs(directory.runs).find_strays())
    if not left:
        shutil.rmtree(directory.secrets, ignore_errors=True)
        (directory.path / node_directory.FILE).unlink(missing_ok=True)
        shutil.rmtree(directory.lease, ignore_errors=True)  # which ends the fence
    return left


def main(path: Path) -> int:
    try:
        directory = node_directory.load(path.absolute())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        left = leave(directory)
    except OSError as error:
        print(f"{directory.name} could not leave: {error}", file=sys.stderr)
        return 1
    if left:
        print(f"These runs cannot be stopped: {', '.join(left)}", file=sys.stderr)
        return 1
    print(f"{directory.name} has left.")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
