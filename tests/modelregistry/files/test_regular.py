"""What is not a regular file where a model's file should be is refused, without blocking the reader."""

import os
import threading
from pathlib import Path

import pytest

from modelregistry.files import model_files
from modelregistry.files.unreadable import UnreadableModel

SECONDS = 10


def read_error(engine: str, path: Path) -> list[str]:
    """Return the error of reading it; a read that blocks fails the test instead of hanging it."""
    found: list[str] = []

    def read() -> None:
        try:
            model_files.read_model(engine, str(path), ("pickle", "remote-code"))
        except UnreadableModel as error:
            found.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), "it waits for a writer"
    return found


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json", "a.bin", "b.py"])
def test_p3_a_fifo_in_a_models_directory_is_no_file(tmp_path, name):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert read_error("vllm", tmp_path)


def test_p3_a_fifo_is_no_gguf_file(tmp_path):
    os.mkfifo(tmp_path / "model.gguf")
    assert read_error("llama.cpp", tmp_path / "model.gguf")


def test_p3_neither_is_a_device_without_an_end():
    assert read_error("llama.cpp", Path("/dev/zero"))
    assert read_error("llama.cpp", Path("/dev/tty"))
