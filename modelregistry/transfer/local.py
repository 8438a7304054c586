"""The files of the machine on which this runs, as a `FileSurface`."""

import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelregistry.hostside.executor import Executor
from modelregistry.install import copying, model_import
from modelregistry.install.copying import CannotImport, CopyInterrupted, CopySource, FolderCopy, LocalSource, Progress
from modelregistry.transfer import download, model_folder
from modelregistry.transfer.checksums import Checksums, stamp_of
from modelregistry.transfer.download import RateLimit
from modelregistry.transfer.file_server import FileServer, ServedFiles
from modelregistry.transfer.model_folder import ModelFolder
from modelregistry.transfer.surface import FetchOrder, FetchPhase, FetchState, FileOffer, OfferedFile

log = logging.getLogger(__name__)

PORTS = range(6580, 6600)  # beside those of Ray's
THREADS = 4
STOPPED = "stopped"
# Seconds after which a fetch stops that no controller asks for: they do each second, and one that follows another goes
# on with it. Its model was deleted meanwhile, or nothing would know when it is complete.
UNWATCHED = 300.0
KEPT = 100  # fetches that are over, of which it is known how


@dataclass(frozen=True, slots=True, kw_only=True)
class FileConfig:
    """What is particular to a host. `models`: the folder of models' files; `state`: where checksums are kept.

    `address`: its own, as other hosts reach it. `make_server`, `make_client`: TLS with the cluster's certificates;
    None: there is no cluster.
    """

    models: Path
    state: Path
    address: str = ""
    make_server: Callable[[], ssl.SSLContext] | None = None
    make_client: Callable[[], ssl.SSLContext] | None = None
    ports: Sequence[int] = PORTS
    spare: int = copying.SPARE


class LocalFiles:
    """A FileSurface of this machine; what blocks runs in threads."""

    def __init__(self, config: FileConfig) -> None:
        self.config = config
        self.executor = Executor(THREADS, "files")
        self.checksums = Checksums(config.state / "checksums.json")
        self.server: FileServer | None = None
        self.serving = threading.Lock()
        self.fetches: dict[str, _Fetch] = {}

    async def close(self) -> None:
        """Stop what runs; fetches go on when they are ordered again."""
        for fetch in self.fetches.values():
            fetch.stopped.set()
        with self.serving:
            if self.server:
                self.server.offers.clear()
        self.checksums.close()
        self.executor.close()

    # --- Giving

    async def offer_files(self, copy: str, path: str) -> FileOffer:
        return await self.executor.run(self._offer, copy, path)

    def _offer(self, copy: str, path: str) -> FileOffer:
        try:
            place = ModelFolder.find(self.config.models, path)
            files = place.list_files()
            sums = place.read_known_sums(files)
            offered = [
                OfferedFile(
                    name=name,
                    size=at.stat().st_size,
                    stamp=stamp_of(at),
                    sha256=sums.get(name) or self.checksums.known(at),
                )
                for name, at in files.items()
            ]
            server, token = self._serve(copy, list(files.values()), place)
        except CannotImport as error:
            return FileOffer(code=error.code, detail=str(error))
        except OSError as error:
            return FileOffer(code="unreadable", detail=f"{error.filename or path}: {error.strerror or error}.")
        return FileOffer(url=server.url, token=token, files=offered)

    def _serve(self, copy: str, files: Sequence[Path], place: ModelFolder) -> tuple[FileServer, str]:
        served = ServedFiles(files, [self.config.models.resolve()])
        with self.serving:
            before = self.server.offers.get(copy) if self.server else None
            if before and list(before.files) == list(files):
                served = ServedFiles(files, before.places, before.token)
            if self.server is None or not self.server.add(copy, served):
                server = self.server = self._listen()
                server.add(copy, served)
                threading.Thread(target=server.serve, name="files", daemon=True).start()
            return self.server, served.token

    def _listen(self) -> FileServer:
        if self.config.make_server is None:
            raise CannotImport("Hosts give files to each other only in a cluster (createcluster).", code="no-cluster")
        fault: OSError | None = None
        for port in self.config.ports:
            try:
                return FileServer(self.config.address, port, self.config.make_server(), self.checksums)
            except OSError as error:
                fault = error
        sentence = f"Files cannot be given from {self.config.address}: {fault}."
        raise CannotImport(sentence, code="no-port")

    async def withdraw_offer(self, copy: str) -> None:
        with self.serving:
            if self.server:
                self.server.offers.pop(copy, None)

    # --- Taking

    async def fetch_files(self, order: FetchOrder) -> FetchState:
        fetch = self.fetches.get(order.copy)
        if fetch is None or fetch.state.phase is not FetchPhase.RUNNING:
            for copy in [one for one, each in self.fetches.items() if each.is_over][: -KEPT or None]:
                del self.fetches[copy]
            fetch = self.fetches[order.copy] = _Fetch(self.config, order)
            threading.Thread(target=fetch.run, name="fetch", daemon=True).start()
        fetch.asked_at = time.monotonic()
        return fetch.state

    async def read_fetch(self, copy: str) -> FetchState:
        fetch = self.fetches.get(copy)
        if fetch is None:
            return FetchState(phase=FetchPhase.UNKNOWN)
        fetch.asked_at = time.monotonic()
        return fetch.state

    async def stop_fetch(self, copy: str) -> None:
        if fetch := self.fetches.get(copy):
            fetch.stopped.set()

    async def drop_draft(self, path: str) -> None:
        def drop() -> None:
            try:
                place = ModelFolder.find(self.config.models, path)
            except CannotImport:  # nothing can have been brought there
                return
            place.drop_draft()

        await self.executor.run(drop)


class _Fetch:
    """One fetch, in a thread of its own. `state` is replaced, never changed."""

    def __init__(self, config: FileConfig, order: FetchOrder) -> None:
        self.config = config
        self.order = order
        self.state = FetchState(phase=FetchPhase.RUNNING)
        self.stopped = threading.Event()
        self.asked_at = time.monotonic()  # when a controller last asked for it
        self.limit = RateLimit(order.limit, self._wait)
        self.seen = 0

    @property
    def is_over(self) -> bool:
        return self.state.phase is not FetchPhase.RUNNING

    def run(self) -> None:
        """Fetch all of it."""
        began = time.monotonic()
        try:
            total = self._fetch()
        except CannotImport as error:
            self._fail(error.code, str(error))
        except Exception as error:
            log.exception("files of %s cannot be fetched", self.order.path)
            self._fail("failed", f"{type(error).__name__}: {error}"[:500])
        else:
            log.info("the files of %s are here after %.0f s", self.order.path, time.monotonic() - began)
            self.state = FetchState(phase=FetchPhase.DONE, done=total, total=total)

    def _fail(self, code: str, detail: str) -> None:
        before = self.state
        self.state = FetchState(
            phase=FetchPhase.FAILED, done=before.done, total=before.total, code=code, detail=detail[:1000]
        )

    def _fetch(self) -> int:
        place = ModelFolder.find(self.config.models, self.order.path)
        files = self._sources(place)
        sizes = {name: source.size for name, source in files.items()}
        total = sum(sizes.values())
        self.state = FetchState(phase=FetchPhase.RUNNING, total=total)
        if not place.has(sizes):
            with copying.drafting(place.draft_folder, place.draft_name) as draft:
                copy = FolderCopy(draft, files, self._report, piece=download.PIECE, spare=self.config.spare)
                place.put(draft, copy.run())
        return total

    def _sources(self, place: ModelFolder) -> Mapping[str, CopySource]:
        if self.order.directory:
            return self._directory_sources(place)
        offer = self.order.offer
        if offer is None or offer.code or self.config.make_client is None:
            raise CannotImport("There is no offer of another host.", code="bad-offer")
        model_folder.check_names(offer.files)
        if place.is_file and place.path.name not in {file.name for file in offer.files}:
            raise CannotImport(f"{place.path.name} was not offered.", code="bad-offer")
        return download.sources_of(offer, self.config.make_client(), self._wait)

    def _directory_sources(self, place: ModelFolder) -> Mapping[str, CopySource]:
        """Return the files of the model of the same name that this host has in another folder."""
        root = Path(self.order.directory)
        for at in (root, root / place.path.name, root / place.folder.name / place.path.name):
            if at.suffix == place.path.suffix and (at.is_file() if place.is_file else at.is_dir()):
                found = [one for one in model_import.find_models(at).models if one.path == at]
                if found:
                    files = model_import.files_of(found[0])
                    return {name: LocalSource(path, found[0].places) for name, path in files.items()}
        raise CannotImport(f"{root} on this host holds no {place.path.name}.", code="missing", path=root)

    def _report(self, progress: Progress) -> None:
        self.state = FetchState(phase=FetchPhase.RUNNING, done=progress.done, total=progress.total)
        self.limit.spend(min(progress.done - self.seen, download.PIECE))
        self.seen = progress.done
        if time.monotonic() - self.asked_at > UNWATCHED:
            self.stopped.set()
        if self.stopped.is_set():
            self._wait(0.0)

    def _wait(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise CopyInterrupted("It was stopped.", code=STOPPED)
