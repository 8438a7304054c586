"""The version of this Madoguchi: what pyproject.toml says.

Read from the file, which a release installs beside the packages, and not by importlib.metadata: a checkout is never
installed as a distribution.
"""

import tomllib
from pathlib import Path

VERSION: str = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"][
    "version"
]
