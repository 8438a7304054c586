"""Encrypt what is stored for a recipient, with age or GnuPG, and decrypt it again.

Both tools are fed by pipes, so nothing is on the disk of the backup in plain text, and both refuse what was changed.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from portal.backups.errors import BackupRefused

MOST_ERROR = 500  # characters of what a tool says
PACKAGES = {"age": "age", "gpg": "gnupg", "pg_dump": "postgresql-client", "pg_restore": "postgresql-client"}
PACKAGES |= {"psql": "postgresql-client"}


@dataclass(frozen=True, slots=True)
class Recipient:
    """`tool`: "age" or "gpg". `name`: age's public key, or what GnuPG knows a key by; neither is a secret."""

    tool: str
    name: str

    def command(self) -> list[str]:
        """Return what encrypts its input. GnuPG need not trust the key: the operator has named it."""
        if self.tool == "age":
            return [find_program("age"), "--encrypt", "--recipient", self.name]
        options = ["--batch", "--quiet", "--no-tty", "--trust-model", "always", "--output", "-"]
        return [find_program("gpg"), *options, "--encrypt", "--recipient", self.name]

    def check(self) -> None:
        """Encrypt nothing, to see that tool and key are there. Raises BackupRefused."""
        done = subprocess.run(self.command(), input=b"", capture_output=True)
        if done.returncode:
            raise BackupRefused(
                f"{self.tool} cannot encrypt for {self.name}: {done.stderr.decode(errors='replace').strip()}"
            )


def decrypting_command(tool: str, identity: Path | None) -> list[str]:
    """Return what decrypts its input. `identity`: the file of age's private key. Raises BackupRefused."""
    if tool == "gpg":
        return [find_program("gpg"), "--batch", "--quiet", "--no-tty", "--decrypt"]
    if identity is None:
        raise BackupRefused("the backup is encrypted with age: give the file of the private key by --identity")
    return [find_program("age"), "--decrypt", "--identity", str(identity)]


def find_program(name: str) -> str:
    """Return the path of a program: the newest of PostgreSQL's, which Debian keeps off PATH. Raises BackupRefused."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: _number(path.parts[4]))
    found = str(installed[-1]) if installed else shutil.which(name)
    if found is None:
        raise BackupRefused(f"{name} is not installed: apt-get install {PACKAGES[name]}")
    return found


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


@contextlib.contextmanager
def open_writer(path: Path, command: Sequence[str] | None) -> Iterator[IO[bytes]]:
    """Provide what is to be written to, through the command if there is one; the file is on the disk afterwards.

    The file is new and readable by this user alone. Raises BackupRefused and OSError.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        if command is None:
            yield file
        else:
            with run_tool(command, stdin=subprocess.PIPE, stdout=file) as process:
                assert process.stdin is not None
                yield process.stdin
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def open_reader(path: Path, command: Sequence[str] | None) -> Iterator[IO[bytes]]:
    """Provide what is in the file, through the command if there is one.

    What was read is true only if leaving raises nothing: age and GnuPG find at the end that something is missing.
    """
    with path.open("rb") as file:
        if command is None:
            yield file
            return
        with run_tool(command, stdin=file, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield process.stdout
            while process.stdout.read(1 << 20):  # or the tool would end by a broken pipe
                pass


@contextlib.contextmanager
def run_tool(
    command: Sequence[str], *, stdin: IO[bytes] | int, stdout: IO[bytes] | int, env: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program beside the block; kill it if the block fails. Raises BackupRefused if it ends badly."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=errors, env=env)
        try:
            yield process
            if process.stdin is not None:
                process.stdin.close()
            process.wait()
        except (BrokenPipeError, BackupRefused):
            # What reads from this program or writes to it failed, perhaps because this one did: then it says why.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            if not process.returncode:
                raise
        finally:
            _end(process)
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()[-MOST_ERROR:]
            raise BackupRefused(f"{Path(command[0]).name} failed ({process.returncode}): {said or 'it says nothing'}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the program unless it has ended, and close what leads to it."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
