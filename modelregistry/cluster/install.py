"""Installs an engine on a GPU host: `python -m modelregistry.cluster.install DIRECTORY ENGINE`, like `installengine`.

A host has no Django, and so none of the commands of `manage.py`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from modelregistry.cluster import node_directory
from modelregistry.engines.registry import installable_engines
from modelregistry.install import engine_environments
from modelregistry.install.build_cache import CannotFetch


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m modelregistry.cluster.install", description=__doc__)
    parser.add_argument("directory", type=Path, help="of this host")
    parser.add_argument("engine", choices=sorted(installable_engines()))
    parser.add_argument("--cpu", action="store_true", help="vllm: its build for CPUs")
    parser.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="a folder of packages; no index")
    wanted = parser.parse_args(arguments)
    environment = installable_engines()[wanted.engine].environment(cpu=wanted.cpu)
    assert environment, "only what can be installed is a choice"
    try:
        directory = node_directory.load(wanted.directory.absolute())
        made = engine_environments.install(environment, directory.engines, _say, folder=wanted.folder)
    except (ValueError, CannotFetch, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(made)
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
