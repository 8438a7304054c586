"""The files of another host, by the messages that `hostside.remote` carries."""

from typing import Any

from modelregistry.hostside import remote
from modelregistry.hostside.remote import Channel, read_methods
from modelregistry.transfer.surface import FetchOrder, FetchState, FileOffer, FileSurface

FILE_METHODS = read_methods(FileSurface)
LIMITS = {"offer_files": 60.0, "drop_draft": 60.0}  # seconds: they look at 2,000 files, perhaps of a slow disk
USUAL = 10.0


class RemoteFiles:
    """A FileSurface behind a channel, which another one closes."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    async def _ask(self, name: str, *arguments: Any) -> Any:
        return await remote.ask(self.channel, FILE_METHODS, name, arguments, within=LIMITS.get(name, USUAL))

    async def offer_files(self, copy: str, path: str) -> FileOffer:
        found: FileOffer = await self._ask("offer_files", copy, path)
        return found

    async def withdraw_offer(self, copy: str) -> None:
        await self._ask("withdraw_offer", copy)

    async def fetch_files(self, order: FetchOrder) -> FetchState:
        found: FetchState = await self._ask("fetch_files", order)
        return found

    async def read_fetch(self, copy: str) -> FetchState:
        found: FetchState = await self._ask("read_fetch", copy)
        return found

    async def stop_fetch(self, copy: str) -> None:
        await self._ask("stop_fetch", copy)

    async def drop_draft(self, path: str) -> None:
        await self._ask("drop_draft", path)
