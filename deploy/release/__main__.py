"""python -m deploy.release [--with PART]... [--to DIR]: one file with all that a machine without a network needs.

The bundle is made of the commit that is checked out, so everything must be committed. The same commit, made with the
same Python on the same distribution, gives the same bytes. Blocks for a minute the first time.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from deploy.release import bill, bundle, packages, parts
from deploy.release.steps import run, say
from modelregistry.install.build_cache import CannotFetch

ROOT = Path(__file__).resolve().parent.parent.parent


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    parser.add_argument("--with", dest="extras", action="append", default=[], choices=parts.EXTRAS, metavar="PART")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", metavar="DIR")
    options = parser.parse_args(words)
    commit, epoch = read_commit()
    os.environ.update(SOURCE_DATE_EPOCH=str(epoch), TZ="UTC", LC_ALL="C.UTF-8", PYTHONHASHSEED="0")
    cache = Path(os.environ.get("MADOGUCHI_CACHE") or Path.home() / ".cache" / "madoguchi").absolute()
    with tempfile.TemporaryDirectory(prefix="madoguchi-release-") as workspace:
        source = export(commit, Path(workspace) / "source")
        tools = packages.prepare(source, cache, say)
        version = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
        made = Path(workspace) / f"madoguchi-{version}"
        parts.assemble(made, source, tools, cache, sorted(set(options.extras)))
        bill.write_bill(made, version=version, commit=commit, epoch=epoch)
        bill.write_licences(made, packages.node_modules(source, cache))
        bundle.describe(made, version=version, commit=commit, epoch=epoch, environment=tools.environment)
        options.to.mkdir(parents=True, exist_ok=True)
        bundle.write(made, options.to, epoch)


def read_commit() -> tuple[str, int]:
    """Return the commit and its time, in seconds. Ends if what is tracked differs from it."""
    changed = run("git", "status", "--porcelain", "--untracked-files=no", cwd=ROOT)
    if changed:
        raise SystemExit(f"A release is made of a commit, but these files differ from it:\n{changed}")
    commit, epoch = run("git", "log", "-1", "--format=%H %ct", cwd=ROOT).split()
    return commit, int(epoch)


def export(commit: str, to: Path) -> Path:
    """Write the commit's files, without those that are not tracked."""
    to.mkdir()
    archive = subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE)
    run("tar", "-x", "-C", to, stdin=archive.stdout)
    if archive.wait():
        raise SystemExit("git archive failed, see above")
    return to


if __name__ == "__main__":
    if not shutil.which("msgfmt"):
        raise SystemExit("msgfmt is missing: apt-get install gettext")
    try:
        main(sys.argv[1:])
    except CannotFetch as error:
        sys.exit(str(error))
