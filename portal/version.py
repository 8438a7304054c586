"""The version of this Madoguchi: what pyproject.toml says.

Read from the file and not by importlib.metadata, because Madoguchi runs from its checkout and is never installed as a
distribution. pyproject.toml cannot take the number from here instead: without a build system it must contain it.
"""

import tomllib
from pathlib import Path

VERSION: str = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"][
    "version"
]
