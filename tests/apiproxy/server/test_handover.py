"""What a handover does with any server: it follows a link, reads settings again, and never closes the listener."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from apiproxy.server.handover import RESTART_SECONDS, STATE_FORM, read_environment, take_from_systemd
from apiproxy.server.stand_in import LOOK_SECONDS, PATIENCE_AFTER_FAILURE
from tests.ports import unused_port
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]
SERVER = Path(__file__).with_name("small_server.py")


@dataclass(frozen=True)
class Answer:
    pid: int
    parent: int
    directory: Path
    words: str


@dataclass
class Handed:
    """A handover under way, before the small server. `systemd` is where it sends notices."""

    place: Path
    port: int
    systemd: socket.socket
    process: "subprocess.Popen[bytes]" = field(init=False)

    def read(self) -> str:
        """Return what the server says to who connects; "": it does not serve."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=2)
        with connection, contextlib.suppress(TimeoutError):
            return connection.makefile().read()
        return ""

    def ask(self) -> Answer:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            pid, parent, directory, words = connection.makefile().read().split("\n")
        return Answer(int(pid), int(parent), Path(directory), words)

    def lead_to(self, name: str) -> Path:
        (self.place / name).mkdir(exist_ok=True)
        following = self.place / "following"
        following.symlink_to(name)
        following.rename(self.place / "current")
        return self.place / name

    def reload(self) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "apiproxy.server.handover", "--control", self.place / "control", "--reload"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    def runs(self) -> list[int]:
        """Return the process ids of the servers that this handover has started and that have not ended."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = []
        for pid in children:
            with contextlib.suppress(FileNotFoundError):  # it was waited for meanwhile
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if words[1:2] == [str(SERVER)]:  # not the handover itself, which has these words behind its own
                    found.append(int(pid))
        return found

    def add_version(self, name: str, before: str = "", **constants: int) -> None:
        """Lead to a version with a handover of its own, which runs these lines first and has these constants."""
        parts = self.lead_to(name) / "apiproxy" / "server"
        parts.mkdir(parents=True)
        for module in ("stand_in.py", "succession.py"):
            shutil.copy(ROOT / "apiproxy" / "server" / module, parts)
        text = (ROOT / "apiproxy" / "server" / "handover.py").read_text()
        for constant, value in constants.items():
            text, count = re.subn(rf"^{constant} = .*$", f"{constant} = {value}", text, flags=re.M)
            assert count == 1
        (parts / "handover.py").write_text(before + text)
        for package in (parts, parts.parent):
            (package / "__init__.py").touch()

    def notices(self) -> list[str]:
        """Return the notices that have come."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.systemd.recv(1000).decode().split("\n")[0])
        return found


@pytest.fixture
def handed(tmp_path) -> Iterator[Handed]:
    (tmp_path / "environment").write_text("WORDS='first words'\n")
    port = unused_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notices"))
        options = {
            "--directory": tmp_path / "current",
            "--environment": tmp_path / "environment",
            "--listen": f"gateway=127.0.0.1:{port}",
            "--control": tmp_path / "control",
        }
        words = [str(word) for pair in options.items() for word in pair]
        command = [sys.executable, "-m", "apiproxy.server.handover", *words, "--", sys.executable, str(SERVER)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(tmp_path / "notices")}
        running = Handed(tmp_path, port, systemd)
        running.lead_to("1")
        running.process = subprocess.Popen(command, cwd=ROOT, env=environment)
        try:
            systemd.settimeout(30)
            assert systemd.recv(1000) == b"READY=1"
            systemd.setblocking(False)
            yield running
        finally:
            running.process.terminate()
            running.process.wait(30)


def test_a_reload_follows_the_link_and_reads_settings_again(handed):
    before = handed.ask()
    assert (before.directory, before.words) == (handed.place / "1", "first words")
    handed.lead_to("2")
    (handed.place / "environment").write_text("WORDS=other\n")
    done = handed.reload()
    assert (done.returncode, done.stderr) == (0, "")
    after = handed.ask()
    assert (after.directory, after.words) == (handed.place / "2", "other")
    assert after.pid != before.pid
    assert after.parent == before.parent == handed.process.pid
    until(lambda: not Path(f"/proc/{before.pid}").exists())  # it was waited for by the process that replaced its parent


def test_systemd_is_notified_of_a_reload_and_its_end(handed):
    assert handed.reload().returncode == 0
    begun, ended, *_ = until(lambda: (found := handed.notices()) and len(found) >= 2 and found)
    assert (begun, ended) == ("RELOADING=1", "READY=1")


def test_the_process_that_hands_over_becomes_the_new_version_of_itself(handed):
    assert handed.reload().returncode == 0
    # A second one is answered by what has replaced the first, and knows of the run that it found.
    first = handed.ask()
    assert handed.reload().returncode == 0
    second = handed.ask()
    assert first.pid != second.pid
    until(lambda: not Path(f"/proc/{first.pid}").exists())
    assert handed.process.poll() is None


def test_a_run_that_fails_changes_nothing(handed):
    before = handed.ask()
    (handed.place / "environment").write_text("FAILS=yes\n")
    done = handed.reload()
    assert done.returncode == 1
    assert str(handed.place / "1") in done.stderr
    assert handed.ask().pid == before.pid


def test_a_signal_reloads_as_well(handed):
    before = handed.ask()
    handed.process.send_signal(signal.SIGHUP)
    until(lambda: handed.ask().pid != before.pid)


def test_who_calls_while_a_killed_run_is_replaced_waits(handed):
    before = handed.ask()
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{before.pid}").exists())
    assert handed.ask().pid != before.pid


def test_a_reload_while_an_ended_run_is_replaced_leaves_one_run(handed):
    before = handed.ask()
    (handed.place / "environment").write_text("STARTS_IN=1.5\n")  # longer than the pause before a run is replaced
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: before.pid not in handed.runs())
    handed.process.send_signal(signal.SIGHUP)
    until(lambda: "READY=1" in handed.notices())
    assert handed.runs() == [handed.ask().pid]


def test_it_ends_at_once_while_a_run_starts(handed):
    (handed.place / "environment").write_text("STARTS_IN=60\n")
    (before,) = handed.runs()
    os.kill(before, signal.SIGKILL)
    until(lambda: set(handed.runs()) - {before})
    handed.process.terminate()
    assert handed.process.wait(10) == 0


UNREADABLE = "# 日本語\nWORDS=other\n".encode("shift_jis")


@pytest.mark.parametrize("content", [UNREADABLE, b"WORDS=a\0b\n"])
def test_an_environment_that_cannot_be_used_fails_the_reload(handed, content):
    before = handed.ask()
    (handed.place / "environment").write_bytes(content)
    assert handed.reload().returncode == 1
    assert handed.ask().pid == before.pid


def test_a_run_is_replaced_once_the_environment_can_be_read_again(handed):
    (before,) = handed.runs()
    (handed.place / "environment").write_bytes(UNREADABLE)
    os.kill(before, signal.SIGKILL)
    until(lambda: before not in handed.runs())
    time.sleep(2 * RESTART_SECONDS)  # it has tried meanwhile
    (handed.place / "environment").write_text("WORDS=other\n")
    assert handed.ask().words == "other"


def call(port: int) -> http.client.HTTPResponse:
    """Return the answer to a call, at most some seconds later."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_AFTER_FAILURE + 10)
    connection.request("POST", "/v1/chat/completions", b"{}")
    return connection.getresponse()


def test_callers_are_refused_while_no_run_starts_and_served_once_one_does(handed):
    (before,) = handed.runs()
    (handed.place / "environment").write_text("FAILS=yes\n")
    os.kill(before, signal.SIGKILL)
    until(lambda: before not in handed.runs())
    answer = call(handed.port)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert json.load(answer)["error"]["code"] == "server_unavailable"
    (handed.place / "environment").write_text("WORDS=other\n")
    assert until(handed.read).endswith("other")


def test_a_reload_that_failed_shortens_no_patience_of_who_calls_later(handed):
    (handed.place / "environment").write_text("FAILS=yes\n")
    assert handed.reload().returncode == 1
    handed.ask()
    time.sleep(2 * LOOK_SECONDS)  # the run before serves on
    (handed.place / "environment").write_text(f"STARTS_IN={PATIENCE_AFTER_FAILURE + 1}\nWORDS=other\n")
    (before,) = handed.runs()
    os.kill(before, signal.SIGKILL)
    until(lambda: before not in handed.runs())
    assert handed.ask().words == "other"


def test_who_waits_for_a_first_run_that_fails_is_refused(tmp_path):
    command = [
        *(sys.executable, "-m", "apiproxy.server.handover", "--control", tmp_path / "control"),
        *("--", sys.executable, SERVER),
    ]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def place_listener() -> None:
            os.dup2(os.dup(listener.fileno()), 3)

        names = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "gateway", "FAILS": "yes", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            ["sh", "-c", 'LISTEN_PID=$$ exec "$0" "$@"', *command],
            cwd=ROOT,
            env={**os.environ, **names},
            preexec_fn=place_listener,
            close_fds=False,
        )
        assert call(listener.getsockname()[1]).status == 503
        assert process.wait(20) == 1


@pytest.mark.parametrize(
    ("before", "constants"),
    [("raise RuntimeError\n", {}), ("", {"STATE_FORM": STATE_FORM + 1})],
    ids=["raises", "form"],
)
def test_it_stays_as_it_is_if_the_next_version_of_it_cannot_go_on(handed, before, constants):
    handed.add_version("2", before, **constants)
    done = handed.reload()
    assert (done.returncode, done.stderr) == (0, "")
    assert handed.ask().directory == handed.place / "2"
    handed.lead_to("3")
    assert handed.reload().returncode == 0
    assert handed.ask().directory == handed.place / "3"
    assert handed.process.poll() is None


WAITS = """
import os, pathlib, sys, time
if "MADOGUCHI_HANDOVER" in os.environ and "--can-adopt" not in sys.argv:
    pathlib.Path("begun").touch()
    while not pathlib.Path("asked").exists():
        time.sleep(0.01)
"""


def test_what_asks_it_to_end_while_it_becomes_the_next_version_is_kept_for_that(handed):
    handed.add_version("2", WAITS)
    assert handed.reload().returncode == 0
    until((handed.place / "2" / "begun").exists)
    handed.process.terminate()
    (handed.place / "2" / "asked").touch()
    assert handed.process.wait(20) == 0
    assert not (handed.place / "control").exists()


def test_a_reload_of_nothing_says_so(tmp_path):
    command = [sys.executable, "-m", "apiproxy.server.handover", "--control", tmp_path / "none", "--reload"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr


def test_listeners_that_systemd_has_for_another_process_are_left_alone():
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "gateway"}
    assert take_from_systemd(environment) == {}
    assert environment == {}


def test_a_file_of_settings_is_read_as_systemd_reads_it(tmp_path):
    file = tmp_path / "environment"
    file.write_text('# PASSWORD=a\n; B=b\n\nURL=postgres://a:b=c@d/e\n  NAME = "two words"\nONE=\'it"s\'\nEMPTY=\n')
    assert read_environment(file) == {
        "URL": "postgres://a:b=c@d/e",
        "NAME": "two words",
        "ONE": 'it"s',
        "EMPTY": "",
    }
