"""Joins this machine to a cluster: `python -m modelregistry.cluster.join DIRECTORY`, the invitation on standard input.

Everything that can be wrong is found before anything is kept. Then DIRECTORY is the host's, and its service
(`node_service`) runs Ray.
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
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from modelregistry.cluster import join_server, node, node_directory
from modelregistry.cluster.access import NotSecured, check_secrets, tls_context
from modelregistry.cluster.invitation import LONGEST, Invitation, NoInvitation
from modelregistry.cluster.join_server import JoinProblem, JoinRequest
from modelregistry.cluster.node_directory import NodeDirectory
from modelregistry.host_port import join_host_port, split_host_port
from modelregistry.hostside import own_address
from modelregistry.process import gpus, process

SENTENCES = {
    "wrong-token": "The cluster has another token: it was changed since the invitation was printed. Print a new one.",
    "other-name": "The certificate is for {there}, and not for {here}.",
    "removed": "The host {here} was removed from the cluster: have it invited again, if it is to be in it.",
    "other-address": "The certificate is not for {here}, but for {there}, and this machine does not come from {here}.",
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
    "not-joined": "This machine has not joined, so there is nothing to renew: {here}",
    "joined-before": "{here} is the directory of the host {there} already. Leave first.",
    "no-join-server": "The cluster's join server at {there} cannot be reached: {here}",
    "other-cluster": "The certificates of this invitation and of the cluster at {there} do not belong together: {here}",
    "cannot-keep": "Nothing can be kept in {here}: {there}",
    "engines-run": "Engines run on this machine that a supervisor started, and would be left without one; their runs "
    "are in {here}. Join with --runs {there}, so that they are adopted; or stop them first. If they belong to another "
    "site: --runs none.",
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


NO_RUNS = "none"  # given for --runs: engines that run here are of another site


def join(
    invitation: Invitation,
    path: Path,
    *,
    count_gpus: Callable[[], int],
    list_supervised: Callable[[], list[str]] = list,
    runs_before: str = "",
    clock: Callable[[], float] = time.time,
) -> NodeDirectory:
    """Check everything, then keep what this machine needs in the directory. Raises NotJoined.

    `runs_before`: where a supervisor of this machine kept its engines' runs; they are adopted. `list_supervised`:
    returns where supervisors keep runs of engines that run here.
    """
    problems = _find_own_problems(invitation, path, count_gpus)
    if not runs_before and (found := list_supervised()):
        problems.append(JoinProblem(code="engines-run", here=", ".join(found), there=found[0]))
    if problems:
        raise NotJoined(problems)
    try:
        draft = Path(tempfile.mkdtemp(prefix="madoguchi-join-"))  # mode 0700
    except OSError as error:
        raise NotJoined([JoinProblem(code="cannot-keep", here=tempfile.gettempdir(), there=str(error))]) from error
    try:
        invitation.write_files(draft)
        try:
            check_secrets(draft)
        except NotSecured as error:
            raise NotJoined([JoinProblem(code="bad-secrets", here=str(error))]) from error
        if problems := asyncio.run(_ask_join_server(invitation, draft, clock)):
            raise NotJoined(problems)
        directory = NodeDirectory(
            path=path,
            name=invitation.name,
            address=invitation.address,
            cluster=invitation.cluster,
            models=invitation.models,
            runs_before="" if runs_before == NO_RUNS else runs_before,
        )
        _keep(invitation, directory)
        return directory
    except OSError as error:
        raise NotJoined([JoinProblem(code="cannot-keep", here=str(path), there=str(error))]) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def renew(invitation: Invitation, path: Path) -> NodeDirectory:
    """Replace the token and the certificates of a machine that has joined. Raises NotJoined; then it keeps what it has.

    The join server is not asked: it has the new secrets when the head restarts, which is after this.
    """
    try:
        before = node_directory.load(path)
    except ValueError as error:
        raise NotJoined([JoinProblem(code="not-joined", here=str(error))]) from error
    if before.name != invitation.name:
        raise NotJoined([JoinProblem(code="joined-before", here=str(path), there=before.name)])
    if problems := _find_version_problems(invitation) + _find_address_problems(invitation.address):
        raise NotJoined(problems)
    draft = path / "secrets.new"
    after = replace(before, address=invitation.address, cluster=invitation.cluster)
    try:
        _bring_back_secrets(before)
        shutil.rmtree(draft, ignore_errors=True)
        invitation.write_files(draft)
        check_secrets(draft)
        tls_context(draft, server=False)
        _exchange_secrets(before, after, draft)
    except (NotSecured, ssl.SSLError) as error:
        raise NotJoined([JoinProblem(code="bad-secrets", here=str(error))]) from error
    except OSError as error:
        raise NotJoined([JoinProblem(code="cannot-keep", here=str(path), there=str(error))]) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return after


def _exchange_secrets(before: NodeDirectory, after: NodeDirectory, draft: Path) -> None:
    """Put the draft in the place of a host's secrets, and save what else has changed; or nothing. Raises OSError."""
    old = _old_secrets(before)
    shutil.rmtree(old, ignore_errors=True)
    before.secrets.rename(old)
    try:
        draft.rename(before.secrets)
        after.save()
    except OSError:
        shutil.rmtree(before.secrets, ignore_errors=True)
        old.rename(before.secrets)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _bring_back_secrets(directory: NodeDirectory) -> None:
    """Undo a renewal that was killed between two steps of `_exchange_secrets`. Raises OSError."""
    if not directory.secrets.exists() and (old := _old_secrets(directory)).exists():
        old.rename(directory.secrets)


def _old_secrets(directory: NodeDirectory) -> Path:
    return directory.path / "secrets.old"


def _keep(invitation: Invitation, directory: NodeDirectory) -> None:
    """Write what this machine needs, all of it or nothing. Raises OSError."""
    made = not directory.path.exists()
    try:
        invitation.write_files(directory.secrets)
        directory.save()  # last: a directory without it is not joined
    except OSError:
        shutil.rmtree(directory.path if made else directory.secrets, ignore_errors=True)
        raise


def _find_own_problems(invitation: Invitation, path: Path, count_gpus: Callable[[], int]) -> list[JoinProblem]:
    """Return what is wrong as far as this machine knows by itself."""
    with contextlib.suppress(ValueError):
        before = node_directory.load(path)
        return [JoinProblem(code="joined-before", here=str(path), there=before.name)]
    found = _find_version_problems(invitation)
    if (seen := count_gpus()) < invitation.gpus:
        found.append(JoinProblem(code="no-gpu", here=str(seen), there=str(invitation.gpus)))
    return found


def _find_address_problems(address: str) -> list[JoinProblem]:
    if fault := own_address.find_fault(address):
        return [JoinProblem(code="address-missing", here=address, there=fault.reason or "it cannot be looked up")]
    return []


def _find_version_problems(invitation: Invitation) -> list[JoinProblem]:
    found = []
    for code, here, there in (
        ("other-ray", ray_version(), invitation.ray),
        ("other-python", platform.python_version(), invitation.python),
    ):
        if not here:
            found.append(JoinProblem(code="no-ray"))
        elif here != there:
            found.append(JoinProblem(code=code, here=here, there=there))
    return found


async def _ask_join_server(invitation: Invitation, draft: Path, clock: Callable[[], float]) -> list[JoinProblem]:
    nonce = secrets.token_hex(16)

    async def say_nonce(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(nonce.encode() + b"\n")
        writer.close()

    try:
        port = secrets.choice(node.PORTS)  # one of those that a firewall has to let through
        server = await asyncio.start_server(say_nonce, invitation.address, port)
    except OSError as error:
        return [JoinProblem(code="address-missing", here=invitation.address, there=error.strerror or str(error))]
    head, _ = split_host_port(invitation.cluster)
    where = join_host_port(head, invitation.join_port)
    request = JoinRequest(
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
            _, problems = await join_server.ask_to_join(head, invitation.join_port, request, draft)
    except ssl.SSLError as error:
        return [JoinProblem(code="other-cluster", here=error.reason or str(error), there=where)]
    except (OSError, ValueError, KeyError, TypeError, TimeoutError) as error:
        return [JoinProblem(code="no-join-server", here=str(error) or "no answer", there=where)]
    return problems


def ray_version() -> str:
    """Return the version of Ray here; "": there is none."""
    try:
        return version("ray")
    except PackageNotFoundError:
        return ""


def count_gpus() -> int:
    return sum(device.kind == "gpu" and not device.fault for device in gpus.list_devices())


def list_supervised() -> list[str]:
    """Return where engines that run here have their runs, but for those of hosts, which have agents."""
    places = {Path(mark).parent for _, mark in process.find_marked("/")}
    return sorted(str(place) for place in places if not (place.parent / node_directory.FILE).exists())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m modelregistry.cluster.join", description=__doc__)
    parser.add_argument("directory", type=Path, help="where this host keeps its runs, its secrets and Ray's files")
    parser.add_argument(
        "--renew", action="store_true", help="it has joined: replace its token and its certificates, and nothing else"
    )
    parser.add_argument(
        "--runs",
        type=Path,
        help="where `manage.py supervise` of this machine kept its engines' runs (run/engines in its MADOGUCHI_VAR): "
        f"engines that run are adopted; {NO_RUNS}: engines that run here are of another site",
    )
    asked = parser.parse_args(arguments)
    none = asked.runs == Path(NO_RUNS)
    if asked.runs and not none and not asked.runs.is_dir():
        print(f"{asked.runs} is no directory: no runs can be adopted from there", file=sys.stderr)
        return 1
    runs = NO_RUNS if none else str(asked.runs.absolute()) if asked.runs else ""
    path = asked.directory.absolute()
    os.umask(0o077)
    try:
        invitation = Invitation.read(sys.stdin.read(LONGEST + 1))
        directory = (
            renew(invitation, path)
            if asked.renew
            else join(invitation, path, count_gpus=count_gpus, list_supervised=list_supervised, runs_before=runs)
        )
    except (NoInvitation, NotJoined) as error:
        print(error, file=sys.stderr)
        return 1
    if asked.renew:
        print(f"{directory.name} has its new token and certificates: restart its service when the head has restarted.")
        return 0
    print(f"{directory.name} may join. Start Ray on it: {sys.executable} -m modelregistry.cluster.node_service {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
