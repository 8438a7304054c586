"""Copies that were requested are carried out by the hosts, and go on when any of these was started again."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from modelregistry.controller import repository
from modelregistry.controller.copier import Copier
from modelregistry.controller.repository import CopyProgress, CopyRequest
from modelregistry.management.commands import copymodel
from modelregistry.models import Host, ModelCopy, ServedModel
from modelregistry.transfer.surface import FetchPhase
from tests.clock import Clock
from tests.modelregistry.file_host import MEGABYTE, SIZE, SLOWLY, SPARE, FileHost, contents, give_llama
from tests.waiting import eventually

State = ModelCopy.State


class PaperBook:
    """Requests by their numbers."""

    def __init__(self) -> None:
        self.requests: dict[str, CopyRequest] = {}

    async def open_copies(self):
        return [one for one in self.requests.values() if one.progress.state not in (State.DONE, State.FAILED)]

    async def note_copy(self, number, progress):
        before = self.requests[number]
        if before.progress.state != State.STOPPING:
            self.requests[number] = replace(before, progress=progress)

    async def delete_copy(self, number):
        del self.requests[number]


class CopySite:
    """Hosts that have their models at one path, each its own ones, and the copier of a controller."""

    def __init__(self, start: Callable[..., FileHost], models: Path) -> None:
        self.start = start
        self.path = models
        self.hosts: dict[str, FileHost] = {}
        self.clock = Clock()
        self.book = PaperBook()
        self.arrived: list[str] = []
        self.renew_controller()

    def renew_controller(self) -> None:
        self.copier = Copier(
            lambda: {name: host.files for name, host in self.hosts.items()},
            self.book,
            arrived=self.arrived.append,
            clock=self.clock,
        )

    def add(self, name: str, *, disk: int = 0, has: bool = False) -> FileHost:
        host = self.hosts[name] = self.start(name, models=self.path, disk=disk)
        if has:
            give_llama(host)
        return host

    def request(self, host: str, *, source: str = "", limit: int = 0, name: str = "llama") -> str:
        number = f"c{len(self.book.requests)}"
        path = str(self.path / name)
        self.book.requests[number] = CopyRequest(
            number=number, path=path, host=host, source=source, limit=limit, progress=CopyProgress()
        )
        return number

    def of(self, number: str) -> CopyProgress:
        return self.book.requests[number].progress

    async def until(self, condition: Callable[[], object]) -> None:
        async def turn() -> bool:
            self.clock.now += 1.0
            await self.copier.work()
            return bool(condition())

        turning: Callable[[], Awaitable[bool]] = turn
        await eventually(turning)

    async def reaches(self, number: str, done: int) -> None:
        await self.until(lambda: self.of(number).done >= done)
        assert self.of(number).state == State.RUNNING

    async def ends(self, number: str, state: str = State.DONE) -> None:
        await self.until(lambda: self.of(number).state == state)

    def assert_whole(self, source: str, target: str) -> None:
        assert contents(self.hosts[target].models / "llama") == contents(self.hosts[source].models / "llama")


@pytest.fixture
def site(start_file_host, tmp_path) -> CopySite:
    return CopySite(start_file_host, tmp_path / "models")


@pytest.fixture
def two(site) -> CopySite:
    site.add("one", has=True)
    site.add("two")
    return site


async def test_a_model_goes_to_each_host_for_which_it_was_requested(two):
    two.add("three")
    numbers = [two.request("two"), two.request("three", source="one")]
    for number in numbers:
        await two.ends(number)
    two.assert_whole("one", "two")
    two.assert_whole("one", "three")
    assert sorted(two.arrived) == ["three", "two"]


async def test_it_goes_on_when_its_source_was_started_again(two):
    number = two.request("two", limit=SLOWLY)
    await two.reaches(number, SIZE // 2)
    two.hosts["one"].kill()
    await two.until(lambda: two.of(number).cause == "no-source")
    assert two.of(number).state == State.WAITING
    assert two.of(number).done >= MEGABYTE
    two.hosts["one"].start()
    await two.ends(number)
    two.assert_whole("one", "two")


async def test_it_goes_on_from_another_host_that_has_the_same_files(two):
    three = two.add("three")
    first = two.request("three")
    await two.ends(first)  # with its checksums, by which files of two hosts are known to be the same
    kept = two.request("two", source="one", limit=SLOWLY)
    await two.reaches(kept, SIZE // 2)
    two.hosts["one"].kill()
    two.book.requests[kept] = replace(two.book.requests[kept], source="")
    await two.ends(kept)
    assert contents(two.hosts["two"].models / "llama") == contents(three.models / "llama")


async def test_it_goes_on_when_its_target_was_started_again(two):
    number = two.request("two", limit=SLOWLY)
    await two.reaches(number, SIZE // 2)
    two.hosts["two"].kill()
    await two.until(lambda: two.of(number).cause == "host-away")
    assert two.of(number).done >= MEGABYTE
    assert not (two.hosts["two"].models / "llama").exists()
    two.hosts["two"].start()
    await two.ends(number)
    two.assert_whole("one", "two")


async def test_a_host_that_keeps_its_models_elsewhere_says_so(site, start_file_host):
    site.add("one", has=True)
    site.hosts["two"] = start_file_host("two")
    number = site.request("two")
    await site.ends(number, State.FAILED)
    assert site.of(number).cause == "outside"
    assert str(site.hosts["two"].path) in site.of(number).detail


async def test_another_controller_goes_on_with_what_runs(two):
    number = two.request("two", limit=SLOWLY)
    await two.reaches(number, SIZE // 2)
    two.renew_controller()
    before = two.of(number).done
    await two.copier.work()
    assert two.of(number).state == State.RUNNING
    assert two.of(number).done >= before
    await two.ends(number)
    two.assert_whole("one", "two")


async def test_what_failed_is_not_tried_again_until_it_is_requested_again(site):
    site.add("one", has=True)
    site.add("two", disk=SIZE + SPARE // 2)
    number = site.request("two")
    await site.ends(number, State.FAILED)
    assert (site.of(number).cause, site.arrived) == ("no-room", [])


async def test_a_host_copies_one_model_at_a_time_and_waits_for_none_that_no_host_has(two):
    nowhere = two.request("two", name="nowhere")
    number, other = two.request("two", limit=SLOWLY), two.request("two")
    await two.reaches(number, MEGABYTE)
    assert two.of(other).cause == "after-another"
    assert two.of(nowhere).cause in ("no-source", "after-another")
    await two.ends(number)
    await two.ends(other)
    await two.until(lambda: two.of(nowhere).cause == "no-source")


async def test_what_is_given_up_is_deleted(two):
    number = two.request("two", limit=SLOWLY)
    await two.reaches(number, MEGABYTE)
    request = two.book.requests[number]
    two.book.requests[number] = replace(request, progress=CopyProgress(state=State.STOPPING))
    await two.until(lambda: not two.book.requests)
    assert {path.name for path in two.hosts["two"].models.iterdir()} == {".llama.lock"}


async def test_a_copy_whose_model_was_deleted_is_stopped_and_what_it_brought_is_deleted(two):
    number = two.request("two", limit=SLOWLY)
    await two.reaches(number, MEGABYTE)
    del two.book.requests[number]
    await two.until(lambda: {path.name for path in two.hosts["two"].models.iterdir()} == {".llama.lock"})
    assert (await two.hosts["two"].files.read_fetch(number)).phase is FetchPhase.FAILED


async def test_a_copy_that_was_requested_again_goes_on_with_what_the_first_one_brought(two):
    first = two.request("two", limit=SLOWLY)
    await two.reaches(first, SIZE // 2)
    del two.book.requests[first]
    two.book.requests["again"] = CopyRequest(
        number="again", path=str(two.path / "llama"), host="two", source="", limit=SLOWLY, progress=CopyProgress()
    )
    await two.until(lambda: two.of("again").state == State.RUNNING and two.of("again").done)
    assert two.of("again").done >= SIZE // 2 - MEGABYTE
    await two.ends("again")
    two.assert_whole("one", "two")


# --- the rows and the command


@pytest.fixture
def model(db) -> ServedModel:
    for name in ("gpu1", "gpu2"):
        Host.objects.create(name=name)
    return ServedModel.objects.create(name="m", engine="vllm", path="/models/m")


@pytest.fixture
def controller(monkeypatch):
    """Return a function that takes what a controller notes, one each time that the command waits."""
    steps: list[CopyProgress] = []

    def wait(seconds: float) -> None:
        [one] = repository.open_copies()
        repository.note_copy(one.number, steps.pop(0))

    monkeypatch.setattr(copymodel.time, "sleep", wait)
    return steps.extend


def test_a_copy_is_requested_and_its_progress_shown(model, controller, capsys):
    controller([CopyProgress(state=State.RUNNING, done=5, total=10), CopyProgress(state=State.DONE, done=10, total=10)])
    assert call_command("copymodel", "m", "gpu2", "--from", "gpu1", "--limit", "2.5") == "/models/m"
    row = ModelCopy.objects.get()
    assert (row.model, row.host.name, row.source, row.limit, row.state) == (model, "gpu2", "gpu1", 2_500_000, "done")
    assert "100%" in capsys.readouterr().err


def test_a_copy_that_failed_is_requested_again(model, controller):
    failed = CopyProgress(state=State.FAILED, cause="no-room", detail="there is no room")
    controller([failed])
    with pytest.raises(CommandError, match="no room"):
        call_command("copymodel", "m", "gpu2")
    assert repository.open_copies() == []
    before = ModelCopy.objects.get().number
    call_command("copymodel", "m", "gpu2", "--no-wait")
    [again] = repository.open_copies()
    assert again.number != before
    assert again.progress == CopyProgress()
    repository.note_copy(before, failed)  # of the earlier request
    assert ModelCopy.objects.get().state == State.WAITING


def test_a_copy_that_goes_on_is_watched_and_not_begun_again(model):
    for _ in range(2):
        call_command("copymodel", "m", "gpu2", "--no-wait")
    number = ModelCopy.objects.get().number
    call_command("copymodel", "m", "gpu2", "--from", "/share", "--no-wait")
    assert ModelCopy.objects.get().number != number


def test_a_copy_is_given_up(model):
    call_command("copymodel", "m", "gpu2", "--no-wait")
    [one] = repository.open_copies()
    call_command("copymodel", "m", "gpu2", "--stop")
    repository.note_copy(one.number, CopyProgress(state=State.RUNNING))
    assert ModelCopy.objects.get().state == State.STOPPING
    repository.delete_copy(one.number)
    with pytest.raises(CommandError):
        call_command("copymodel", "m", "gpu2", "--stop")


@pytest.mark.parametrize(
    "arguments",
    [("x", "gpu2"), ("m", "gpu9"), ("m", "gpu2", "--from", "gpu9"), ("m", "gpu2", "--from", "gpu2")]
    + [("m", "gpu2", "--limit", limit) for limit in ("0.5", "-1", "x", "1e3")],
)
def test_what_cannot_be_copied_is_refused(model, arguments):
    with pytest.raises(CommandError):
        call_command("copymodel", *arguments)
    assert not ModelCopy.objects.exists()


def test_a_copy_whose_model_is_gone_is_gone(model):
    call_command("copymodel", "m", "gpu2", "--no-wait")
    model.delete()
    assert repository.open_copies() == []
