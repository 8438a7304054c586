"""The cluster as the site has it, below its state directory: the authority, and the head's home. No Django, no Ray."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from modelregistry.cluster import door, head, node
from modelregistry.cluster.access import NotSecured, check_secrets
from modelregistry.cluster.head import HeadHome
from modelregistry.cluster.invitation import FILES, Invitation
from modelregistry.install.engine_environments import RAY

# As a DNS label: it is in a certificate and in a resource of Ray's.
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class NoCluster(Exception):
    """There is none yet, or something of it is missing; `str()` says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSite:
    """`directory`: below the site's state. `cache`: where Ray is installed."""

    directory: Path
    cache: Path

    @property
    def authority(self) -> Path:
        return self.directory / "authority"

    @property
    def head(self) -> Path:
        return self.directory / "head"

    def create(self, address: str, redis: str) -> HeadHome:
        """Create the authority and the head's home; what is there stays. Raises NoCluster."""
        home = HeadHome(directory=self.head, address=address, redis=redis)
        self._issue("head", address, home.access.secrets)
        home.save()
        return home

    def load(self) -> HeadHome:
        """Return the head's home. Raises NoCluster, also when it is not secured."""
        try:
            home = head.load(self.head)
            check_secrets(home.access.secrets)
        except (ValueError, NotSecured) as error:
            raise NoCluster(f"there is no cluster yet: createcluster ADDRESS ({error})") from error
        return home

    def invite(self, name: str, address: str, *, gpus: int) -> Invitation:
        """Return what lets a machine join. Raises NoCluster."""
        home = self.load()
        with tempfile.TemporaryDirectory(prefix="madoguchi-invitation-") as draft:  # mode 0700
            into = Path(draft) / "secrets"
            python = self._issue(name, address, into)
            files = {each: (into / each).read_text() for each in FILES}
        return Invitation(
            name=name,
            address=address,
            cluster=home.access.address,
            door=door.PORT,
            ray=RAY.version,
            python=python,
            gpus=gpus,
            files=files,
        )

    def _issue(self, name: str, address: str, into: Path) -> str:
        """Write what a host needs to be let in; return the version of Ray's Python."""
        python = RAY.python(self.cache)
        if not RAY.installed(self.cache):
            raise NoCluster("Ray is not installed here: installray")
        issuing: list[str | Path] = [python, "-m", "modelregistry.cluster.certificates"]
        command = [*issuing, self.authority, name, address, into]
        done = subprocess.run(
            command, env={"PYTHONPATH": str(node.CODE)}, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise NoCluster(f"no certificate could be made: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return done.stdout.strip()
