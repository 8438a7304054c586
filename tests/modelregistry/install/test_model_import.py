"""Models on a share: they are listed, and a chosen one is copied completely or not at all."""

import errno
import hashlib
import os
import shutil
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from modelregistry.install import copying, model_import
from modelregistry.install.copying import CannotImport
from modelregistry.install.model_import import Found
from modelregistry.management.commands import importmodel
from modelregistry.models import Host, HostReport
from tests.modelregistry import paper_models


@pytest.fixture
def share(tmp_path) -> Path:
    """Return a directory for vLLM, two GGUF files of which one comes in parts, a snapshot of a cache.

    A LoRA adapter.
    """
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
    return {one.name: one for one in model_import.find_models(share).models}


def refusal(found: Found, models: Path, **more) -> tuple[str, Path | None]:
    """Return why a model is not copied: the code, and which path it is about."""
    with pytest.raises(CannotImport) as refused:
        model_import.copy_model(found, models, **more)
    return refused.value.code, refused.value.path


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != copying.SUMS]
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
    sums = dict(reversed(line.split("  ")) for line in (path / copying.SUMS).read_text().splitlines())
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
    assert refusal(cached, tmp_path / "models", name="again") == ("damaged", cached.path / "model.safetensors")
    assert not (tmp_path / "models" / "again").exists()


class Broken(Exception):
    pass


def broken_off(found: Found, models: Path, monkeypatch, *, after: int) -> None:
    """Interrupt an import after so many pieces, as a power cut would."""
    left = after

    def tell(progress) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Broken

    with pytest.raises(Broken):
        model_import.copy_model(found, models, report=tell)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(copying, "PIECE", 1000)
    monkeypatch.setattr(copying, "SAVED_EVERY", 2000)


def test_what_is_half_made_is_no_model_and_is_gone_on_with(share, tmp_path, monkeypatch, small_pieces):
    models, llama = tmp_path / "models", found_in(share)["llama"]
    broken_off(llama, models, monkeypatch, after=20)
    assert model_import.find_models(models).models == []
    read = []
    path = model_import.copy_model(llama, models, report=lambda progress: read.append(progress.done))
    assert path.exists()
    there = contents(share / "llama")
    del there[".git/config"]
    assert contents(path) == there
    assert len(read) < 1 + sum(-(-len(data) // 1000) for data in there.values()) - 15  # the pieces of before are kept
    assert read[-1] == sum(map(len, there.values()))


@pytest.mark.parametrize("harm", ["copy", "source", "journal"])
def test_what_does_not_match_is_copied_again(share, tmp_path, monkeypatch, small_pieces, harm):
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


def test_what_the_disk_returns_differently_is_noticed_and_copied_again(share, tmp_path):
    models, llama = tmp_path / "models", found_in(share)["llama"]

    def spoil(progress) -> None:
        if progress.file != "config.json":
            (models / ".llama.part" / "config.json").write_text("[]")

    assert refusal(llama, models, report=spoil) == ("damaged-copy", models / ".llama.part" / "config.json")
    assert model_import.find_models(models).models == []
    path = model_import.copy_model(llama, models)
    assert (path / "config.json").read_bytes() == (share / "llama" / "config.json").read_bytes()


def test_it_is_said_before_when_the_disk_has_no_room(share, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=copying.SPARE + 10)
    monkeypatch.setattr(copying.shutil, "disk_usage", lambda path: usage)
    assert refusal(found_in(share)["llama"], tmp_path / "models") == ("no-room", tmp_path / "models")
    assert contents(tmp_path / "models" / ".llama.part") == {}


def test_a_model_that_is_there_is_left_alone(share, tmp_path):
    (tmp_path / "models" / "llama").mkdir(parents=True)
    assert refusal(found_in(share)["llama"], tmp_path / "models") == ("exists", tmp_path / "models" / "llama")
    model_import.copy_model(found_in(share)["llama"], tmp_path / "models", name="llama-2")


@pytest.mark.parametrize("name", ["../out", ".hidden", "a/b", "a b"])
def test_a_name_leads_nowhere_else(share, tmp_path, name):
    assert refusal(found_in(share)["llama"], tmp_path / "models", name=name) == ("bad-name", None)


def test_a_link_that_leads_nowhere_makes_no_model(share, tmp_path):
    link = share / "llama" / "tokenizer.json"
    link.symlink_to("/nowhere")
    assert refusal(found_in(share)["llama"], tmp_path / "models") == ("dangling-link", link)


# --- links, and what else a share may hold


@pytest.fixture
def secret(tmp_path) -> Path:
    """Create a file of this machine, beside the share."""
    secret = tmp_path / "secret-key"
    secret.write_text("hunter2")
    return secret


@pytest.mark.parametrize("by", ["file", "folder"])
def test_a_link_out_of_what_was_named_is_refused_and_reported(share, tmp_path, secret, by):
    link = share / "llama" / "extra"
    link.symlink_to(secret if by == "file" else secret.parent)
    assert refusal(found_in(share)["llama"], tmp_path / "models") == ("link-out", link)
    assert not (tmp_path / "models").exists()


def test_a_gguf_file_that_is_a_link_out_is_refused(share, tmp_path, secret):
    planted = share / "files" / "planted.gguf"
    planted.symlink_to(secret)
    for found in (found_in(share)["planted"], model_import.find_models(planted).models[0]):
        assert refusal(found, tmp_path / "models") == ("link-out", planted)


def test_a_snapshot_that_is_named_itself_reaches_its_blobs_and_nothing_else(share, tmp_path, secret):
    snapshot = share / "hub" / "models--acme--cached" / "snapshots" / "0123"
    [found] = model_import.find_models(snapshot).models
    assert found.name == "cached"
    path = model_import.copy_model(found, tmp_path / "models")
    assert (path / "config.json").read_bytes() == (snapshot / "config.json").read_bytes()
    (snapshot / "notes.txt").symlink_to(share / "files" / "tiny.gguf")
    assert refusal(found, tmp_path / "models", name="again") == ("link-out", snapshot / "notes.txt")


def test_a_link_that_is_turned_round_after_it_was_looked_at_brings_nothing(share, tmp_path, secret):
    inside = share / "llama" / "a.txt"  # is copied first
    inside.write_text("fine")
    turned = share / "llama" / "z.txt"
    turned.symlink_to("a.txt")

    def turn(progress) -> None:
        if progress.file == "a.txt":
            turned.unlink()
            turned.symlink_to(secret)

    assert refusal(found_in(share)["llama"], tmp_path / "models", report=turn) == ("link-out", turned)
    assert "hunter2" not in {path.read_text() for path in (tmp_path / "models").rglob("z.txt")}


def test_a_folder_of_models_that_lies_elsewhere_is_named_rather_than_followed(share, tmp_path):
    paper_models.small_llama(tmp_path / "elsewhere" / "other")
    (share / "more").symlink_to(tmp_path / "elsewhere")
    listing = model_import.find_models(share)
    assert "other" not in {one.name for one in listing.models}
    assert any(str(tmp_path / "elsewhere") in note for note in listing.notes)


def test_linked_folders_within_the_share_are_copied_as_folders(share, tmp_path):
    (share / "llama" / "pooling").symlink_to("1_Pooling")
    path = model_import.copy_model(found_in(share)["llama"], tmp_path / "models")
    assert (path / "pooling" / "config.json").read_text() == "{}"
    assert not (path / "pooling").is_symlink()


def test_links_in_a_circle_end_no_search_and_make_no_copy(share, tmp_path):
    (share / "llama" / "round").symlink_to(".")
    (share / "files" / "round").symlink_to("..")
    (share / "files" / "self").symlink_to("self")
    assert set(found_in(share)) == {"llama", "adapter", "cached", "tiny", "large"}
    assert refusal(found_in(share)["llama"], tmp_path / "models") == ("circle", share / "llama" / "round")


def test_what_is_neither_file_nor_folder_is_not_left_out_without_a_word(share, tmp_path):
    os.mkfifo(share / "llama" / "vocab.bpe")
    assert refusal(found_in(share)["llama"], tmp_path / "models") == ("special-file", share / "llama" / "vocab.bpe")


def test_deep_folders_of_a_model_are_copied_or_reported(share, tmp_path):
    deep = share / "llama" / "1/2/3/4/5/6"
    deep.mkdir(parents=True)
    (deep / "x.txt").write_text("x")
    path = model_import.copy_model(found_in(share)["llama"], tmp_path / "models")
    assert (path / "1/2/3/4/5/6/x.txt").read_text() == "x"
    (deep / "/".join("abcdefghijkl")).mkdir(parents=True)
    code, path = refusal(found_in(share)["llama"], tmp_path / "models", name="again")
    assert code == "too-deep"
    assert path.is_relative_to(deep)


@pytest.mark.parametrize("name", ["a\nb.txt", "\x1b[2K.txt", "\u202egpj.txt", os.fsdecode(b"x\xff.txt")])
def test_names_that_cannot_be_printed_make_no_model(share, tmp_path, name):
    (share / "llama" / name).write_text("x")
    assert refusal(found_in(share)["llama"], tmp_path / "models") == ("unprintable-name", share / "llama" / name)


def test_a_projector_comes_with_the_model_that_it_is_called_by(share, tmp_path):
    found = found_in(share)
    assert model_import.projectors_of(found["tiny"]) == ["mmproj-tiny.gguf"]
    assert model_import.projectors_of(found["large"]) == []
    path = model_import.copy_model(found["tiny"], tmp_path / "models")
    assert (path.parent / "mmproj-tiny.gguf").exists()


def test_a_projector_that_names_no_model_comes_with_each(share):
    (share / "files" / "mmproj-F16.gguf").write_bytes(b"GGUF")
    found = found_in(share)
    assert "mmproj-F16.gguf" in model_import.projectors_of(found["tiny"])
    assert "mmproj-F16.gguf" in model_import.projectors_of(found["large"])


def test_a_projector_alone_is_listed(share):
    for file in [*(share / "files").glob("large*"), share / "files" / "tiny.gguf"]:
        file.unlink()
    assert "mmproj-tiny" in found_in(share)


@pytest.fixture
def two_snapshots(share) -> Path:
    """Create two snapshots of one model: `main` is 0123; 4567 was fetched after it."""
    cache = share / "hub" / "models--acme--cached"
    shutil.copytree(cache / "snapshots" / "0123", cache / "snapshots" / "4567", symlinks=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123")
    os.utime(cache / "snapshots" / "0123", (1, 1))
    return cache


def test_of_two_snapshots_that_of_main_is_taken(share, two_snapshots):
    assert found_in(share)["cached"].path.name == "0123"


def test_a_broken_snapshot_hides_no_whole_one(share, two_snapshots):
    (two_snapshots / "snapshots" / "0123" / "tokenizer.json").symlink_to("../../blobs/nothing")
    listing = model_import.find_models(share)
    assert "4567" in {one.path.name for one in listing.models}
    assert any(str(two_snapshots / "snapshots" / "0123") in note and "4567" in note for note in listing.notes)


def test_a_folder_that_cannot_be_read_ends_no_search(share, monkeypatch):
    listdir = os.listdir

    def refusing(folder):
        if Path(folder) == share / "adapter":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return listdir(folder)

    monkeypatch.setattr(model_import.os, "listdir", refusing)
    listing = model_import.find_models(share)
    assert {one.name for one in listing.models} == {"llama", "cached", "tiny", "large"}
    [note] = listing.notes
    assert str(share / "adapter") in note
    assert os.strerror(errno.EACCES) in note


def test_a_search_has_an_end_and_says_so(share, monkeypatch):
    monkeypatch.setattr(model_import, "MOST_FOLDERS", 3)
    note = model_import.find_models(share).notes[-1]
    assert str(share) in note
    assert "3" in note.replace(str(share), "")


def test_no_copy_is_made_within_its_own_source(share):
    models = share / "llama" / "models"
    assert refusal(found_in(share)["llama"], models) == ("within-itself", models)


def test_no_file_is_emptied_by_way_of_a_link_where_the_lock_is(share, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ".llama.lock").symlink_to(victim)
    lock = tmp_path / "models" / ".llama.lock"
    assert refusal(found_in(share)["llama"], tmp_path / "models") == ("not-written", lock)
    assert victim.read_text() == "mine"


def test_no_folder_is_emptied_by_way_of_a_link_where_the_copy_is_made(share, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "mine").write_text("mine")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ".llama.part").symlink_to(victim)
    workspace = tmp_path / "models" / ".llama.part"
    assert refusal(found_in(share)["llama"], tmp_path / "models") == ("linked-workspace", workspace)
    assert (victim / "mine").exists()


def test_a_folder_of_an_earlier_source_makes_room_for_a_file(share, tmp_path):
    (tmp_path / "models" / ".llama.part" / "config.json" / "x").mkdir(parents=True)
    path = model_import.copy_model(found_in(share)["llama"], tmp_path / "models")
    assert (path / "config.json").is_file()


def test_to_run_it_again_is_advised_only_where_that_may_help(share, tmp_path, monkeypatch):
    assert refusal(found_in(share)["llama"], Path("/proc/nowhere")) == ("not-written", Path("/proc/nowhere"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(copying.os, "fsync", full)
    assert refusal(found_in(share)["llama"], tmp_path / "models") == ("interrupted", tmp_path / "models" / "llama")


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
    with pytest.raises(CommandError) as refused:
        said(share / what, "--to", tmp_path / "models")
    assert refused.value.__cause__.code == ("missing" if what == "nothing" else "not-whole")
    assert not (tmp_path / "models").exists()


@pytest.mark.django_db
def test_nothing_is_read_of_a_model_whose_links_lead_out(share, tmp_path, secret):
    (share / "llama" / "a.safetensors").symlink_to(secret)
    listed = said(share, "--to", tmp_path / "models")
    assert "hunter2" not in listed
    assert str(secret) in listed


@pytest.mark.django_db
def test_one_odd_model_ends_no_listing(share, tmp_path, monkeypatch):
    read = importmodel.model_files.read_model

    def odd(engine, path, allowed):
        if path.endswith("llama"):
            raise OverflowError("int too large to convert")
        return read(engine, path, allowed)

    monkeypatch.setattr(importmodel.model_files, "read_model", odd)
    listed = said(share, "--to", tmp_path / "models")
    rows = {line.split()[0]: line.split() for line in listed.splitlines() if line.startswith("/")}
    assert "no" in rows[str(share / "llama")]
    assert "yes" in rows[str(share / "files" / "tiny.gguf")]
    assert "OverflowError" in listed


@pytest.mark.django_db
def test_a_listing_is_a_row_to_a_model_whatever_its_files_say(share, tmp_path):
    paper_models.small_llama(share / "odd", architectures=["\x1b[31mRED\x1b]0;pwn\x07\nLlama\r" + "x" * 1000])
    paper_models.small_llama(share / "line\nbreak")
    listed = said(share, "--to", tmp_path / "models")
    assert listed.strip().replace("\n", "").isprintable()
    assert len([line for line in listed.splitlines() if not line.startswith("  ! ")]) == 1 + 7
    plain = next(line for line in listed.splitlines() if line.startswith(str(share / "llama ")))
    assert len(plain) < 300  # the long one moves only its own row


@pytest.mark.django_db
def test_why_a_model_does_not_fit_is_listed(share, tmp_path, settings):
    host = Host.objects.create(name=settings.HOST_NAME)
    ram = {"index": -1, "uuid": "ram", "name": "RAM", "kind": "ram", "total": 10**6, "used": 0, "free": 10**6}
    HostReport.objects.create(host=host, devices=[ram], engines={"vllm": "0.32.0"}, at=timezone.now())
    listed = said(share, "--to", tmp_path / "models")
    [row] = [line for line in listed.splitlines() if line.startswith(str(share / "llama"))]
    assert row.split()[-1] == "no"
    assert any(line.startswith(f"  ! {share / 'llama'}: ") for line in listed.splitlines())


@pytest.mark.django_db
def test_no_path_is_not_this_folder():
    with pytest.raises(CommandError, match="path"):
        said("")


@pytest.mark.django_db
def test_that_nothing_was_found_is_said_with_how_deep_it_was_looked(tmp_path):
    (tmp_path / "1/2/3/4/5/6").mkdir(parents=True)
    with pytest.raises(CommandError) as refused:
        said(tmp_path)
    assert refused.value.__cause__.code == "no-model"
    assert str(model_import.DEPTH) in str(refused.value).replace(str(tmp_path), "")


@pytest.mark.django_db
def test_an_interrupted_copy_says_how_to_go_on(share, tmp_path, monkeypatch):
    def interrupted(*args, **values):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_import, "copy_model", interrupted)
    with pytest.raises(CommandError) as told:
        said(share / "llama", "--to", tmp_path / "models")
    assert told.value.returncode == 130
