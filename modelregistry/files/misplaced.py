"""What lies at a path that is no model as an engine reads it, and what to do about that. Reads a few bytes of files.

Asked only about what could not be read: a file that is damaged as a model may be whole as something else.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from modelregistry.files.metadata import GGUF
from modelregistry.files.regular import open_regular_file
from modelregistry.files.unreadable import UnreadableModel

HEAD = 512  # bytes, of which a file is known
MOST_FILES = 1000  # of a directory that are looked at; the largest models have some hundreds
SHOWN = 120  # characters of what a server wrote instead of a file
POINTER = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head")
OLD_GGML = (b"lmgg", b"tjgg", b"fmgg", b"algg", b"ggml", b"ggjt", b"ggmf", b"ggla")
ARCHIVES = {b"PK\x03\x04": "ZIP", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"7z\xbc\xaf": "7-Zip", b"\xfd7zXZ": "xz"}
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")


def recognise(form: str, path: Path) -> UnreadableModel | None:
    """Return what it is instead of a model in this form, as a sentence; None: nothing that is known. Never raises."""
    try:
        if path.is_dir():
            return _recognise_directory(form, path)
        return _describe_link(path) if path.is_symlink() and not path.exists() else _recognise_file(form, path)
    except (OSError, UnreadableModel):
        return None


# --- Files


def _recognise_file(form: str, path: Path) -> UnreadableModel | None:
    if not path.is_file():
        return None
    head = _read_head(path)
    if found := _recognise_content(path, head):
        return found
    if form != GGUF and head.startswith(b"GGUF"):
        return UnreadableModel("gguf-file", path=path)
    if path.suffix == ".safetensors":
        return UnreadableModel("one-file", path=path, directory=path.parent)
    return None


def _recognise_content(path: Path, head: bytes) -> UnreadableModel | None:
    """Return a file of weights (or a configuration) that holds something else."""
    if head.startswith(POINTER):
        return UnreadableModel("git-lfs-pointer", path=path, size=path.stat().st_size)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(PAGES):
        return UnreadableModel("web-page", path=path)
    if path.suffix in WEIGHTS and not head.startswith(b"GGUF") and (text := _error_text(head)):
        return UnreadableModel("server-answer", path=path, said=text)
    if path.suffix == ".gguf" and head[:4] in OLD_GGML:
        return UnreadableModel("ggml", path=path)
    for magic, kind in ARCHIVES.items():
        if path.suffix in (".gguf", ".safetensors") and head.startswith(magic):
            return UnreadableModel("archive", path=path, kind=kind)
    return None


def _error_text(head: bytes) -> str:
    """Return the text of `{"error": "Invalid username or password."}`, or a line of plain text; empty: it is none."""
    try:
        text = head.decode().strip()
    except UnicodeDecodeError:
        return ""
    if not text or "\0" in text or len(head) == HEAD:
        return ""
    try:
        answer = json.loads(text)
        return str(answer.get("error") or answer)[:SHOWN] if isinstance(answer, dict) else text[:SHOWN]
    except (ValueError, RecursionError):
        return text[:SHOWN]


def _read_head(path: Path) -> bytes:
    with open_regular_file(path) as file:
        return file.read(HEAD)


def _describe_link(path: Path) -> UnreadableModel:
    return UnreadableModel("dangling-link", path=path, target=os.readlink(path))


# --- Directories


def _recognise_directory(form: str, path: Path) -> UnreadableModel | None:
    names = sorted(os.listdir(path))[:MOST_FILES]
    here = frozenset(names)
    return (
        _recognise_cache(form, path, here)
        or _recognise_broken_links(path, names)
        or _recognise_files(path, names)
        or (_recognise_for_gguf(path, names, here) if form == GGUF else _recognise_for_checkpoint(path, names, here))
    )


def _recognise_cache(form: str, path: Path, here: frozenset[str]) -> UnreadableModel | None:
    """Recognise `models--org--name` of Hugging Face's cache: the model is a snapshot within, of links to its blobs."""
    if not {"snapshots", "blobs", "refs"} & here or not (
        path.name.startswith("models--") or {"snapshots", "refs"} <= here
    ):
        return None
    folder = path / "snapshots"
    snapshots = sorted(folder.iterdir(), key=lambda one: one.stat().st_mtime) if folder.is_dir() else []
    if not snapshots:
        return UnreadableModel("empty-cache", path=path)
    newest = snapshots[-1]
    if unfinished := sorted((path / "blobs").glob("*.incomplete")):
        return UnreadableModel("unfinished-cache", path=path, count=len(unfinished), snapshot=newest)
    if broken := _recognise_broken_links(newest, sorted(os.listdir(newest))):
        return broken
    inside: Path | None = newest
    if form == GGUF:
        inside = _first_gguf(newest, sorted(os.listdir(newest)))
    return UnreadableModel("cache", path=path, inside=inside or newest)


def _recognise_broken_links(path: Path, names: Iterable[str]) -> UnreadableModel | None:
    broken = [name for name in names if (path / name).is_symlink() and not (path / name).exists()]
    if not broken:
        return None
    return UnreadableModel("dangling-links", path=path, name=broken[0], target=os.readlink(path / broken[0]))


def _recognise_files(path: Path, names: Iterable[str]) -> UnreadableModel | None:
    for name in names:
        file = path / name
        if (
            file.suffix in (*WEIGHTS, ".json")
            and file.is_file()
            and (found := _recognise_content(file, _read_head(file)))
        ):
            return found
    return None


def _recognise_for_gguf(path: Path, names: list[str], here: frozenset[str]) -> UnreadableModel | None:
    if first := _first_gguf(path, names):
        return UnreadableModel("gguf-directory", path=path, file=first)
    if "config.json" in here and any(name.endswith(".safetensors") for name in names):
        return UnreadableModel("checkpoint", path=path)
    return None


def _recognise_for_checkpoint(path: Path, names: list[str], here: frozenset[str]) -> UnreadableModel | None:
    if "config.json" in here:
        return None
    if "adapter_config.json" in here:
        return UnreadableModel("lora-adapter", path=path, base=_base_model(path / "adapter_config.json"))
    if "model_index.json" in here:
        return UnreadableModel("diffusers", path=path)
    if first := _first_gguf(path, names):
        return UnreadableModel("gguf-files", path=path, file=first)
    if any(name.endswith(".onnx") for name in names) or "onnx" in here:
        return UnreadableModel("onnx", path=path)
    inner = [name for name in names if (path / name / "config.json").is_file()]
    if inner:
        return UnreadableModel("folder-of-models", path=path, inner=path / inner[0])
    return None


def _first_gguf(path: Path, names: Iterable[str]) -> Path | None:
    """Return the first GGUF file that is no projector, which is a part for a model."""
    found = [name for name in names if name.endswith(".gguf")]
    models = [name for name in found if not name.startswith("mmproj")]
    return path / (models or found)[0] if found else None


def _base_model(file: Path) -> str:
    with open_regular_file(file) as opened:
        data = opened.read(2**20)
    try:
        config = json.loads(data)
        return str(config.get("base_model_name_or_path") or "?")[:SHOWN] if isinstance(config, dict) else "?"
    except (ValueError, RecursionError):
        return "?"
