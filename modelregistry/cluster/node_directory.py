"""The directory of a GPU host: what it is called, and where its things are. Its processes find it by one variable."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from modelregistry.process import shim

VARIABLE = "MADOGUCHI_NODE_DIRECTORY"  # in the environment of Ray's processes on this host, and so of its agent
FILE = "host.json"
RESOURCE = "madoguchi-host:"  # and the host's name: one of each is in a cluster, and pins the agent to its node


FIRST_PORT, LAST_PORT = 18_100, 18_999  # of engines; ENGINE_PORTS of a site


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDirectory:
    """One host. `address`: its own, where its engines listen and other hosts reach it; `cluster`: HOST:PORT.

    An operator of the host may add to `host.json`: `commands`, programs of engines by launcher; `environment`,
    variables for engines; `cache`, where engines are installed; `ports`, the first and the last that they listen on;
    `models`, the folder of models' files, to and from which they are copied; `runs_before`, where a supervisor of this
    machine kept its engines' runs before it joined, which are adopted.
    """

    path: Path
    name: str
    address: str
    cluster: str
    commands: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    cache: str = ""
    models: str = ""
    runs_before: str = ""
    ports: tuple[int, int] = (FIRST_PORT, LAST_PORT)

    @property
    def runs(self) -> Path:
        return Path(self.runs_before) if self.runs_before else self.path / "runs"

    @property
    def secrets(self) -> Path:
        return self.path / "secrets"

    @property
    def lease(self) -> Path:
        return self.path / "lease"

    @property
    def engines(self) -> Path:
        """Where engines are installed; MADOGUCHI_CACHE of a site."""
        return Path(self.cache) if self.cache else Path.home() / ".cache" / "madoguchi"

    @property
    def model_files(self) -> Path:
        """Where models' files are; MADOGUCHI_MODELS of a site."""
        return Path(self.models) if self.models else self.path / "models"

    @property
    def ray(self) -> Path:
        return self.path / "ray"

    def save(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        values = {name: value for name, value in asdict(self).items() if name != "path"}
        shim.write_atomically(self.path / FILE, values)


def load(path: Path) -> NodeDirectory:
    """Return the host of a directory. Raises ValueError when it is not one."""
    try:
        found = json.loads((path / FILE).read_text())
        first, last = found.get("ports") or (FIRST_PORT, LAST_PORT)
        if not 0 < int(first) <= int(last) < 65536:
            raise ValueError(f"ports {first} to {last}")
        return NodeDirectory(
            path=path,
            **{name: str(found[name]) for name in ("name", "address", "cluster")},
            commands={str(name): str(value) for name, value in found.get("commands", {}).items()},
            environment={str(name): str(value) for name, value in found.get("environment", {}).items()},
            cache=str(found.get("cache", "")),
            models=str(found.get("models", "")),
            runs_before=str(found.get("runs_before", "")),
            ports=(int(first), int(last)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the directory of a host that was joined: {error!r}") from error


def of_environment(environment: Mapping[str, str]) -> NodeDirectory:
    """Return the host of this process. Raises ValueError when it has none."""
    if not (directory := environment.get(VARIABLE)):
        raise ValueError(f"{VARIABLE} is not set: this node was not started by `modelregistry.cluster.node`")
    return load(Path(directory))
