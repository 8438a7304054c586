"""Models on a share: what lies there is told, and what is wanted is copied whole or not at all."""

import hashlib
import os
import shutil
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from modelregistry.install import model_import
from modelregistry.install.model_import import CannotImport, Found
from tests.modelregistry import paper_models


@pytest.fixture
def share(tmp_path) -> Path:
    """A directory for vLLM, two GGUF files of which one comes in parts, a snapshot of a cache, a LoRA adapter."""
    share = tmp_path / "share"
    paper_models.small_llama(share / "llama")
    (share / "llama" / "1_Pooling").mkdir()
    (share / "llama" / "1_Pooling" / "config.json").write_text("{}")
    (share / "llama" / ".git").mkdir()
    (share / "llama" / ".git" / "config").write_text("not of the model")
    files = share / "files"
    files.mkdir()
    paper_models.gguf(files / "tiny.gguf")
    for number in (1, 2):
        (files / f"large-0000{number}-of-00002.gguf").write_bytes(b"GGUF")
    (files / "mmproj-tiny.gguf").write_bytes(b"GGUF")
    cache = share / "hub" / "models--acme--cached"
    snapshot = cache / "snapshots" / "0123"
    whole = paper_models.small_llama(share / "made")
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in sorted(whole.iterdir()):
        blob = cache / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    whole.rmdir()
    (share / "adapter").mkdir()
    (share / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "acme/base"}')
    return share


def found_in(share: Path) -> dict[str, Found]:
    return {one.name: one for one in model_import.find_models(share)}


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != model_import.SUMS]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_lies_in_a_folder_is_found_each_model_once(share):
    engines = {name: one.engine for name, one in found_in(share).items()}
    assert engines == {
        "llama": "vllm", "adapter": "vllm", "cached": "vllm", "tiny": "llama.cpp", "large": "llama.cpp"
    }  # fmt: skip


def test_a_directory_is_copied_with_all_that_belongs_to_it(share, tmp_path):
    path = model_import.copy_model(found_in(share)["llama"], tmp_path / "models")
    assert path == tmp_path / "models" / "llama"
    there = contents(share / "llama")
    del there[".git/config"]
    assert contents(path) == there
    sums = dict(reversed(line.split("  ")) for line in (path / model_import.SUMS).read_text().splitlines())
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in there.items()}


def test_a_gguf_file_comes_with_its_parts_alone(share, tmp_path):
    path = model_import.copy_model(found_in(share)["large"], tmp_path / "models")
    assert path == tmp_path / "models" / "large" / "large-00001-of-00002.gguf"
    assert set(contents(path.parent)) == {"large-00001-of-00002.gguf", "large-00002-of-00002.gguf"}


def test_links_of_a_cache_become_files_and_are_held_to_their_names(share, tmp_path):
    cached = found_in(share)["cached"]
    path = model_import.copy_model(cached, tmp_path / "models")
    assert not any(file.is_symlink() for file in path.iterdir())
    blob = (cached.path / "model.safetensors").resolve()
    with blob.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(CannotImport, match="SHA-256"):
        model_import.copy_model(cached, tmp_path / "models", name="again")
    assert not (tmp_path / "models" / "again").exists()


class Broken(Exception):
    pass


def broken_off(found: Found, models: Path, monkeypatch, *, after: int) -> None:
    """An import that ends after so many pieces, as by a power cut."""
    left = after

    def tell(progress) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Broken

    with pytest.raises(Broken):
        model_import.copy_model(found, models, tell=tell)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(model_import, "PIECE", 1000)
    monkeypatch.setattr(model_import, "SAVED_EVERY", 2000)


def test_what_is_half_made_is_no_model_and_is_gone_on_with(share, tmp_path, monkeypatch, small_pieces):
    models, llama = tmp_path / "models", found_in(share)["llama"]
    broken_off(llama, models, monkeypatch, after=20)
    assert model_import.find_models(models) == []
    read = []
    path = model_import.copy_model(llama, models, tell=lambda progress: read.append(progress.done))
    assert path.exists()
    there = contents(share / "llama")
    del there[".git/config"]
    assert contents(path) == there
    assert len(read) < 1 + sum(-(-len(data) // 1000) for data in there.values()) - 15  # the pieces of before are kept
    assert read[-1] == sum(map(len, there.values()))


@pytest.mark.parametrize("harm", ["copy", "source", "journal"])
def test_what_does_not_match_is_copied_anew(share, tmp_path, monkeypatch, small_pieces, harm):
    models, llama = tmp_path / "models", found_in(share)["llama"]
    broken_off(llama, models, monkeypatch, after=20)
    source = share / "llama" / "model.safetensors"
    if harm == "copy":  # a disk that lost what it had not written
        with (models / ".llama.part" / "model.safetensors").open("r+b") as file:
            file.write(bytes(500))
    elif harm == "source":
        source.write_bytes(source.read_bytes()[::-1])
    else:
        (models / ".llama.part" / ".journal").write_text("{")
    path = model_import.copy_model(llama, models)
    assert (path / source.name).read_bytes() == source.read_bytes()


def test_what_the_disk_gives_back_otherwise_is_noticed_and_copied_anew(share, tmp_path):
    models, llama = tmp_path / "models", found_in(share)["llama"]

    def spoil(progress) -> None:
        if progress.file != "config.json":
            (models / ".llama.part" / "config.json").write_text("[]")

    with pytest.raises(CannotImport, match=r"config\.json"):
        model_import.copy_model(llama, models, tell=spoil)
    assert model_import.find_models(models) == []
    path = model_import.copy_model(llama, models)
    assert (path / "config.json").read_bytes() == (share / "llama" / "config.json").read_bytes()


def test_it_is_said_before_when_the_disk_has_no_room(share, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=model_import.SPARE + 10)
    monkeypatch.setattr(model_import.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CannotImport, match="GB free"):
        model_import.copy_model(found_in(share)["llama"], tmp_path / "models")
    assert contents(tmp_path / "models" / ".llama.part") == {}


def test_a_model_that_is_there_is_left_alone(share, tmp_path):
    (tmp_path / "models" / "llama").mkdir(parents=True)
    with pytest.raises(CannotImport, match="there already"):
        model_import.copy_model(found_in(share)["llama"], tmp_path / "models")
    model_import.copy_model(found_in(share)["llama"], tmp_path / "models", name="llama-2")


@pytest.mark.parametrize("name", ["../out", ".hidden", "a/b", "a b"])
def test_a_name_leads_nowhere_else(share, tmp_path, name):
    with pytest.raises(CannotImport):
        model_import.copy_model(found_in(share)["llama"], tmp_path / "models", name=name)


def test_a_link_that_leads_nowhere_makes_no_model(share, tmp_path):
    (share / "llama" / "tokenizer.json").symlink_to("/nowhere")
    with pytest.raises(CannotImport, match="nowhere"):
        model_import.copy_model(found_in(share)["llama"], tmp_path / "models")


# --- the command


def said(*args: object) -> str:
    out = StringIO()
    call_command("importmodel", *map(str, args), stdout=out, stderr=StringIO())
    return out.getvalue()


@pytest.mark.django_db
def test_a_folder_is_only_listed_with_what_is_wrong(share, tmp_path):
    listed = said(share, "--to", tmp_path / "models")
    rows = {line.split()[0]: line.split() for line in listed.splitlines() if line.startswith("/")}
    assert "yes" in rows[str(share / "llama")]
    assert "no" in rows[str(share / "files" / "large-00001-of-00002.gguf")]
    assert "acme/base" in listed  # what the adapter belongs to
    assert not (tmp_path / "models").exists()


@pytest.mark.django_db
def test_a_model_is_copied_by_the_command_and_its_path_is_printed(share, tmp_path):
    path = said(share / "files" / "tiny.gguf", "--to", tmp_path / "models", "--as", "t").strip()
    assert path == str(tmp_path / "models" / "t" / "tiny.gguf")
    assert Path(path).read_bytes() == (share / "files" / "tiny.gguf").read_bytes()


@pytest.mark.django_db
@pytest.mark.parametrize("what", ["adapter", "nothing", "files/large-00001-of-00002.gguf"])
def test_what_is_no_whole_model_is_not_copied(share, tmp_path, what):
    with pytest.raises(CommandError):
        said(share / what, "--to", tmp_path / "models")
    assert not (tmp_path / "models").exists()
