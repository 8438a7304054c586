"""Models' files go from host to host, whole or not at all, whatever dies or fills up in the middle."""

import contextlib
import hashlib
import http.client
import os
import shutil
import ssl
import threading
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from modelregistry.cluster import certificates
from modelregistry.cluster.access import tls_context
from modelregistry.hostside.surface import HostFault
from modelregistry.install import copying, model_import
from modelregistry.install.copying import SUMS
from modelregistry.transfer import local
from modelregistry.transfer.download import RateLimit
from modelregistry.transfer.local import FileConfig, LocalFiles
from modelregistry.transfer.surface import FetchOrder, FetchPhase, FetchState, OfferedFile
from tests.modelregistry.file_host import MEGABYTE, SIZE, SLOWLY, SPARE, FileHost, contents, fill, give_llama
from tests.waiting import eventually


class Pair:
    """A host that has a model, and one that is to have it, at the path that is the model's on both.

    In production that is one path; here each has its models elsewhere, so the orders name both.
    """

    def __init__(self, source: FileHost, target: FileHost) -> None:
        self.source = source
        self.target = target

    async def order(self, name: str = "llama", *, limit: int = 0, copy: str = "c1") -> FetchState:
        offer = await self.source.files.offer_files(copy, str(self.source.directory / "models" / name))
        assert (offer.code, offer.detail) == ("", "")
        path = str(self.target.directory / "models" / name)
        return await self.target.files.fetch_files(FetchOrder(copy=copy, path=path, limit=limit, offer=offer))

    async def over(self, copy: str = "c1") -> FetchState:
        async def read() -> FetchState | None:
            found = await self.target.files.read_fetch(copy)
            return found if found.phase is not FetchPhase.RUNNING else None

        return await eventually(read)

    async def reaches(self, done: int) -> FetchState:
        async def read() -> FetchState | None:
            found = await self.target.files.read_fetch("c1")
            assert found.phase is FetchPhase.RUNNING
            return found if found.done >= done else None

        return await eventually(read)

    async def copies(self, name: str = "llama", **how) -> FetchState:
        await self.order(name, **how)
        return await self.over()

    def assert_whole(self, name: str = "llama") -> None:
        there, here = self.source.models / name, self.target.models / name
        assert contents(here) == contents(there)
        assert not [path for path in here.parent.iterdir() if path.name.endswith(".part")]

    def assert_nothing_there(self, name: str = "llama") -> None:
        assert not os.path.lexists(self.target.models / name)
        assert model_import.find_models(self.target.models).models == []


@pytest.fixture
def pair(start_file_host) -> Pair:
    found = Pair(start_file_host("one"), start_file_host("two"))
    give_llama(found.source)
    return found


async def test_a_model_is_copied_with_all_that_belongs_to_it_and_its_checksums(pair):
    state = await pair.copies()
    assert (state.phase, state.code) == (FetchPhase.DONE, "")
    assert state.done == state.total == sum(map(len, contents(pair.source.models / "llama").values()))
    pair.assert_whole()
    sums = copying.read_sums(pair.target.models / "llama" / SUMS)
    assert sums == {
        name: hashlib.sha256(data).hexdigest() for name, data in contents(pair.source.models / "llama").items()
    }
    assert (await pair.copies(copy="c1")).phase is FetchPhase.DONE  # again, it is there


async def test_a_gguf_file_comes_beside_others_with_its_parts(pair):
    source, target = pair.source.models / "files", pair.target.models / "files"
    source.mkdir()
    target.mkdir()
    for number in (1, 2):
        fill(source / f"large-0000{number}-of-00002.gguf")
    fill(source / "other.gguf", 100)
    fill(target / "mine.gguf", 100)
    copying.write_sums(target / SUMS, {"mine.gguf": "0" * 64})
    assert (await pair.copies("files/large-00001-of-00002.gguf")).phase is FetchPhase.DONE
    there = {path.name for path in target.iterdir()}
    assert there == {"large-00001-of-00002.gguf", "large-00002-of-00002.gguf", "mine.gguf", SUMS}
    assert copying.read_sums(target / SUMS).keys() == there - {SUMS}
    assert not list(pair.target.models.rglob("*.part"))


async def test_what_comes_with_a_gguf_file_replaces_nothing(pair):
    source, target = pair.source.models / "files", pair.target.models / "files"
    source.mkdir()
    target.mkdir()
    fill(source / "large.gguf", 1000)
    fill(source / "mmproj-large.gguf", 1000)
    (target / "mmproj-large.gguf").write_bytes(b"another one")
    state = await pair.copies("files/large.gguf")
    assert (state.phase, state.code) == (FetchPhase.FAILED, "exists")
    assert [path.name for path in target.iterdir()] == ["mmproj-large.gguf"]
    shutil.copy(source / "mmproj-large.gguf", target)
    assert (await pair.copies("files/large.gguf")).phase is FetchPhase.DONE
    assert contents(target) == contents(source)


async def test_a_source_that_is_killed_is_asked_again_where_it_was(pair):
    await pair.order(limit=SLOWLY)
    await pair.reaches(SIZE // 2)
    pair.source.kill()
    state = await pair.over()
    assert (state.phase, state.code) == (FetchPhase.FAILED, "source-away")
    pair.assert_nothing_there()
    pair.source.start()
    kept = (pair.target.models / ".llama.part" / "model.safetensors").stat().st_size
    assert kept >= SIZE // 4
    given = await bytes_given(pair)
    assert given <= SIZE - kept + 100_000
    pair.assert_whole()


async def bytes_given(pair: Pair) -> int:
    """Finish the copy, and return how much of the large file was sent for that, by what the source has read."""
    assert pair.source.process
    io = Path(f"/proc/{pair.source.process.pid}/io")

    def sent() -> int:
        return int(next(line for line in io.read_text().splitlines() if line.startswith("wchar")).split()[1])

    before = sent()
    assert (await pair.copies()).phase is FetchPhase.DONE
    return sent() - before


async def test_a_target_that_is_killed_goes_on_where_it_was(pair):
    await pair.order(limit=SLOWLY)
    await pair.reaches(SIZE // 2)
    pair.target.kill()
    pair.assert_nothing_there()
    pair.target.start()
    assert (await pair.target.files.read_fetch("c1")).phase is FetchPhase.UNKNOWN
    assert await bytes_given(pair) <= SIZE - MEGABYTE + 100_000  # a piece at least was kept
    pair.assert_whole()


async def test_a_fetch_that_no_controller_asks_for_stops(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "UNWATCHED", 0.5)
    share = tmp_path / "share"
    for folder in (share, tmp_path / "models"):
        folder.mkdir()
    fill(share / "m.gguf")
    files = LocalFiles(FileConfig(models=tmp_path / "models", state=tmp_path, spare=SPARE))
    path = str(tmp_path / "models" / "m.gguf")
    await files.fetch_files(FetchOrder(copy="c1", path=path, limit=SIZE // 20, directory=str(share)))
    await eventually(lambda: "fetch" not in {thread.name for thread in threading.enumerate()}, 15)  # not the whole 20 s
    found = await files.read_fetch("c1")
    assert (found.phase, found.code) == (FetchPhase.FAILED, "stopped")
    await files.close()


async def test_a_draft_that_was_damaged_meanwhile_is_fetched_again(pair):
    await pair.order(limit=SLOWLY)
    await pair.reaches(SIZE // 2)
    await pair.target.files.stop_fetch("c1")
    assert (await pair.over()).code == "stopped"
    with (pair.target.models / ".llama.part" / "model.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    assert (await pair.copies()).phase is FetchPhase.DONE
    pair.assert_whole()


@pytest.mark.parametrize("how", ["replaced", "written into", "shortened"])
async def test_a_file_that_changes_at_the_source_makes_no_model(pair, how):
    weights = pair.source.models / "llama" / "model.safetensors"
    await pair.order(limit=SLOWLY)
    await pair.reaches(SIZE // 2)
    if how == "replaced":
        fill(weights.with_name("new"))
        weights.with_name("new").rename(weights)
    else:
        with weights.open("r+b") as file:
            file.write(b"changed") if how == "written into" else file.truncate(SIZE - 500_000)
    state = await pair.over()
    assert (state.phase, state.code) in [(FetchPhase.FAILED, "changed"), (FetchPhase.FAILED, "source-away")]
    pair.assert_nothing_there()
    assert (await pair.copies()).phase is FetchPhase.DONE
    pair.assert_whole()


async def test_what_is_not_as_its_checksum_says_is_not_copied(pair):
    llama = pair.source.models / "llama"
    good = (llama / "model.safetensors").read_bytes()
    copying.write_sums(llama / SUMS, {name: hashlib.sha256(data).hexdigest() for name, data in contents(llama).items()})
    at = (llama / "model.safetensors").stat()
    (llama / "model.safetensors").write_bytes(bytes([good[0] ^ 1]) + good[1:])
    os.utime(llama / "model.safetensors", ns=(at.st_atime_ns, at.st_mtime_ns))  # as a disk does it
    state = await pair.copies()
    assert (state.phase, state.code) == (FetchPhase.FAILED, "damaged")
    pair.assert_nothing_there()
    (llama / "model.safetensors").write_bytes(good)
    os.utime(llama / "model.safetensors", ns=(at.st_atime_ns, at.st_mtime_ns))
    assert (await pair.copies()).phase is FetchPhase.DONE
    pair.assert_whole()


async def test_checksums_are_computed_once(pair):
    path = str(pair.source.directory / "models" / "llama")
    assert {file.sha256 for file in (await pair.source.files.offer_files("c1", path)).files} == {""}
    await pair.copies()
    assert all(file.sha256 for file in (await pair.source.files.offer_files("c2", path)).files)
    pair.source.kill()
    pair.source.start()
    assert all(file.sha256 for file in (await pair.source.files.offer_files("c2", path)).files)


async def test_it_is_said_before_when_the_disk_has_no_room(start_file_host):
    pair = Pair(start_file_host("one"), start_file_host("two", disk=SIZE + SPARE // 2))
    give_llama(pair.source)
    state = await pair.copies()
    assert (state.phase, state.code, state.done) == (FetchPhase.FAILED, "no-room", 0)
    pair.assert_nothing_there()


async def test_a_disk_that_others_fill_meanwhile_ends_the_copy_and_it_goes_on_when_there_is_room(start_file_host):
    pair = Pair(start_file_host("one"), start_file_host("two", disk=2 * SIZE + SPARE))
    give_llama(pair.source)
    await pair.order(limit=SLOWLY)
    await pair.reaches(SIZE // 2)
    filler = pair.target.models / "filler"
    with contextlib.suppress(OSError):
        filler.write_bytes(bytes(2 * SIZE))
    state = await pair.over()
    assert state.phase is FetchPhase.FAILED
    assert state.code in ("no-room", "interrupted")
    pair.assert_nothing_there()
    filler.unlink()
    assert (await pair.copies()).phase is FetchPhase.DONE
    pair.assert_whole()


async def test_what_was_given_up_is_deleted(pair):
    await pair.order(limit=SLOWLY)
    await pair.reaches(SIZE // 2)
    path = str(pair.target.directory / "models" / "llama")
    with pytest.raises(HostFault):
        await pair.target.files.drop_draft(path)
    await pair.target.files.stop_fetch("c1")
    await pair.over()
    await pair.target.files.drop_draft(path)
    assert [path.name for path in pair.target.models.iterdir()] == [".llama.lock"]


async def test_a_shared_folder_of_the_target_is_a_source_as_well(pair, tmp_path):
    (tmp_path / "share").mkdir()
    shutil.copytree(pair.source.models / "llama", tmp_path / "share" / "llama")
    path = str(pair.target.directory / "models" / "llama")
    for directory, code in ((tmp_path / "elsewhere", "missing"), (tmp_path / "share", "")):
        await pair.target.files.fetch_files(FetchOrder(copy="c1", path=path, directory=str(directory)))
        assert (await pair.over()).code == code
    pair.assert_whole()


# --- What is refused


@pytest.mark.parametrize(
    "path", ["/etc/ssl", "{}/../secrets", "{}", "{}/.llama.part", "{}/out", "{}/in/hosts", "x", ""]
)
async def test_nothing_outside_the_models_folder_is_offered(pair, path):
    models = pair.source.directory / "models"
    (models / "out").symlink_to(pair.target.directory / "models")
    (models / "in").symlink_to(pair.source.directory.parent.parent)
    offer = await pair.source.files.offer_files("c1", path.format(models))
    assert offer.code in ("outside", "link-out", "no-model")
    assert (offer.url, offer.token, list(offer.files)) == ("", "", [])


async def test_links_out_of_a_model_are_not_followed(pair):
    (pair.source.models / "llama" / "more.json").symlink_to(pair.source.directory / "secrets" / "host.key")
    path = str(pair.source.directory / "models" / "llama")
    assert (await pair.source.files.offer_files("c1", path)).code == "link-out"


async def test_a_link_that_is_turned_round_after_the_offer_gives_nothing(pair):
    path = str(pair.source.directory / "models" / "llama")
    offer = await pair.source.files.offer_files("c1", path)
    [number] = [at for at, file in enumerate(offer.files) if file.name == "config.json"]
    at = pair.source.models / "llama" / "config.json"
    at.unlink()
    at.symlink_to(pair.source.directory / "secrets" / "host.key")
    found = at.stat()
    stamp = f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"
    assert ask(pair, offer.url, number, offer.token, stamp) == 412


def ask(pair: Pair, url: str, number: int, token: str, stamp: str, context: ssl.SSLContext | None = None) -> int:
    """Ask for a file, and return the status."""
    context = context or tls_context(pair.target.directory / "secrets", server=False)
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=10, context=context)
    with contextlib.closing(connection):
        headers = {"Authorization": f"Bearer {token}", "If-Match": f'"{stamp}"'}
        connection.request("GET", f"/files/{number}", headers=headers)
        return connection.getresponse().status


async def test_files_are_given_to_who_has_the_token_and_a_certificate_of_the_cluster(pair, issue, tmp_path):
    path = str(pair.source.directory / "models" / "llama")
    offer = await pair.source.files.offer_files("c1", path)
    stamp = offer.files[0].stamp
    assert ask(pair, offer.url, 0, offer.token, stamp) == 200
    assert ask(pair, offer.url, 0, "another", stamp) == 401
    assert ask(pair, offer.url, 99, offer.token, stamp) == 404
    certificates.create_authority(tmp_path / "others")
    stranger = issue("stranger", signer=tmp_path / "others")
    for secrets in (None, stranger):
        context = ssl.create_default_context(cafile=str(pair.target.directory / "secrets" / "ca.crt"))
        if secrets:
            context.load_cert_chain(secrets / "host.crt", secrets / "host.key")
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            ask(pair, offer.url, 0, offer.token, stamp, context)


async def test_what_was_withdrawn_is_given_no_more(pair):
    path = str(pair.source.directory / "models" / "llama")
    offer = await pair.source.files.offer_files("c1", path)
    other = await pair.source.files.offer_files("c2", path)
    await pair.source.files.withdraw_offer("c1")
    assert ask(pair, offer.url, 0, offer.token, offer.files[0].stamp) == 401
    await pair.source.files.withdraw_offer("c2")

    def is_closed() -> bool:
        try:
            ask(pair, other.url, 0, other.token, other.files[0].stamp)
        except OSError:
            return True
        return False

    await eventually(is_closed)  # nothing listens where nothing is offered


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b", ".hidden", "a//b", "", "a\nb", SUMS, "x" * 2000])
async def test_names_of_another_host_lead_nowhere_else(pair, name):
    path = str(pair.source.directory / "models" / "llama")
    offer = await pair.source.files.offer_files("c1", path)
    offer = replace(offer, files=[*offer.files, OfferedFile(name=name, size=1, stamp="")])
    where = str(pair.target.directory / "models" / "llama")
    await pair.target.files.fetch_files(FetchOrder(copy="c1", path=where, offer=offer))
    assert (await pair.over()).code == "bad-offer"
    pair.assert_nothing_there()


async def test_nothing_is_written_outside_the_models_folder(pair):
    path = str(pair.source.directory / "models" / "llama")
    offer = await pair.source.files.offer_files("c1", path)
    (pair.target.directory / "models" / "out").symlink_to(pair.target.directory)
    for where in (pair.target.directory / "llama", pair.target.directory / "models" / "out" / "llama"):
        await pair.target.files.fetch_files(FetchOrder(copy="c1", path=str(where), offer=offer))
        assert (await pair.over()).code == "outside"
    assert not (pair.target.directory / "llama").exists()


async def test_a_model_that_is_another_one_is_left_alone(pair):
    (pair.target.models / "llama").mkdir()
    (pair.target.models / "llama" / "config.json").write_text("{}")
    assert (await pair.copies()).code == "exists"
    assert contents(pair.target.models / "llama") == {"config.json": b"{}"}


def test_a_limit_holds_over_time():
    now = waited = 0.0

    def wait(seconds: float) -> None:
        nonlocal now, waited
        now, waited = now + seconds, waited + seconds

    limit = RateLimit(1000, wait, lambda: now)
    for _ in range(10):
        limit.spend(500)
    assert waited == pytest.approx(5.0)
    now += 100.0  # a pause is not made up for
    for _ in range(10):
        limit.spend(500)
    assert waited >= 5.0 + 4.0
    RateLimit(0, wait).spend(10**12)
    assert waited < 10.0


async def test_a_copy_keeps_its_limit(pair):
    began = time.monotonic()
    assert (await pair.copies(limit=SLOWLY)).phase is FetchPhase.DONE
    assert time.monotonic() - began >= 0.9 * SIZE / SLOWLY
