"""The cluster as the site has it, below its state directory: the authority, and the head's directory.

No Django, no Ray.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from modelregistry.cluster import head, join_server, node
from modelregistry.cluster.access import NotSecured, check_secrets
from modelregistry.cluster.head import HeadDirectory
from modelregistry.cluster.invitation import FILES, Invitation
from modelregistry.install.engine_environments import RAY
from modelregistry.process import shim

ISSUED_WITHIN = 60.0  # seconds for a start of Ray's Python and a certificate; usually 0.3
# As a DNS label: it is in a certificate and in a resource of Ray's.
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class NoCluster(Exception):
    """There is none yet, or something of it is missing; `str()` says what to do."""


class NotInvited(NoCluster):
    """No host of this name was invited, or it was removed since."""


class AddressTaken(NoCluster):
    """Another host was invited with this address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitedHost:
    """A host as it was invited last, whether it has joined or not. `gpus`: how many it has at least."""

    address: str
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSite:
    """`directory`: below the site's state. `cache`: where Ray is installed. `models`: where hosts keep their models."""

    directory: Path
    cache: Path
    models: Path | None = None

    @property
    def authority(self) -> Path:
        return self.directory / "authority"

    @property
    def head(self) -> Path:
        return self.directory / "head"

    def create(self, address: str, redis: str | None = None, port: int = 0) -> HeadDirectory:
        """Create the authority and the head's directory; what is there stays. Raises NoCluster.

        `redis`: HOST:PORT, "" for none, None for the one that was chosen before. `port`: of the head; 0: the same.
        """
        directory = HeadDirectory(path=self.head, address=address, redis="", port=node.PORT)
        with contextlib.suppress(ValueError):
            directory = replace(head.load(self.head), address=address)
        if redis is not None:
            directory = replace(directory, redis=redis)
        if port:
            directory = replace(directory, port=port)
        self._issue("head", address, directory.access.secrets)
        directory.save()
        return directory

    def load(self) -> HeadDirectory:
        """Return the head's directory. Raises NoCluster, also when it is not secured."""
        try:
            directory = head.load(self.head)
            check_secrets(directory.access.secrets)
        except (ValueError, NotSecured) as error:
            raise NoCluster(f"there is no cluster yet: createcluster ADDRESS ({error})") from error
        return directory

    @property
    def hosts(self) -> Path:
        """Where the hosts that were invited are noted."""
        return self.directory / "hosts"

    def invited(self) -> Mapping[str, InvitedHost]:
        """Return the hosts that were invited and not removed since, by name."""
        found = {}
        for path in sorted(self.hosts.iterdir()) if self.hosts.exists() else []:
            noted = json.loads(path.read_text())
            found[path.name] = InvitedHost(address=str(noted["address"]), gpus=int(noted["gpus"]))
        return found

    def write_invitation(self, name: str, address: str, *, gpus: int, replaces: str = "") -> Path:
        """Write what lets a machine join into a file that only this user can read.

        `replaces`: the host that left this machine, or has another address now; it is not invited any more. Raises
        NoCluster, NotInvited where that one is not known, AddressTaken where another host has the address.
        """
        others = dict(self.invited())
        if replaces and others.pop(replaces, None) is None:
            raise _not_invited(replaces, others)
        own = join_server.plain_address(address)
        for other, host in others.items():
            if other != name and join_server.plain_address(host.address) == own:
                raise AddressTaken(f"{other} was invited with {address}. If it has left: --replaces {other}")
        path = self._write_invitation(name, address, gpus=gpus)
        if replaces and replaces != name:
            self._forget(replaces)
        return path

    def _write_invitation(self, name: str, address: str, *, gpus: int) -> Path:
        invitation = self.invite(name, address, gpus=gpus)
        path = self.directory / "invitations" / name
        for each in (path.parent, self.hosts):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(invitation.written() + "\n")
        shim.write_atomically(self.hosts / name, {"address": address, "gpus": gpus})
        return path

    def remove(self, name: str, *, at: float) -> list[Path]:
        """Take a host out: refuse its certificates, and `rotate`.

        Raises NoCluster, NotInvited where it is not known; nothing is changed then. A removal that was interrupted
        later can be repeated.
        """
        directory = self.load()
        if name not in (invited := self.invited()):
            raise _not_invited(name, invited)
        directory.remove(name, at)
        return self.rotate(without=name)

    def _forget(self, name: str) -> None:
        """Delete the invitation of a host, and the note of it; the note last, by which a removal can be repeated."""
        (self.directory / "invitations" / name).unlink(missing_ok=True)
        (self.hosts / name).unlink(missing_ok=True)

    def rotate(self, *, without: str = "") -> list[Path]:
        """Make another token and another authority; return a file for each host, as `invite_again` does.

        `without`: a host that gets none and is forgotten. Who has only what was valid before is let in nowhere, once
        the head and all hosts were restarted. Raises NoCluster; then all is as it was.
        """
        directory = self.load()
        draft = self.directory / "authority.new"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            with tempfile.TemporaryDirectory(dir=self.directory) as made:
                secrets = Path(made) / "secrets"
                self._issue("head", directory.address, secrets, authority=draft)
                shutil.rmtree(self.authority)
                draft.rename(self.authority)
                for name in FILES:
                    (secrets / name).replace(directory.access.secrets / name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        if without:
            self._forget(without)
        return self.invite_again()

    def invite_again(self) -> list[Path]:
        """Write a file for each host, with what has changed since it was invited; return these. Raises NoCluster."""
        return [
            self._write_invitation(name, host.address, gpus=host.gpus) for name, host in sorted(self.invited().items())
        ]

    def invite(self, name: str, address: str, *, gpus: int) -> Invitation:
        """Return what lets a machine join. Raises NoCluster."""
        directory = self.load()
        with tempfile.TemporaryDirectory(prefix="madoguchi-invitation-") as draft:  # mode 0700
            into = Path(draft) / "secrets"
            python = self._issue(name, address, into)
            files = {each: (into / each).read_text() for each in FILES}
        return Invitation(
            name=name,
            address=address,
            cluster=directory.access.address,
            join_port=join_server.PORT,
            ray=RAY.version,
            python=python,
            gpus=gpus,
            files=files,
            models=str(self.models or ""),
        )

    def _issue(self, name: str, address: str, into: Path, *, authority: Path | None = None) -> str:
        """Write what a host needs to be let in; return the version of Ray's Python."""
        python = RAY.python(self.cache)
        if not RAY.installed(self.cache):
            raise NoCluster("Ray is not installed here: installray")
        issuing: list[str | Path] = [python, "-m", "modelregistry.cluster.certificates"]
        command = [*issuing, authority or self.authority, name, address, into]
        try:
            done = subprocess.run(
                command,
                env={"PYTHONPATH": str(node.CODE)},
                capture_output=True,
                text=True,
                timeout=ISSUED_WITHIN,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NoCluster(f"no certificate was made within {ISSUED_WITHIN:g} s: is this machine too busy?") from error
        if done.returncode:
            raise NoCluster(f"no certificate could be made: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return done.stdout.strip()


def _not_invited(name: str, invited: Mapping[str, InvitedHost]) -> NotInvited:
    return NotInvited(f"no host {name} was invited (known: {', '.join(sorted(invited)) or 'none'})")
