"""Joins this machine to a cluster: `python -m modelregistry.cluster.join DIRECTORY`, the invitation on standard input.

Everything that can be wrong is found before anything is kept. Then DIRECTORY is the host's, and `keeper` runs Ray.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import secrets
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from modelregistry.cluster import door, host_home, node
from modelregistry.cluster.access import NotSecured, check_secrets
from modelregistry.cluster.door import JoinProblem, Knock
from modelregistry.cluster.host_home import HostHome
from modelregistry.cluster.invitation import LONGEST, Invitation, NoInvitation
from modelregistry.process import gpus

SENTENCES = {
    "wrong-token": "The cluster has another token: it was changed since the invitation was printed. Print a new one.",
    "other-name": "The certificate is for {there}, and not for {here}.",
    "other-ray": "This machine has Ray {here} and the cluster has {there}. Ray lets no other version join: set this "
    "machine up with the same release of Madoguchi.",
    "other-python": "This machine has Python {here} and the cluster has {there}. Ray lets no other version join: set "
    "this machine up with that Python (PYTHON=… make host).",
    "name-taken": "The cluster has a host {here} already, at {there}. Leave there first, or choose another name.",
    "clocks-apart": "This machine's clock is {here} s from the cluster's. Let both follow a time server.",
    "unreachable": "The cluster's head does not reach this machine at {here}. Is it the right address, and does a "
    "firewall let the ports of Ray through?",
    "no-head": "The cluster's head does not answer: {there}",
    "other-form": "The cluster does not understand this release of Madoguchi: set this machine up with the same one.",
    "address-missing": "This machine does not have the address {here} ({there}).",
    "no-gpu": "{there} GPUs were promised, and this machine shows {here}. Is NVIDIA's driver installed and loaded?",
    "joined-before": "{here} is the directory of the host {there} already. Leave first.",
    "no-door": "The cluster's door at {there} cannot be reached: {here}",
    "other-cluster": "The certificates of this invitation and of the cluster at {there} do not belong together: {here}",
    "bad-secrets": "The invitation is damaged: {here}",
    "no-ray": "Ray is missing here: python3 deploy/setup.py host",
}


class NotJoined(Exception):
    """The machine is not let in. `problems`: all that is known to be wrong."""

    def __init__(self, problems: Sequence[JoinProblem]) -> None:
        super().__init__("\n".join(describe(problem) for problem in problems))
        self.problems = problems


def describe(problem: JoinProblem) -> str:
    """Return a problem in words."""
    sentence = SENTENCES.get(problem.code, "The cluster refuses this machine: " + problem.code)
    return sentence.format(here=problem.here, there=problem.there)


def join(
    invitation: Invitation,
    directory: Path,
    *,
    count_gpus: Callable[[], int],
    clock: Callable[[], float] = time.time,
) -> HostHome:
    """Check everything, then keep what this machine needs in the directory. Raises NotJoined."""
    if problems := _find_own_problems(invitation, directory, count_gpus):
        raise NotJoined(problems)
    draft = Path(tempfile.mkdtemp(prefix="madoguchi-join-"))  # mode 0700
    try:
        invitation.write_files(draft)
        try:
            check_secrets(draft)
        except NotSecured as error:
            raise NotJoined([JoinProblem(code="bad-secrets", here=str(error))]) from error
        if problems := asyncio.run(_ask_at_door(invitation, draft, clock)):
            raise NotJoined(problems)
        home = HostHome(
            directory=directory, name=invitation.name, address=invitation.address, cluster=invitation.cluster
        )
        invitation.write_files(home.secrets)
        home.save()  # last: a directory without it is not joined
        return home
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _find_own_problems(invitation: Invitation, directory: Path, count_gpus: Callable[[], int]) -> list[JoinProblem]:
    """Return what is wrong as far as this machine knows by itself."""
    found = []
    with contextlib.suppress(ValueError):
        before = host_home.load(directory)
        return [JoinProblem(code="joined-before", here=str(directory), there=before.name)]
    for code, here, there in (
        ("other-ray", ray_version(), invitation.ray),
        ("other-python", platform.python_version(), invitation.python),
    ):
        if not here:
            found.append(JoinProblem(code="no-ray"))
        elif here != there:
            found.append(JoinProblem(code=code, here=here, there=there))
    if (seen := count_gpus()) < invitation.gpus:
        found.append(JoinProblem(code="no-gpu", here=str(seen), there=str(invitation.gpus)))
    return found


async def _ask_at_door(invitation: Invitation, draft: Path, clock: Callable[[], float]) -> list[JoinProblem]:
    nonce = secrets.token_hex(16)

    async def say_nonce(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(nonce.encode() + b"\n")
        writer.close()

    try:
        port = secrets.choice(node.PORTS)  # one of those that a firewall has to let through
        server = await asyncio.start_server(say_nonce, invitation.address, port)
    except OSError as error:
        return [JoinProblem(code="address-missing", here=invitation.address, there=error.strerror or str(error))]
    head = invitation.cluster.rpartition(":")[0]
    where = f"{head}:{invitation.door}"
    knock = Knock(
        token=invitation.files["token"].strip(),
        name=invitation.name,
        address=invitation.address,
        port=port,
        nonce=nonce,
        ray=ray_version(),
        python=platform.python_version(),
        clock=clock(),
    )
    try:
        async with server:
            _, problems = await door.knock_at(head, invitation.door, knock, draft)
    except ssl.SSLError as error:
        return [JoinProblem(code="other-cluster", here=error.reason or str(error), there=where)]
    except (OSError, ValueError, KeyError, TypeError, TimeoutError) as error:
        return [JoinProblem(code="no-door", here=str(error) or "no answer", there=where)]
    return problems


def ray_version() -> str:
    """Return the version of Ray here; "": there is none."""
    try:
        return version("ray")
    except PackageNotFoundError:
        return ""


def count_gpus() -> int:
    return sum(device.kind == "gpu" and not device.fault for device in gpus.list_devices())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m modelregistry.cluster.join", description=__doc__)
    parser.add_argument("directory", type=Path, help="where this host keeps its runs, its secrets and Ray's files")
    directory = parser.parse_args(arguments).directory.absolute()
    os.umask(0o077)
    try:
        home = join(Invitation.read(sys.stdin.read(LONGEST + 1)), directory, count_gpus=count_gpus)
    except (NoInvitation, NotJoined) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{home.name} may join. Start Ray on it: {sys.executable} -m modelregistry.cluster.keeper {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
