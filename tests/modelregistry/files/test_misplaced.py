"""E12: a path that holds no model is refused with what it holds and what to do about it, in both languages."""

import json
import os
import struct
from pathlib import Path

import pytest
from django.utils import translation

from modelregistry import validation
from modelregistry.engines.registry import engine_named
from modelregistry.files import misplaced, model_files
from modelregistry.files.metadata import CHECKPOINT
from modelregistry.files.unreadable import UnreadableModel
from tests.modelregistry import paper_models
from tests.translations import japanese  # noqa: F401 - a fixture

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n"
PAGE = "\n<!DOCTYPE html><html class=''><head><title>Hugging Face</title>"


def write(path: Path, content: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def a_whole(path: Path) -> Path:
    return paper_models.small_llama(path)


def with_file(name: str, content: str | bytes):
    """Return a whole model of which one file is something else."""

    def make(path: Path) -> Path:
        a_whole(path)
        write(path / name, content)
        return path

    return make


def cache(path: Path, *, blobs: bool = True, unfinished: bool = False) -> Path:
    """Create a cache as Hugging Face's library lays it out: links in snapshots, files in blobs."""
    whole = a_whole(path / "whole")
    top = path / "models--org--name"
    (top / "blobs").mkdir(parents=True)
    snapshot = top / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    write(top / "refs" / "main", "0123abcd")
    for number, file in enumerate(whole.iterdir()):
        blob = top / "blobs" / f"{number:08}"
        if blobs:
            file.rename(blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    if unfinished:
        write(top / "blobs" / "0000beef.incomplete", "x")
    return top


def adapter(path: Path) -> Path:
    path.mkdir()
    paper_models.safetensors(path / "adapter_model.safetensors", {"base_model.model.q.lora_A.weight": ("F32", (4, 4))})
    write(path / "adapter_config.json", json.dumps({"base_model_name_or_path": "meta-llama/Llama-3.1-8B", "r": 16}))
    return path


CASES = {
    "a pointer of Git LFS": ("vllm", with_file("model.safetensors", POINTER), "git-lfs-pointer", "model.safetensors"),
    "a pointer beside whole files": (
        "vllm",
        with_file("model-2.safetensors", POINTER),
        "git-lfs-pointer",
        "model-2.safetensors",
    ),
    "a web page as weights": ("vllm", with_file("model.safetensors", PAGE), "web-page", "model.safetensors"),
    "a web page as configuration": ("vllm", with_file("config.json", PAGE), "web-page", "config.json"),
    "an answer of a server": (
        "vllm",
        with_file("model.safetensors", '{"error": "Bad token"}'),
        "server-answer",
        "Bad token",
    ),
    "a line of text": ("vllm", with_file("model.safetensors", "Entry not found"), "server-answer", "Entry not found"),
    "a LoRA adapter": ("vllm", adapter, "lora-adapter", "meta-llama/Llama-3.1-8B"),
    "a folder of the cache": ("vllm", cache, "cache", "snapshots/0123abcd"),
    "a snapshot without its blobs": (
        "vllm",
        lambda path: cache(path, blobs=False) / "snapshots" / "0123abcd",
        "dangling-links",
        "blobs/",
    ),
    "a cache without its blobs": ("vllm", lambda path: cache(path, blobs=False), "dangling-links", "blobs/"),
    "a download that was not finished": (
        "vllm",
        lambda path: cache(path, unfinished=True),
        "unfinished-cache",
        "snapshots/0123abcd",
    ),
    "an empty folder of the cache": (
        "vllm",
        lambda path: write(path / "models--a--b" / "refs" / "main").parents[1],
        "empty-cache",
        "a--b",
    ),
    "GGUF files": ("vllm", lambda path: write(path / "x-Q4_K_M.gguf", b"GGUF").parent, "gguf-files", "x-Q4_K_M.gguf"),
    "a GGUF file": ("vllm", lambda path: write(path / "x.gguf", b"GGUF"), "gguf-file", "x.gguf"),
    "ONNX": ("vllm", lambda path: write(path / "model.onnx").parent, "onnx", ""),
    "a pipeline for images": ("vllm", lambda path: write(path / "model_index.json", "{}").parent, "diffusers", ""),
    "a folder of models": ("vllm", lambda path: a_whole(path / "llama").parent, "folder-of-models", "/llama"),
    "one file of a directory": (
        "llama.cpp",
        lambda path: a_whole(path) / "model.safetensors",
        "one-file",
        "model.safetensors",
    ),
    "a directory for vLLM": ("llama.cpp", a_whole, "checkpoint", ""),
    "a directory with a GGUF file": (
        "llama.cpp",
        lambda path: write(path / "m.gguf", b"GGUF").parent,
        "gguf-directory",
        "/m.gguf",
    ),
    "a pointer as GGUF": ("llama.cpp", lambda path: write(path / "m.gguf", POINTER), "git-lfs-pointer", "m.gguf"),
    "a web page as GGUF": ("llama.cpp", lambda path: write(path / "m.gguf", PAGE), "web-page", "m.gguf"),
    "the format before GGUF": (
        "llama.cpp",
        lambda path: write(path / "m.gguf", b"tjgg" + bytes(600)),
        "ggml",
        "m.gguf",
    ),
    "an archive": ("llama.cpp", lambda path: write(path / "m.gguf", b"PK\x03\x04" + bytes(600)), "archive", "ZIP"),
}


@pytest.mark.parametrize("what", CASES)
def test_e12_the_message_says_what_it_is(what, tmp_path):
    engine, make, code, named = CASES[what]
    path = make(tmp_path / "m")
    with pytest.raises(UnreadableModel) as caught:
        model_files.read_model(engine, str(path))
    assert misplaced.recognise(engine_named(engine).model_format, path).code == caught.value.code == code
    assert any(named in str(value) for value in caught.value.values.values())
    with translation.override("ja"):
        assert validation.explain_unreadable(caught.value) != str(caught.value)


def test_e12_a_dangling_link_is_reported_as_one(tmp_path):
    (tmp_path / "m.gguf").symlink_to("../blobs/abc")
    with pytest.raises(UnreadableModel) as caught:
        model_files.read_model("llama.cpp", str(tmp_path / "m.gguf"))
    assert (caught.value.code, caught.value.values["target"]) == ("dangling-link", "../blobs/abc")


def test_a_damaged_file_is_reported_as_damaged(tmp_path):
    whole = a_whole(tmp_path / "m")
    file = whole / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert misplaced.recognise(CHECKPOINT, whole) is None
    with pytest.raises(UnreadableModel) as caught:
        model_files.read_model("vllm", str(whole))
    assert (caught.value.code, caught.value.values["path"]) == ("cut-off", str(file))
    (tmp_path / "empty").mkdir()
    assert misplaced.recognise(CHECKPOINT, tmp_path / "empty") is None
    assert misplaced.recognise(CHECKPOINT, tmp_path / "gone") is None


def test_a_risk_is_reported_before_anything_else(tmp_path):
    whole = a_whole(tmp_path / "m")
    (whole / "model.safetensors").unlink()
    write(whole / "pytorch_model.bin", PAGE)
    with pytest.raises(UnreadableModel) as caught:
        model_files.read_model("vllm", str(whole))
    assert caught.value.risk == "pickle"


def test_e12_a_gguf_with_types_of_a_later_llama_cpp_is_read_all_the_same(tmp_path):
    """Its bytes are known from where the next tensor begins; whether the engine knows the type, that will say."""
    path = paper_models.gguf(tmp_path / "m.gguf")
    before = model_files.read_model("llama.cpp", str(path))
    data = path.read_bytes()
    name = b"token_embd.weight"
    at = data.rindex(name) + len(name)
    dimensions = struct.unpack_from("<I", data, at)[0]
    kind = at + 4 + 8 * dimensions
    path.write_bytes(data[:kind] + struct.pack("<I", 99) + data[kind + 4 :])
    after = model_files.read_model("llama.cpp", str(path))
    assert after.weight_bytes == pytest.approx(before.weight_bytes, abs=64)
    assert after.embedding_weight_bytes > 0
    path.write_bytes(data[:kind] + struct.pack("<I", 4_000_000) + data[kind + 4 :])
    with pytest.raises(UnreadableModel) as caught:
        model_files.read_model("llama.cpp", str(path))
    assert caught.value.code == "damaged-header"
